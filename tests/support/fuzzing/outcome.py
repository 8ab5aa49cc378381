"""What a case found, and what is under test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

IGNORED = -100


@dataclass
class Outcome:
    """Counts of one case or of many; ``wrong`` describes each row whose mask is not the reference's."""

    rows: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.rows += other.rows
        self.tokens += other.tokens
        self.errors += other.errors
        self.wrong += other.wrong

    def named(self, error: Exception) -> None:
        """Counts a refusal by name."""
        self.errors[type(error).__name__] += 1

    def compare(self, what: str, ids: Sequence[int], wanted: Sequence[bool | None], labels: Sequence[int]) -> None:
        """Counts a row; ``None`` for a token that may be either."""
        self.rows += 1
        self.tokens += len(ids)
        places = list(differing(ids, wanted, labels))
        if places:
            self.wrong.append(f"{what}: tokens {places[:8]} of {shown(ids)}, labels {shown(labels)}")


def differing(ids: Sequence[int], wanted: Sequence[bool | None], labels: Sequence[int]) -> Iterable[int]:
    """Tokens whose label is neither the id where it must be trained nor ignored where it must not be."""
    if not len(ids) == len(wanted) == len(labels):
        return [min(len(ids), len(wanted), len(labels))]
    rows = zip(ids, wanted, labels, strict=True)
    return [at for at, (token, trained, label) in enumerate(rows) if not _fits(token, trained, label)]


def _fits(token: int, trained: bool | None, label: int) -> bool:
    if trained is None:
        return label in (token, IGNORED)
    return label == (token if trained else IGNORED)


def shown(values: Sequence[int]) -> str:
    """Not more of a row than a person reads."""
    return str(list(values)) if len(values) <= 60 else f"{list(values[:60])} and {len(values) - 60} more"


@dataclass(frozen=True)
class Subject:
    """What is under test: the library, or a broken one."""

    mask: Callable[..., Any]
    """:func:`sft_mask.mask_dataset`."""
    train: Callable[..., Any]
    """:func:`sft_mask.train_on_responses_only`."""
    finder: Callable[..., Any]
    """:class:`sft_mask.core.spans.SpanFinder`."""
    refusal: type[Exception]
    """The parent of all errors that name a reason."""


Part = Callable[[random.Random, Subject], Outcome]


def library() -> Subject:
    """The library as it is."""
    from sft_mask import mask_dataset, train_on_responses_only
    from sft_mask.core.spans import SpanFinder
    from sft_mask.errors import SftMaskError

    return Subject(mask_dataset, train_on_responses_only, SpanFinder, SftMaskError)


def case(seed: int, name: str, number: int) -> random.Random:
    """The source of randomness of one case of one part."""
    return random.Random(f"{seed}:{name}:{number}")
