"""Rows are cut into runs without tearing a character, and nothing in them can act on a terminal."""

import subprocess
import sys
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shown_rows import BYTES, PIECES, SPECIALS, TEXT, byte_level_tokenizer, masked_until, word_tokenizer

from sft_mask.errors import DataError
from sft_mask.preview import Note, build_row, visible
from sft_mask.preview.cells import cells_of


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_runs_are_maximal_and_keep_characters_of_many_tokens_whole():
    ids = BYTES(TEXT)["input_ids"]
    row = build_row(BYTES, ids, masked_until(ids, 3))
    assert [(run.start, run.end, run.trained, run.text) for run in row.runs] == [
        (0, 3, False, "Hi "),
        (3, 16, True, "東京 🙂!\n"),
    ]


@pytest.mark.parametrize("inside", [4, 5])
def test_a_character_split_by_a_boundary_is_shown_on_the_trained_side(inside):
    ids = BYTES(TEXT)["input_ids"]
    opens = build_row(BYTES, ids, masked_until(ids, inside))
    assert [(run.trained, run.text) for run in opens.runs] == [(False, "Hi "), (True, "東京 🙂!\n")]
    closes = build_row(BYTES, ids, ids[:inside] + [-100] * (len(ids) - inside))
    assert [(run.trained, run.text) for run in closes.runs] == [(True, "Hi 東"), (False, "京 🙂!\n")]
    assert closes.runs[0].end == inside


def test_of_two_trained_sides_the_heavier_one_shows_the_split_character():
    ids = BYTES("東")["input_ids"]
    assert [run.text for run in build_row(BYTES, ids, ids, weights=[0.5, 1, 1]).runs] == ["", "東"]
    assert [run.text for run in build_row(BYTES, ids, ids, weights=[1, 0.5, 0.5]).runs] == ["東", ""]
    assert [run.text for run in build_row(BYTES, ids, ids, documents=[1, 2]).runs] == ["東", ""]


@given(st.text(max_size=30), st.data())
def test_joined_runs_are_the_decoded_row_whatever_the_labels(text, data):
    for tokenizer in (BYTES, PIECES):
        ids = tokenizer(f"<|start|>{text}<|end|>")["input_ids"]
        kept = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        row = build_row(tokenizer, ids, [token if keep else -100 for token, keep in zip(ids, kept, strict=True)])
        assert row.text.removeprefix(" ") == decoded(tokenizer, ids).removeprefix(" ")
        assert [(cell.start, cell.end) for cell in row.cells] == _tiling(row.cells, len(ids))
        assert all(left.trained != right.trained for left, right in pairwise(row.runs))


def _tiling(cells, length):
    bounds = [0, *(cell.end for cell in cells)]
    assert bounds[-1] == length
    return list(pairwise(bounds))


def test_sentencepiece_keeps_the_space_at_the_start_of_a_run():
    ids = PIECES("Hello world")["input_ids"]
    row = build_row(PIECES, ids, masked_until(ids, 6))
    assert [run.text for run in row.runs] == [" Hello", " world"]


def test_where_ids_are_not_bytes_runs_show_what_they_add_to_the_decoded_text():
    tokenizer = word_tokenizer()
    ids = tokenizer("hello world hello")["input_ids"]
    row = build_row(tokenizer, ids, [-100, ids[1], ids[2], -100])
    assert [run.text for run in row.runs] == ["hello", " world", " hello"]
    assert row.text == decoded(tokenizer, ids)


def test_cut_characters_become_replacement_signs_and_swallow_nothing():
    start, end = (BYTES.convert_tokens_to_ids(text) for text in SPECIALS)
    ids = [0xE6, 0x9D, start, 0x80, ord("a"), 0xF0, 0x9F, ord("b"), 0xE6, end, 0xE6]
    row = build_row(BYTES, ids, ids)
    texts = [(cell.text, cell.special) for cell in row.cells]
    assert texts == [
        ("\ufffd", False),
        ("<|start|>", True),
        ("\ufffd", False),
        ("a", False),
        ("\ufffd", False),
        ("b", False),
        ("\ufffd", False),
        ("<|end|>", True),
        ("\ufffd", False),
    ]


def test_a_token_without_text_is_a_cell_of_its_own():
    assert [(cell.start, cell.end, cell.text) for cell in cells_of([b"", b"a", b""], [False] * 3)] == [
        (0, 1, ""),
        (1, 2, "a"),
        (2, 3, ""),
    ]


def test_special_tokens_are_segments_and_the_same_text_typed_is_not():
    start = BYTES.convert_tokens_to_ids("<|start|>")
    typed = [*b"<|start|>"]
    row = build_row(BYTES, [start, *typed], [-100] * (len(typed) + 1))
    assert [(segment.text, segment.special) for segment in row.runs[0].segments] == [
        ("<|start|>", True),
        ("<|start|>", False),
    ]


