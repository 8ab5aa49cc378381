"""Where the turns of the model are, token by token; every edge of a marker, a row and a document."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.reference_spans import reference_turns
from support.tiny_tokenizers import byte_level, encode, sentencepiece, swallowing, word_level

from sft_mask.core.arrays import offsets_of
from sft_mask.core.markers import Markers
from sft_mask.core.patterns import MarkerTrie, compile_patterns
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.core.vocabulary import AddedTokenInfo, Vocabulary, gpt2_byte_alphabet, read_vocabulary
from sft_mask.errors import MarkerError

START, STOP, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CHATML = Markers(
    response=(f"{START}assistant\n",),
    instruction=(f"{START}user\n",),
    others=(f"{START}system\n",),
    eots=(STOP,),
    complete=True,
)
PLAIN = Markers(response=("\nA: ",), instruction=("\nQ: ",))


def finder_for(tokenizer: Any, markers: Markers, pad: str | None = None) -> SpanFinder:
    trie = compile_patterns(markers, read_vocabulary(tokenizer), tokenizer)
    pad_id = None if pad is None else tokenizer.convert_tokens_to_ids(pad)
    return SpanFinder(
        trie, complete=markers.complete, open_end=markers.open_end or not markers.eots, pad_token_id=pad_id
    )


def find(finder: SpanFinder, *documents: Sequence[int]) -> Turns:
    offsets = np.cumsum([0, *(len(document) for document in documents)])
    return finder.find(np.array([token for document in documents for token in document], np.int64), offsets)


def spans(turns: Turns) -> list[tuple[int, int]]:
    return list(zip(turns.start.tolist(), turns.end.tolist(), strict=True))


def trained(tokenizer: Any, markers: Markers, text: str | Sequence[int], pad: str | None = None) -> list[str]:
    """The trained tokens of each turn, ``|`` between them."""
    ids = encode(tokenizer, text) if isinstance(text, str) else list(text)
    vocabulary = read_vocabulary(tokenizer)
    turns = find(finder_for(tokenizer, markers, pad), ids)
    return ["|".join(vocabulary.text([token]) for token in ids[low:high]) for low, high in spans(turns)]


WORDS = ("user", "assistant", "\n\n", "hello")


# control tokens


def test_the_answer_and_its_stop_are_trained_and_the_newline_behind_it_is_not():
    text = f"{START}user\nhello{STOP}\n{START}assistant\nhello{STOP}\n"
    assert trained(byte_level(WORDS), CHATML, text) == [f"hello|{STOP}"]


def test_an_answer_that_begins_with_a_newline_is_trained_from_the_token_that_holds_it():
    text = f"{START}assistant\n\nhello{STOP}"
    assert trained(byte_level(WORDS), CHATML, text) == [f"\n\n|hello|{STOP}"]


def test_an_empty_answer_trains_its_stop():
    assert trained(byte_level(WORDS), CHATML, f"{START}assistant\n{STOP}\n{START}user\nhello{STOP}\n") == [STOP]


def test_back_to_back_answers_are_turns_of_their_own():
    text = f"{START}assistant\nhello{STOP}\n{START}assistant\nA{STOP}\n"
    assert trained(byte_level(WORDS), CHATML, text) == [f"hello|{STOP}", f"A|{STOP}"]


def test_every_other_role_ends_an_answer_that_has_no_stop():
    text = f"{START}assistant\nhello{START}system\nhello{START}assistant\nA{START}user\nhello"
    assert trained(byte_level(WORDS), CHATML, text) == ["hello", "A"]


def test_a_stop_quoted_inside_an_answer_does_not_end_it():
    text = f"{START}assistant\nA{STOP}B{STOP}\n{START}user\nhello"
    assert trained(byte_level(WORDS), CHATML, text) == [f"A|{STOP}|B|{STOP}"]


def test_an_answer_cut_behind_a_quoted_stop_goes_on_to_the_end_of_its_row():
    turns = find(finder_for(byte_level(WORDS), CHATML), encode(byte_level(WORDS), f"{START}assistant\nA{STOP}BC"))
    assert (spans(turns), turns.has_eot.tolist(), turns.cut.tolist()) == ([(3, 7)], [False], [True])


def test_a_marker_typed_as_text_is_no_control_token():
    tokenizer = byte_level(WORDS)
    typed = [token for character in f"{START}assistant\n" for token in encode(tokenizer, character)]
    assert trained(tokenizer, CHATML, [*typed, *encode(tokenizer, f"hello{STOP}")]) == []


def test_text_in_front_of_a_control_token_completes_no_text_marker():
    tokenizer = byte_level(specials=("<|x|>",))
    markers = Markers(response=("A<|x|>B",), instruction=("Q",))
    assert trained(tokenizer, markers, "A<|x|>Byes") == ["y|e|s"]
    assert trained(tokenizer, markers, "AByes") == []
    assert trained(tokenizer, Markers(response=("AB",), instruction=("Q",)), "A<|x|>Byes") == []


def test_an_unknown_control_token_behind_a_stop_begins_another_role():
    tokenizer = byte_level(WORDS, specials=("<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"))
    markers = Markers(response=("<|assistant|>",), instruction=("<|user|>",), eots=("<|end|>",))
    text = "<|assistant|>A<|end|>\n<|tool|>hello<|end|><|assistant|>B<|end|>"
    assert trained(tokenizer, markers, text) == ["A|<|end|>", "B|<|end|>"]


def test_words_behind_the_last_stop_are_not_trained_where_other_headers_may_be_unknown():
    markers = Markers(response=(f"{START}assistant\n",), instruction=(f"{START}user\n",), eots=(STOP,))
    assert trained(byte_level(WORDS), markers, f"{START}assistant\nA{STOP}\ntool: hello") == [f"A|{STOP}"]


def test_the_next_roles_control_token_is_the_stop_where_the_template_has_no_other():
    tokenizer = byte_level(WORDS, specials=("<|user|>", "<|assistant|>", "<|tool|>"))
    markers = Markers(
        response=("<|assistant|>\n",),
        instruction=("<|user|>\n",),
        others=("<|tool|>\n",),
        eot_headers=("<|user|>\n",),
        open_end=True,
        complete=True,
    )
    text = "<|user|>\nhello<|assistant|>\nA<|user|>\nhello<|assistant|>\nB<|tool|>\nhello<|assistant|>\nC"
    turns = find(finder_for(tokenizer, markers), ids := encode(tokenizer, text))
    assert [tokenizer.decode(ids[low:high]) for low, high in spans(turns)] == ["A<|user|>", "B", "C"]
    assert turns.has_eot.tolist() == [True, False, False]
    assert turns.cut.tolist() == [False, False, False]


def test_a_stop_that_is_also_the_beginning_of_the_next_header_is_trained():
    tokenizer = byte_level(WORDS)
    markers = Markers(response=(f"{START}assistant\n",), instruction=(f"{STOP}\n{START}user\n",), eots=(STOP,))
    text = f"{START}assistant\nhello{STOP}\n{START}user\nhello{STOP}\n{START}assistant\nA{STOP}"
    assert trained(tokenizer, markers, text) == [f"hello|{STOP}", f"A|{STOP}"]


def test_a_longer_header_wins_over_its_own_beginning():
    header = f"{START}assistant\n"
    markers = Markers(response=(header, header + "<think>\n"), instruction=(f"{START}user\n",), eots=(STOP,))
    assert trained(byte_level(), markers, f"{header}<think>\nA{STOP}") == [f"A|{STOP}"]
    assert trained(byte_level(), markers, f"{header}<thin{STOP}") == [f"<|t|h|i|n|{STOP}"]


def test_control_tokens_that_eat_blanks_are_found_with_and_without_them_in_the_marker():
    markers = Markers(response=("\n<|assistant|>\n",), instruction=("\n<|user|>\n",), eots=("<|end|>",))
    text = "<|user|>\nQ<|end|>\n<|assistant|>\nhi<|end|>\n<|user|>\n"
    assert encode(swallowing(), text).count(10) == 0
    assert trained(swallowing(), markers, text) == [" |h|i|<|end|>"]


def test_a_marker_given_as_ids_is_the_marker_given_as_text():
    tokenizer = byte_level(WORDS)
    as_ids = Markers(
        response=(tuple(encode(tokenizer, f"{START}assistant\n")),),
        instruction=(tuple(encode(tokenizer, f"{START}user\n")),),
        eots=((tokenizer.convert_tokens_to_ids(STOP),),),
    )
    text = f"{START}user\nhello{STOP}\n{START}assistant\n\nhello{STOP}\n"
    assert trained(tokenizer, as_ids, text) == [f"\n\n|hello|{STOP}"]


def test_ids_of_an_opaque_tokenizer_are_matched_as_they_are():
    markers = Markers(response=("assistant :",), instruction=("user :",))
    turns = find(finder_for(word_level(), markers), encode(word_level(), "user : hello assistant : hello hello user :"))
    assert spans(turns) == [(5, 7)]


# plain text


def test_a_plain_marker_is_found_however_the_row_cuts_it():
    whole = byte_level(["\nA: "])
    torn = byte_level([".\nA", ": yes"])
    assert trained(whole, PLAIN, "\nQ: a.\nA: yes\nQ: ") == ["y|e|s"]
    assert trained(torn, PLAIN, "\nQ: a.\nA: yes\nQ: ") == [": yes"]


def test_a_token_that_holds_the_answers_end_and_the_next_header_is_trained():
    assert trained(byte_level(["yes\nQ"]), PLAIN, "\nA: yes\nQ: a") == ["yes\nQ"]


def test_one_token_that_holds_a_whole_header_and_words_on_both_sides_belongs_to_one_turn_only():
    tokenizer = byte_level(["x\nA: y"])
    assert trained(tokenizer, PLAIN, "\nA: .x\nA: y.") == [".|x\nA: y", "."]
    assert trained(tokenizer, PLAIN, "\nA: .x\nA: y..x\nA: y.") == [".|x\nA: y", ".|.|x\nA: y", "."]


def test_a_token_that_holds_two_headers_and_no_answer_is_not_trained():
    tokenizer = byte_level(["\nA: \nQ: "])
    assert trained(tokenizer, PLAIN, "\nA: \nQ: a\nA: b") == ["b"]


def test_a_marker_inside_a_token_is_found_behind_one_that_only_begins_like_it():
    tokenizer = byte_level(["\n\nA"])
    assert trained(tokenizer, PLAIN, "a\n\nA: b") == ["b"]


def test_a_marker_that_is_the_beginning_of_another_does_not_hide_it():
    markers = Markers(response=("### A", "### A:\n"), instruction=("### Q", "### Q:\n"))
    assert trained(byte_level(), markers, "### Q:\na### A:\nb### A c") == ["b", " |c"]


def test_a_marker_that_begins_inside_an_earlier_one_is_not_seen():
    markers = Markers(response=("A: B: ",), instruction=("B: ",))
    assert trained(byte_level(), markers, "A: B: c") == ["c"]


def test_a_marker_given_with_and_without_its_blank_means_the_longer_one_where_both_stand():
    markers = Markers(response=("\nA:", "\nA: "), instruction=("\nQ:",))
    assert trained(byte_level(), markers, "\nA: x\nQ: a\nA:y") == ["x", "y"]


@pytest.mark.parametrize("marker", ["[A] ", "(A|B)*", "\\A$", "応答：", "🙂>", "^", " A:\n"])
def test_a_marker_is_text_and_no_regular_expression(marker: str):
    markers = Markers(response=(marker,), instruction=("Q",))
    assert trained(byte_level(), markers, f"AQ {marker}yQ{marker}z") == ["y", "z"]


def test_the_separator_of_answers_without_a_stop_is_never_trained():
    markers = Markers(response=("A: ",), instruction=("Q: ",), separator="\n\n", complete=True)
    assert trained(byte_level(), markers, "Q: a\n\nA: b\n\nA: c\n\nQ: d\n\nA: e") == ["b", "c", "e"]


def test_a_text_stop_is_trained_and_its_shared_token_once():
    markers = Markers(response=("A: ",), instruction=("Q: ",), eots=("###",))
    turns = find(finder_for(byte_level(["b##", "#\n"]), markers), encode(byte_level(["b##", "#\n"]), "A: ab###\nQ: c"))
    assert (spans(turns), turns.eot_start.tolist(), turns.has_eot.tolist()) == ([(3, 6)], [5], [True])


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_markers_are_found_with_a_blank_glued_in_front_or_not(legacy: bool):
    tokenizer = sentencepiece(("▁USER", "▁ASSISTANT"), legacy=legacy)
    markers = Markers(response=("ASSISTANT: ",), instruction=("USER: ",), eots=("</s>",))
    assert trained(tokenizer, markers, "USER: a ASSISTANT: hi</s>USER: a") == ["h|i|</s>"]


def test_a_sentencepiece_marker_of_control_token_and_text_is_found_with_the_glued_blank():
    markers = Markers(response=("<s>assistant\n",), instruction=("<s>user\n",), eots=("</s>",))
    assert trained(sentencepiece(), markers, "<s>user\nQ</s><s>assistant\nhi</s>") == ["h|i|</s>"]


def test_byte_pieces_of_sentencepiece_are_text():
    markers = Markers(response=("答：",), instruction=("問：",))
    assert trained(sentencepiece(), markers, "問：a答：b問：") == ["b"]


# the end of rows


def test_an_open_header_at_the_end_opens_no_turn():
    text = f"{START}assistant\nA{STOP}\n{START}assistant\n"
    assert trained(byte_level(WORDS), CHATML, text) == [f"A|{STOP}"]


@pytest.mark.parametrize("end", range(5, 8))
def test_a_row_cut_inside_the_next_header_trains_none_of_it(end: int):
    tokenizer = byte_level(WORDS)
    ids = encode(tokenizer, f"{START}assistant\nA{STOP}\n{START}user\nhello{STOP}")
    turns = find(finder_for(tokenizer, CHATML), ids[:end])
    assert (spans(turns), turns.has_eot.tolist(), turns.cut.tolist()) == ([(3, 5)], [True], [False])


def test_a_row_cut_inside_a_plain_header_trains_none_of_it_once_half_of_it_stands_there():
    markers = Markers(response=("\n### A:",), instruction=("\n### Q:",))
    assert trained(byte_level(), markers, "\n### A:yes\n###") == ["y|e|s"]
    assert trained(byte_level(), markers, "\n### A:yes\n##") == ["y|e|s|\n|#|#"]


def test_behind_a_stop_one_byte_of_a_plain_header_is_a_cut_header():
    markers = Markers(response=("### A:",), instruction=("### Q:",), eots=(STOP,), complete=True)
    assert trained(byte_level(), markers, f"### A:yes{STOP}\n\n#") == [f"y|e|s|{STOP}"]
    assert trained(byte_level(), markers, f"### A:is {STOP} it#") == [f"i|s| |{STOP}| |i|t|#"]


def test_a_row_cut_inside_what_the_generation_prompt_prefills_trains_none_of_it():
    markers = Markers(response=(f"{START}assistant\n", f"{START}assistant\n<think>\n"), instruction=(f"{START}user\n",))
    assert trained(byte_level(WORDS), markers, f"{START}assistant\n<think>") == []
    assert trained(byte_level(WORDS), markers, f"{START}assistant\n<think>\nA") == ["A"]
    assert trained(byte_level(WORDS), markers, f"{START}assistant\n<thing>") == ["<|t|h|i|n|g|>"]


def test_an_empty_answer_whose_stop_is_the_next_header_trains_it():
    markers = Markers(
        response=("<|im_start|>",), instruction=("<|im_end|>",), eots=("<|im_end|>",), eot_headers=("<|im_end|>",)
    )
    assert trained(byte_level(WORDS), markers, "<|im_start|><|im_end|>hello<|im_start|>A<|im_end|>") == [
        "<|im_end|>", "A|<|im_end|>"
    ]  # fmt: skip


def test_a_cut_header_begins_behind_the_last_whole_one():
    markers = Markers(response=("A:##",), instruction=("##x\n##abcd", "\n##abc"))
    assert trained(byte_level(), markers, "A:##x\n##a") == ["x"]


def test_a_row_cut_inside_an_answer_is_trained_to_its_end_and_said_to_be_cut():
    turns = find(finder_for(byte_level(WORDS), CHATML), encode(byte_level(WORDS), f"{START}assistant\nAB"))
    assert (spans(turns), turns.cut.tolist(), turns.has_eot.tolist()) == ([(3, 5)], [True], [False])


def test_an_answer_is_not_cut_where_the_template_leaves_the_last_one_open():
    turns = find(finder_for(byte_level(), PLAIN), encode(byte_level(), "\nA: yes"))
    assert turns.cut.tolist() == [False]


def test_padding_that_is_no_stop_is_left_out():
    text = f"{START}assistant\nA{STOP}\n{PAD}{PAD}"
    assert trained(byte_level(WORDS), CHATML, text, pad=PAD) == [f"A|{STOP}"]
    for run in ("", PAD, PAD * 2):
        assert trained(byte_level(WORDS), CHATML, f"{START}assistant\nA{run}", pad=PAD) == ["A"]


def test_padding_with_the_stop_token_trains_the_first_of_them_only():
    text = f"{START}assistant\nA" + STOP * 12
    assert trained(byte_level(WORDS), CHATML, text, pad=STOP) == [f"A|{STOP}"]
    assert trained(byte_level(WORDS), CHATML, text, pad=None) == [f"A|{STOP}"]


def test_padding_in_front_changes_nothing():
    assert trained(byte_level(WORDS), CHATML, f"{STOP * 3}{START}assistant\nA{STOP}", pad=STOP) == [f"A|{STOP}"]


def test_a_row_of_padding_has_no_turn():
    assert trained(byte_level(WORDS), CHATML, PAD * 4, pad=PAD) == []


def test_a_header_cut_by_padding_is_no_answer():
    assert trained(byte_level(WORDS), CHATML, f"{START}assistant\nA{STOP}\n{START}user{PAD}{PAD}", pad=PAD) == [
        f"A|{STOP}"
    ]


# documents


def test_nothing_reads_across_the_border_of_two_documents():
    tokenizer = byte_level(WORDS)
    ids = encode(tokenizer, f"{START}assistant\nA{STOP}")
    finder = finder_for(tokenizer, CHATML)
    for border in (1, 2):
        assert spans(find(finder, ids[:border], ids[border:])) == []
    turns = find(finder, ids[:4], ids[4:], ids)
    assert (spans(turns), turns.document.tolist(), turns.cut.tolist()) == ([(3, 4), (8, 10)], [0, 2], [True, False])


def test_empty_documents_are_passed_over():
    ids = encode(byte_level(WORDS), f"{START}assistant\nA{STOP}")
    turns = find(finder_for(byte_level(WORDS), CHATML), [], ids, [], [], ids, [])
    assert (spans(turns), turns.document.tolist()) == ([(3, 5), (8, 10)], [1, 4])


@pytest.mark.parametrize("markers", [CHATML, PLAIN], ids=["control", "plain"])
def test_no_rows_and_empty_rows_have_no_turns(markers: Markers):
    finder = finder_for(byte_level(WORDS), markers, PAD)
    assert len(finder.find(np.zeros(0, np.int32), np.array([0]))) == 0
    assert len(finder.find(np.zeros(0, np.int32), np.array([0, 0, 0]))) == 0


def test_tokens_outside_the_offsets_are_not_read():
    ids = np.array(encode(byte_level(WORDS), f"{START}assistant\nA{STOP}") * 3)
    turns = finder_for(byte_level(WORDS), CHATML).find(ids, np.array([5, 10]))
    assert (spans(turns), turns.document.tolist()) == ([(8, 10)], [0])


def some_turns(start: int) -> Turns:
    """Two turns of different messages, roles and weights; the first has no header."""
    at, yes = np.array([start, start + 4]), np.array([True, False])
    turns = Turns.of_assistant(at, at + 3, yes, ~yes, np.array([0, 1]), at - np.array([0, 2]), at + np.array([2, 3]))
    return replace(turns, message=np.array([1, 3]), role=np.array([2, 3]), weight=np.array([1.0, 0.5]))


def test_no_turns_have_columns_of_the_same_types() -> None:
    for name in Turns.__slots__:
        assert getattr(Turns.empty(), name).dtype == getattr(some_turns(5), name).dtype, name


def test_moved_turns_begin_and_end_further_on_and_are_otherwise_the_same() -> None:
    moved, wanted = some_turns(5).moved(10), some_turns(15)
    assert [getattr(moved, name).tolist() for name in Turns.__slots__] == [
        getattr(wanted, name).tolist() for name in Turns.__slots__
    ]
    assert some_turns(5).moved(np.array([0, 10])).start.tolist() == [5, 19]


def test_a_header_before_the_first_token_begins_at_it() -> None:
    assert some_turns(5).moved(-5).header.tolist() == [0, 2]
    assert some_turns(1).moved(-4).header.tolist() == [0, 0]


def test_turns_of_some_documents_are_moved_to_where_each_begins() -> None:
    found = Turns.of_documents({2: some_turns(5), 0: some_turns(3)}, np.array([0, 100, 200]))
    wanted = Turns.joined(
        [
            replace(some_turns(5).moved(200), document=np.array([2, 2])),
            replace(some_turns(3), document=np.array([0, 0])),
        ]
    )
    for name in Turns.__slots__:
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist()
    assert len(Turns.of_documents({}, np.array([0, 100]))) == 0


def test_joined_turns_keep_every_column() -> None:
    joined = Turns.joined([some_turns(5), Turns.empty(), some_turns(20)])
    assert [getattr(joined, name).tolist() for name in Turns.__slots__] == [
        [*getattr(some_turns(5), name).tolist(), *getattr(some_turns(20), name).tolist()] for name in Turns.__slots__
    ]


# ids


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("odd", [None, 127])
def test_every_integer_type_is_read_alike(dtype: type, odd: int | None):
    pieces = ["<q>", "<a>", "<e>", "x", "y"]
    added = {index: AddedTokenInfo(index, piece, True, False, False) for index, piece in enumerate(pieces[:3])}
    vocabulary = Vocabulary(5, pieces, "byte-level", added)
    markers = Markers(response=("<a>",), instruction=("<q>",), eots=("<e>",), complete=True)
    finder = SpanFinder(compile_patterns(markers, vocabulary, NO_NORMALIZER), complete=True, pad_token_id=50_000)
    ids = np.array([0, 3, 1, 4 if odd is None else odd, 3, 2, 0, 4], dtype)
    assert spans(finder.find(ids, np.array([0, 8]))) == [(3, 6)]


def test_an_id_outside_the_vocabulary_does_not_wrap_around_in_a_small_integer_type():
    finder = finder_for(byte_level(), Markers(response=("\nA:",), instruction=("\x03:",)))
    assert finder.vocabulary.size % 256 == 3
    ids = np.array([*b"\nA:y", -1, *b":z"], np.int8)
    assert spans(finder.find(ids, np.array([0, 7]))) == [(3, 7)]


@pytest.mark.parametrize("outside", [-1, -200, 10**6, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_part_of_an_answer_and_never_of_a_marker(outside: int):
    tokenizer = byte_level(WORDS)
    ids = encode(tokenizer, f"{START}assistant\nA{STOP}")
    assert spans(find(finder_for(tokenizer, CHATML), [*ids[:4], outside, *ids[4:]])) == [(3, 6)]
    assert spans(find(finder_for(tokenizer, CHATML), [*ids[:1], outside, *ids[1:]])) == []


def test_a_hole_in_the_vocabulary_is_no_text():
    vocabulary = Vocabulary(4, ["A", None, "B", "x"], "byte-level", {})
    finder = SpanFinder(compile_patterns(Markers(("AB",), ("Q",)), vocabulary, NO_NORMALIZER), open_end=True)
    assert spans(find(finder, [0, 2, 3, 1], [0, 1, 2, 3])) == [(2, 4)]


def test_the_ids_that_were_given_are_left_as_they_are():
    ids = np.array([*encode(byte_level(WORDS), f"{START}assistant\nA"), -5])
    before = ids.copy()
    finder_for(byte_level(WORDS), CHATML).find(ids, np.array([0, len(ids)]))
    assert np.array_equal(ids, before)


# a real tokenizer


ANSWERS = ["hi", "\nhi", "\n\nhi", " hi", "(hi)", '"hi"', "1", "東京 🙂", "\n", "### A:"]


def holding(tokenizer: Any, text: str, low: int, high: int) -> list[int]:
    """Tokens that hold any character of ``text[low:high]``, by the tokenizer's own offsets."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [index for index, (start, stop) in enumerate(offsets) if start < high and stop > low]


