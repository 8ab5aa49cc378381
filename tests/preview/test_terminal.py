"""The row in a terminal: colours where there are some, brackets where there are none, and never a raw escape."""

import io
import re

from rich.console import Console
from support.shown_rows import BYTES, SPECIALS, TEXT, masked_until

from sft_mask.preview import build_row
from sft_mask.preview.terminal import RowView, draw_row, legend

END = BYTES.convert_tokens_to_ids(SPECIALS[1])


def drawn(ids, labels, *, colour=True, **details):
    return draw_row(build_row(BYTES, ids, labels, **details), colour=colour)


def printed(row, width=60, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(RowView(row))
    return console.file.getvalue()


def styles_of(text):
    return {text.plain[span.start : span.end]: str(span.style) for span in text.spans}


def test_trained_text_is_bright_and_the_rest_dim():
    ids = BYTES(TEXT)["input_ids"]
    text = drawn(ids, masked_until(ids, 3))
    assert text.plain == "Hi 東京 🙂!↵\n"
    assert styles_of(text) == {"Hi ": "dim", "東京 🙂!↵\n": "bold green"}


def test_a_trained_stop_token_is_a_block_and_a_masked_one_is_not():
    assert styles_of(drawn([END], [END])) == {"<|end|>": "bold green reverse"}
    assert styles_of(drawn([END], [-100])) == {"<|end|>": "dim cyan"}


def test_weights_are_shades():
    ids = BYTES("abc")["input_ids"]
    text = drawn(ids, ids, weights=[2, 1, 0.5])
    assert styles_of(text) == {"a": "bold green", "b": "green", "c": "dim green"}


def test_whitespace_at_the_edge_of_a_trained_run_are_underlined():
    ids = BYTES("a b  c")["input_ids"]
    text = drawn(ids, [-100, *ids[1:4], -100, -100])
    assert [(text.plain[span.start : span.end], str(span.style)) for span in text.spans] == [
        ("a", "dim"),
        (" ", "bold green underline"),
        ("b", "bold green"),
        (" ", "bold green underline"),
        (" c", "dim"),
    ]


def test_without_colour_trained_text_stands_in_brackets_with_its_weight():
    ids = BYTES("abcd")["input_ids"]
    text = drawn(ids, [-100, *ids[1:]], weights=[1, 1, 0.5, 1], colour=False)
    assert text.plain == "a⟦b⟧⟦×0.5 c⟧⟦d⟧"
    assert not text.spans


def test_brackets_that_occur_in_the_row_give_way_to_others():
    ids = BYTES("⟧x")["input_ids"]
    row = build_row(BYTES, ids, ids)
    assert draw_row(row, colour=False).plain == "⟪⟧x⟫"
    assert legend(row, colour=False).plain == "legend: ⟪trained⟫ masked"


def test_documents_of_a_packed_row_stand_apart():
    ids = BYTES("abcd")["input_ids"]
    row = build_row(BYTES, ids, [-100, *ids[1:]], documents=[2, 2])
    assert draw_row(row, colour=False).plain.splitlines() == [
        "── document 1 of 2 · 2 tokens, 1 trained ──",
        "a⟦b⟧",
        "── document 2 of 2 · 2 tokens, 2 trained ──",
        "⟦cd⟧",
    ]


def test_padding_is_counted_instead_of_repeated():
    assert drawn([END] * 40, [-100] * 40).plain == "<|end|>×40"


def test_a_console_in_a_pipe_gets_brackets_and_no_escape():
    ids = BYTES("ab")["input_ids"]
    assert printed(build_row(BYTES, ids, masked_until(ids, 1), name="train 1", status="cut")).splitlines() == [
        "train 1 · 2 tokens, 1 trained (50.0 %) · cut",
        "a⟦b⟧",
        "legend: ⟦trained⟧ masked",
    ]


def test_what_a_row_lost_comes_after_its_text():
    ids = BYTES("ab")["input_ids"]
    row = build_row(BYTES, ids, masked_until(ids, 1), status="lost: 1 tool call not rendered", lost=["a\x1b[31m", "b"])
    assert printed(row).splitlines() == [
        "2 tokens, 1 trained (50.0 %) · lost: 1 tool call not ",
        "rendered",
        "a⟦b⟧",
        "lost: a␛[31m",
        "lost: b",
        "legend: ⟦trained⟧ masked",
    ]


def test_no_color_is_respected_in_a_terminal():
    ids = BYTES("ab")["input_ids"]
    out = printed(build_row(BYTES, ids, masked_until(ids, 1)), force_terminal=True, no_color=True)
    assert "a⟦b⟧" in out
    assert not re.search(r"\x1b\[[0-9;]*3\d", out)


def test_escape_sequences_of_the_dataset_never_reach_the_terminal():
    evil = "\x1b[31mred\x1b]0;title\x07 [bold]markup[/bold] \x9b1m"
    ids = BYTES(evil)["input_ids"]
    row = build_row(BYTES, ids, masked_until(ids, 4), name="\x1b[2J", status="\x1b[3J")
    for options in ({}, {"force_terminal": True, "color_system": "truecolor"}):
        out = printed(row, **options)
        ours = re.sub(r"\x1b\[[0-9;]*m", "", out) if options else out
        assert not set(ours) & set("\x1b\x07\x9b")
        assert "[bold]markup[/bold]" in ours.replace("\n", "")
        assert "␛[31m" in re.sub("[⟦⟧\n]", "", ours)
        assert not re.search(r"\x1b\[31m|\x1b\[2J", out)


def test_the_width_of_the_console_is_respected():
    ids = BYTES("x" * 500 + " 東京" * 50)["input_ids"]
    out = printed(build_row(BYTES, ids, ids), width=40)
    assert max(len(line) for line in out.splitlines()) <= 40


def test_the_legend_has_an_entry_for_each_weight():
    ids = BYTES("abc")["input_ids"]
    row = build_row(BYTES, ids, ids, weights=[1, 0.5, 0])
    assert legend(row).plain == "legend:  trained  trained ×0.5  masked  special token"
    assert legend(build_row(BYTES, ids, [-100] * 3)).plain == "legend:  trained  masked  special token"
