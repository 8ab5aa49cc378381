"""Small helpers on arrays, at their edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sft_mask.core.arrays import cache_slices, common_prefix_length, greatest, offsets_of


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32, np.int64])
def test_offsets_are_64_bit_sums_of_lengths_of_any_type(dtype: type) -> None:
    offsets = offsets_of(np.ones(300, dtype))
    assert (offsets.tolist(), offsets.dtype) == ([*range(301)], np.int64)


def test_no_stretches_have_one_offset() -> None:
    assert offsets_of([]).tolist() == [0]


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [
        ("<|end|>", "<|eot|>", 3),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], (1, 2), 2),
        ("ab", "ab", 2),
        ("a", "b", 0),
        ("", "a", 0),
    ],
)
def test_a_common_prefix_ends_at_the_first_difference_or_with_the_shorter(
    left: Sequence[object], right: Sequence[object], shared: int
) -> None:
    assert common_prefix_length(left, right) == shared


@pytest.mark.parametrize("count", [0, 1, 2**15, 2**15 + 1, 100_000])
def test_slices_hold_each_value_once_and_at_most_32768_of_them(count: int) -> None:
    parts = [np.arange(count)[part] for part in cache_slices(count)]
    assert [value for part in parts for value in part.tolist()] == [*range(count)]
    assert [len(part) for part in parts[:-1]] == [2**15] * (len(parts) - 1)
    assert all(map(len, parts))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_a_negative_id_is_greater_than_any_other(dtype: type) -> None:
    assert greatest(np.array([3, 7, 5], dtype)) == 7
    assert greatest(np.array([], dtype)) == -1
    if np.issubdtype(dtype, np.signedinteger):
        assert greatest(np.array([3, -1, 5], dtype)) == np.iinfo(dtype).max * 2 + 1
