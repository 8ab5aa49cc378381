"""The figure shows each run at its place, and text as text."""

import builtins
import io
import warnings

import pytest
from support.shown_rows import BYTES, SPECIALS, masked_until

from sft_mask.preview import build_row
from sft_mask.preview.figure import draw_figure, layout

END = BYTES.convert_tokens_to_ids(SPECIALS[1])


def row_of(text, start=0, **details):
    ids = BYTES(text)["input_ids"]
    return build_row(BYTES, ids, masked_until(ids, start), **details)


def lines_of(row, width):
    lines = {}
    for piece in layout(row, width):
        lines[piece.line] = lines.get(piece.line, "").ljust(piece.column) + piece.text
    return [lines.get(number, "") for number in range(max(lines, default=-1) + 1)]


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_lines_break_at_newlines_and_after_the_last_blank_that_fits():
    assert lines_of(row_of("one two three\nfour"), 8) == ["one two ", "three↵", "four"]


def test_a_word_longer_than_a_line_is_broken_anywhere():
    assert lines_of(row_of("ab " + "x" * 10), 4) == ["ab ", "xxxx", "xxxx", "xx"]


def test_no_line_is_wider_than_asked_and_no_text_is_lost():
    row = row_of("東京 is 🙂 nice, e\u0301 too\n\n\tand more " * 20, 17)
    pieces = list(layout(row, 20))
    assert max(piece.column + piece.columns for piece in pieces) <= 20
    shown = "".join(piece.text for piece in pieces)
    assert shown == row.text.replace("\n", "↵").replace("\t", "⇥   ")


def test_wide_characters_take_two_columns():
    assert [(piece.column, piece.columns, piece.text) for piece in layout(row_of("a東b"), 9)] == [
        (0, 1, "a"),
        (1, 2, "東"),
        (3, 1, "b"),
    ]


def test_pieces_know_their_run():
    pieces = list(layout(row_of("prompt answer", 7), 40))
    assert [(piece.column, piece.text, piece.run.trained) for piece in pieces] == [
        (0, "prompt ", False),
        (7, "answer", True),
    ]


def test_documents_begin_on_a_line_of_their_own_and_padding_is_counted():
    assert lines_of(row_of("abcd", documents=[2, 2]), 40) == ["ab", "cd"]
    assert lines_of(build_row(BYTES, [END] * 40, [-100] * 40), 40) == ["<|end|>×40"]


def test_a_dollar_sign_opens_no_formula_and_an_escape_is_a_sign():
    figure = draw_figure(row_of(r"$\frac$ \x $5_ " + "\x1b[31m"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the machine's fonts may lack the sign for escape
        figure.savefig(io.BytesIO(), format="png")
    assert r"$\frac$" in texts_of(figure)
    assert "\x1b" not in "".join(texts_of(figure))


def test_only_trained_pieces_stand_on_a_ground_shaded_by_weight():
    row = row_of("abcd", 1, weights=[1, 1, 0.5, -1])
    grounds = draw_figure(row).axes[0].collections
    colours = [tuple(round(float(part), 2) for part in ground.get_facecolor()[0]) for ground in grounds]
    assert len(colours) == 3
    assert colours[0][3] > colours[1][3]
    assert colours[0][:3] == colours[1][:3] != colours[2][:3]


def test_lines_beyond_the_limit_are_counted():
    figure = draw_figure(row_of("a\n" * 50), max_lines=10)
    assert texts_of(figure)[-4:] == ["…", "40", "more", "lines"]
    assert len(texts_of(figure)) <= 30


def test_an_empty_row_is_a_heading():
    assert " ".join(texts_of(draw_figure(build_row(BYTES, [], [])))) == "0 tokens, 0 trained (0.0 %)"


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'sft-mask\[viz\]'"):
        draw_figure(row_of("a"))
