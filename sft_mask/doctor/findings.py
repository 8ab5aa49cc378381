"""What the doctor reports: findings, each with a symptom, its cause, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import sft_mask.doctor.symptoms as symptoms
from sft_mask.report.notebook import element, fact, panel

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes:
        symptom: what people notice, from :mod:`sft_mask.doctor.symptoms`.
        diagnosis: what causes it, with numbers.
        cure: what to do.
        split: where it was seen.
        example: one place, such as ``"row 3, tokens 5 to 9: 'walk'"``.
        also: other symptoms of the same cause.
    """

    symptom: str
    diagnosis: str
    cure: str
    split: str = "train"
    example: str = ""
    also: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The symptoms, and where they were seen."""
        return f"{'; '.join((self.symptom, *self.also))} ({self.split})"

    def lines(self) -> Iterator[tuple[str, str]]:
        """(style, line) of the report."""
        yield "bold red", f"✗ {self.heading}"
        yield "", f"  why   {self.diagnosis}"
        if self.example:
            yield "dim", f"  seen  {self.example}"
        yield "green", f"  cure  {self.cure}"


def by_cause(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings with those joined that one cure mends, in the order of the first of each.

    >>> user, system = (Finding(s, f"Tokens of the {s}.", "Mask.") for s in ("user", "system"))
    >>> by_cause([user, system])[0].diagnosis
    'Tokens of the user. Tokens of the system.'
    """
    causes: dict[str, list[Finding]] = {}
    for finding in findings:
        causes.setdefault(finding.cure, []).append(finding)
    return tuple(_joined(same) for same in causes.values())


def _joined(same: Sequence[Finding]) -> Finding:
    splits = list(dict.fromkeys(finding.split for finding in same))
    texts = {split: " ".join(each.diagnosis for each in same if each.split == split) for split in splits}
    seen = list(dict.fromkeys(texts.values()))
    # what people notice of a split that is only evaluated is its loss
    ordered = sorted(same, key=lambda each: "train" not in splits and each.symptom != symptoms.INCOMPARABLE)
    first, *others = dict.fromkeys(each for finding in ordered for each in (finding.symptom, *finding.also))
    return Finding(
        first,
        seen[0] if len(seen) == 1 else " ".join(f"{split}: {text}" for split, text in texts.items()),
        same[0].cure,
        " and ".join(splits),
        next((finding.example for finding in same if finding.example), ""),
        tuple(others),
    )


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor found, and what it measured on the way.

    >>> print(Diagnosis((), {"train": {"rows": 4, "share": 0.25}}))
    train: rows 4, share 0.25
    healthy: only the assistant's words and end-of-turn tokens are trained
    """

    findings: tuple[Finding, ...]
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    policy: str = ""
    """The policy, unless it is the default."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def symptoms(self) -> tuple[str, ...]:
        """The symptoms, each once."""
        return tuple(dict.fromkeys(each for finding in self.findings for each in (finding.symptom, *finding.also)))

    def to_dict(self) -> dict[str, object]:
        """For ``json.dumps``."""
        return {
            "healthy": self.healthy,
            "findings": [asdict(finding) for finding in self.findings],
            "measured": {name: dict(numbers) for name, numbers in self.measured.items()},
        }

    def __str__(self) -> str:
        return "\n".join(line for _, line in self._lines())

    def __repr__(self) -> str:
        return f"<Diagnosis {' · '.join(finding.heading for finding in self.findings) or 'healthy'}>"

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text("\n").join(Text(line, style=style) for style, line in self._lines())

    def _repr_html_(self) -> str:
        return panel(self._html())

    def _html(self) -> Iterator[str]:
        for finding in self.findings:
            seen = [fact("seen", finding.example)] if finding.example else []
            facts = (fact("why", finding.diagnosis), *seen, fact("cure", finding.cure))
            yield f'<div class="group">{element(f"✗ {finding.heading}", "head warn")}{"".join(facts)}</div>'
        yield from (element(f"✓ {line}", "good") for line in self._verdict())
        yield from (element(line, "faint group") for line in self._measures())

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield from (("dim", line) for line in self._measures())
        for finding in self.findings:
            yield from finding.lines()
        yield from (("bold green", line) for line in self._verdict())

    def _measures(self) -> Iterator[str]:
        for name, numbers in self.measured.items():
            yield f"{name}: " + ", ".join(f"{what} {number:.4g}" for what, number in numbers.items())

    def _verdict(self) -> Iterator[str]:
        """One line if nothing is wrong, else none."""
        if self.healthy:
            usual = "only the assistant's words and end-of-turn tokens are trained"
            yield f"healthy: {f'the labels are what {self.policy} asks for' if self.policy else usual}"