def inside(turns: Turns) -> list[int]:
    return [index for low, high in spans(turns) for index in range(low, high)]


@pytest.mark.parametrize("answer", [*ANSWERS, ""])
def test_the_tokens_of_the_answer_and_its_stop_are_trained_on_a_real_tokenizer(smollm2: Any, answer: str):
    header = f"{START}system\nS{STOP}\n{START}user\nQ{STOP}\n{START}assistant\n"
    text = f"{header}{answer}{STOP}\n{START}user\nQ{STOP}\n"
    expected = holding(smollm2, text, len(header), len(header) + len(answer) + len(STOP))
    assert inside(find(finder_for(smollm2, CHATML), encode(smollm2, text))) == expected


@pytest.mark.parametrize("answer", [answer for answer in ANSWERS if answer.strip()])
def test_every_token_that_holds_a_byte_of_the_answer_is_trained_on_a_real_tokenizer(smollm2: Any, answer: str):
    markers = Markers(("### Response:\n",), ("### Instruction:\n",), separator="\n\n", complete=True)
    header = "### Instruction:\nQ\n\n### Response:\n"
    text = f"{header}{answer}\n\n### Instruction:\nQ"
    expected = holding(smollm2, text, len(header), len(header) + len(answer))
    assert inside(find(finder_for(smollm2, markers), encode(smollm2, text))) == expected


