"""The exact road: a conversation and its chat template to the turns of the model, by character offsets.

The conversation is rendered once with an owner per character (:mod:`sft_mask.templates.render`). Headers and stops are
then looked for in the template's own words only, so nothing that a message quotes can open or close a turn. What
markers cannot know is read off the owners: an answer without a header of its own (after a tool result), somebody else's
words inside the model's turn (a tool result in Gemma 4), several parts of one answer (gpt-oss).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import MODEL_ROLES
from sft_mask.core.arrays import Bools, Ids, Ints, common_prefix_length
from sft_mask.core.markers import Kind, Markers
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError
from sft_mask.templates.align import RowFrame, TextTurn, fit_to_row, token_bounds, token_turns
from sft_mask.templates.chat_template import EMPTY_BLOCK
from sft_mask.templates.other_turns import turns_of_others, without_tool_calls

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered


Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Mark:
    start: int
    end: int
    kind: Kind
    text: str
    stops: bool = False


class LostWordsError(DataError):
    """The chat template writes none of the words of an answer."""


class _Text:
    """A rendered conversation with what the template wrote in it marked up."""

    def __init__(self, rendered: Rendered, marks: list[_Mark]) -> None:
        self.text = rendered.text
        self.message = rendered.message_of()
        model = np.array([role in MODEL_ROLES for role in rendered.roles] + [False, False])
        self.is_model = model[self.message]
        self.is_foreign = ~self.is_model & (self.message != -1)
        self.headers = [mark for mark in marks if mark.kind is not Kind.EOT]
        self.stops = [mark for mark in marks if mark.kind is Kind.EOT]
        self.model_at = np.flatnonzero(self.is_model)
        self.foreign_at = np.flatnonzero(self.is_foreign)

    def own_between(self, start: int, end: int) -> Ints:
        """Characters of the model's messages in a range."""
        low, high = np.searchsorted(self.model_at, [start, end])
        return self.model_at[low:high]

    def foreign_after(self, start: int) -> int:
        """The next character of somebody else."""
        index = int(np.searchsorted(self.foreign_at, start))
        return int(self.foreign_at[index]) if index < len(self.foreign_at) else len(self.text)

    def next_message_after(self, start: int) -> int:
        """The first character of the model's message after the one that is spoken from ``start`` on."""
        own = self.own_between(start, len(self.text))
        other = np.flatnonzero(self.message[own] != self.message[own[0]]) if len(own) else own
        return int(own[other[0]]) if len(other) else len(self.text)


