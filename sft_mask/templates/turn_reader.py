"""The assistant's turns in a rendered conversation, in characters: what opens each, and what ends it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, REASONING
from sft_mask.core.arrays import Bools, Ints, common_prefix_length
from sft_mask.core.patterns import Kind
from sft_mask.errors import DataError
from sft_mask.templates.align import TextTurn
from sft_mask.templates.chat_template import EMPTY_BLOCK_AT_END, TAG
from sft_mask.templates.probes import prompts_after
from sft_mask.templates.tracing.traced_str import TEMPLATE

if TYPE_CHECKING:
    from sft_mask.core.markers import Markers
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.prompts import Arguments, Prompt
    from sft_mask.templates.render import Rendered

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Mark:
    """A marker that the template wrote, in characters; ``ends_turn``: its first token ends the turn before it."""

    start: int
    end: int
    kind: Kind
    text: str
    ends_turn: bool = False


class WrittenMarkers:
    """The markers of a chat template, to be found in what it wrote.

    Args:
        template: renders conversations.
        markers: its markers, detected or given.
        train_empty_reasoning: whether an empty reasoning block is trained although a generation prompt holds it.
    """

    def __init__(self, template: ChatTemplate, markers: Markers, *, train_empty_reasoning: bool = False) -> None:
        self.template = template
        self._markers, self._train_empty_reasoning = markers, train_empty_reasoning
        self.core = str(markers.response[0]) if markers.response else ""
        self.eot_headers = frozenset(markers.eot_headers)
        self.prefilled = [text for text in markers.response[1:] if isinstance(text, str)]
        self._kinds = self._marker_kinds()
        texts = sorted(self._kinds, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(text) for text in texts) or r"(?!)")

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Every form of the generation prompt."""
        return prompts_after(self.template)

    @cached_property
    def with_empty_block(self) -> tuple[Prompt, ...]:
        """The generation prompts that end with an empty reasoning block."""
        prompts = () if self._train_empty_reasoning else self.prompts
        return tuple(prompt for prompt in prompts if EMPTY_BLOCK_AT_END.search(prompt.tail))

    def _marker_kinds(self) -> dict[str, tuple[Kind, bool]]:
        """Each marker's kind, and whether it is a header whose first token ends the turn before it."""
        kinds: dict[str, tuple[Kind, bool]] = {}
        response = [text for text in self._markers.response if isinstance(text, str)]
        lead = self.template.first_special(response[0].lstrip()) if response else None
        if lead is not None and lead[0] == 0 and response[0].count(lead[1]) == 1:  # else it opens more than turns
            kinds[lead[1]] = (Kind.OTHER, False)
        for text in self._markers.eots:
            if isinstance(text, str):
                kinds[text] = (Kind.EOT, False)
        for text in self._markers.headers:
            if isinstance(text, str):
                ends_turn = any(isinstance(eot, str) and text.startswith(eot) for eot in self._markers.eots)
                kinds[text] = (Kind.OTHER, ends_turn or text in self._markers.eot_headers)
        for number, text in enumerate(response):
            if not number or not EMPTY_BLOCK_AT_END.search(text):  # whether a prompt holds it depends on the prompt
                kinds[text] = (Kind.RESPONSE, False)
        return kinds

    def marks(self, rendered: Rendered) -> list[Mark]:
        """The markers in the template's own text, in order."""
        characters = np.frombuffer(rendered.text.encode("utf-32-le", "surrogatepass"), np.uint32).copy()
        characters[rendered.source != TEMPLATE] = 0
        own_text = characters.tobytes().decode("utf-32-le", "surrogatepass")
        found = ((match.span(), match.group()) for match in self._pattern.finditer(own_text))
        return [Mark(*span, self._kinds[text][0], text, self._kinds[text][1]) for span, text in found]


