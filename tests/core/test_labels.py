"""Labels are the ids where a turn is trained and nothing was masked before, and the ignored value elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.labels import make_labels, over_turns, trained_mask
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError


def turns_at(*spans: tuple[int, int]) -> Turns:
    start, stop = np.array([span[0] for span in spans], int), np.array([span[1] for span in spans], int)
    no, zero = np.zeros(len(spans), np.bool_), np.zeros(len(spans), np.int64)
    return Turns.of_assistant(start, stop, no, no, zero, start, stop)


def test_labels_align_with_the_ids_and_do_not_shift():
    assert make_labels(np.array([10, 11, 12, 13, 14]), turns_at((1, 3), (4, 5))).tolist() == [-100, 11, 12, -100, 14]


def test_turns_may_touch_each_other_and_both_ends():
    assert trained_mask(turns_at((0, 2), (2, 3), (4, 5)), 5).tolist() == [True, True, True, False, True]


def test_without_turns_nothing_is_trained():
    assert make_labels(np.array([1, 2]), Turns.empty()).tolist() == [-100, -100]
    assert make_labels(np.zeros(0, np.int32), Turns.empty()).tolist() == []


def test_what_somebody_already_masked_stays_masked():
    existing = np.array([-100, 11, -100, 13], np.int64)
    assert make_labels(np.array([10, 11, 12, 13]), turns_at((0, 3)), existing).tolist() == [-100, 11, -100, -100]


def test_an_existing_label_masks_but_does_not_replace_an_id():
    assert make_labels(np.array([10, 11]), turns_at((0, 2)), np.array([7, 11])).tolist() == [10, 11]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_labels_are_32_bit_integers_whatever_the_ids_are(dtype: type):
    labels = make_labels(np.array([1, 2, 127], dtype), turns_at((1, 3)))
    assert (labels.dtype, labels.tolist()) == (np.int32, [-100, 2, 127])


def test_the_ids_and_the_old_labels_are_left_as_they_are():
    ids, existing = np.array([1, 2, 3], np.int32), np.array([1, -100, 3])
    make_labels(ids, turns_at((1, 2)), existing)
    assert (ids.tolist(), existing.tolist()) == ([1, 2, 3], [1, -100, 3])


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 5))
def test_the_mask_equals_a_loop_over_the_turns(gaps: list[int], rest: int):
    edges = np.cumsum(gaps[: len(gaps) // 2 * 2]).tolist()
    spans = [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if high > low]
    size = (edges[-1] if edges else 0) + rest
    expected = [any(low <= index < high for low, high in spans) for index in range(size)]
    assert trained_mask(turns_at(*spans), size).tolist() == expected


def test_masking_twice_is_masking_once():
    ids = np.arange(6)
    once = make_labels(ids, turns_at((2, 5)))
    assert make_labels(ids, turns_at((2, 5)), once).tolist() == once.tolist()


@pytest.mark.parametrize("strange", [-1, 2**31, 2**40])
def test_a_number_that_is_not_a_token_id_is_refused_inside_an_answer_only(strange: int):
    ids = np.array([0, 2**31 - 1, strange], np.int64)
    assert make_labels(ids, turns_at((0, 2))).tolist() == [0, 2**31 - 1, IGNORE_INDEX]
    with pytest.raises(DataError, match=f"input_ids holds {strange} inside an answer"):
        make_labels(ids, turns_at((1, 3)))


def test_values_of_turns_keep_their_type():
    spread = over_turns(turns_at((1, 2)), np.array([0.5], np.float32), 3)
    assert (spread.tolist(), spread.dtype) == ([0.0, 0.5, 0.0], np.float32)
