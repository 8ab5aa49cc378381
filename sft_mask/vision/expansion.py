"""What a processor puts in place of the placeholders of a text, recorded while it does so.

A template writes one placeholder for each image (``<image>``); the processor replaces it by as many tokens as the image
needs, with their frame. Only the processor knows how many these are, so its ``get_text_with_replacements`` is watched
for the time of one collation: an instance attribute hides the method, no class is touched, and it is gone afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.errors import DataError
from sft_mask.templates.align import TextTurn

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ints

_METHOD = "get_text_with_replacements"
_LOCK = RLock()


@dataclass(frozen=True, slots=True)
class Expansion:
    """One placeholder and what replaced it, in characters.

    Attributes:
        kind: ``"image"``, ``"video"`` or ``"audio"``.
        start: where the placeholder begins in the text that the template wrote.
        end: one past its last character.
        new_start: where its replacement begins in the expanded text.
        new_end: one past the replacement's last character.
    """

    kind: str
    start: int
    end: int
    new_start: int
    new_end: int

    def moved(self, by: int, new_by: int) -> Expansion:
        """The same in texts that begin further left."""
        return Expansion(self.kind, self.start + by, self.end + by, self.new_start + new_by, self.new_end + new_by)


@dataclass(frozen=True, slots=True)
class ExpandedText:
    """A text as the template wrote it, and as it is tokenized."""

    before: str
    after: str
    expansions: tuple[Expansion, ...] = ()

    @classmethod
    def unchanged(cls, text: str) -> ExpandedText:
        """A text without placeholders."""
        return cls(text, text)

    def __add__(self, other: ExpandedText) -> ExpandedText:
        moved = (each.moved(len(self.before), len(self.after)) for each in other.expansions)
        return ExpandedText(self.before + other.before, self.after + other.after, (*self.expansions, *moved))

    def within(self, text: str) -> ExpandedText:
        """The same, for the text that was rendered.

        A collator may have stripped whitespace around it; and of a prompt with its completion, a processor may expand
        only the prompt.

        Raises:
            DataError: the processor was given something else.
        """
        if text.startswith(self.before):
            return ExpandedText(text, self.after + text[len(self.before) :], self.expansions)
        lead = text.find(self.before) if self.before and text.strip() == self.before.strip() else -1
        if lead < 0:
            at = next((at for at, (a, b) in enumerate(zip(text, self.before, strict=False)) if a != b), len(text))
            raise DataError(
                "the text that the processor was given is not what the chat template renders from the messages: it "
                f"has {self.before[at : at + 40]!r} where the template writes {text[at : at + 40]!r}."
            )
        return ExpandedText(text, text[:lead] + self.after, tuple(each.moved(lead, lead) for each in self.expansions))

    def places(self, characters: Sequence[int] | Ints) -> Ints:
        """Places in the template's text as places in the expanded one; one inside a placeholder is at its end."""
        ends = np.array([each.end for each in self.expansions], np.int64)
        gains = np.array([0, *(each.new_end - each.end for each in self.expansions)], np.int64)
        given = np.asarray(characters, np.int64)
        return given + gains[np.searchsorted(ends, given, side="right")]

    def place_in_template(self, character: int) -> int:
        """A place in the expanded text as one in the template's; one inside an expansion is where that begins."""
        gain = 0
        for each in self.expansions:
            if each.new_start < character < each.new_end:
                return each.start
            gain = each.new_end - each.end if each.new_end <= character else gain
        return character - gain

    def turns(self, turns: Sequence[TextTurn]) -> list[TextTurn]:
        """Turns in the template's text as turns in the expanded one."""
        if not self.expansions:
            return list(turns)
        fields = ("header", "start", "end", "eot_start")
        moved = {name: self.places([getattr(turn, name) for turn in turns]).tolist() for name in fields}
        return [replace(turn, **{name: moved[name][at] for name in fields}) for at, turn in enumerate(turns)]


class Recording:
    """The texts that a processor expanded during one collation, in the order of its calls."""

    def __init__(self) -> None:
        self._calls: list[list[ExpandedText]] = []

    def add(self, before: Sequence[str], after: Sequence[str], replaced: Sequence[Sequence[Any]]) -> None:
        """Notes one call."""
        spans = replaced or [()] * len(before)
        self._calls.append([_expanded(*each) for each in zip(before, after, spans, strict=True)])

    def rows(self, count: int) -> list[ExpandedText] | None:
        """The text of each row: one for each row, or a prompt and a completion in two calls.

        ``None`` if nothing was recorded, or the texts cannot be told apart.
        """
        if len(self._calls) == 2 and all(len(texts) == count for texts in self._calls):
            return [prompt + completion for prompt, completion in zip(*self._calls, strict=True)]
        texts = [text for texts in self._calls for text in texts]
        return texts if len(texts) == count else None


def _expanded(before: str, after: str, spans: Sequence[Any]) -> ExpandedText:
    made = (Expansion(str(each["type"]), *each["span"], *each["new_span"]) for each in spans)
    return ExpandedText(before, after, tuple(made))


@contextmanager
def recording(processor: Any) -> Iterator[Recording]:
    """Records what a processor expands while the block runs; one collation at a time.

    Processors of ``transformers`` that came before this method, and those with code of their own, record nothing.
    """
    recorded = Recording()
    own = getattr(type(processor), _METHOD, None)
    if own is None:
        yield recorded
        return

    def record(text: Any, *args: Any, **kwargs: Any) -> Any:
        before = [text] if isinstance(text, str) else list(text)
        after, replaced = own(processor, text, *args, **kwargs)
        recorded.add(before, [after] if isinstance(after, str) else list(after), replaced)
        return after, replaced

    with _LOCK:
        setattr(processor, _METHOD, record)
        try:
            yield recorded
        finally:
            delattr(processor, _METHOD)