# against the reference

NO_NORMALIZER = SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=None))
CONTROL = ("<c0>", "<c1>", "<c2>")
CHARACTERS = "ab .*(\n#é東"
LETTER = {byte: character for character, byte in gpt2_byte_alphabet().items()}
EXAMPLES = int(os.environ.get("SFT_MASK_EXAMPLES", "200"))

Chunk = bytes | str  # a token: bytes of text, or the name of a control token

text_parts = st.text(CHARACTERS, min_size=1, max_size=6)
marker_parts = st.lists(text_parts | st.sampled_from(CONTROL), min_size=1, max_size=3)


@st.composite
def marker_pools(draw: st.DrawFn) -> list[str]:
    """Markers, among them beginnings, endings and continuations of each other."""
    pool = ["".join(parts) for parts in draw(st.lists(marker_parts, min_size=2, max_size=5))]
    for _ in range(draw(st.integers(0, 3))):
        base = draw(st.sampled_from(pool))
        cut = draw(st.integers(0, 12))
        pool.append(draw(st.sampled_from([base[:cut], base[cut:], base + "a", "\n" + base, base * 4])) or base)
    return pool


@st.composite
def all_markers(draw: st.DrawFn) -> Markers:
    pool = draw(marker_pools())
    some = st.lists(st.sampled_from(pool), min_size=1, max_size=3).map(tuple)
    others, stops = draw(some), draw(st.just(()) | some)
    return Markers(
        response=draw(some),
        instruction=draw(some),
        others=others,
        eots=stops,
        eot_headers=others[: draw(st.integers(0, 1))],
        separator=draw(st.sampled_from(["", "\n", " \n"])),
        open_end=draw(st.booleans()),
        complete=draw(st.booleans()),
    )


