"""Rows that packing cut from one text: where the text is joined again, and turns cut at the ends of rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft_mask.core.packing import cut_at, joined_offsets
from sft_mask.core.spans import Turns


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 12))
def test_a_text_ends_with_each_row_that_is_not_full(lengths: list[int], full: int) -> None:
    lengths = [min(length, full) for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    ends, at = [0], 0
    for index, length in enumerate(lengths):
        at += length
        if length < full or index == len(lengths) - 1:
            ends.append(at)
    assert joined_offsets(offsets, full).tolist() == (ends if lengths else [0])


def test_an_end_of_turn_token_that_begins_the_next_row_belongs_to_that_row() -> None:
    one, no = np.array([True]), np.array([False])
    turn = Turns.of_assistant(np.array([2]), np.array([9]), one, no, np.array([0]), np.array([0]), np.array([8]))
    parts = cut_at(turn, np.array([0, 8, 16]))
    assert (parts.start.tolist(), parts.end.tolist()) == ([2, 8], [8, 9])
    assert parts.has_eot.tolist() == [False, True]


def test_only_the_last_part_of_an_answer_without_an_end_is_cut() -> None:
    yes, no = np.array([True]), np.array([False])
    turn = Turns.of_assistant(np.array([2]), np.array([12]), no, yes, np.array([0]), np.array([0]), np.array([12]))
    assert cut_at(turn, np.array([0, 8, 16])).cut.tolist() == [False, True]
