"""Two masks of the same rows, token by token; and four independent ways to make one mask, held against each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import groupby, repeat
from typing import Any, Literal

import numpy as np

from sft_mask.constants import IGNORE_INDEX, MODEL_ROLES
from sft_mask.core.arrays import Bools, common_prefix_length, offsets_of
from sft_mask.core.labels import trained_mask
from sft_mask.core.regions import Region, in_regions
from sft_mask.data.masker import Masker
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.explanations.reasons import Part, Storyteller
from sft_mask.explanations.rows import InspectedRow
from sft_mask.preview.rows import PreviewRow, build_row
from sft_mask.preview.source import PreviewRows, preview_rows
from sft_mask.templates.align import TextTurn, token_bounds, token_turns
from sft_mask.templates.chat_template import ChatTemplate

_KEPT = 20
"""Rows that differ and are kept to be shown; all of them are counted."""


# two masks


@dataclass(frozen=True, slots=True)
class Change:
    """A stretch in which two rows differ: tokens ``[left_start, left_stop)`` and ``[right_start, right_stop)``.

    ``same_text`` tells whether the two hold the same tokens, of which only the training differs.
    """

    left_start: int
    left_stop: int
    right_start: int
    right_stop: int
    same_text: bool


@dataclass(frozen=True, slots=True)
class RowDiff:
    """Two masks of one row, and where they differ."""

    left: PreviewRow
    right: PreviewRow
    changes: tuple[Change, ...]

    def lines(self) -> list[str]:
        """The token diff, one line a change.

        >>> from sft_mask.preview.rows import Cell
        >>> row = PreviewRow((7, 8), (7, 8), (1.0, 1.0), (b"Hi", b"!"), (), (), (), (2,), (), "row 0")
        >>> other = PreviewRow((7, 8), (7, -100), (1.0, 0.0), (b"Hi", b"!"), (), (), (), (2,), (), "row 0")
        >>> diff_rows(row, other).lines()
        ["token 1 '!': trained → masked"]
        """
        return [line for change in self.changes for line in self._of(change)]

    def _of(self, change: Change) -> Iterator[str]:
        left = list(range(change.left_start, change.left_stop))
        right = list(range(change.right_start, change.right_stop))
        if not change.same_text:
            renumbered = [self.left.pieces[at] for at in left] == [self.right.pieces[at] for at in right]
            yield f"{_side(self.left, left, ids=renumbered)} → {_side(self.right, right, ids=renumbered)}"
            return
        pairs = ((self.left.weights[one], self.right.weights[two]) for one, two in zip(left, right, strict=True))
        for (before, after), group in groupby(enumerate(pairs), key=lambda pair: pair[1]):
            tokens = [left[at] for at, _ in group]
            yield f"{_tokens(self.left, tokens)}: {_state(before)} → {_state(after)}"


def _side(row: PreviewRow, tokens: Sequence[int], *, ids: bool) -> str:
    if not tokens:
        return "nothing"
    states = dict.fromkeys(_state(row.weights[token]) for token in tokens)
    numbers = f" ids {', '.join(str(row.input_ids[token]) for token in tokens[:8])}" if ids else ""
    return f"{_tokens(row, tokens)}{numbers} ({' and '.join(states)})"


def _tokens(row: PreviewRow, tokens: Sequence[int]) -> str:
    span = f"token {tokens[0]}" if len(tokens) == 1 else f"tokens {tokens[0]}-{tokens[-1]}"
    text = b"".join(row.pieces[token] for token in tokens).decode(errors="replace")
    return f"{span} {text if len(text) <= 80 else text[:79] + '…'!r}"


def _state(weight: float) -> str:
    return "masked" if not weight else "trained" if weight == 1 else f"trained ×{weight:g}"


def diff_rows(left: PreviewRow, right: PreviewRow, *, by_id: bool = False) -> RowDiff:
    """Where two masks of one row differ; rows of different tokens are laid along each other.

    Tokens are the same if their texts are, and with ``by_id`` only if their ids are, too.
    """
    sides = [_keys(row, by_id=by_id) for row in (left, right)]
    start = common_prefix_length(sides[0], sides[1])
    rest = [side[start:] for side in sides]
    end = common_prefix_length(rest[0][::-1], rest[1][::-1])
    middle = [side[: len(side) - end] for side in rest]
    changes = list(_unlike_weights(left, right, 0, 0, start))
    for tag, low, high, other_low, other_high in SequenceMatcher(
        None, middle[0], middle[1], autojunk=False
    ).get_opcodes():
        if tag == "equal":
            changes.extend(_unlike_weights(left, right, start + low, start + other_low, high - low))
        else:
            changes.append(Change(start + low, start + high, start + other_low, start + other_high, False))
    changes.extend(_unlike_weights(left, right, len(sides[0]) - end, len(sides[1]) - end, end))
    return RowDiff(left, right, tuple(changes))


def _keys(row: PreviewRow, *, by_id: bool) -> list[tuple[bytes, int]]:
    ids = row.input_ids if by_id else repeat(0)
    return list(zip(row.pieces, ids, strict=by_id))


def _unlike_weights(left: PreviewRow, right: PreviewRow, low: int, other_low: int, size: int) -> Iterator[Change]:
    """Runs of tokens with the same text that are trained unlike."""
    unlike = [left.weights[low + at] != right.weights[other_low + at] for at in range(size)]
    for differs, group in groupby(range(size), key=unlike.__getitem__):
        places = list(group)
        if differs:
            first, last = places[0], places[-1] + 1
            yield Change(low + first, low + last, other_low + first, other_low + last, True)


@dataclass(slots=True)
class MaskDiff:
    """Two masks of the same rows.

    Attributes:
        rows: that were compared.
        unlike: rows that differ.
        tokens: of the left rows, in stretches that differ.
        shown: the first rows that differ.
    """

    rows: int = 0
    unlike: int = 0
    tokens: int = 0
    shown: list[RowDiff] = field(default_factory=list)

    def add(self, row: RowDiff) -> None:
        """Counts a row."""
        self.rows += 1
        if row.changes:
            self.unlike += 1
            self.tokens += sum(change.left_stop - change.left_start for change in row.changes)
            self.shown.extend([row] if len(self.shown) < _KEPT else [])

    def __str__(self) -> str:
        if not self.unlike:
            return f"The two masks are equal in all {self.rows:,} rows."
        return f"{self.unlike:,} of {self.rows:,} rows differ, in {self.tokens:,} tokens."

    def to_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``; the first rows that differ with their token diff."""
        shown = [{"row": row.left.name, "changes": row.lines()} for row in self.shown]
        return {"rows": self.rows, "rows_unlike": self.unlike, "tokens": self.tokens, "first": shown}