def chunks_of(text: str, lengths: Sequence[int]) -> list[Chunk]:
    """Text as tokens: control tokens whole, everything between them torn into pieces of the given lengths."""
    chunks: list[Chunk] = []
    for index, part in enumerate(split_control(text)):
        if index % 2:
            chunks.append(part)
            continue
        written, at, turn = part.encode(), 0, len(chunks)
        while at < len(written):
            length = lengths[turn % len(lengths)]
            chunks.append(written[at : at + length])
            at, turn = at + length, turn + 1
    return chunks


def split_control(text: str) -> list[str]:
    parts = [""]
    at = 0
    while at < len(text):
        name = next((name for name in CONTROL if text.startswith(name, at)), None)
        parts.extend([name, ""] if name else [])
        parts[-1] += "" if name else text[at]
        at += len(name) if name else 1
    return parts


@st.composite
def cases(draw: st.DrawFn) -> tuple[Vocabulary, Markers, list[list[int]], int | None]:
    markers = draw(all_markers())
    every = [text for texts in (markers.response, markers.headers, markers.eots) for text in texts]
    bits = st.sampled_from([str(text) for text in every] + list(CONTROL)) | st.text(CHARACTERS, max_size=4)
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    documents = [chunks_of("".join(draw(st.lists(bits, max_size=8))), lengths) for _ in range(draw(st.integers(0, 4)))]
    texts = sorted({chunk for document in documents for chunk in document if isinstance(chunk, bytes)})
    names: list[Chunk] = [*CONTROL, *texts]
    number = {name: index for index, name in enumerate(names)}
    rows = [[number[chunk] for chunk in document] for document in documents]
    for row in rows:
        for at in draw(st.lists(st.integers(0, len(row)), max_size=1)):
            row.insert(at, draw(st.sampled_from([-1, len(names), len(names) + 7])))
        cut = draw(st.sampled_from([0, 0, 1, 2]))
        del row[len(row) - min(cut, len(row)) :]
    pad = draw(st.none() | st.integers(0, min(3, len(names) - 1)))
    if pad is not None and rows:
        rows[0].extend([pad] * draw(st.integers(0, 3)))
    spelled = [name if isinstance(name, str) else "".join(LETTER[byte] for byte in name) for name in names]
    added = {index: AddedTokenInfo(index, name, True, False, False) for index, name in enumerate(CONTROL)}
    return Vocabulary(len(names), spelled, "byte-level", added), markers, rows, pad


