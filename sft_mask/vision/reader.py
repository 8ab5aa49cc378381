"""The turns of one row with images: its conversation, rendered and expanded as the processor did, on its ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.errors import DataError
from sft_mask.templates.align import (
    TextTurn,
    TurnPlaces,
    bounds_in_beginning,
    byte_positions,
    encode,
    fit_to_row,
    token_bounds,
    token_turns,
)
from sft_mask.templates.tracing.traced_str import TEMPLATE
from sft_mask.templates.turns import Reading, TextConversation
from sft_mask.vision.expansion import ExpandedText
from sft_mask.vision.layouts import Layout, LayoutCache, Look
from sft_mask.vision.media import MediaTokens, overlaps

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ints
    from sft_mask.core.spans import Turns
    from sft_mask.data.read.conversations import Conversation
    from sft_mask.templates.render import Rendered
    from sft_mask.templates.turns import ConversationAligner


@dataclass(frozen=True, slots=True)
class MediaPiece:
    """The tokens ``[start, end)`` of one image, video or sound, its frame included."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What was read of one row.

    Attributes:
        turns: those of the assistant, and those of other roles that were asked for.
        reading: the rendered conversation too; ``None`` if a known layout told the turns.
        sources: ``(tokens,)`` message whose words each token holds, or ``TEMPLATE``; ``None`` if not asked for.
        pieces: images in order, as far as they were recorded and not cut off.
    """

    turns: Turns
    reading: Reading | None
    sources: Ints | None
    pieces: tuple[MediaPiece, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """An expanded text on the ids of a row: bytes ``[first, last)`` of each token, from token ``low`` on."""

    text: str
    raw: bytes
    first: Ints
    last: Ints
    low: int


class RowReader:
    """Reads rows of one processor.

    Args:
        aligner: finds turns in rendered text.
        media: the processor's.
        quotable: texts that show that a message quotes a marker.
    """

    def __init__(self, aligner: ConversationAligner, media: MediaTokens, quotable: Collection[str] = ()) -> None:
        self.aligner = aligner
        self.media = media
        self.layouts = LayoutCache(quotable, aligner.prefilled)

    def read_known(self, look: Look, ids: Ints, expanded: ExpandedText) -> ReadRow | None:
        """The turns of a whole row whose layout earlier rows have shown; ``None`` for any other row."""
        layout = self.layouts.trusted(look)
        if layout is None:
            return None
        text, places, placeholders = layout.fill(look.texts)
        given = np.array([(each.start, each.end) for each in expanded.expansions], np.int64).reshape(-1, 2)
        if expanded.before != text or not np.array_equal(given, placeholders):
            return None
        if self.layouts.prefills(text, places[0]):
            return None
        placed = self._placed(expanded.after, ids)
        if placed is None or not len(placed.last) or placed.raw[int(placed.last[-1]) :].strip():
            return None
        at = byte_positions(expanded.after, expanded.places(places))
        turns = TurnPlaces(at, layout.message).in_beginning(len(placed.raw), placed.first, placed.last)
        turns = turns.moved(placed.low) if placed.low else turns
        return ReadRow(turns, None, None, _pieces(expanded, layout.frame, placed))

    def read(
        self,
        conversation: Conversation,
        ids: Ints,
        expanded: ExpandedText | None,
        *,
        others: Collection[int] = (),
        tool_calls: bool = True,
        with_sources: bool = False,
        look: Look | None = None,
    ) -> ReadRow:
        """The turns of a row.

        Args:
            conversation: its messages, in parts.
            ids: ``(tokens,)`` its ids, without padding; all of it, or cut off at the end.
            expanded: what the processor made of its text; ``None`` if that was not recorded.
            others: messages of other roles whose content counts as a turn too.
            tool_calls: whether tool calls belong to the assistant's turns.
            with_sources: whether to find the message of each token, which only explanations need.
            look: of the conversation, if others that look like it may be read by what this one shows.

        Raises:
            DataError: the row is not what the template and the processor make of the messages, or a message holds a
                placeholder.
        """
        read = self.aligner.conversation(conversation.messages)
        rendered = read.rendered
        self.media.refuse_typed(rendered)
        spans = read.spans(others, tool_calls=tool_calls)
        own = ExpandedText.unchanged(rendered.text) if expanded is None else expanded.within(rendered.text)
        placed = self._placed(own.after, ids)
        if placed is None:
            return self._around_one_expansion(read, spans, ids, recorded=expanded is not None)
        reading = self._reading(read, own, own.turns(spans), placed)
        frames = self.media.frames(rendered, own)
        if look is not None:
            self.layouts.learn(look, Layout.of(look, read, own, frames))
        pieces = _pieces(own, np.array(frames, np.int64).reshape(-1, 2), placed)
        sources = _sources(rendered, own, placed, len(ids)) if with_sources else None
        return ReadRow(reading.turns, reading, sources, pieces)

    def _reading(
        self, read: TextConversation, own: ExpandedText, spans: Sequence[TextTurn], placed: _Placed
    ) -> Reading:
        """The turns in the row; of one that is cut off, also how far it goes, and the turns that it lacks."""
        text, raw = placed.text, placed.raw
        turns = TurnPlaces.of(text, spans).in_beginning(len(raw), placed.first, placed.last).moved(placed.low)
        end = int(placed.last[-1]) if len(placed.last) else 0
        if not raw[end:].strip():
            return Reading(turns, read)
        _, first, last = encode(text, self.aligner.vocabulary, self.aligner.tokenizer)
        every = token_turns(text, spans, first, last)
        outside = every.select(np.append(first, len(raw))[every.start] >= end)
        held = own.place_in_template(len(raw[:end].decode(errors="ignore")))
        return Reading(turns, read, (0, held), outside)

    def _placed(self, text: str, ids: Ints) -> _Placed | None:
        """The text on the ids; ``None`` if these are not its tokens."""
        vocabulary, tokenizer = self.aligner.vocabulary, self.aligner.tokenizer
        raw = text.encode()
        for low, high in self.aligner.frame.places(ids):
            found = bounds_in_beginning(raw, ids[low:high], vocabulary)
            if found is not None and not (low and not high - low):
                return _Placed(text, raw, *found, low)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids.tolist() != whole[: len(ids)]:
            return None
        first, last = token_bounds(text, whole, vocabulary, tokenizer)
        return _Placed(text, raw, first[: len(ids)], last[: len(ids)], 0)

    def _around_one_expansion(
        self, read: TextConversation, spans: list[TextTurn], ids: Ints, *, recorded: bool
    ) -> ReadRow:
        """A row whose expansion was not recorded: it may differ from the rendered text in one stretch without a turn.

        Raises:
            DataError: it differs elsewhere.
        """
        aligner, rendered = self.aligner, read.rendered
        whole = np.asarray(aligner.tokenizer(rendered.text, add_special_tokens=False)["input_ids"], np.int64)
        first, last = token_bounds(rendered.text, whole.tolist(), aligner.vocabulary, aligner.tokenizer)
        turns = TurnPlaces.of(rendered.text, spans).in_beginning(len(rendered.text.encode()), first, last)
        try:
            placed = fit_to_row(turns, whole, ids, aligner.opens_turn, aligner.frame)
        except DataError as error:
            if recorded:
                why = "they are not those of the text that the processor expanded"
            else:
                why = (
                    "the processor does not say what it puts in place of images (it does not call "
                    "get_text_with_replacements, or another processor than this one was used), and they differ from "
                    "the rendered text in more than one place"
                )
            raise DataError(f"the ids of the row cannot be traced to its messages: {why}. {error}") from error
        return ReadRow(placed, Reading(placed, read), None, ())


def _pieces(own: ExpandedText, frames: Ints, placed: _Placed) -> tuple[MediaPiece, ...]:
    """The tokens of each image and of its frame; a token that also holds words next to it counts."""
    if not own.expansions:
        return ()
    places = np.array([(each.new_start, each.new_end) for each in own.expansions], np.int64)
    edges = byte_positions(placed.text, places + frames * np.array([-1, 1]))
    first = np.searchsorted(placed.last, edges[:, 0], side="right") + placed.low
    end = np.searchsorted(placed.first, edges[:, 1], side="left") + placed.low
    bounds = zip(own.expansions, first.tolist(), end.tolist(), strict=True)
    return tuple(MediaPiece(each.kind, low, high) for each, low, high in bounds if high > low)


def _sources(rendered: Rendered, own: ExpandedText, placed: _Placed, size: int) -> Ints:
    """The message of each token: of its last byte that is not the template's."""
    message = rendered.message_of()
    edges = np.flatnonzero(np.diff(message, prepend=TEMPLATE, append=TEMPLATE))
    places = own.places(edges.tolist())
    if own.expansions:  # what follows an image begins where the image ends
        begins = {each.start: each.new_start for each in own.expansions}
        places = np.array([begins.get(edge, place) for edge, place in zip(edges.tolist(), places, strict=True)])
    at = byte_positions(placed.text, places)
    sources = np.full(size, TEMPLATE, np.int64)
    for low, high, edge in zip(at, at[1:], edges, strict=False):
        if edge < len(message) and message[edge] >= 0:
            tokens = np.flatnonzero(overlaps(placed.first, placed.last, int(low), int(high))) + placed.low
            sources[tokens] = message[edge]
    return sources