def compare_masks(left: Iterable[PreviewRow], right: Iterable[PreviewRow]) -> MaskDiff:
    """Holds two masks of the same rows side by side: two settings, two tokenizers, two chat templates.

    Args:
        left: rows of :func:`sft_mask.preview.preview_rows`.
        right: the same rows, masked otherwise.

    Raises:
        DataError: the two have not the same number of rows.
    """
    diff = MaskDiff()
    try:
        for one, two in zip(left, right, strict=True):
            diff.add(diff_rows(one, two))
    except ValueError as error:
        if "zip()" not in str(error):
            raise
        raise DataError("The two masks have not the same number of rows: give the same data to both.") from error
    return diff


# four roads

Road = Literal["markers", "messages", "generation", "prefix"]
Cause = Literal["stop", "header", "think", "tool", "overrun", "missed"]
ROADS: Mapping[Road, str] = {
    "markers": "markers alone, without looking at the messages",
    "messages": "the messages alone, laid along the chat template",
    "generation": "the template's own {% generation %} blocks (return_assistant_tokens_mask)",
    "prefix": "prefix rendering: from the generation prompt to the end of the conversation up to each answer",
}
CAUSES: Mapping[Cause, str] = {
    "stop": "the stop of an answer",
    "header": "the header before an answer",
    "think": "reasoning, or the empty block that the template puts before an answer",
    "tool": "a tool call, a tool's result, or the answer after one",
    "overrun": "what follows an answer: the template's newline, or somebody else's words",
    "missed": "words of an answer",
}
_GENERATION = re.compile(r"\{%-?\s*generation\b")
_REASONING = (Region("<think>", "</think>"), Region("[THINK]", "[/THINK]"))


@dataclass(slots=True)
class Disagreement:
    """What one road does unlike the library, for one cause.

    Attributes:
        extra: tokens that the road trains and the library does not.
        missing: tokens that the library trains and the road does not.
        rows: in which that happens.
        first: the first of them; on the left the library's mask, on the right the road's.
    """

    extra: int = 0
    missing: int = 0
    rows: int = 0
    first: RowDiff | None = None


@dataclass(slots=True)
class RoadAgreement:
    """One road over all rows: how many it could decide, how many of these equally, and where it did otherwise."""

    rows: int = 0
    equal: int = 0
    disagreements: dict[Cause, Disagreement] = field(default_factory=dict)