def compiled(markers: Markers, vocabulary: Vocabulary) -> MarkerTrie | None:
    try:
        return compile_patterns(markers, vocabulary, NO_NORMALIZER)
    except MarkerError:
        return None


def check_against_reference(case: tuple[Vocabulary, Markers, list[list[int]], int | None]) -> None:
    vocabulary, markers, rows, pad = case
    trie = compiled(markers, vocabulary)
    assume(trie is not None)
    flags = {"complete": markers.complete, "open_end": markers.open_end}
    found = find(SpanFinder(trie, pad_token_id=pad, **flags), *rows)
    offsets = [0, *np.cumsum([len(row) for row in rows]).tolist()]
    expected = []
    for document, (low, row) in enumerate(zip(offsets, rows, strict=False)):
        for turn in reference_turns(row, trie.patterns, vocabulary, pad=pad, **flags):
            moved = {name: turn[name] + low for name in ("start", "end", "header", "eot_start")}
            expected.append({**turn, **moved, "document": document})
    assert [
        {name: getattr(found, name)[index].item() for name in Turns.__slots__} for index in range(len(found))
    ] == expected
    assert all(first[1] <= second[0] for first, second in pairwise(spans(found)))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_the_finder_equals_the_slow_reference(case: tuple[Vocabulary, Markers, list[list[int]], int | None]):
    check_against_reference(case)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_the_finder_equals_the_slow_reference_on_many_cases(
    case: tuple[Vocabulary, Markers, list[list[int]], int | None],
):
    check_against_reference(case)


