from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.tiny_tokenizers import byte_level, sentencepiece
from tokenizers import AddedToken, normalizers

from sft_mask.core.spans import Turns
from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.errors import DataError
from sft_mask.templates.align import RowFrame, fit_to_row, token_bounds

SWALLOWING = AddedToken("<|end|>", special=True, rstrip=True, normalized=False)


def bounds(tokenizer: Any, text: str) -> list[str]:
    """The text that each token holds."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    first, last = token_bounds(text, ids, read_vocabulary(tokenizer), tokenizer)
    return [text.encode()[a:b].decode(errors="replace") for a, b in zip(first.tolist(), last.tolist(), strict=True)]


def test_tokens_of_bytes_hold_the_text_between_them() -> None:
    assert bounds(byte_level([" the"]), "a the é<|im_end|>") == ["a", " the", " ", "�", "�", "<|im_end|>"]


def test_a_space_that_sentencepiece_added_holds_no_text() -> None:
    assert bounds(sentencepiece(), "<s>a b</s>") == ["<s>", "", "a", " ", "b", "</s>"]


def test_whitespace_that_a_control_token_stripped_belongs_to_no_token() -> None:
    assert bounds(byte_level(specials=["<|im_start|>", SWALLOWING]), "a<|end|>\n b") == ["a", "<|end|>", "b"]


@pytest.mark.parametrize(
    "blank", ["\n", " ", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u202f", "\u3000", " \xa0\n"]
)
def test_any_whitespace_that_a_control_token_stripped_belongs_to_no_token(blank: str) -> None:
    tokenizer = byte_level(specials=["<|im_start|>", SWALLOWING])
    text = f"a<|end|>{blank}b"
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 3, "the tokenizer swallows it"
    assert bounds(tokenizer, text) == ["a", "<|end|>", "b"]
    changing = byte_level(specials=["<|im_start|>", SWALLOWING], normalizer=normalizers.Lowercase())
    assert bounds(changing, f"A<|end|>{blank}B") == ["A", "<|end|>", "B"]


@pytest.mark.parametrize("sign", ["\x1c", "\x1f", "\u200b", "\ufeff"])
def test_signs_that_no_tokenizer_swallows_stay_text(sign: str) -> None:
    tokenizer = byte_level(specials=["<|im_start|>", SWALLOWING])
    assert "".join(bounds(tokenizer, f"a<|end|>{sign}")) != "a<|end|>"


def test_a_normalized_text_is_laid_along_the_tokenizers_own_offsets() -> None:
    tokenizer = byte_level(normalizer=normalizers.Lowercase())
    assert bounds(tokenizer, "AB") == ["A", "B"]


def turns(*spans: tuple[int, int]) -> Turns:
    start, stop = (np.array(column, np.int64) for column in zip(*spans, strict=True))
    some = np.ones(len(spans), np.bool_)
    return Turns.of_assistant(start, stop, some, ~some, start * 0, start - 1, stop - 1)


WHOLE = np.arange(10)
FRAME = RowFrame(leads=((77,),), tails=((88,),), is_whitespace=lambda ids: not set(ids.tolist()) - {9})


def spans_of(row: list[int], opens: bool = False) -> list[tuple[int, int]]:
    found = fit_to_row(turns((2, 4), (6, 9)), WHOLE, np.array(row), lambda ids: opens and len(ids) > 0, FRAME)
    return list(zip(found.start.tolist(), found.end.tolist(), strict=True))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (list(range(10)), [(2, 4), (6, 9)]),
        (list(range(8)), [(2, 4), (6, 8)]),
        (list(range(3)), [(2, 3)]),
        (list(range(2)), []),
        (list(range(3, 10)), [(0, 1), (3, 6)]),
        ([9], []),
        ([77, *range(8)], [(3, 5), (7, 9)]),
        ([77, *range(3, 10)], [(1, 2), (4, 7)]),
        ([0, 50, 2, 3, 4, 5, 6, 7, 8, 9], [(2, 4), (6, 9)]),
        ([0, 1, 2, 3, 50, 51, 52, 6, 7, 8, 9], [(2, 4), (7, 10)]),
        ([0, 1, 2, 3, 5, 6, 7, 8, 9], [(2, 4), (5, 8)]),
        ([*range(10), 50], [(2, 4), (6, 9)]),
        ([77, *range(10), 88], [(3, 5), (7, 10)]),
        ([77, 50, 51, *range(1, 10), 88], [(4, 6), (8, 11)]),
        ([], []),
        ([77], []),
    ],
)
def test_turns_move_onto_a_row_that_holds_a_part_of_the_conversation(row: list[int], expected: Any) -> None:
    assert spans_of(row) == expected


@pytest.mark.parametrize("row", [[0, 1, 2, 50, 4, 5, 6, 7, 8, 9], [0, 1, 2, 4, 5, 6, 7, 8, 9], [50, 51]])
def test_a_row_that_differs_in_a_turn_is_refused(row: list[int]) -> None:
    with pytest.raises(DataError, match="differ from token"):
        spans_of(row)


def test_a_row_that_differs_by_a_response_header_is_refused() -> None:
    with pytest.raises(DataError, match="differ from token 4"):
        spans_of([0, 1, 2, 3, 50, 4, 5, 6, 7, 8, 9], opens=True)
    assert spans_of(list(range(10)), opens=True) == [(2, 4), (6, 9)]


def test_an_eot_that_was_cut_off_is_not_counted() -> None:
    found = fit_to_row(turns((2, 4), (6, 9)), WHOLE, WHOLE[:8], lambda ids: False)
    assert found.has_eot.tolist() == [True, False]
    assert found.cut.tolist() == [False, True]
    assert found.eot_start.tolist() == [3, 8]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([*range(10), 88], [(2, 4), (6, 11)]),  # the whitespace between the answer and its end is the model's to say
        ([*range(9), 88], [(2, 4), (6, 10)]),
        ([77, *range(10), 88], [(3, 5), (7, 12)]),
        ([*range(10), 50, 88], [(2, 4), (6, 9)]),
        (list(range(10)), [(2, 4), (6, 9)]),
    ],
)
def test_an_appended_end_is_the_stop_of_an_answer_that_has_none(row: list[int], expected: Any) -> None:
    spans = turns((2, 4), (6, 9))
    without = replace(spans, has_eot=spans.start < 0, eot_start=spans.end)
    found = fit_to_row(without, WHOLE, np.array(row), lambda ids: False, FRAME)
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == expected
    assert found.has_eot.tolist() == [False, expected[1][1] > 9 and row[-1] == 88 and 50 not in row]


def test_a_row_that_lost_its_beginning_has_its_header_at_the_first_token() -> None:
    one, no = np.array([True]), np.array([False])
    whole = Turns.of_assistant(np.array([6]), np.array([9]), one, no, np.array([0]), np.array([2]), np.array([8]))
    found = fit_to_row(whole, np.arange(10), np.array([50, 6, 7, 8, 9]), lambda ids: False)
    assert (found.start.tolist(), found.end.tolist(), found.header.tolist()) == ([1], [4], [0])


def test_an_answer_that_ends_with_its_row_is_not_cut() -> None:
    yes, no = np.array([True]), np.array([False])
    whole = Turns.of_assistant(np.array([6]), np.array([10]), yes, no, np.array([0]), np.array([5]), np.array([9]))
    found = fit_to_row(whole, np.arange(10), np.arange(10), lambda ids: False)
    assert (found.cut.tolist(), found.has_eot.tolist()) == ([False], [True])
