"""Weights inside labels: what goes in comes out, and a plain label stays its id."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import PLAIN_BELOW, encode_labels, has_weights, label_ids, label_weights
from sft_mask.errors import DataError

entries = st.tuples(
    st.one_of(st.just(IGNORE_INDEX), st.integers(0, (1 << 24) - 1)),
    st.floats(0, 2.0**100, width=32),
)


@given(st.lists(entries, max_size=40))
def test_what_goes_in_comes_out(rows: list[tuple[int, float]]) -> None:
    labels = np.array([row[0] for row in rows], np.int32)
    weights = np.array([row[1] for row in rows], np.float64)
    encoded = encode_labels(labels, weights)
    assert encoded.dtype == np.int64
    assert ((encoded >= 0) | (encoded == IGNORE_INDEX)).all(), "a negative label would be one more to ignore"
    trained = labels != IGNORE_INDEX
    np.testing.assert_array_equal(label_ids(encoded), labels)
    np.testing.assert_array_equal(label_weights(encoded), np.where(trained, weights, 0).astype(np.float32))


@given(st.lists(st.integers(0, (1 << 24) - 1), min_size=1, max_size=40))
def test_a_weight_of_one_is_the_plain_id(ids: list[int]) -> None:
    encoded = encode_labels(np.array(ids), np.ones(len(ids)))
    assert encoded.tolist() == ids
    assert not has_weights(encoded)
    assert has_weights(encode_labels(np.array(ids), np.full(len(ids), 0.5)))


def test_a_weight_that_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(DataError, match="which float32 cannot hold"):
        encode_labels(np.array([5]), np.array([1e39]))


def test_an_ignored_label_stays_ignored_whatever_its_weight() -> None:
    assert encode_labels(np.array([IGNORE_INDEX, 7]), np.array([0.5, 1.0])).tolist() == [IGNORE_INDEX, 7]


def test_labels_carry_weights_from_the_first_number_that_is_not_a_plain_id() -> None:
    assert has_weights(np.array([IGNORE_INDEX, PLAIN_BELOW]))
    assert not has_weights(np.array([IGNORE_INDEX, PLAIN_BELOW - 1]))
    assert not has_weights(np.zeros(0, np.int32))
