"""What the doctor says: a symptom that people see, what causes it, where it was seen, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.text import Text

ECHOES: Final = "the model echoes the user"
SYSTEM: Final = "the model writes system prompts"
IMITATES: Final = "the model writes tool results itself"
DEAF: Final = "the loss does not go down, or goes down on the wrong words"
ENDLESS: Final = "the model never stops"
NOTHING: Final = "the loss is 0 or NaN"
UNLIKE: Final = "the evaluation loss cannot be compared"
POOR: Final = "training looks fine, but the answers are poor"
BROKEN: Final = "the labels do not reach the loss as they are in the dataset"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes:
        symptom: what people notice.
        diagnosis: what causes it, with numbers.
        cure: what to do.
        split: where it was seen.
        example: one place, in words.
    """

    symptom: str
    diagnosis: str
    cure: str
    split: str = "train"
    example: str = ""

    def lines(self) -> Iterator[tuple[str, str]]:
        """(style, line)."""
        yield "bold red", f"✗ {self.symptom} ({self.split})"
        yield "", f"  why   {self.diagnosis}"
        if self.example:
            yield "dim", f"  seen  {self.example}"
        yield "green", f"  cure  {self.cure}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor found, and what it measured on the way.

    >>> print(Diagnosis((), {"train": {"rows": 4, "share": 0.25}}))
    train: rows 4, share 0.25
    healthy: labels are the model's own words and their stops
    """

    findings: tuple[Finding, ...]
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    policy: str = ""
    """What was asked for, where it is not every answer with its stop."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def symptoms(self) -> tuple[str, ...]:
        """The symptoms, each once."""
        return tuple(dict.fromkeys(finding.symptom for finding in self.findings))

    def to_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``."""
        return {
            "healthy": self.healthy,
            "findings": [asdict(finding) for finding in self.findings],
            "measured": {name: dict(numbers) for name, numbers in self.measured.items()},
        }

    def __str__(self) -> str:
        return "\n".join(line for _, line in self._lines())

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text("\n").join(Text(line, style=style) for style, line in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        for name, numbers in self.measured.items():
            told = ", ".join(f"{what} {number:.4g}" for what, number in numbers.items())
            yield "dim", f"{name}: {told}"
        for finding in self.findings:
            yield from finding.lines()
        if self.healthy:
            asked = f"what {self.policy} asks for" if self.policy else "the model's own words and their stops"
            yield "bold green", f"healthy: labels are {asked}"
