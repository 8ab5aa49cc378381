"""Two masks side by side; differences are counted by hand, not by the library."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.shown_rows import BYTES
from support.tiny import expected, messages_dataset, tokenizer

from sft_mask import Policy, compare_masks, preview_rows
from sft_mask.errors import DataError
from sft_mask.preview import build_row
from sft_mask.preview.diff import diff_rows
from sft_mask.preview.side_by_side import DiffView


def row_of(text: str, trained: set[int]) -> Any:
    ids = BYTES(text)["input_ids"]
    return build_row(BYTES, ids, [token if at in trained else -100 for at, token in enumerate(ids)], name="row 0")


def lines(one: Any, other: Any) -> list[str]:
    return diff_rows(one, other).lines()


def test_equal_masks_have_no_lines() -> None:
    assert lines(row_of("abc", {1}), row_of("abc", {1})) == []


def test_the_same_tokens_trained_differently_are_named_by_run_and_direction() -> None:
    assert lines(row_of("abcdef", {0, 1}), row_of("abcdef", {1, 3, 4})) == [
        "token 0 'a': trained → masked",
        "tokens 3-4 'de': masked → trained",
    ]


def test_other_tokens_are_laid_along_each_other() -> None:
    assert lines(row_of("Hello!<|end|>", {6}), row_of("Hello you!<|end|>", {9})) == [
        "nothing → tokens 5-8 ' you' (masked)",
        "token 5 '!': masked → trained",
        "token 6 '<|end|>': trained → masked",
    ]


def test_ids_count_only_where_they_are_asked_for() -> None:
    one = row_of("ab", {0})
    other = build_row(BYTES, [97, 98], [97, -100])
    renumbered = type(one)(**{**{name: getattr(other, name) for name in other.__slots__}, "input_ids": (97, 7)})
    assert not diff_rows(one, renumbered).changes
    (line,) = diff_rows(one, renumbered, by_id=True).lines()
    assert line == "token 1 'b' ids 98 (masked) → token 1 'b' ids 7 (masked)"


@given(
    st.text("abc", max_size=12), st.text("abc", max_size=12), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11))
)
def test_what_is_not_in_a_change_is_equal(left: str, right: str, one: set[int], two: set[int]) -> None:
    first, second = row_of(left, one), row_of(right, two)
    changes = diff_rows(first, second).changes
    rest = []
    for row, side in ((first, "left"), (second, "right")):
        changed = {
            at for change in changes for at in range(getattr(change, f"{side}_start"), getattr(change, f"{side}_end"))
        }
        kept = [at for at in range(len(row.token_bytes)) if at not in changed]
        rest.append([(row.token_bytes[at], row.weights[at]) for at in kept])
    assert rest[0] == rest[1]


def test_two_policies_differ_in_the_rows_with_several_answers() -> None:
    data = messages_dataset(40, seed=3)
    diff = compare_masks(preview_rows(data, tokenizer()), preview_rows(data, tokenizer(), policy=Policy(turns="last")))
    different, tokens = 0, 0
    for messages in data["messages"]:
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        pairs = zip(expected(messages), expected(messages, {answers[-1]}), strict=True)
        differing = sum(one != two for one, two in pairs)
        different, tokens = different + bool(differing), tokens + differing
    assert (diff.rows, diff.different, diff.tokens) == (40, different, tokens)
    assert 0 < different < 40
    assert str(diff) == f"{different} of 40 rows differ, in {tokens} tokens."
    assert json.loads(json.dumps(diff.to_dict()))["rows_different"] == different


def test_masks_of_different_data_are_refused() -> None:
    rows = preview_rows(messages_dataset(3), tokenizer())
    with pytest.raises(DataError, match="do not have the same number of rows"):
        compare_masks(rows, rows[:2])


# ---- shown -----------------------------------------------------------------------------------------------------------


def printed(width: int, **options: Any) -> str:
    console = Console(width=width, file=None, record=True, **options)
    with console.capture() as captured:
        console.print(DiffView(diff_rows(row_of("abcdef", {0, 1}), row_of("abcdef", {1, 3})), names=("old", "new")))
    return captured.get()


def test_two_masks_stand_beside_each_other_where_it_is_wide_enough() -> None:
    wide, narrow = printed(140, force_terminal=True, no_color=True), printed(60, force_terminal=True, no_color=True)
    assert any("⟦ab⟧cdef" in line and "a⟦b⟧c⟦d⟧ef" in line for line in wide.splitlines())
    assert not any("⟦ab⟧cdef" in line and "a⟦b⟧c⟦d⟧ef" in line for line in narrow.splitlines())
    assert "⟦ab⟧cdef" in narrow
    assert "a⟦b⟧c⟦d⟧ef" in narrow
    for shown in (wide, narrow):
        assert "token 0 'a': trained → masked" in shown
        assert "old: row 0" in shown


def test_lines_beyond_the_most_are_counted() -> None:
    diff = diff_rows(row_of("abcdefgh", {0, 2, 4, 6}), row_of("abcdefgh", set()))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(DiffView(diff, most_lines=1))
    assert "and 3 more" in captured.get()