def test_a_marker_that_begins_exactly_where_an_earlier_one_ends_is_seen():
    markers = Markers(response=("AB", "BXY"), instruction=("YZ", "CD"))
    tokenizer = byte_level(())
    assert trained(tokenizer, markers, "ABXYhiCDno") == ["X|Y|h|i"]
    assert trained(tokenizer, Markers(response=("XYZ",), instruction=("AXY", "Zq")), "AXYZqXYZhi") == ["h|i"]
    # the second begins inside the first, and the third inside the second, which therefore does not count
    assert trained(tokenizer, Markers(response=("def",), instruction=("abc", "bcde")), "abcdefhi") == ["h|i"]
    # and where that leaves others that overlap
    crowd = Markers(response=("ghi",), instruction=("abc", "bcdefgh", "def", "efg"))
    assert trained(tokenizer, crowd, "abcdefghijk") == ["j|k"]


def test_rows_of_nothing_but_padding_between_others_have_no_turn():
    tokenizer = byte_level(WORDS, (START, STOP, PAD))
    finder = finder_for(tokenizer, CHATML, PAD)
    talk = encode(tokenizer, f"{START}assistant\nhello{STOP}\n")
    padding = [tokenizer.convert_tokens_to_ids(PAD)] * 4
    turns = find(finder, [*talk, *padding], padding, padding, [*talk, *padding])
    one = find(finder, talk)
    assert turns.document.tolist() == [0, 3]
    assert spans(turns.select(turns.document == 0)) == spans(one)
    assert finder.content_ends(np.array(padding * 2), np.array([0, 4, 8])).tolist() == [0, 4]


