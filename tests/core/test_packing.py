"""Rows that packing cut from one text: where the text is joined again, and turns cut at the ends of rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

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


def parts_of(turn: dict[str, Any], offsets: Sequence[int]) -> list[dict[str, Any]]:
    """A turn cut at the ends of rows, token by token."""
    parts = []
    for row, (first, past) in enumerate(pairwise(offsets)):
        inside = [token for token in range(turn["start"], turn["end"]) if first <= token < past]
        if inside:
            has_eot = turn["has_eot"] and inside[-1] >= turn["eot_start"]
            end, ends_here = inside[-1] + 1, inside[-1] + 1 == turn["end"]
            eot_start = max(turn["eot_start"], first) if has_eot else end
            edges = {"start": inside[0], "end": end, "eot_start": eot_start, "header": max(turn["header"], first)}
            parts.append({**turn, **edges, "has_eot": has_eot, "cut": turn["cut"] and ends_here, "document": row})
    return parts


@st.composite
def rows_and_turns(draw: st.DrawFn) -> tuple[list[int], list[dict[str, Any]]]:
    """Offsets of rows, and disjoint turns in the text that they hold."""
    offsets = [0, *np.cumsum(draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))).tolist()]
    edges = sorted(draw(st.sets(st.integers(0, offsets[-1]), max_size=12)))
    turns = []
    for number, (header, start, end) in enumerate(zip(edges[::3], edges[1::3], edges[2::3], strict=False)):
        eot_start = draw(st.integers(start, end))
        turn = {"header": header, "start": start, "end": end, "eot_start": eot_start, "has_eot": eot_start < end}
        known = {"message": number, "role": number, "weight": number / 2}
        turns.append({**turn, **known, "cut": eot_start == end and draw(st.booleans()), "document": 0})
    return offsets, turns


@given(rows_and_turns())
def test_turns_cut_where_rows_end_are_what_a_loop_over_their_tokens_finds(
    case: tuple[list[int], list[dict[str, Any]]],
) -> None:
    offsets, turns = case
    columns = (np.array([turn[name] for turn in turns]) for name in Turns.__slots__)
    found = cut_at(Turns(*columns) if turns else Turns.empty(), np.array(offsets))
    assert [{name: getattr(found, name)[index].item() for name in Turns.__slots__} for index in range(len(found))] == [
        part for turn in turns for part in parts_of(turn, offsets)
    ]


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
    assert cut_at(turn, np.array([0, 8, 12])).cut.tolist() == [False, True]