class TurnReader:
    """Reads the assistant's turns in one rendered conversation, in characters.

    Attributes:
        follows_from_places: whether the turns read so far follow from where the template's own text and each message
            are, whatever the messages say; not if a prefix had to be rendered or words to be compared.
    """

    def __init__(
        self,
        written: WrittenMarkers,
        messages: Sequence[Message],
        rendered: Rendered,
        tools: object,
        variables: Mapping[str, object] | None,
    ) -> None:
        self._written, self._template = written, written.template
        self._messages, self._tools, self._variables = messages, tools, variables
        self._prefixes: dict[tuple[int, bool, str], str] = {}
        self.follows_from_places = True
        self._roles = rendered.roles
        self._text = rendered.text
        self._source, self._origins = rendered.source, rendered.origins
        self._message = rendered.message_of()
        self._is_own = np.array([role in ASSISTANT_ROLES for role in rendered.roles] + [False, False])[self._message]
        self._own = np.flatnonzero(self._is_own)
        self._own_change = np.flatnonzero(np.diff(self._message[self._own])) + 1  # where another message's text begins
        self._foreign = np.flatnonzero(~self._is_own & (self._message != TEMPLATE))
        marks = written.marks(rendered)
        self._headers = [mark for mark in marks if mark.kind is not Kind.EOT]
        self.eots = [mark for mark in marks if mark.kind is Kind.EOT]

    def turns(self) -> list[TextTurn]:
        """All turns, in order."""
        turns = []
        for header, closer in zip(self._headers, [*self._headers[1:], None], strict=False):
            if header.kind is Kind.RESPONSE:
                turns.extend(self._turns_after(header, closer))
        turns.extend(self._turns_without_header(turns))
        turns.sort(key=lambda turn: turn.start)
        numbered = self._numbered(self._merged(turns))
        return [turn for turn in numbered if turn.end > turn.start or turn.message >= 0]

    # the text

    def _own_between(self, start: int, end: int) -> Ints:
        """Characters of the assistant's messages in a range."""
        low, high = np.searchsorted(self._own, [start, end])
        return self._own[low:high]

    def _foreign_after(self, start: int) -> int:
        """The next character of another role's message, or of the tools."""
        index = int(np.searchsorted(self._foreign, start))
        return int(self._foreign[index]) if index < len(self._foreign) else len(self._text)

    def _next_message_after(self, start: int) -> int:
        """The first character of the assistant's message after the one whose text comes next."""
        first = int(np.searchsorted(self._own, start))
        later = int(np.searchsorted(self._own_change, first, side="right"))
        return int(self._own[self._own_change[later]]) if later < len(self._own_change) else len(self._text)

    def _rendered_prefix(self, count: int, *, prompt: bool, arguments: Arguments | None = None) -> str:
        """The text of the first messages alone; empty where the template refuses them."""
        self.follows_from_places = False
        key = (count, prompt, repr(arguments or {}))
        if key not in self._prefixes:
            self._prefixes[key] = self._render_prefix(count, prompt=prompt, arguments=arguments)
        return self._prefixes[key]

    def _render_prefix(self, count: int, *, prompt: bool, arguments: Arguments | None) -> str:
        if not count:
            return ""
        try:
            return self._template.render(
                self._messages[:count],
                tools=self._tools,
                add_generation_prompt=prompt,
                variables={**(self._variables or {}), **(arguments or {})},
            ).text
        except DataError:
            return ""

    # turns with a header

    def _turns_after(self, header: Mark, closer: Mark | None) -> list[TextTurn]:
        """The turn that a response header opens, and those that go on before the next header ``closer``.

        These come after text of another role, or are the next message's, for which the template wrote no header.
        """
        bound = closer.start if closer is not None else len(self._text)
        turns: list[TextTurn] = []
        begins, start = header.start, self._after_prefill(header, self._after_empty_block(header, bound))
        while True:
            ends = min(self._foreign_after(start), self._next_message_after(start), bound)
            turn = self._turn(begins, start, ends, closer if ends == bound else None)
            if turn is not None and not self._is_next_result(header, turn):
                turns.append(turn)
            own = self._own_between(ends, bound)
            if not len(own):
                return turns
            resumed = self._resumed(int(own[0]))
            begins = start = resumed if resumed > ends else int(own[0])

    def _is_next_result(self, header: Mark, turn: TextTurn) -> bool:
        """Whether a turn is only the header of a second tool result, right after the first (parallel calls)."""
        is_next = self._text[turn.eot_start : turn.end] in self._written.eot_headers
        return is_next and turn.first_message < 0 and not header.text.startswith(self._written.core)

    def _after_empty_block(self, header: Mark, bound: int) -> int:
        """The position after an empty reasoning block that the template wrote after a header, if its prompt holds it.

        Otherwise the assistant has to sample it.
        """
        start = header.end
        own = self._own_between(start, bound)
        before = self._text[start : int(own[0]) if len(own) else bound]
        for prompt in self._written.with_empty_block:
            if TAG.findall(prompt.tail)[-1] not in before:  # the closing tag
                continue
            held = self._held_after(header, prompt)
            if 0 < len(held.rstrip()) <= len(before) and before.startswith(held.rstrip()):
                return min(bound, start + common_prefix_length(self._text[start:bound], held))
        return start

    def _held_after(self, header: Mark, prompt: Prompt) -> str:
        """What a generation prompt of the turn's message holds after the header; nothing if it is another question.

        An argument may also change what is before the header (GLM's ``/nothink``): such a prompt leads to this turn
        only if the text begins with it. Where the text renders earlier messages unlike any prompt, the prompt must not
        change them.
        """
        message = self._message_at(header.end)
        text = self._rendered_prefix(message, prompt=True, arguments=prompt.arguments)
        end = text.rfind(header.text) + len(header.text)
        if self._text.startswith(text[:end]) and end == header.end:
            return text[end:]
        plain = self._rendered_prefix(message, prompt=True)
        is_drifted = not self._text.startswith(plain[: plain.rfind(header.text) + len(header.text)])
        return text[end:] if is_drifted and plain.startswith(text[:end]) else ""

    def _message_at(self, start: int) -> int:
        """The message of the assistant whose turn begins at a position."""
        own = self._own_between(start, len(self._text))
        before = int(self._message[:start].max(initial=-1))
        roles = self._roles
        following = next((index for index in range(before + 1, len(roles)) if roles[index] in ASSISTANT_ROLES), None)
        if following is not None:
            return following
        return int(self._message[own[0]]) if len(own) else len(roles)

    def _after_prefill(self, header: Mark, start: int) -> int:
        """The position after the beginning of an answer that its generation prompt holds already (``<think>``)."""
        longer = [text for text in self._written.prefilled if self._text.startswith(text, header.start)]
        self.follows_from_places &= not longer
        own = self._own_between(start, start + 1)
        if not len(own) or not any(header.start + len(text) > start for text in longer):
            return start
        prompt = self._rendered_prefix(int(self._message[own[0]]), prompt=True)
        return max(start, len(prompt)) if self._text.startswith(prompt) else start

    def _resumed(self, first_own: int) -> int:
        """Where the assistant goes on without a header: where the generation prompt of its message ends."""
        prompt = self._rendered_prefix(int(self._message[first_own]), prompt=True)
        is_before = prompt and len(prompt) <= first_own and self._text.startswith(prompt)
        return len(prompt) if is_before else first_own

    def _turn(self, header: int, start: int, bound: int, closer: Mark | None) -> TextTurn | None:
        """The turn from ``start`` on, which ends at ``bound`` at the latest: the next header or other text."""
        own = self._own_between(start, bound)
        words_end = int(own[-1]) + 1 if len(own) else start
        first, message = (int(self._message[own[at]]) if len(own) else -1 for at in (0, -1))

        def ended(end: int, eot_start: int) -> TextTurn:
            return TextTurn(
                header=header, start=start, end=end, eot_start=eot_start, first_message=first, message=message
            )

        at = bisect_left(self.eots, words_end, key=lambda mark: mark.start)
        if at < len(self.eots) and self.eots[at].start < bound:
            return ended(self.eots[at].end, self.eots[at].start)
        if closer is not None and closer.ends_turn and closer.start >= start:
            opener = self._template.first_special(closer.text)
            length = opener[0] + len(opener[1]) if opener is not None else len(closer.text)
            return ended(closer.start + length, closer.start)
        is_last = closer is None and bound == len(self._text)
        if closer is None and not is_last and len(own):
            words_end = self._sampled_until(words_end, bound, message)
        end = words_end + len(self._text[words_end:bound].rstrip()) if closer is not None or is_last else words_end
        end = max(end, start)
        return ended(end, end) if end > start or is_last else None  # only its row can end a last, empty answer

    def _sampled_until(self, words_end: int, bound: int, message: int) -> int:
        """How far the template's text after an answer is the same when no message follows; whole tokens only."""
        alone = self._rendered_prefix(message + 1, prompt=False)
        shared = min(common_prefix_length(self._text, alone), bound)
        while words_end < shared:
            found = self._template.first_special(self._text[words_end:shared])
            if found is None:
                break
            words_end += found[0] + len(found[1])
        return words_end

    # turns without one

    def _turns_without_header(self, turns: Sequence[TextTurn]) -> list[TextTurn]:
        """Turns of messages whose text lies in no turn yet: the template wrote no header for them."""
        inside = np.zeros(len(self._text) + 1, np.bool_)
        for turn in turns:
            inside[turn.header : turn.end] = True
        if inside[self._own].all():
            return []
        self.follows_from_places = False
        found = []
        by_message = self._own[np.argsort(self._message[self._own], kind="stable")]
        bounds = np.searchsorted(self._message[by_message], np.arange(len(self._roles) + 1))
        for own in np.split(by_message, bounds[1:-1]):
            first = self._first_outside(own, inside)
            if first is None:
                continue
            start = first if np.any(inside[own]) else self._resumed(first)
            last = int(own[-1]) + 1
            closer = next((mark for mark in self._headers if mark.start >= last), None)
            bound = min(self._foreign_after(last - 1), closer.start if closer is not None else len(self._text))
            made = self._turn(start, start, bound, closer if closer is not None and bound == closer.start else None)
            found.extend([made] if made is not None else [])
        return found

    def _first_outside(self, own: Ints, inside: Bools) -> int | None:
        """The first of a message's characters outside all turns; a name that a tool result repeats does not count."""
        outside = own[~inside[own]]
        if not len(outside):
            return None
        covered = "".join(self._text[at] for at in own[inside[own]].tolist())
        for run in np.split(outside, np.flatnonzero(np.diff(outside) > 1) + 1):
            if len(run) and self._text[run[0] : run[-1] + 1] not in covered:
                return int(run[0])
        return None

    def _numbered(self, turns: Sequence[TextTurn]) -> list[TextTurn]:
        """The turns; an empty answer gets the next message of the assistant after its predecessor's.

        If that message cannot be meant, because other messages would be between them or there is none, it is the empty
        last part of its predecessor (gpt-oss: reasoning, and an empty content).
        """
        numbered: list[TextTurn] = []
        previous = -1
        for turn in turns:
            message = turn.message
            if message < 0:
                message = next((at for at in range(previous + 1, len(self._roles)) if self._is_answer(at)), -1)
                if numbered and message != previous + 1 and self._is_last_part(numbered[-1], turn):
                    numbered[-1] = replace(numbered[-1], end=turn.end, eot_start=turn.eot_start)
                    continue
            numbered.append(replace(turn, message=message))
            previous = max(previous, message)
        return numbered

    def _is_last_part(self, before: TextTurn, turn: TextTurn) -> bool:
        """Whether an empty turn ends the one before it, which holds nothing but reasoning."""
        sources = self._source[before.start : before.end]
        own = np.unique(sources[sources >= 0]).tolist()
        is_reasoning = bool(own) and all(self._origins[each].field == REASONING[0] for each in own)
        return is_reasoning and turn.end > turn.start and self._foreign_after(before.end) >= turn.start

    def _is_answer(self, message: int) -> bool:
        return self._roles[message] in ASSISTANT_ROLES

    def _merged(self, turns: Sequence[TextTurn]) -> list[TextTurn]:
        """The turns, with consecutive parts of one message joined: the assistant goes on by itself (gpt-oss)."""
        merged: list[TextTurn] = []
        for turn in turns:
            last = merged[-1] if merged else None
            if last and last.message == turn.first_message >= 0 and self._foreign_after(last.end) >= turn.start:
                merged[-1] = replace(last, end=turn.end, eot_start=turn.eot_start, message=turn.message)
            else:
                merged.append(turn)
        return merged