class ExactRoad:
    """Turns of conversations under one chat template.

    Args:
        template: the template that the trainer rendered with.
        markers: its markers, detected or given.
        vocabulary: of the tokenizer.
        tokenizer: the tokenizer itself.
    """

    def __init__(self, template: ChatTemplate, markers: Markers, vocabulary: Vocabulary, tokenizer: Any) -> None:
        self.template = template
        self.markers = markers
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self._kinds = self._marker_kinds()
        self._prefilled = [text for text in markers.response[1:] if isinstance(text, str)]
        texts = sorted(self._kinds, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(text) for text in texts)) if texts else None

    def _marker_kinds(self) -> dict[str, tuple[Kind, bool]]:
        kinds: dict[str, tuple[Kind, bool]] = {}
        response = [text for text in self.markers.response if isinstance(text, str)]
        lead = self.template.first_special(response[0].lstrip()) if response else None
        if lead is not None and lead[0] == 0 and response[0].count(lead[1]) == 1:  # else it opens more than turns
            kinds[lead[1]] = (Kind.OTHER, False)
        for text in self.markers.eots:
            if isinstance(text, str):
                kinds[text] = (Kind.EOT, False)
        for text in self.markers.headers:
            if isinstance(text, str):
                kinds[text] = (Kind.OTHER, text in self.markers.eot_headers)
        for text in response:
            kinds[text] = (Kind.RESPONSE, False)
        return kinds

    # text

    def text_turns(
        self,
        messages: Sequence[Message],
        rendered: Rendered,
        *,
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
        others: Collection[int] = (),
        tool_calls: bool = True,
    ) -> list[TextTurn]:
        """The turns of the model in a rendered conversation, and of the messages ``others``, in order."""
        text = _Text(rendered, self._marks(rendered))

        def again(count: int, prompt: bool) -> str:
            return self._render_prefix(messages[:count], prompt, tools, variables)

        turns = [turn for index in range(len(text.headers)) for turn in self._header_turns(text, index, again)]
        turns.extend(self._headerless_turns(text, turns, rendered.roles, again))
        turns.sort(key=lambda turn: turn.start)
        numbered = _number_empty(_merge(turns, text), rendered.roles)
        numbered = [turn for turn in numbered if turn.end > turn.start or turn.message >= 0]
        kept = numbered if tool_calls else list(without_tool_calls(rendered, numbered))
        stops = [(mark.start, mark.end) for mark in text.stops]
        return sorted([*kept, *turns_of_others(rendered, others, stops)], key=lambda turn: turn.start)

    def _render_prefix(self, messages: Sequence[Message], prompt: bool, tools: Any, variables: Any) -> str:
        if not messages:
            return ""
        try:
            return self.template.render(messages, tools=tools, add_generation_prompt=prompt, variables=variables).text
        except DataError:
            return ""

    def _marks(self, rendered: Rendered) -> list[_Mark]:
        if self._pattern is None:
            return []
        characters = np.array(list(rendered.text), dtype=object) if rendered.text else np.zeros(0, object)
        characters[rendered.owner != -1] = "\0"
        own_words = "".join(characters.tolist())
        marks = []
        for found in self._pattern.finditer(own_words):
            kind, stops = self._kinds[found.group()]
            marks.append(_Mark(found.start(), found.end(), kind, found.group(), stops))
        return marks

    def _header_turns(self, text: _Text, index: int, again: Any) -> list[TextTurn]:
        """The turn that a response header opens, and those that go on in it.

        Those come after somebody else's words, or are the next message's, for which the template wrote no header.
        """
        header = text.headers[index]
        if header.kind is not Kind.RESPONSE:
            return []
        closer = text.headers[index + 1] if index + 1 < len(text.headers) else None
        bound = closer.start if closer is not None else len(text.text)
        turns: list[TextTurn] = []
        begins, start = header.start, self._after_empty_block(text, header.end, bound)
        start = self._after_prefill(text, header, start, again)
        while True:
            ends = min(text.foreign_after(start), text.next_message_after(start), bound)
            turn = self._turn(text, (begins, start), ends, closer if ends == bound else None, again)
            turns.extend([turn] if turn is not None else [])
            own = text.own_between(ends, bound)
            if not len(own):
                return turns
            resumed = self._resume(text, int(own[0]), again)
            begins = start = resumed if resumed > ends else int(own[0])

    @staticmethod
    def _after_empty_block(text: _Text, start: int, bound: int) -> int:
        """Skips an empty reasoning block that the template put in front of an answer."""
        block = EMPTY_BLOCK.match(text.text, start, bound)
        if block is None or len(text.own_between(start, block.end())):
            return start
        return block.end()

    def _after_prefill(self, text: _Text, header: _Mark, start: int, again: Any) -> int:
        """Skips words of the answer's beginning that its generation prompt holds already (a typed ``<think>``)."""
        longer = [answer for answer in self._prefilled if text.text.startswith(answer, header.start)]
        own = text.own_between(start, start + 1)
        if not len(own) or not any(header.start + len(answer) > start for answer in longer):
            return start
        prompt = again(int(text.message[own[0]]), True)
        return max(start, len(prompt)) if text.text.startswith(prompt) else start

    @staticmethod
    def _resume(text: _Text, first_own: int, again: Any) -> int:
        """Where the model speaks again without a header: where the generation prompt of its message ends."""
        prompt = again(int(text.message[first_own]), True)
        if prompt and len(prompt) <= first_own and text.text.startswith(prompt):
            return len(prompt)
        return first_own

    def _turn(
        self, text: _Text, where: tuple[int, int], bound: int, closer: _Mark | None, again: Any
    ) -> TextTurn | None:
        header, start = where
        own = text.own_between(start, bound)
        said = int(own[-1]) + 1 if len(own) else start
        owners = (int(text.message[own[0]]), int(text.message[own[-1]])) if len(own) else (-1, -1)
        for mark in text.stops:
            if said <= mark.start < bound:
                return TextTurn(header, start, mark.end, mark.start, *owners)
        if closer is not None and closer.stops and closer.start >= start:
            opener = self.template.first_special(closer.text)
            length = opener[0] + len(opener[1]) if opener is not None else len(closer.text)
            return TextTurn(header, start, closer.start + length, closer.start, *owners)
        if closer is None and bound < len(text.text) and len(own):
            said = self._sampled_until(text, said, bound, again(owners[1] + 1, False))
        end = said + len(text.text[said:bound].rstrip()) if closer is not None or bound == len(text.text) else said
        is_open = closer is None and bound == len(text.text)  # an empty answer that only its row can end
        return TextTurn(header, start, max(end, start), max(end, start), *owners) if end > start or is_open else None

    def _sampled_until(self, text: _Text, said: int, bound: int, alone: str) -> int:
        """How far the template's words after an answer stay the same when nothing follows it; whole tokens only."""
        shared = min(common_prefix_length(text.text, alone), bound)
        reached = said
        position = said
        while position < shared:
            found = self.template.first_special(text.text[position:shared])
            if found is None:
                break
            position += found[0] + len(found[1])
            reached = position
        return reached

    def _headerless_turns(
        self, text: _Text, turns: Sequence[TextTurn], roles: Sequence[str], again: Any
    ) -> list[TextTurn]:
        """Turns of messages whose words stand in no turn yet: the template wrote no header for them."""
        inside = np.zeros(len(text.text) + 1, np.bool_)
        for turn in turns:
            inside[turn.header : turn.end] = True
        found = []
        for index in range(len(roles)):
            own = np.flatnonzero((text.message == index) & text.is_model)
            first = _first_unheard(text.text, own, inside)
            if first is None:
                continue
            heard = np.any(inside[own])
            start = first if heard else self._resume(text, first, again)
            last = int(own[-1]) + 1
            closer = next((mark for mark in text.headers if mark.start >= last), None)
            bound = min(text.foreign_after(last - 1), closer.start if closer is not None else len(text.text))
            ends = closer if closer is not None and bound == closer.start else None
            made = self._turn(text, (start, start), bound, ends, again)
            found.extend([made] if made is not None else [])
        return found

    # tokens

    def turns(
        self,
        messages: Sequence[Message],
        row: Ids,
        *,
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
        others: Collection[int] = (),
        tool_calls: bool = True,
    ) -> Turns:
        """The turns of the model in a tokenized row.

        Args:
            messages: the conversation of the row.
            row: ``(tokens,)`` its ids, whole or truncated at one end.
            tools: tool definitions, as the template was given them.
            variables: further variables of the template.
            others: messages that are not the model's, but whose words count as turns.
            tool_calls: whether tool calls belong to the model's turns.

        Raises:
            DataError: the template refuses the conversation, or the row is not what the template renders.
            LostWordsError: the template writes none of the words of an answer.
        """
        rendered = self.template.render(messages, tools=tools, variables=variables)
        spans = self.text_turns(
            messages, rendered, tools=tools, variables=variables, others=others, tool_calls=tool_calls
        )
        _refuse_lost_words(messages, rendered, spans)
        whole = np.asarray(self.tokenizer(rendered.text, add_special_tokens=False)["input_ids"], np.int64)
        first, last = token_bounds(rendered.text, whole.tolist(), self.vocabulary, self.tokenizer)
        found = token_turns(rendered.text, spans, first, last)
        return fit_to_row(found, whole, np.asarray(row, np.int64), self._opens_turn, self.frame)

    @cached_property
    def frame(self) -> RowFrame:
        """What a row may hold around a conversation: the tokenizer's own BOS and EOS, and the EOS of a trainer."""
        before, after = _added_around(self.tokenizer)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        leads = dict.fromkeys((before, () if bos is None else (int(bos),)))
        ends = () if eos is None else (int(eos),)
        tails = dict.fromkeys((ends, after, ends + after))
        return RowFrame(tuple(filter(None, leads)), tuple(filter(None, tails)), self._is_blank)

    def _is_blank(self, ids: Ints) -> bool:
        return not b"".join(self.vocabulary.piece(token) for token in ids.tolist()).strip()

    def _opens_turn(self, ids: Ints) -> bool:
        """Whether ids hold a response header."""
        text = self.vocabulary.text(ids.tolist())
        return any(header.strip() in text for header in self.markers.response if isinstance(header, str))


