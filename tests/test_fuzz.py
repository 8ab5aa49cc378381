"""A short fuzz of every path to labels with fixed seeds, and proof that it notices a label that is wrong.

The long one is ``scripts/fuzz.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.fuzzing.outcome import IGNORED, Outcome, Subject, case, library
from support.fuzzing.parts import PARTS
from support.marks import slow_but

SEED = 11
CASES = {
    "control-ids": 8,
    "word-ids": 6,
    "torn-markers": 25,
    "typed-markers": 8,
    "columns": 14,
    "batches": 25,
    "broken": 40,
    "documents": 8,
    "truncated": 3,
    "wrapped": 2,
    "bfd-split": 3,
    "keep-end": 3,
    "policies": 12,
}


def fuzzed(name: str, subject: Subject, cases: int) -> Outcome:
    found = Outcome()
    for number in range(cases):
        found.add(PARTS[name](case(SEED, name, number), subject))
    return found


def test_every_part_is_fuzzed() -> None:
    assert list(CASES) == list(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_no_label_differs_from_the_reference(name: str) -> None:
    found = fuzzed(name, library(), CASES[name])
    assert found.wrong == []
    assert found.rows > 20, "too few rows were compared to say anything"


# a library with a mistake


def without_first(labels: list[int]) -> list[int]:
    """Labels in which one trained token is not."""
    at = next((at for at, label in enumerate(labels) if label != IGNORED), None)
    return labels if at is None else [*labels[:at], IGNORED, *labels[at + 1 :]]


def spoiled(dataset: Any) -> Any:
    rows = [without_first(list(row)) for row in dataset.with_format(None)["labels"]]
    return dataset.with_format(None).remove_columns("labels").add_column("labels", rows)


def spoiling_mask(mask: Callable[..., Any]) -> Callable[..., Any]:
    def made(*given: Any, **options: Any) -> Any:
        answer = mask(*given, **options)
        return (spoiled(answer[0]), answer[1]) if isinstance(answer, tuple) else spoiled(answer)

    return made


def spoiling_train(train: Callable[..., Any]) -> Callable[..., Any]:
    def made(*given: Any, **options: Any) -> Any:
        answer = train(*given, **options)
        if not options.get("return_function"):
            answer.train_dataset = spoiled(answer.train_dataset)
            return answer
        return lambda batch: {"labels": [without_first([int(x) for x in row]) for row in answer(batch)["labels"]]}

    return made


def spoiling_finder(finder: Callable[..., Any]) -> Callable[..., Any]:
    class Spoiled:
        def __init__(self, *given: Any, **options: Any) -> None:
            self._finder = finder(*given, **options)

        def find(self, ids: Any, offsets: Any) -> Any:
            turns = self._finder.find(ids, offsets)
            return turns.select(np.arange(len(turns) - 1))

    return Spoiled


@pytest.mark.parametrize(
    "name", slow_but(["control-ids", "columns", "wrapped"], [name for name in PARTS if name != "broken"])
)
def test_one_token_too_few_is_noticed(name: str) -> None:
    real = library()
    subject = Subject(spoiling_mask(real.mask), spoiling_train(real.train), spoiling_finder(real.finder), real.refusal)
    assert any(PARTS[name](case(SEED, name, number), subject).wrong for number in range(CASES[name]))


def test_what_is_not_refused_is_noticed() -> None:
    def takes_all(*given: Any, **options: Any) -> Any:
        answer: dict[str, list[list[int]]] = {"labels": []}
        return (lambda batch: answer) if options else answer

    real = library()
    found = fuzzed("broken", Subject(takes_all, takes_all, real.finder, real.refusal), 10)
    assert len(found.wrong) >= 8
