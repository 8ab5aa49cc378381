"""The report of a mask: counts of each split, the markers, and the warnings that follow from the counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from sft_mask.report.accounting import account_lines
from sft_mask.report.counts import SplitReport, counted, percent, spelled_reasons
from sft_mask.report.notebook import element, fact, line_fact, meter, panel
from sft_mask.report.warnings import all_warnings

if TYPE_CHECKING:
    from rich.text import Text

_MOST_SPLITS = 4
"""Splits that the short form of a report names."""


@dataclass(frozen=True, slots=True)
class MarkerSummary:
    """The texts that open and end the trained turns.

    >>> print(MarkerSummary("### User:\\n", "### Answer:\\n", ("</s>",)))
    '### User:\\n' → '### Answer:\\n' … '</s>' (given)
    """

    instruction: str
    response: str
    stops: tuple[str, ...] = ()
    detected: bool = False
    """Read from the chat template, not given by the caller."""
    like_assistant: tuple[str, ...] = ()
    """Roles that the chat template writes exactly as it writes the assistant."""

    def __str__(self) -> str:
        stops = " or ".join(repr(stop) for stop in self.stops) or "(no end-of-turn token)"
        origin = "read from the chat template" if self.detected else "given"
        return f"{self.instruction!r} → {self.response!r} … {stops} ({origin})"

    def to_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``."""
        return {
            "instruction": self.instruction,
            "response": self.response,
            "stops": list(self.stops),
            "detected": self.detected,
        }


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What was trained and what was not, per split, with the warnings that follow from the numbers.

    ``warnings`` holds what the builder passes in and, after it, all that :func:`~sft_mask.report.warnings.all_warnings`
    finds in ``splits``.

    >>> print(MaskReport({"train": SplitReport(rows=2, documents=2, tokens=100, trained_tokens=30, turns=3,
    ...     turns_trained=3, turns_with_stop=3, stops_trained=3, rows_checked=2)}))
    train: 2 rows · 100 tokens, 30 trained (30.0 %), response/prompt 0.43
      answers  3 found, 3 trained · end-of-turn tokens 3 of 3 trained
      decided  2 by markers and agreeing with messages
    """

    splits: Mapping[str, SplitReport] = field(default_factory=dict, hash=False)
    markers: MarkerSummary | None = None
    """None where the data came masked."""
    warnings: tuple[str, ...] = ()
    stops_expected: bool = True
    """Whether every trained turn should end with a trained end-of-turn token; else it is not warned about."""
    notes: tuple[str, ...] = ()
    """How splits were counted, where not every row was."""
    read_as: Mapping[str, str] = field(default_factory=dict, hash=False)
    """How each split was read that TRL would not read as it is (``ShareGPT: human → user, gpt → assistant``)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", dict(self.splits))
        alike = self.markers.like_assistant if self.markers is not None else ()
        merged = dict.fromkeys((*self.warnings, *all_warnings(self.splits, self.stops_expected, alike)))
        object.__setattr__(self, "warnings", tuple(merged))

    def accepting_losses(self) -> MaskReport:
        """The report without what follows from fields of the assistant that the chat template does not write."""
        alike = self.markers.like_assistant if self.markers is not None else ()
        own = set(all_warnings(self.splits, self.stops_expected, alike))
        others = tuple(warning for warning in self.warnings if warning not in own)
        splits = {name: split.accepting_losses() for name, split in self.splits.items()}
        return MaskReport(splits, self.markers, others, self.stops_expected)

    def to_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``.

        >>> MaskReport({"train": SplitReport(rows=1, tokens=4, trained_tokens=1)}).to_dict()["splits"]["train"]["share"]
        0.25
        """
        return {
            "splits": {name: split.to_dict() for name, split in self.splits.items()},
            "markers": self.markers.to_dict() if self.markers else None,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            **({"read_as": dict(self.read_as)} if self.read_as else {}),
        }

    def __str__(self) -> str:
        return "\n".join(line for _, line in self._lines())

    def __repr__(self) -> str:
        shown = [f"{name}: {_rows_and_tokens(split)}" for name, split in islice(self.splits.items(), _MOST_SPLITS)]
        more = len(self.splits) - _MOST_SPLITS
        shown += [f"{counted(more, 'more split')}"] if more > 0 else []
        shown += [counted(len(self.warnings), "warning")] if self.warnings else []
        return f"<MaskReport {'; '.join(shown) or 'no splits'}>"

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text("\n").join(Text(line, style=style) for style, line in self._lines())

    def _repr_html_(self) -> str:
        return panel(self._html())

    def _html(self) -> Iterator[str]:
        for name, split in self.splits.items():
            head, *rest = self._lines_of(name)
            yield element(head, "head") + meter(split.share)
            yield from map(line_fact, rest)
        if self.markers:
            yield f'<div class="group">{fact("markers", str(self.markers))}</div>'
        yield from (element(f"note: {note}", "faint group") for note in self.notes)
        yield from (element(f"warning: {warning}", "warn group") for warning in self.warnings)

    def _lines(self) -> Iterator[tuple[str, str]]:
        """(style, line), so that the plain and the coloured report say the same."""
        for name in self.splits:
            head, *rest = self._lines_of(name)
            yield "bold", head
            yield from (("", line) for line in rest)
        if self.markers:
            yield "dim", f"markers: {self.markers}"
        yield from (("dim", f"note: {note}") for note in self.notes)
        yield from (("yellow", f"warning: {warning}") for warning in self.warnings)

    def _lines_of(self, name: str) -> list[str]:
        head, *rest = split_lines(name, self.splits[name])
        read_as = [f"  read as  {self.read_as[name]}"] if name in self.read_as else []
        return [head, *read_as, *rest]


def split_lines(name: str, split: SplitReport) -> list[str]:
    """A few lines about one split; counts of zero take no line.

    >>> split_lines("eval", SplitReport())
    ['eval: 0 rows · 0 tokens, 0 trained (0.0 %), response/prompt 0.00']
    """
    lines = [_head(name, split)]
    if split.turns:
        answers = f"{split.turns:,} found, {split.turns_trained:,} trained"
        stops = f"end-of-turn tokens {split.stops_trained:,} of {split.turns_with_stop:,} trained"
        without = f" · {split.turns_without_stop:,} without one" if split.turns_without_stop else ""
        lines.append(f"  answers  {answers} · {stops}{without}")
    if split.image_tokens:
        lines.append(f"  images   {split.images:,} of {split.image_tokens:,} tokens, never trained")
    if split.prompt_trained_tokens:
        lines.append(f"  prompt   {split.prompt_trained_tokens:,} of its tokens are trained too, with their own weight")
    if split.turns_cut:
        lines.append(f"  cut      {counted(split.turns_cut, 'answer')} at the end of {counted(split.rows_cut, 'row')}")
    if split.rows_dropped:
        reasons = spelled_reasons(split.dropped_reasons)
        lines.append(f"  dropped  {counted(split.rows_dropped, 'row')}" + (f": {reasons}" if reasons else ""))
    lines.extend(account_lines(split))
    decided = ", ".join(f"{count:,} {how}" for count, how in _how_decided(split) if count)
    return [*lines, f"  decided  {decided}"] if decided else lines


def _head(name: str, split: SplitReport) -> str:
    return f"{name}: {_rows_and_tokens(split)}, response/prompt {split.response_prompt_ratio:.2f}"


def _rows_and_tokens(split: SplitReport) -> str:
    rows = counted(split.rows, "row")
    if split.documents > split.rows:
        rows += f" of {counted(split.documents, 'document')}"
    return f"{rows} · {split.tokens:,} tokens, {split.trained_tokens:,} trained ({percent(split.share)})"


def _how_decided(split: SplitReport) -> tuple[tuple[int, str], ...]:
    return (
        (split.rows_checked, "by markers and agreeing with messages"),
        (split.rows_exact, "by messages"),
        (split.rows_unchecked, "by markers alone"),
        (split.rows_ambiguous, "by neither"),
        (split.rows_masked_before, "before the trainer was built"),
    )