@dataclass(slots=True)
class Agreement:
    """The same rows masked by several roads, each held against the library's own mask.

    Attributes:
        rows: that were looked at.
        roads: by name; a road that does not exist here (a template without ``{% generation %}``) is left out.
    """

    rows: int
    roads: dict[Road, RoadAgreement]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for name, road in self.roads.items():
            undecided = f", {self.rows - road.rows:,} that it cannot decide" if road.rows < self.rows else ""
            yield f"{name}: equal in {road.equal:,} of {road.rows:,} rows{undecided}"
            for cause, found in road.disagreements.items():
                yield (
                    f"  {cause}: {found.extra:,} tokens more, {found.missing:,} fewer, in {found.rows:,} rows "
                    f"({CAUSES[cause]})"
                )

    def to_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``."""
        return {
            "rows": self.rows,
            "roads": {
                name: {
                    "rows": road.rows,
                    "equal": road.equal,
                    "disagreements": {
                        cause: {
                            "extra": found.extra,
                            "missing": found.missing,
                            "rows": found.rows,
                            "first": found.first.left.name if found.first else None,
                        }
                        for cause, found in road.disagreements.items()
                    },
                }
                for name, road in self.roads.items()
            },
        }


def compare_roads(data: Any, tokenizer: Any = None, *, split: str | None = None, **settings: Any) -> Agreement:
    """The same rows by markers, by messages, by ``{% generation %}`` and by prefix rendering.

    ``{% generation %}`` and prefix rendering are what other tools use; neither is an oracle. Where a road disagrees
    with the library's mask, the tokens are grouped by cause (see :data:`CAUSES`), each with the first row it is seen
    in.

    Args:
        data: as for :func:`sft_mask.preview.preview_rows`; rows without messages cannot be compared and are left out.
        tokenizer: likewise, and so are ``split`` and the markers and chat template in ``settings``.

    Raises:
        UnsupportedError: there is no chat template to lay messages along, or a policy was given.
        DataError: no row has messages.
    """
    if settings.get("policy") is not None:
        raise UnsupportedError("Roads are compared on every answer, stops included: leave the policy out.")
    return agreement_of(preview_rows(data, tokenizer, split=split, **settings))


def agreement_of(rows: PreviewRows) -> Agreement:
    """:func:`compare_roads` for rows that are at hand."""
    if rows.masker.aligner is None or not rows.masker.from_template:
        raise UnsupportedError(
            "Roads can be compared only where the rows are the chat template's: there is none, or the markers given "
            "are not its own."
        )
    comparison = _Comparison(rows.masker)
    for row in rows.inspected():
        if row.conversation is not None and not row.undecided:
            comparison.add(row)
    if not comparison.rows:
        raise DataError("No row has messages that its ids were rendered from, so there is nothing to compare.")
    return Agreement(comparison.rows, comparison.roads)


class _Comparison:
    def __init__(self, masker: Masker) -> None:
        assert masker.aligner is not None, "roads are compared only where there is a chat template"
        self.masker, self.road = masker, masker.aligner
        self.rows = 0
        names: list[Road] = ["markers", "messages", "generation", "prefix"]
        if not _GENERATION.search(self.road.template.source):
            names.remove("generation")
        self.roads: dict[Road, RoadAgreement] = {name: RoadAgreement() for name in names}
        self._storyteller = Storyteller(masker)

    def add(self, row: InspectedRow) -> None:
        """Compares one row on every road."""
        self.rows += 1
        ours = row.weights > 0
        parts: list[Part] | None = None
        for name, agreement in self.roads.items():
            theirs = self._mask(name, row)
            if theirs is None:
                continue
            agreement.rows += 1
            if row.existing is not None:
                theirs &= row.existing != IGNORE_INDEX
            if np.array_equal(ours, theirs):
                agreement.equal += 1
                continue
            parts = parts or self._storyteller.parts(row)
            self._sort(row, (ours, theirs), parts, agreement)

    # the roads

    def _mask(self, name: Road, row: InspectedRow) -> Bools | None:
        try:
            match name:
                case "markers":
                    return self._by_markers(row)
                case "messages":
                    return self._by_messages(row)
                case "generation":
                    return self._by_generation(row)
                case "prefix":
                    return self._by_prefix(row)
        except DataError:
            return None

    def _by_markers(self, row: InspectedRow) -> Bools:
        bounds = offsets_of(row.documents)
        return trained_mask(self.masker.finder.find(row.ids, bounds), len(row.ids))

    def _by_messages(self, row: InspectedRow) -> Bools:
        talk = _talk(row)
        turns = self.road.turns(talk.messages, row.ids, tools=talk.tools, variables=talk.variables)
        return trained_mask(turns, len(row.ids))

    def _by_generation(self, row: InspectedRow) -> Bools | None:
        talk = _talk(row)
        encoded = self.road.tokenizer.apply_chat_template(
            list(talk.messages),
            tools=talk.tools,
            chat_template=self.road.template.source_for(talk.tools),
            return_dict=True,
            return_assistant_tokens_mask=True,
            **(talk.variables or {}),
        )
        same = np.array_equal(encoded["input_ids"], row.ids)
        return np.asarray(encoded["assistant_masks"], np.bool_) if same else None

    def _by_prefix(self, row: InspectedRow) -> Bools | None:
        talk, template = _talk(row), self.road.template
        whole = _text_of(template, talk.messages, talk)
        ids = self.road.tokenizer(whole, add_special_tokens=False)["input_ids"]
        if not np.array_equal(ids, row.ids):
            return None
        spans = []
        for index, message in enumerate(talk.messages):
            if message.get("role") in MODEL_ROLES:
                prompt = _text_of(template, talk.messages[:index], talk, add_generation_prompt=True)
                said = _text_of(template, talk.messages[: index + 1], talk)
                start, end = common_prefix_length(prompt, whole), common_prefix_length(said, whole)
                spans.append(
                    TextTurn(header=start, start=start, end=end, eot_start=end, first_message=index, message=index)
                )
        first, last = token_bounds(whole, ids, self.masker.finder.vocabulary, self.road.tokenizer)
        mask = np.zeros(len(ids), np.bool_)
        turns = token_turns(whole, [span for span in spans if span.end > span.start], first, last)
        for start, end in zip(turns.start, turns.end, strict=True):
            mask[start:end] = True
        return mask

    # why they differ

    def _sort(
        self, row: InspectedRow, masks: tuple[Bools, Bools], parts: Sequence[Part], agreement: RoadAgreement
    ) -> None:
        ours, theirs = masks
        _, thinks = in_regions(row.ids, row.turns, self.masker.finder.vocabulary, _REASONING)
        part_of = np.repeat(np.arange(len(parts)), [part.end - part.start for part in parts])
        by_cause: dict[Cause, list[int]] = {}
        for token in np.flatnonzero(ours != theirs).tolist():
            number = int(part_of[token])
            by_cause.setdefault(self._cause(row, parts, number, bool(thinks[token])), []).append(token)
        for cause, tokens in by_cause.items():
            found = agreement.disagreements.setdefault(cause, Disagreement())
            extra = int(theirs[tokens].sum())
            found.extra, found.missing, found.rows = (
                found.extra + extra,
                found.missing + len(tokens) - extra,
                found.rows + 1,
            )
            if found.first is None:
                found.first = self._shown(row, ours, theirs, parts)

    def _cause(self, row: InspectedRow, parts: Sequence[Part], number: int, thinks: bool) -> Cause:
        part = parts[number]
        plain: dict[str, Cause] = {"stop": "stop", "header": "header", "prefilled": "think", "after": "overrun"}
        if part.kind in plain:
            return plain[part.kind]
        if part.kind != "answer":
            return "tool" if part.role in ("tool", "ipython", "observation", "function") else "overrun"
        if thinks:
            return "think"
        return "tool" if _about_tools(row, part) else "missed"

    def _shown(self, row: InspectedRow, ours: Bools, theirs: Bools, parts: Sequence[Part]) -> RowDiff:
        notes = [(part.start, part.end, part.role, part.reason) for part in parts]
        left, right = (
            build_row(
                self.road.tokenizer,
                row.ids.tolist(),
                np.where(mask, row.ids, IGNORE_INDEX).tolist(),
                spans=notes,
                name=f"row {row.number}",
            )
            for mask in (ours, theirs)
        )
        return diff_rows(left, replace(right, notes=()))


def _about_tools(row: InspectedRow, part: Part) -> bool:
    """Whether an answer is a tool call, or follows a tool's result."""
    messages = _talk(row).messages
    inside = np.flatnonzero((row.turns.start <= part.start) & (part.start < row.turns.end))
    index = int(row.turns.message[inside[0]]) if len(inside) else -1
    if index < 0:
        return any(message.get("role") == "tool" for message in messages)
    return bool(messages[index].get("tool_calls")) or (index > 0 and messages[index - 1].get("role") == "tool")


def _talk(row: InspectedRow) -> Any:
    assert row.conversation is not None, "a row without messages is not compared"
    return row.conversation


def _text_of(template: ChatTemplate, messages: Sequence[Any], talk: Any, **more: Any) -> str:
    return template.render(messages, tools=talk.tools, variables=talk.variables, **more).text
