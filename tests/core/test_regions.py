"""Regions of an answer are left out by their bytes, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.tiny_tokenizers import byte_level
from transformers import PreTrainedTokenizerBase

from sft_mask.core.policy import Policy
from sft_mask.core.regions import Region, in_regions
from sft_mask.core.spans import Turns
from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.errors import MarkerError, SftMaskError


@pytest.fixture
def tokenizer(smollm2: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return smollm2


def trained_text(tokenizer: PreTrainedTokenizerBase, answer: str, *regions: Region, header: str = "") -> str:
    """The text of an answer and its end-of-turn token without what lies in the regions."""
    before, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (header, answer))
    ids = np.array([*before, *said, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    one, start, end = np.array([True]), np.array([len(before)]), np.array([len(ids)])
    turn = Turns.of_assistant(start, end, one, ~one, np.array([0]), np.array([0]), end - 1)
    factor = in_regions(ids, turn, read_vocabulary(tokenizer), regions)
    return str(tokenizer.decode(ids[len(before) :][factor[len(before) :] == 1]))


def test_reasoning_between_tags_is_masked_and_the_answer_and_its_stop_are_not(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    thinking = Region("<think>", "</think>")
    assert trained_text(tokenizer, "<think> 東京 is big </think> Yes.", thinking) == " Yes.<|im_end|>"


def test_a_region_that_is_never_closed_runs_to_the_end_of_the_answer_and_spares_the_stop(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert trained_text(tokenizer, "Yes. <think> and on", Region(" <think>", "</think>")) == "Yes.<|im_end|>"


def test_a_token_that_holds_a_byte_of_the_answer_stays_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(" hello", add_special_tokens=False)["input_ids"]
    assert len(ids) == 1, "the test needs a word that is one token"
    assert trained_text(tokenizer, "Oh hello", Region(pattern=" hel")) == "Oh hello<|im_end|>"
    assert trained_text(tokenizer, "Oh hello", Region(pattern=" hello")) == "Oh<|im_end|>"


def test_several_regions_and_several_places_are_masked(tokenizer: PreTrainedTokenizerBase) -> None:
    regions = (Region(" [", "]"), Region(pattern=r" call_\d+"))
    assert trained_text(tokenizer, "A [x] B [y] C call_17 D", *regions) == "A B C D<|im_end|>"


def test_places_that_touch_are_one(tokenizer: PreTrainedTokenizerBase) -> None:
    assert trained_text(tokenizer, "Oh hello 東京", Region(pattern=".")) == "<|im_end|>"
    assert trained_text(tokenizer, "aa hello", Region(pattern=" ?[a-z]")) == "<|im_end|>"


def test_a_region_that_the_header_opened_runs_from_the_answer_s_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    thinking, header = Region("<think>", "</think>"), "<|im_start|>assistant\n<think>\n"
    assert trained_text(tokenizer, "secret </think> Yes.", thinking, header=header) == " Yes.<|im_end|>"


@pytest.mark.parametrize(
    ("header", "answer", "places"),
    [
        (b"<think>", b"a</think>b", [(0, 9)]),
        (b"A: <think>", b"a</think>b<think>c", [(0, 9), (10, 18)]),
        (b"A: <think>x", b"a</think>b", [(0, 9)]),
        (b"<think>x</think>", b"a</think>b", []),
        (b"</think><think>", b"a</think>b", [(0, 9)]),
        (b"<think>x</think><think>", b"a</think>b", [(0, 9)]),
        (b"<think>", b"a", [(0, 1)]),
        (b"<think>", b"", []),
        (b"A: ", b"a</think>b", []),
    ],
)
def test_what_a_header_opened_and_did_not_close_is_a_region_from_the_answer_s_first_byte(
    header: bytes, answer: bytes, places: list[tuple[int, int]]
) -> None:
    assert list(Region("<think>", "</think>").find_after(header, answer)) == places


def test_what_ends_before_a_region_opens_does_not_close_it() -> None:
    assert list(Region("<reasoning>", "]").find_after(b"some words [x] <reasoning>", b"a]b")) == [(0, 2)]


@pytest.mark.parametrize("region", [Region(text="ab"), Region(pattern="a.")])
def test_a_header_opens_no_region_of_a_text_or_a_pattern(region: Region) -> None:
    assert list(region.find_after(b"xab", b"xabab")) == [(1, 3), (3, 5)]


def test_a_pattern_that_also_matches_nothing_is_a_region_only_where_it_matches_something() -> None:
    assert list(Region(pattern="x*").find(b"axxb")) == [(1, 3)]


def test_only_a_text_reaches_the_end_of_turn_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert trained_text(tokenizer, "Yes.", Region(text="<|im_end|>")) == "Yes."
    assert trained_text(tokenizer, "Yes.", Region(pattern="im_end")) == "Yes.<|im_end|>"
    assert trained_text(tokenizer, "Yes.", Region(".", "<|im_end|>")) == "Yes<|im_end|>"


@pytest.mark.parametrize("text", [1, None, b"x"])
def test_a_region_of_no_text_is_refused(text: object) -> None:
    with pytest.raises(MarkerError):
        Region(text, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [{}, {"start": "a"}, {"end": "b"}, {"end": "b", "text": "c"}, {"start": "a", "end": "b", "pattern": "c"}]
)
def test_a_region_needs_both_edges_or_a_pattern(given: dict[str, str]) -> None:
    with pytest.raises(MarkerError, match="give both start and end, or a pattern, or a text"):
        Region(**given)


def test_a_pattern_that_does_not_compile_is_refused_at_once() -> None:
    with pytest.raises(MarkerError, match="is not a regular expression: missing"):
        Region(pattern="(")


def test_a_policy_takes_regions_only() -> None:
    with pytest.raises(SftMaskError, match="holds something other than a Region"):
        Policy(regions=("<think>",))  # type: ignore[arg-type]


def test_weights_of_regions_that_overlap_are_multiplied() -> None:
    vocabulary = read_vocabulary(byte_level())
    yes = np.array([True])
    answer = Turns.of_assistant(np.array([0]), np.array([4]), ~yes, ~yes, np.array([0]), np.array([0]), np.array([4]))
    regions = [Region(pattern="abc", weight=0.5), Region(pattern="bcd", weight=0.25)]
    factor = in_regions(np.array([*b"abcd"]), answer, vocabulary, regions)
    assert factor.tolist() == [0.5, 0.125, 0.125, 0.25]


@pytest.mark.parametrize("weight", [-1, float("inf"), "x", True])
def test_a_region_without_meaning_is_refused(weight: Any) -> None:
    with pytest.raises(MarkerError, match="a weight must be a finite number"):
        Region(text="x", weight=weight)
