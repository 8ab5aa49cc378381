"""The turns of a conversation by its messages: its chat template renders them, and each character tells its source.

Headers and end-of-turn tokens count only in text that the template itself wrote (:mod:`sft_mask.templates.render`), so
nothing that a message quotes can open or end a turn. What markers cannot know is read from the sources: an answer
without a header of its own (after a tool result), a tool result inside the assistant's turn (Gemma 4), an answer in
several parts (gpt-oss).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.arrays import Ids, Ints
from sft_mask.core.markers import Markers
from sft_mask.core.spans import Turns
from sft_mask.templates.align import RowFrame, TextTurn, encode, fit_to_row, part_in_row, token_turns
from sft_mask.templates.fields import WrittenFields
from sft_mask.templates.other_turns import turns_of_others, without_tool_calls
from sft_mask.templates.turn_reader import TurnReader, WrittenMarkers

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.prompts import Prompt
    from sft_mask.templates.render import Rendered


Message = Mapping[str, object]


@dataclass(frozen=True)
class TextConversation:
    """A rendered conversation.

    Attributes:
        rendered: its text.
        turns: the assistant's turns in it, in order, in characters.
        eots: where the template wrote end-of-turn tokens.
        follows_from_places: whether other words in the same places would have the same turns; see :class:`TurnReader`.
    """

    rendered: Rendered
    turns: tuple[TextTurn, ...]
    eots: tuple[tuple[int, int], ...]
    follows_from_places: bool = False

    def spans(self, others: Collection[int] = (), *, tool_calls: bool = True) -> list[TextTurn]:
        """The turns, and those of the messages ``others``, in order; without their tool calls if asked for."""
        kept = self.turns if tool_calls else without_tool_calls(self.rendered, self.turns)
        added = turns_of_others(self.rendered, others, self.eots)
        return sorted([*kept, *added], key=lambda turn: turn.start)

    @cached_property
    def written(self) -> WrittenFields:
        """What the text holds of each field of the messages."""
        return WrittenFields(self.rendered)

    def turn_of(self, message: int) -> TextTurn | None:
        """The turn that holds the words of a message."""
        return next((turn for turn in self.turns if turn.first_message <= message <= turn.message), None)


@dataclass(frozen=True, slots=True)
class Reading:
    """A conversation, read in the row that holds all of it or a part.

    Attributes:
        turns: the turns in the row.
        conversation: all of it.
        part: the first character of the text that is in the row, and one past the last; ``None`` for all.
        outside: the turns of which the row holds nothing, in tokens of the whole conversation.
    """

    turns: Turns
    conversation: TextConversation
    part: tuple[int, int] | None = None
    outside: Turns = field(default_factory=Turns.empty)


class ConversationAligner:
    """Finds the turns of conversations under one chat template, in characters and in tokens.

    Args:
        template: the template that the trainer rendered with.
        markers: its markers, detected or given.
        vocabulary: of the tokenizer.
        tokenizer: the tokenizer itself.
        train_empty_reasoning: whether an empty reasoning block is trained although a generation prompt holds it.
    """

    def __init__(
        self,
        template: ChatTemplate,
        markers: Markers,
        vocabulary: Vocabulary,
        tokenizer: Any,
        *,
        train_empty_reasoning: bool = False,
    ) -> None:
        self.template = template
        self.markers = markers
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self._written = WrittenMarkers(template, markers, train_empty_reasoning=train_empty_reasoning)

    @property
    def prefilled(self) -> Sequence[str]:
        """Longer forms of the response header, which hold the beginning of an answer."""
        return self._written.prefilled

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Every form of the template's generation prompt."""
        return self._written.prompts

    def conversation(
        self, messages: Sequence[Message], tools: object = None, variables: Mapping[str, object] | None = None
    ) -> TextConversation:
        """The rendered conversation and the assistant's turns in it, in characters.

        Raises:
            DataError: the template refuses the conversation.
        """
        rendered = self.template.render(messages, tools=tools, variables=variables)
        reader = TurnReader(self._written, messages, rendered, tools, variables)
        eots = tuple((mark.start, mark.end) for mark in reader.eots)
        turns = tuple(reader.turns())
        return TextConversation(rendered, turns, eots, reader.follows_from_places)

    def turns(self, messages: Sequence[Message], row: Ids, **how: Any) -> Turns:
        """The assistant's turns in a tokenized row; see :meth:`read`."""
        return self.read(messages, row, **how).turns

    def read(
        self,
        messages: Sequence[Message],
        row: Ids,
        *,
        tools: object = None,
        variables: Mapping[str, object] | None = None,
        others: Collection[int] = (),
        tool_calls: bool = True,
    ) -> Reading:
        """The assistant's turns in a tokenized row, and how much of the conversation the row holds.

        Args:
            messages: the conversation of the row.
            row: ``(tokens,)`` its ids, whole or truncated at one end.
            tools: tool definitions, as the template was given them.
            variables: further variables of the template.
            others: messages of other roles whose content counts as a turn too.
            tool_calls: whether tool calls belong to the assistant's turns.

        Raises:
            DataError: the template refuses the conversation, or the row is not what the template renders.
        """
        conversation = self.conversation(messages, tools, variables)
        rendered = conversation.rendered
        spans = conversation.spans(others, tool_calls=tool_calls)
        whole, first, last = encode(rendered.text, self.vocabulary, self.tokenizer)
        found, ids = token_turns(rendered.text, spans, first, last), np.asarray(row, np.int64)
        turns = fit_to_row(found, whole, ids, self.opens_turn, self.frame)
        low, high = part_in_row(whole, ids, self.frame)
        if (low, high) == (0, len(whole)):
            return Reading(turns, conversation)
        outside = found.select((found.end <= low) | (found.start >= high))
        raw = rendered.text.encode()
        cut = (len(raw[: first[low]].decode(errors="ignore")), len(raw[: last[high - 1]].decode(errors="ignore")))
        return Reading(turns, conversation, cut, outside)

    @cached_property
    def frame(self) -> RowFrame:
        """What a row may hold around a conversation: the tokenizer's own BOS and EOS, the EOS of a trainer, and the
        beginning of a next message's header, where that ends an answer.
        """
        before, after = _added_around(self.tokenizer)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        leads = dict.fromkeys((before, () if bos is None else (int(bos),)))
        ends = () if eos is None else (int(eos),)
        headers = [text for text in self.markers.eot_headers if isinstance(text, str)]
        leads_of = [self.template.lead(text) for text in headers]
        next_headers = [tuple(self.tokenizer(lead, add_special_tokens=False)["input_ids"]) for lead in leads_of if lead]
        tails = dict.fromkeys((ends, after, ends + after, *next_headers))
        return RowFrame(tuple(filter(None, leads)), tuple(filter(None, tails)), self._is_whitespace)

    def _is_whitespace(self, ids: Ints) -> bool:
        return not b"".join(self.vocabulary.token_bytes(token) for token in ids.tolist()).strip()

    def opens_turn(self, ids: Ints) -> bool:
        """Whether ids hold a response header."""
        text = self.vocabulary.text(ids.tolist())
        return any(header.strip() in text for header in self.markers.response if isinstance(header, str))


def _added_around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer adds before and after a text by default."""
    bare, full = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
    ends = next((at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare), len(full))
    return tuple(full[:ends]), tuple(full[ends + len(bare) :])