def test_padding_is_one_counted_segment():
    end = BYTES.convert_tokens_to_ids("<|end|>")
    (run,) = build_row(BYTES, [end] * 40, [-100] * 40).runs
    assert [(segment.text, segment.count) for segment in run.segments] == [("<|end|>", 40)]
    assert run.text == "<|end|>" * 40


def test_weights_and_documents_cut_runs_and_masked_weights_do_not_count():
    ids = BYTES("abcdef")["input_ids"]
    labels = [-100, -100, *ids[2:]]
    row = build_row(BYTES, ids, labels, weights=[9, 1, 1, 0.5, 0, 1], documents=[2, 4])
    assert [(run.text, run.weight, run.document) for run in row.runs] == [
        ("ab", 0.0, 0),
        ("c", 1.0, 1),
        ("d", 0.5, 1),
        ("e", 0.0, 1),
        ("f", 1.0, 1),
    ]
    assert (row.trained_tokens, row.share) == (3, 0.5)


def test_notes_are_numbered_by_turn():
    ids = BYTES("abcdefgh")["input_ids"]
    spans = [(0, 2, "user", "header"), (2, 4, "user", "prompt"), (4, 6, "assistant", "answer"), (7, 8, "assistant", "")]
    row = build_row(BYTES, ids, ids, spans=[*spans, Note(6, 7, "tool", "result", turn=9)])
    assert [(note.start, note.turn) for note in row.notes] == [(0, 0), (2, 0), (4, 1), (7, 2), (6, 9)]


def test_labels_that_are_another_token_are_found():
    ids = BYTES("abcd")["input_ids"]
    assert build_row(BYTES, ids, [-100, ids[1], ids[3], -100]).wrong_labels == (2,)


def test_the_heading_is_one_safe_line_of_facts():
    ids = BYTES("abcd")["input_ids"]
    row = build_row(BYTES, ids, [-100, ids[1], ids[3], -100], documents=[2, 2], status="cut", name="train\x1b 3")
    assert (
        row.heading == "train␛ 3 · 4 tokens, 2 trained (50.0 %) · 2 documents · cut · 1 labels differ from their token"
    )
    assert build_row(BYTES, [], []).heading == "0 tokens, 0 trained (0.0 %)"


def test_status_is_one_flag_or_several():
    assert build_row(BYTES, [], [], status="cut").status == ("cut",)
    assert build_row(BYTES, [], [], status=["cut", "dropped: no answer"]).status == ("cut", "dropped: no answer")
    assert build_row(BYTES, [], []).runs == ()


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"labels": [1]}, "row 'train 3' has 2 input_ids but 1 labels"),
        ({"weights": [1.0]}, "but 1 weights"),
        ({"weights": [1.0, -1.0]}, "negative weight"),
        ({"documents": [1]}, "but 1 tokens in documents"),
        ({"spans": [(1, 3, "user", "prompt")]}, r"2 tokens, but a note is about \[1, 3\): 'prompt'"),
        ({"spans": [(2, 1, "user", "prompt")]}, r"\[2, 1\)"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_by_name(details, words):
    with pytest.raises(DataError, match=words):
        build_row(BYTES, [1, 2], **{"labels": [1, 2], "name": "train 3", **details})


def test_arrays_are_welcome():
    ids = np.array(BYTES("ab")["input_ids"], dtype=np.int32)
    row = build_row(BYTES, ids, ids.astype(np.int64), weights=np.array([1.0, 0.5], dtype=np.float32))
    assert [type(value) for value in (row.input_ids[0], row.labels[0], row.weights[0])] == [int, int, float]


def test_added_tokens_change_the_vocabulary_that_was_read():
    tokenizer = byte_level_tokenizer()
    assert build_row(tokenizer, [300], [300]).text == ""
    tokenizer.add_tokens([f"<added_{number}>" for number in range(60)])
    assert build_row(tokenizer, [300], [300]).text == tokenizer.decode([300])


def test_visible_leaves_no_control_character_but_newline_and_tab():
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    left = {sign for sign in visible(everything) if unicodedata.category(sign) in {"Cc", "Zl", "Zp"}}
    assert left == {"\n", "\t"}


def test_visible_shows_what_reorders_or_hides_text_and_keeps_emoji_joined():
    assert visible("a\u202eb\u2066c") == "a⟨U+202E⟩b⟨U+2066⟩c"
    assert visible("\U000e0041") == "⟨U+E0041⟩"
    assert visible("\x1b]8;;http://x\x07\x9b31m\r\x00\x7f") == "␛]8;;http://x␇⟨U+009B⟩31m␍␀␡"
    assert visible("👩\u200d👩\u200d👧 مرحبا é") == "👩\u200d👩\u200d👧 مرحبا é"


def test_preview_imports_no_framework():
    code = (
        "import sys, sft_mask.preview;"
        "print(sorted({'torch', 'transformers', 'rich', 'matplotlib', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