@pytest.mark.parametrize(("pad", "expected"), [(PAD, [0, 2, 3, 4, 4, 7]), (STOP, [1, 3, 3, 4, 5, 8])])
def test_the_content_of_each_document_ends_before_its_padding_but_after_one_end_of_turn_token(
    pad: str, expected: list[int]
) -> None:
    tokenizer = byte_level()
    texts = [pad, f"x{pad}", "", "x", pad * 2, f"x{pad * 2}"]
    rows = [encode(tokenizer, text) for text in texts]
    ids, offsets = np.concatenate([np.array(row, np.int64) for row in rows]), offsets_of([*map(len, rows)])
    assert offsets.tolist() == [0, 1, 3, 3, 4, 6, 9]
    assert finder_for(tokenizer, CHATML, pad).content_ends(ids, offsets).tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A:Bye.\n\n", ["Bye."]),
        ("A:Bye.\n", ["Bye.\n"]),  # half a separator is the answer's own
        ("A:Bye\n\n\n", ["Bye\n\n"]),  # one token holds the answer's line break and half of the separator
        ("A:\n\n", []),
        ("A:Bye\n\nQ:?\n\nA:So\n\n", ["Bye", "So"]),
        ("A:Bye\n", ["Bye\n"]),
        ("A:Bye\n\n\n\n", ["Bye\n\n"]),
        ("A:Bye\n\n\n\nQ:?", ["Bye\n\n"]),  # the header's separator is the second
    ],
)
def test_the_separator_after_an_answer_is_not_trained_at_the_end_of_a_row(text: str, expected: list[str]) -> None:
    tokenizer = byte_level(["\n\n", ".\n"])
    assert before_separators(tokenizer, text) == expected


def before_separators(tokenizer: Any, *texts: str, header: str = "A:") -> list[str]:
    """The turns of some rows in a format that writes an empty line after each answer."""
    vocabulary = read_vocabulary(tokenizer)
    markers = Markers(response=(header,), instruction=("Q:",), separator="\n\n")
    finder = SpanFinder(compile_patterns(markers, vocabulary, tokenizer), open_end=True, separator="\n\n")
    rows = [encode(tokenizer, text) for text in texts]
    turns = find(finder, *rows)
    assert not turns.cut.any()
    ids = np.concatenate(rows)
    return [tokenizer.decode(ids[low:high]) for low, high in spans(turns)]


def test_separators_are_taken_off_each_row_by_itself_however_they_are_cut() -> None:
    texts = ("A:One", "A:One\n", "A:One\n\n", "A:One.\n\n", "A:One.\n")
    one_token_holds_the_answers_end = ["One", "One\n", "One", "One.\n", "One.\n"]
    assert before_separators(byte_level([".\n"]), *texts) == one_token_holds_the_answers_end


def test_the_end_of_a_header_is_no_part_of_a_separator() -> None:
    texts = ("A:\n\n", "A:\n\n\n", "A:\nx\n\n")
    assert before_separators(byte_level(), *texts, header="A:\n") == ["\n", "x"]


def test_a_control_token_that_is_the_separator_is_not_trained_at_the_end_of_a_row() -> None:
    tokenizer = byte_level(specials=("\n\n",))
    assert before_separators(tokenizer, "A:Bye\n\nQ:?\n\nA:So\n\n") == ["Bye", "So"]


def test_headers_may_be_unknown_and_an_answer_cut_where_a_finder_is_told_nothing() -> None:
    made = byte_level(specials=("<q>", "<a>", "<e>", "<s>"))
    markers = Markers(response=("<a>",), instruction=("<q>",), eots=("<e>",))
    finder = SpanFinder(compile_patterns(markers, read_vocabulary(made), made))
    turns = find(finder, encode(made, "<a>x<e><s>y"), encode(made, "<a>x"))
    assert (spans(turns), turns.cut.tolist()) == ([(1, 3), (6, 7)], [False, True])
    assert (finder.separator, finder.pad_token_id) == (b"", None)


