"""What a chat template writes around the words of a conversation, learnt from the first ones of each shape.

Most conversations of a dataset differ in their words alone. What the template writes around them is then the same, and
so are the turns::

    words    "What is this?"                  "A cat."
    layout   <user><image>□<end><assistant>□<end>          □: words, as they are or without whitespace around them
    turn                              [      □<end>)

So after a few rows of one shape were rendered with the source of each character, and had the same layout, the next one
is put together from its layout and its words. It is read so only if that is, character by character, the text that the
processor was given; and not if its words could mean something to the template: a quoted marker, a tag in an answer.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.core.arrays import offsets_of
from sft_mask.data.accounting.signatures import ROWS_TO_VERIFY
from sft_mask.data.read.census import entries_of
from sft_mask.templates.align import PLACES
from sft_mask.templates.chat_template import TAG
from sft_mask.templates.tracing.traced_str import TEMPLATE
from sft_mask.vision.conversations import HERE

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ints
    from sft_mask.data.read.conversations import Conversation
    from sft_mask.templates.render import Rendered
    from sft_mask.templates.turns import TextConversation
    from sft_mask.vision.expansion import ExpandedText

_MOST_SHAPES = 4096
"""Shapes of conversations that are remembered."""


@dataclass(frozen=True, slots=True)
class Look:
    """A conversation, as its shape and the words in it.

    Attributes:
        shape: equal for conversations that differ in their words alone; it tells whether these have whitespace around.
        texts: the words, part by part.
        messages: the message of each.
        own: whether each is the assistant's.
    """

    shape: Hashable
    texts: tuple[str, ...]
    messages: tuple[int, ...]
    own: tuple[bool, ...]


def look_of(conversation: Conversation) -> Look | None:
    """The look of a conversation; ``None`` if it holds more than texts, places of images, and numbers.

    >>> from sft_mask.data.read.conversations import Conversation
    >>> parts = [{"type": "image", "image": "here"}, {"type": "text", "text": "What?"}]
    >>> look_of(Conversation([{"role": "user", "content": parts}])).texts
    ('What?',)
    """
    if conversation.tools is not None or conversation.variables is not None:
        return None
    texts: list[str] = []
    messages: list[int] = []
    own: list[bool] = []
    shape: list[Hashable] = []
    for index, message in enumerate(conversation.messages):
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or type(content) is not list:
            return None
        parts = [_shape_of_part(part, texts) for part in content]
        flags = [(key, type(value), value) for key, value in message.items() if key not in ("role", "content")]
        if None in parts or any(kind not in _FLAGS for _, kind, _ in flags):
            return None
        count = len(texts) - len(messages)
        messages += [index] * count
        own += [role in ASSISTANT_ROLES] * count
        shape.append((role, tuple(parts), tuple(flags)))
    return Look(tuple(shape), tuple(texts), tuple(messages), tuple(own))


_FLAGS = (bool, int, float, type(None))


def _shape_of_part(part: object, texts: list[str]) -> Hashable:
    """What a part is besides its words, which are added to ``texts``; ``None`` if that cannot be said."""
    if not isinstance(part, Mapping):
        return None
    words = part.get("text")
    if part.get("type") != "text" or type(words) is not str:
        values = tuple(part.values())
        known = all(value is None or (type(value) is str and value in (HERE, part.get("type"))) for value in values)
        return (tuple(part), values) if known else None
    if not words.strip() or any(value is not None for key, value in part.items() if key not in ("type", "text")):
        return None
    texts.append(words)
    return (tuple(part), words[0].isspace(), words[-1].isspace())


@dataclass(frozen=True, slots=True)
class RowFields:
    """The fields of one conversation, as the accounting counts them.

    Attributes:
        entries: ``(fields, 5)``, see :func:`~sft_mask.data.read.census.entries_of`.
        signature: equal for conversations in which the same roles follow each other.
    """

    entries: Ints
    signature: int


def fields_of_row(conversation: Conversation | None) -> RowFields:
    """The fields of a conversation; none of a row that is text."""
    messages = conversation.messages if conversation is not None else ()
    pairs = sorted(set(pairwise(("", *(str(message.get("role")) for message in messages)))))
    return RowFields(entries_of(messages), zlib.crc32(repr(pairs).encode()))


@dataclass(frozen=True)
class Layout:
    """What the template writes around the words of one shape, and where the turns and images are in it.

    Places are counted from the beginning of one of the literals: words have another length in each row.

    Attributes:
        literals: ``(words + 1,)`` the template's text before, between and after the words.
        kept: whether whitespace before and after each of the words is written.
        places: ``(4 * turns + 2 * placeholders,)`` the literal and the place in it of each turn's header, start, end
            and end-of-turn token, then of each placeholder's beginning and end.
        messages: ``(turns,)`` the message of each turn.
        frames: how many characters around each placeholder are its frame, before and after.
    """

    literals: tuple[str, ...]
    kept: tuple[tuple[bool, bool], ...]
    places: tuple[tuple[int, int], ...]
    messages: tuple[int, ...]
    frames: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, look: Look, read: TextConversation, expanded: ExpandedText, frames: Sequence[tuple[int, int]]
    ) -> Layout | None:
        """The layout of a conversation that was rendered; ``None`` if it has no such layout.

        Args:
            look: of the conversation.
            read: its text and its turns.
            expanded: what the processor made of the text.
            frames: see above.
        """
        spans = _words_in(look, read.rendered) if read.follows_from_places else None
        if spans is None:
            return None
        text = read.rendered.text
        begins = [0, *(end for _, end in spans)]
        ends = [*(start for start, _ in spans), len(text)]
        literals = tuple(text[low:high] for low, high in zip(begins, ends, strict=True))
        wanted = [getattr(turn, name) for name in PLACES for turn in read.turns]
        wanted += [place for each in expanded.expansions for place in (each.start, each.end)]
        found = [(bisect_right(begins, place) - 1, place) for place in wanted]
        if any(place > ends[literal] for literal, place in found):
            return None  # inside of words
        kept = (_kept(words, text[low:high]) for words, (low, high) in zip(look.texts, spans, strict=True))
        places = tuple((literal, place - begins[literal]) for literal, place in found)
        return cls(literals, tuple(kept), places, tuple(turn.message for turn in read.turns), tuple(frames))

    @cached_property
    def _arrays(self) -> tuple[Ints, Ints, Ints]:
        lengths = np.array([len(literal) for literal in self.literals[:-1]], np.int64)
        literal, place = np.array(self.places, np.int64).reshape(-1, 2).T
        return lengths, literal, place

    @cached_property
    def message(self) -> Ints:
        """``(turns,)`` the message of each turn."""
        return np.array(self.messages, np.int64)

    @cached_property
    def frame(self) -> Ints:
        """``(placeholders, 2)`` :attr:`frames`."""
        return np.array(self.frames, np.int64).reshape(-1, 2)

    def fill(self, texts: Sequence[str]) -> tuple[str, Ints, Ints]:
        """The text with these words, the places of the turns in it (``(4, turns)``), and of the placeholders."""
        words = [_without(text, *kept) for text, kept in zip(texts, self.kept, strict=True)]
        pieces = [""] * (2 * len(words) + 1)
        pieces[::2], pieces[1::2] = self.literals, words
        lengths, literal, place = self._arrays
        found = offsets_of(lengths + np.array(list(map(len, words)), np.int64))[literal] + place
        turns = len(PLACES) * len(self.messages)
        return "".join(pieces), found[:turns].reshape(len(PLACES), -1), found[turns:].reshape(-1, 2)


def _without(words: str, lead: bool, trail: bool) -> str:
    if lead and trail:
        return words
    words = words if lead else words.lstrip()
    return words if trail else words.rstrip()


def _kept(words: str, written: str) -> tuple[bool, bool]:
    """Whether the whitespace before and after some words was written."""
    ways = ((True, True), (True, False), (False, True), (False, False))
    return next(way for way in ways if _without(words, *way) == written)


def _words_in(look: Look, rendered: Rendered) -> list[tuple[int, int]] | None:
    """Where the words of each part are in a text; ``None`` if they are not there one by one, as they were given."""
    source = rendered.source
    edges = np.flatnonzero(np.append(True, source[1:] != source[:-1])[: len(source)])
    runs = zip(edges.tolist(), [*edges[1:].tolist(), len(source)], source[edges].tolist(), strict=True)
    found = [(low, high, owner) for low, high, owner in runs if owner != TEMPLATE]
    if len(found) != len(look.texts):
        return None
    for (low, high, owner), words, message in zip(found, look.texts, look.messages, strict=True):
        origin = rendered.origins[owner] if owner >= 0 else None
        if origin is None or (origin.message, origin.field) != (message, "content"):
            return None
        if rendered.text[low:high] not in (words, words.lstrip(), words.rstrip(), words.strip()):
            return None
    return [(low, high) for low, high, _ in found]


class LayoutCache:
    """The layouts of one chat template that rows have shown so far.

    Args:
        quotable: texts that show that words quote a marker.
        prefilled: longer forms of the response header; an answer that begins with one may have another turn.
    """

    def __init__(self, quotable: Collection[str], prefilled: Collection[str]) -> None:
        self._quotable, self._prefilled = tuple(quotable), tuple(prefilled)
        self._known: dict[Hashable, tuple[Layout | None, int]] = {}
        self._fields: dict[Hashable, RowFields] = {}

    def look(self, conversation: Conversation | None) -> Look | None:
        """The look of a conversation whose words mean nothing to a template; ``None`` for others."""
        look = None if conversation is None else look_of(conversation)
        return look if look is not None and self.is_plain(look) else None

    def fields(self, conversation: Conversation | None, look: Look | None) -> RowFields:
        """The fields of a conversation, which are those of every other one that looks like it."""
        known = None if look is None else self._fields.get(look.shape)
        if known is None:
            known = fields_of_row(conversation)
            if look is not None and len(self._fields) < _MOST_SHAPES:
                self._fields[look.shape] = known
        return known

    def is_plain(self, look: Look) -> bool:
        """Whether the words of a conversation mean nothing to a template: no quoted marker, no tag in an answer."""
        everything = "\n".join(look.texts)
        if any(text in everything for text in self._quotable):
            return False
        if "<" not in everything and "[" not in everything:
            return True
        return not any(TAG.search(text) for text, own in zip(look.texts, look.own, strict=True) if own)

    def trusted(self, look: Look) -> Layout | None:
        """The layout of a shape, if enough rows have shown it and none has shown another."""
        layout, count = self._known.get(look.shape, (None, 0))
        return layout if count >= ROWS_TO_VERIFY else None

    def prefills(self, text: str, headers: Ints) -> bool:
        """Whether a turn of a text begins with a longer form of the response header."""
        places = headers.tolist() if self._prefilled else ()
        return any(text.startswith(longer, place) for place in places for longer in self._prefilled)

    def learn(self, look: Look, layout: Layout | None) -> None:
        """Adds what one rendered row has shown; a shape with two layouts, or without any, is not asked for again."""
        if look.shape not in self._known:
            if len(self._known) < _MOST_SHAPES:
                self._known[look.shape] = layout, 1
            return
        known, count = self._known[look.shape]
        self._known[look.shape] = (known, count + 1) if known == layout else (None, count + 1)
