"""Texts that hold a needle are those of Arrow's own search."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sft_mask.data.needles
from sft_mask.data.needles import Haystack

LETTERS = "ab<|é東\0"
TEXTS = st.lists(st.none() | st.text(LETTERS, max_size=8), max_size=12)
NEEDLES = st.text(LETTERS, min_size=1, max_size=3)


@given(texts=TEXTS, needle=NEEDLES, cut=st.integers(0, 12), large=st.booleans())
def test_the_same_texts_hold_it_as_arrow_says(texts: list[str | None], needle: str, cut: int, large: bool) -> None:
    array = pa.array(texts, pa.large_string() if large else pa.string()).slice(cut)
    counted = np.asarray(pc.fill_null(pc.match_substring(array, needle), False), np.bool_)
    assert Haystack(array).holds(needle).tolist() == counted.tolist()


def test_a_needle_is_found_wherever_it_stands_in_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_mask.data.needles, "_AT_ONCE", 5)
    for place in range(40):
        text = "." * place + "<|im|>" + "." * (34 - place)
        assert Haystack(pa.array([".", text, "."])).holds("<|im|>").tolist() == [False, True, False]


def test_a_needle_across_two_texts_is_in_neither() -> None:
    assert Haystack(pa.array(["ab", "cd", "abcd"])).holds("bc").tolist() == [False, False, True]


def test_any_of_several_needles_counts_and_no_needle_finds_nothing() -> None:
    texts = Haystack(pa.array(["ab", None, "cd", ""]))
    assert texts.holds_any(("b", "d")).tolist() == [True, False, True, False]
    assert texts.holds_any(()).tolist() == [False] * 4


def test_a_null_holds_nothing_though_bytes_stand_behind_it() -> None:
    data = pa.py_buffer(b"abab")
    ends = pa.py_buffer(np.array([0, 2, 4], np.int32).tobytes())
    hidden = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), ends, data])
    assert Haystack(hidden).holds("ab").tolist() == [False, True]
