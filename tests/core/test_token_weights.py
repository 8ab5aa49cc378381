"""Weights per token, from policy and regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.core.labels import make_labels
from sft_mask.core.policy import Policy
from sft_mask.core.spans import Turns
from sft_mask.core.token_weights import UnweightedBatch, mean_within, weighted_labels


def single_tokens(count: int) -> Turns:
    """Turns of one token each, one token apart, in one document."""
    start, yes = np.arange(1, 2 * count, 2), np.ones(count, np.bool_)
    return Turns.of_assistant(start, start + 1, ~yes, ~yes, start * 0, start - 1, start + 1)


def graded_labels(
    turns: Turns, size: int, policy: Policy, factor: Sequence[float] | None = None
) -> tuple[list[int], int]:
    ids, trained = np.arange(size), np.zeros(size, np.bool_)
    trained[turns.start] = True
    labels = np.where(trained, ids, IGNORE_INDEX).astype(np.int32)
    factors = np.ones(size) if factor is None else np.array(factor)
    batch = UnweightedBatch(ids, labels, turns, turns, np.array([0, size]), factors, np.ones(size, np.bool_))
    encoded, prompt = weighted_labels(batch, policy)
    return encoded.tolist(), prompt


def test_a_token_of_the_prompt_that_weighs_nothing_is_not_trained() -> None:
    labels, prompt = graded_labels(single_tokens(1), 4, Policy(prompt_weight=0.5), [1.0, 1.0, 0.0, 1.0])
    assert (labels[2], prompt) == (IGNORE_INDEX, 2)


def test_a_token_of_the_prompt_counts_by_its_own_factor_too() -> None:
    labels, prompt = graded_labels(single_tokens(1), 3, Policy(prompt_weight=0.5), [1.0, 1.0, 0.5])
    assert label_weights(np.array(labels)).tolist() == [0.5, 1.0, 0.25]
    assert prompt == 2


def test_without_a_weight_of_the_prompt_none_of_it_is_trained() -> None:
    labels, prompt = graded_labels(single_tokens(1), 3, Policy())
    assert (labels, prompt) == ([IGNORE_INDEX, 1, IGNORE_INDEX], 0)
    assert isinstance(prompt, int)


def test_a_label_that_was_masked_before_stays_masked_inside_a_trained_turn() -> None:
    no = np.array([False])
    turn = Turns.of_assistant(np.array([1]), np.array([4]), no, no, np.array([0]), np.array([0]), np.array([4]))
    ids, labels = np.arange(4), np.array([-100, 1, -100, 3], np.int32)
    batch = UnweightedBatch(ids, labels, turn, turn, np.array([0, 4]), np.ones(4), np.ones(4, np.bool_))
    for reduction, weight in (("token", 1.0), ("turn", 0.5), ("sequence", 0.5)):
        weighted, _ = weighted_labels(batch, Policy(reduction=reduction))  # type: ignore[arg-type]
        assert label_weights(weighted).tolist() == [0, weight, 0, weight]


@pytest.mark.parametrize("reduction", ["turn", "sequence"])
def test_the_first_token_of_each_document_takes_no_share_of_its_unit(reduction: Any) -> None:
    documents = np.array([0, 3, 3, 4, 7, 7])  # the second and the last hold nothing, the third one token
    start, end, no = np.array([0, 3, 4]), np.array([3, 4, 7]), np.zeros(3, np.bool_)
    turns = Turns.of_assistant(start, end, no, no, np.array([0, 2, 3]), start, end)
    ids = np.arange(10, 17)
    batch = UnweightedBatch(ids, make_labels(ids, turns), turns, turns, documents, np.ones(7), np.ones(7, np.bool_))
    labels, _ = weighted_labels(batch, Policy(reduction=reduction))
    assert label_weights(labels).tolist() == [0, 0.5, 0.5, 0, 0, 0.5, 0.5]


def test_documents_of_one_conversation_share_the_weight_of_a_sequence() -> None:
    start, end, no = np.array([1, 4, 7]), np.array([3, 6, 9]), np.zeros(3, np.bool_)
    turns = Turns.of_assistant(start, end, no, no, np.array([0, 1, 2]), start - 1, end)
    ids, ones = np.arange(10, 19), np.ones(9)
    batch = UnweightedBatch(
        ids, make_labels(ids, turns), turns, turns, np.array([0, 3, 6, 9]), ones, ones > 0, units=np.array([5, 7, 5])
    )
    labels, _ = weighted_labels(batch, Policy(reduction="sequence"))
    assert label_weights(labels).tolist() == [0, 0.25, 0.25, 0, 0.5, 0.5, 0, 0.25, 0.25]


def test_a_batch_without_tokens_has_no_labels() -> None:
    none = np.zeros(0, np.int64)
    turns = Turns.empty()
    for reduction in ("token", "turn", "sequence"):
        batch = UnweightedBatch(none, none.astype(np.int32), turns, turns, np.array([0]), np.ones(0), none > 0)
        labels, prompt = weighted_labels(batch, Policy(reduction=reduction))  # type: ignore[arg-type]
        assert (labels.tolist(), prompt) == ([], 0)


@given(st.lists(st.tuples(st.floats(0, 1e-41) | st.floats(1e-37, 100), st.integers(0, 4)), min_size=1, max_size=40))
def test_the_weights_of_a_unit_sum_to_one_or_nothing(rows: list[tuple[float, int]]) -> None:
    weights, units = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    scaled = mean_within(weights, units, np.array([0]))
    for unit in range(5):
        inside = units == unit
        graded = np.where(np.arange(len(rows)) > 0, weights, 0.0)[inside]
        assert scaled[inside].sum() == pytest.approx(float(graded.sum() > 2e-38))


@pytest.mark.parametrize(
    ("reduction", "wanted"),
    [
        ("token", [1, 1, 0.5, 1, 1]),
        ("turn", [0.4, 0.4, 0.2, 0.5, 0.5]),
        ("sequence", [2 / 9, 2 / 9, 1 / 9, 2 / 9, 2 / 9]),
    ],
)
def test_the_worked_example_of_reductions(reduction: Any, wanted: list[float]) -> None:
    start, end, no = np.array([2, 6]), np.array([5, 8]), np.zeros(2, np.bool_)
    turns = Turns.of_assistant(start, end, no, no, np.zeros(2, np.int64), start, end)
    ids = np.arange(10, 18)
    factor = np.where(ids == 14, 0.5, 1.0)
    batch = UnweightedBatch(ids, make_labels(ids, turns), turns, turns, np.array([0, 8]), factor, np.ones(8, np.bool_))
    labels, _ = weighted_labels(batch, Policy(reduction=reduction))
    assert label_ids(labels).tolist() == [-100, -100, 12, 13, 14, -100, 16, 17]
    assert label_weights(labels)[[2, 3, 4, 6, 7]].tolist() == pytest.approx(wanted)