def _refuse_lost_words(messages: Sequence[Message], rendered: Rendered, turns: Sequence[TextTurn]) -> None:
    """Refuses an answer of which the template wrote nothing: its turn would train a bare stop.

    Raises:
        LostWordsError: a message of the model has words, and its turn has none of them.
    """
    written = set(np.unique(rendered.message_of()).tolist())
    for index in (turn.message for turn in turns if turn.message >= 0 and turn.message not in written):
        content = messages[index].get("content")
        if _has_words(content):
            kind = "a list of parts" if isinstance(content, list) else "text"
            raise LostWordsError(
                f"The chat template writes none of the words of message {index} ({rendered.roles[index]}), whose "
                f"content is {kind}: {content!r:.80}. Its turn would train nothing but a stop. Give the content as "
                f"{'text' if isinstance(content, list) else 'this template reads it'}, or a template that writes it "
                "as chat_template=."
            )


def _has_words(content: Any) -> bool:
    """Whether a content holds any text that is not whitespace."""
    if isinstance(content, list):
        return any(_has_words(part.get("text")) for part in content if isinstance(part, Mapping))
    return isinstance(content, str) and bool(content.strip())


def _added_around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts in front of a text and behind it, unless it is told not to."""
    bare, full = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
    ends = next((at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare), len(full))
    return tuple(full[:ends]), tuple(full[ends + len(bare) :])


def _first_unheard(text: str, own: Ints, inside: Bools) -> int | None:
    """The first of a message's characters that stand in no turn; a name that a result repeats from its call is none."""
    heard = "".join(text[at] for at in own[inside[own]].tolist())
    outside = own[~inside[own]]
    for run in np.split(outside, np.flatnonzero(np.diff(outside) > 1) + 1):
        if len(run) and text[run[0] : run[-1] + 1] not in heard:
            return int(run[0])
    return None


def _merge(turns: Sequence[TextTurn], text: _Text) -> list[TextTurn]:
    """Joins parts of one message that follow each other: between them the model goes on by itself (gpt-oss)."""
    merged: list[TextTurn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last is not None and last.message == turn.first_message >= 0 and text.foreign_after(last.end) >= turn.start:
            merged[-1] = TextTurn(last.header, last.start, turn.end, turn.eot_start, last.first_message, turn.message)
        else:
            merged.append(turn)
    return merged


def _number_empty(turns: list[TextTurn], roles: Sequence[str]) -> list[TextTurn]:
    """Gives empty answers the message that stands between their neighbours'."""
    numbered: list[TextTurn] = []
    previous = -1
    for turn in turns:
        message = turn.message
        if message < 0:
            message = next((index for index in range(previous + 1, len(roles)) if roles[index] in MODEL_ROLES), -1)
        numbered.append(TextTurn(turn.header, turn.start, turn.end, turn.eot_start, turn.first_message, message))
        previous = max(previous, message)
    return numbered