FORMAT = Markers(response=("<a>",), instruction=("<q>",), others=("<s>",), eots=("<e>",), complete=True)


def format_finder(markers: Markers = FORMAT) -> SpanFinder:
    made = byte_level(specials=("<q>", "<a>", "<e>", "<s>"))
    trie = compile_patterns(markers, read_vocabulary(made), made)
    return SpanFinder(trie, complete=markers.complete)


def turns_of(*documents: str, markers: Markers = FORMAT) -> list[tuple[int, int, bool]]:
    """First token, one past the last, and whether the turn is cut."""
    rows = [encode(byte_level(specials=("<q>", "<a>", "<e>", "<s>")), document) for document in documents]
    offsets = np.cumsum([0, *map(len, rows)])
    found = format_finder(markers).find(np.array([token for row in rows for token in row], np.int64), offsets)
    return list(zip(found.start.tolist(), found.end.tolist(), found.cut.tolist(), strict=True))


def test_eight_newlines_may_follow_the_last_end_of_turn_token_and_nine_show_it_was_quoted() -> None:
    assert turns_of("<a>x<e>" + "\n" * 8) == [(1, 3, False)]
    assert turns_of("<a>x<e>" + "\n" * 9) == [(1, 12, True)]


def test_an_empty_answer_right_after_an_end_of_turn_token_keeps_its_own() -> None:
    assert turns_of("<q>x<e><a><e><q>y") == [(4, 5, False)]


def test_an_answer_that_ends_its_document_is_cut_though_the_next_begins_with_a_header() -> None:
    assert turns_of("<a>x", "<q>y<a>z<e>") == [(1, 2, True), (5, 7, False)]


def test_words_after_a_quoted_end_of_turn_token_are_the_answers_where_headers_may_be_unknown() -> None:
    unknown = Markers(response=("<a>",), instruction=("<q>",), eots=("<e>",))
    assert turns_of("<a>x<e>y<e><q>z", markers=unknown) == [(1, 5, False)]
    assert turns_of("<a>x<e>\ny<e><q>z", markers=unknown) == [(1, 6, False)]


def test_a_control_token_of_whitespace_is_a_control_token() -> None:
    tokenizer = byte_level(specials=("<q>", "<a>", "<e>", "\n\n"))
    unknown = Markers(response=("<a>",), instruction=("<q>",), eots=("<e>",))
    assert trained(tokenizer, unknown, "<a>x<e>\n\ntool<e><q>z") == ["x|<e>"]


def test_half_a_header_at_the_end_of_a_row_is_not_an_answer_and_less_of_it_is() -> None:
    plain = Markers(response=("<a>",), instruction=("#### Q: ",))
    assert turns_of("<a>x####", markers=plain) == [(1, 2, False)]
    assert turns_of("<a>x###", markers=plain) == [(1, 5, True)]


def test_a_header_cut_right_after_an_end_of_turn_token_shows_that_it_was_not_quoted() -> None:
    plain = Markers(response=("<a>",), instruction=("\n### Q:",), eots=("<e>",), complete=True)
    assert turns_of("<a>x<e>\n###", markers=plain) == [(1, 3, False)]


def test_a_header_right_after_one_of_two_that_overlap_is_found() -> None:
    plain = Markers(response=("A:",), instruction=("\n Q:", " Q:"))
    assert turns_of("\n Q:A:x", markers=plain) == [(6, 7, True)]


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (f"{START}user\nHi{STOP}\n{START}assistant\nYo{STOP}\n", False),
        (f"\n{START}user\nHi{STOP}\n", False),
        (f"what the template writes first{START}user\nHi{STOP}\n", False),
        (f"Yo{STOP}\n{START}user\nHi{STOP}\n", True),
        (f"{STOP}\n{START}user\nHi{STOP}\n", True),
        ("words of one message", True),
        ("w", True),
        (f"{PAD}{PAD}", True),
        (f"words{PAD}", True),
        ("", False),
    ],
)
def test_a_document_whose_turn_ends_before_any_begins_begins_inside_it(text: str, inside: bool) -> None:
    tokenizer = byte_level(specials=(START, STOP, PAD))
    rows = [encode(tokenizer, text), encode(tokenizer, f"{START}user\nHi{STOP}\n")]
    ids, offsets = np.array([*rows[0], *rows[1]], np.int64), np.array([0, len(rows[0]), len(rows[0]) + len(rows[1])])
    assert finder_for(tokenizer, CHATML).begin_inside_turn(ids, offsets).tolist() == [inside, False]
    assert finder_for(tokenizer, CHATML, PAD).begin_inside_turn(ids, offsets).tolist() == [inside, False]


def test_a_header_that_ends_the_turn_before_it_shows_that_a_document_begins_inside_it() -> None:
    tokenizer = byte_level(specials=("<sop>", "<|assistant|>", "<|user|>"))
    markers = Markers(("<|assistant|>",), ("<|user|>",), eot_headers=("<|user|>",))
    finder = finder_for(tokenizer, markers)
    rows = [encode(tokenizer, text) for text in ("<sop><|user|>Hi", "Yo<|user|>Hi", "Hi<|assistant|>Yo")]
    ids, offsets = np.concatenate(rows).astype(np.int64), offsets_of([*map(len, rows)])
    assert finder.begin_inside_turn(ids, offsets).tolist() == [False, True, False]
