"""What masking did, in numbers that add up: workers, shards and streams just sum.

Only the standard library is needed to count, to print and to write JSON; ``rich`` is imported when a console asks for
colours. The warnings are derived from the numbers, so a sum of reports warns about the sum and not about its parts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

MANY_CUT = 0.05
"""From this share of cut rows on, mid-answer cuts are worth a warning."""
MANY_DROPPED = 0.10
"""From this share of dropped rows on, the dataset that is left is no longer the one that was meant."""
SHARE_LOW, SHARE_HIGH = 0.01, 0.95
"""A trained share outside of these bounds is rarely what a conversation looks like."""
SHARE_FACTOR = 3.0
"""Two splits whose trained shares differ by more than this factor were probably not masked alike."""

_REASONS = ("dropped_reasons", "unchecked_reasons")
"""Fields of a split that count by reason."""


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Counts over one split. ``+`` adds every field; rows that were dropped count nowhere but in ``rows_dropped``.

    >>> left = SplitReport(rows=2, tokens=100, trained_tokens=30, dropped_reasons={"no answer": 1}, rows_dropped=1)
    >>> both = left + left
    >>> both.rows, both.trained_tokens, both.prompt_tokens, both.share, both.dropped_reasons
    (4, 60, 140, 0.3, {'no answer': 2})
    """

    rows: int = 0
    """Rows that stay in the split."""
    documents: int = 0
    """Documents in them: more than rows where rows are packed."""
    tokens: int = 0
    trained_tokens: int = 0
    """Tokens of answers whose label is not ignored, whatever their weight."""
    prompt_trained_tokens: int = 0
    """Tokens of prompts that a policy trains too (``prompt_weight``)."""
    turns: int = 0
    """Assistant turns found."""
    turns_trained: int = 0
    turns_with_stop: int = 0
    """Turns whose stop token is in the row."""
    stops_trained: int = 0
    turns_cut: int = 0
    """Answers that run into the end of a row without the stop that their template has."""
    rows_cut: int = 0
    """Rows with at least one such answer."""
    rows_dropped: int = 0
    """Rows that would train nothing (or that a policy refused) and were removed."""
    dropped_reasons: Mapping[str, int] = field(default_factory=dict, hash=False)
    rows_exact: int = 0
    """Rows decided by their messages."""
    rows_checked: int = 0
    """Rows decided by markers that agree with their messages."""
    rows_unchecked: int = 0
    """Rows decided by markers with nothing to check against (text only, or tokenized before)."""
    unchecked_reasons: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of these, the rows that have messages, and why the messages decided nothing."""
    rows_ambiguous: int = 0
    """Rows that could not be decided; where a policy dropped them, ``dropped_reasons`` counts them too."""
    rows_masked_before: int = 0
    """Rows whose labels ``mask_dataset`` had made before the trainer was built."""
    rows_with_unread_flags: int = 0
    """Rows whose messages carry ``train`` or ``weight``, which the policy did not ask for."""

    def __post_init__(self) -> None:
        for name in _REASONS:
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))

    def __add__(self, other: SplitReport) -> SplitReport:
        if not isinstance(other, SplitReport):
            return NotImplemented
        return SplitReport(
            dropped_reasons=Counter(self.dropped_reasons) + Counter(other.dropped_reasons),
            unchecked_reasons=Counter(self.unchecked_reasons) + Counter(other.unchecked_reasons),
            **{name: getattr(self, name) + getattr(other, name) for name in _COUNTS},
        )

    @property
    def rows_seen(self) -> int:
        """Rows before any was dropped."""
        return self.rows + self.rows_dropped

    @property
    def turns_without_stop(self) -> int:
        """Assistant turns that no stop follows, although their row does not end in them."""
        return max(self.turns - self.turns_with_stop - self.turns_cut, 0)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are read but not trained: ``tokens - trained_tokens``."""
        return self.tokens - self.trained_tokens

    @property
    def share(self) -> float:
        """``trained_tokens / tokens``, 0.0 for an empty split."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def response_prompt_ratio(self) -> float:
        """``trained_tokens / prompt_tokens``: infinite where everything is trained, 0.0 for an empty split."""
        if self.prompt_tokens:
            return self.trained_tokens / self.prompt_tokens
        return math.inf if self.trained_tokens else 0.0

    def to_dict(self) -> dict[str, object]:
        """Every count and the derived numbers, ready for ``json.dumps`` (an infinite ratio becomes None).

        >>> SplitReport(rows=1, tokens=4, trained_tokens=4).to_dict()["response_prompt_ratio"] is None
        True
        """
        ratio = self.response_prompt_ratio
        derived: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "share": self.share,
            "response_prompt_ratio": ratio if math.isfinite(ratio) else None,
        }
        counts = {name: getattr(self, name) for name in _COUNTS}
        reasons = {name: dict(getattr(self, name)) for name in _REASONS}
        return {**counts, **reasons, **derived}


_COUNTS = tuple(f.name for f in fields(SplitReport) if f.name not in _REASONS)


@dataclass(frozen=True, slots=True)
class MarkerSummary:
    """The texts that opened and closed the spans, as a person would write them.

    >>> print(MarkerSummary("### User:\\n", "### Answer:\\n", ("</s>",)))
    '### User:\\n' → '### Answer:\\n' … '</s>' (given)
    """

    instruction: str
    response: str
    stops: tuple[str, ...] = ()
    detected: bool = False
    """Read from the chat template, not given by the caller."""
    like_the_model: tuple[str, ...] = ()
    """Roles that the chat template writes just as it writes the model."""

    def __str__(self) -> str:
        stops = " or ".join(repr(stop) for stop in self.stops) or "(no stop token)"
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

    ``warnings`` holds what the builder passes in and, after it, everything that ``warnings_for`` and
    ``warnings_between`` find in ``splits``. ``+`` adds split by split and derives the warnings again.

    >>> print(MaskReport({"train": SplitReport(rows=2, documents=2, tokens=100, trained_tokens=30, turns=3,
    ...     turns_trained=3, turns_with_stop=3, stops_trained=3, rows_checked=2)}))
    train: 2 rows · 100 tokens, 30 trained (30.0 %), response/prompt 0.43
      answers  3 found, 3 trained · stops 3 of 3 trained
      decided  2 by markers and agreeing with messages
    """

    splits: Mapping[str, SplitReport] = field(default_factory=dict, hash=False)
    markers: MarkerSummary | None = None
    """None where every row was decided by its messages, or where two reports with unlike markers were added."""
    warnings: tuple[str, ...] = ()
    stops_expected: bool = True
    """Whether every trained turn should end with a trained stop; else their number is no reason to warn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", dict(self.splits))
        merged = dict.fromkeys((*self.warnings, *_derived(self)))
        object.__setattr__(self, "warnings", tuple(merged))

    def __add__(self, other: MaskReport) -> MaskReport:
        if not isinstance(other, MaskReport):
            return NotImplemented
        splits = dict(self.splits)
        for name, split in other.splits.items():
            splits[name] = splits[name] + split if name in splits else split
        expected = self.stops_expected if self.splits else other.stops_expected
        return MaskReport(splits, _same_markers(self, other), (*self._given(), *other._given()), expected)

    def _given(self) -> tuple[str, ...]:
        derived = set(_derived(self))
        return tuple(warning for warning in self.warnings if warning not in derived)

    def to_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``.

        >>> MaskReport({"train": SplitReport(rows=1, tokens=4, trained_tokens=1)}).to_dict()["splits"]["train"]["share"]
        0.25
        """
        return {
            "splits": {name: split.to_dict() for name, split in self.splits.items()},
            "markers": self.markers.to_dict() if self.markers else None,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        return "\n".join(line for _, line in self._lines())

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text("\n").join(Text(line, style=style) for style, line in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        """(style, line), so that the plain and the coloured report cannot say different things."""
        for name, split in self.splits.items():
            head, *rest = split_lines(name, split)
            yield "bold", head
            yield from (("", line) for line in rest)
        if self.markers:
            yield "dim", f"markers: {self.markers}"
        yield from (("yellow", f"warning: {warning}") for warning in self.warnings)


def _same_markers(left: MaskReport, right: MaskReport) -> MarkerSummary | None:
    """An empty report takes the other's markers; two unlike pairs have no one answer."""
    if not left.splits or not right.splits:
        return left.markers or right.markers
    return left.markers if left.markers == right.markers else None


def split_lines(name: str, split: SplitReport) -> list[str]:
    """A few plain lines about one split; what did not happen takes no line.

    >>> split_lines("eval", SplitReport())
    ['eval: 0 rows · 0 tokens, 0 trained (0.0 %), response/prompt 0.00']
    """
    lines = [_head(name, split)]
    if split.turns:
        answers = f"{split.turns:,} found, {split.turns_trained:,} trained"
        stops = f"stops {split.stops_trained:,} of {split.turns_with_stop:,} trained"
        without = f" · {split.turns_without_stop:,} without a stop" if split.turns_without_stop else ""
        lines.append(f"  answers  {answers} · {stops}{without}")
    if split.prompt_trained_tokens:
        lines.append(f"  prompt   {split.prompt_trained_tokens:,} of its tokens are trained too, with their own weight")
    if split.turns_cut:
        lines.append(f"  cut      {_count(split.turns_cut, 'answer')} at the end of {_count(split.rows_cut, 'row')}")
    if split.rows_dropped:
        reasons = _reasons(split.dropped_reasons)
        lines.append(f"  dropped  {_count(split.rows_dropped, 'row')}" + (f": {reasons}" if reasons else ""))
    decided = ", ".join(f"{count:,} {how}" for count, how in _how_decided(split) if count)
    return [*lines, f"  decided  {decided}"] if decided else lines


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _head(name: str, split: SplitReport) -> str:
    rows = _count(split.rows, "row")
    if split.documents > split.rows:
        rows += f" of {_count(split.documents, 'document')}"
    trained = f"{split.trained_tokens:,} trained ({_percent(split.share)})"
    return f"{name}: {rows} · {split.tokens:,} tokens, {trained}, response/prompt {split.response_prompt_ratio:.2f}"


def _how_decided(split: SplitReport) -> tuple[tuple[int, str], ...]:
    return (
        (split.rows_checked, "by markers and agreeing with messages"),
        (split.rows_exact, "by messages"),
        (split.rows_unchecked, "by markers alone"),
        (split.rows_ambiguous, "by neither"),
        (split.rows_masked_before, "before the trainer was built"),
    )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _derived(report: MaskReport) -> tuple[str, ...]:
    splits, alike = report.splits, report.markers.like_the_model if report.markers is not None else ()
    each = (
        f"{name}: {warning}"
        for name, split in splits.items()
        for warning in (*warnings_for(split, report.stops_expected), *_unheard(split, alike))
    )
    return (*each, *warnings_between(splits))


def _unheard(split: SplitReport, alike: tuple[str, ...]) -> Iterable[str]:
    if alike and split.rows_unchecked:
        yield (
            f"the chat template writes {' and '.join(alike)} messages just as it writes the model, and "
            f"{_count(split.rows_unchecked, 'row')} have no messages to tell them apart: such words would be trained. "
            "Keep the messages column if there are any."
        )


def warnings_for(split: SplitReport, stops_expected: bool = True) -> tuple[str, ...]:
    """Failures of one split that look healthy in a loss curve, each with a way out.

    Args:
        split: the counts.
        stops_expected: whether every trained turn should end with a trained stop.

    >>> healthy = SplitReport(rows=9, tokens=900, trained_tokens=300, turns=9, turns_trained=9, turns_with_stop=9,
    ...     stops_trained=9)
    >>> warnings_for(healthy)
    ()
    >>> from dataclasses import replace
    >>> print(*warnings_for(replace(healthy, stops_trained=0)))
    0 of 9 stop tokens that end an answer are trained: the model never learns to stop. Train the stop token.
    """
    if not split.rows_seen:
        return ()
    return tuple(_nothing(split)) or tuple(_each(split, stops_expected))


def _nothing(split: SplitReport) -> Iterable[str]:
    if not split.trained_tokens:
        yield (
            f"0 of {split.tokens:,} tokens are trained: the loss would be 0 or NaN. "
            "Look at a row, and compare its text with the markers."
        )


def _each(split: SplitReport, stops_expected: bool) -> Iterable[str]:
    if stops_expected:
        yield from _stops(split)
    yield from _rows(split)
    yield from _share(split)


def _stops(split: SplitReport) -> Iterable[str]:
    if split.turns_with_stop and not split.stops_trained:
        yield (
            f"0 of {split.turns_with_stop:,} stop tokens that end an answer are trained: "
            "the model never learns to stop. Train the stop token."
        )
    elif 0 < split.stops_trained < min(split.turns_trained, split.turns_with_stop):
        yield (
            f"only {split.stops_trained:,} stop tokens are trained for {split.turns_trained:,} trained answers: "
            "the model may run on. Check which token ends a turn, and whether its label was hidden (pad equal to eos)."
        )
    elif split.turns_without_stop > split.turns_with_stop:
        yield (
            f"{split.turns_with_stop:,} of {split.turns:,} answers are followed by a stop token: after the others the "
            "model never learns to stop. End each answer with the eos token, or use a template that does."
        )


def _rows(split: SplitReport) -> Iterable[str]:
    if split.rows_cut > MANY_CUT * split.rows:
        yield (
            f"{split.rows_cut:,} of {split.rows:,} rows ({_percent(split.rows_cut / split.rows)}) end in mid-answer: "
            "the model learns half sentences. Raise max_length, or drop the rows that are cut."
        )
    if split.rows_dropped > MANY_DROPPED * split.rows_seen:
        reasons = f" ({_reasons(split.dropped_reasons)})" if split.dropped_reasons else ""
        yield (
            f"{split.rows_dropped:,} of {split.rows_seen:,} rows ({_percent(split.rows_dropped / split.rows_seen)}) "
            f"would train nothing and were dropped{reasons}. Look at one: it may hold no answer, or max_length may "
            "have cut it off."
        )
    if split.rows_with_unread_flags:
        yield (
            f"the messages of {_count(split.rows_with_unread_flags, 'row')} carry train or weight, which this policy "
            "does not read. Choose Policy(turns='flagged') to have them decide."
        )
    if split.unchecked_reasons:
        yield (
            f"{_count(sum(split.unchecked_reasons.values()), 'row')} of {split.rows_seen:,} have messages, but were "
            f"decided by markers alone ({_reasons(split.unchecked_reasons)}): what a message quotes could be trained "
            "there. Give the template that wrote the rows as chat_template=, or let mask_dataset tokenize the messages."
        )
    if split.rows_ambiguous:
        yield (
            f"neither markers nor messages could decide {split.rows_ambiguous:,} of {split.rows_seen:,} rows. "
            "Look at them in the preview; keep the messages column, or mask before packing."
        )


def _share(split: SplitReport) -> Iterable[str]:
    if split.share < SHARE_LOW:
        yield (
            f"only {_percent(split.share)} of the tokens are trained: most of the compute reads prompts. "
            "Check that long prompts are meant, and that no answer was missed."
        )
    if split.share > SHARE_HIGH:
        yield (
            f"{_percent(split.share)} of the tokens are trained: prompts are probably trained too. "
            "Check that the instruction marker occurs in the rows."
        )


def warnings_between(splits: Mapping[str, SplitReport], reference: str = "train") -> tuple[str, ...]:
    """Splits that were masked unlike ``reference``: their losses cannot be compared.

    >>> train = SplitReport(rows=1, tokens=100, trained_tokens=25)
    >>> print(*warnings_between({"train": train, "eval": SplitReport(rows=1, tokens=100, trained_tokens=100)}))
    eval: 100.0 % of the tokens are trained against 25.0 % of train: the two losses cannot be compared. \
Mask both splits with the same markers.
    """
    train = splits.get(reference)
    if train is None or not train.share:
        return ()
    others = ((name, split) for name, split in splits.items() if name != reference and split.share)
    return tuple(warning for name, split in others for warning in _unlike(name, split, reference, train))


def _unlike(name: str, split: SplitReport, reference: str, train: SplitReport) -> Iterable[str]:
    if max(split.share, train.share) > SHARE_FACTOR * min(split.share, train.share):
        yield (
            f"{name}: {_percent(split.share)} of the tokens are trained against {_percent(train.share)} "
            f"of {reference}: the two losses cannot be compared. Mask both splits with the same markers."
        )
    if split.turns_with_stop and train.turns_with_stop and (not split.stops_trained) != (not train.stops_trained):
        yield (
            f"{name}: {split.stops_trained:,} stop tokens are trained against {train.stops_trained:,} of {reference}: "
            "the two losses cannot be compared. Mask both splits with the same policy."
        )
