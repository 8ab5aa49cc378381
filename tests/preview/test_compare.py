"""Two masks side by side, and four roads to one mask; differences are counted by hand, not by the library."""

from __future__ import annotations

import json
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.shown_rows import BYTES
from support.tiny import chats, expected, messages_dataset, tokenized, tokenizer
from support.tiny_chat import chat, prepared

from sft_mask import Policy, compare_masks, compare_roads, preview_rows
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.preview import build_row
from sft_mask.preview.compare import CAUSES, agreement_of, diff_rows
from sft_mask.preview.side_by_side import DiffView


def row_of(text: str, trained: set[int]) -> Any:
    ids = BYTES(text)["input_ids"]
    return build_row(BYTES, ids, [token if at in trained else -100 for at, token in enumerate(ids)], name="row 0")


def lines(one: Any, other: Any) -> list[str]:
    return diff_rows(one, other).lines()


def test_equal_masks_have_no_lines() -> None:
    assert lines(row_of("abc", {1}), row_of("abc", {1})) == []


def test_the_same_tokens_trained_unlike_are_named_by_run_and_direction() -> None:
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
            at for change in changes for at in range(getattr(change, f"{side}_start"), getattr(change, f"{side}_stop"))
        }
        kept = [at for at in range(len(row.pieces)) if at not in changed]
        rest.append([(row.pieces[at], row.weights[at]) for at in kept])
    assert rest[0] == rest[1]


def test_two_policies_differ_in_the_rows_with_several_answers() -> None:
    data = messages_dataset(40, seed=3)
    diff = compare_masks(preview_rows(data, tokenizer()), preview_rows(data, tokenizer(), policy=Policy(turns="last")))
    unlike, tokens = 0, 0
    for messages in data["messages"]:
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        pairs = zip(expected(messages), expected(messages, {answers[-1]}), strict=True)
        differing = sum(one != two for one, two in pairs)
        unlike, tokens = unlike + bool(differing), tokens + differing
    assert (diff.rows, diff.unlike, diff.tokens) == (40, unlike, tokens)
    assert 0 < unlike < 40
    assert str(diff) == f"{unlike} of 40 rows differ, in {tokens} tokens."
    assert json.loads(json.dumps(diff.to_dict()))["rows_unlike"] == unlike


def test_masks_of_different_data_are_refused() -> None:
    rows = preview_rows(messages_dataset(3), tokenizer())
    with pytest.raises(DataError, match="not the same number of rows"):
        compare_masks(rows, rows[:2])


# ---- roads -----------------------------------------------------------------------------------------------------------


def test_on_a_plain_template_markers_messages_and_prefixes_agree_but_for_the_newline_after_the_stop() -> None:
    data = messages_dataset(20)
    agreement = compare_roads(data, tokenizer())
    assert set(agreement.roads) == {"markers", "messages", "prefix"}
    assert agreement.roads["markers"].equal == agreement.roads["messages"].equal == 20
    prefix = agreement.roads["prefix"]
    answers = sum(message["role"] == "assistant" for messages in data["messages"] for message in messages)
    assert set(prefix.disagreements) == {"overrun"}
    assert (prefix.disagreements["overrun"].extra, prefix.disagreements["overrun"].missing) == (answers, 0)


def test_generation_blocks_that_train_the_header_are_told_as_header() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n{{ m.content }}"
        "{% endgeneration %}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made, _, _ = prepared(source)
    data = Dataset.from_list([{"messages": messages} for messages in chats(6)])
    agreement = compare_roads(data, made)
    found = agreement.roads["generation"].disagreements
    answers = sum(message["role"] == "assistant" for messages in data["messages"] for message in messages)
    header = len(made("<|im_start|>assistant\n")["input_ids"])
    assert {cause: (seen.extra, seen.missing) for cause, seen in found.items()} == {
        "header": (answers * header, 0),
        "stop": (0, answers),
    }
    assert found["header"].first is not None
    assert found["header"].first.left.name == "row 0"


def test_a_marker_that_a_user_typed_is_an_overrun_of_the_markers_alone() -> None:
    quoting = [
        {"role": "user", "content": "say <|im_start|>assistant\nstone"},
        {"role": "assistant", "content": "yes!"},
    ]
    plain = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "yes!"}]
    agreement = compare_roads([{"messages": plain}, {"messages": quoting}], tokenizer())
    markers = agreement.roads["markers"]
    assert (markers.rows, markers.equal) == (2, 1)
    assert set(markers.disagreements) == {"overrun"}
    stone = len(tokenizer()("stone<|im_end|>")["input_ids"])
    assert markers.disagreements["overrun"].extra >= stone


def test_prefixes_miss_earlier_answers_where_the_template_changes_the_last_one() -> None:
    made, _, _ = chat("qwen3")
    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And"},
        {"role": "assistant", "content": "Bye"},
    ]
    agreement = compare_roads([{"messages": said}], made)
    prefix = agreement.roads["prefix"].disagreements
    assert prefix["think"].extra == len(made("<think>\n\n</think>\n\n")["input_ids"])
    assert prefix["missed"].missing == len(made("Hello")["input_ids"])
    assert prefix["stop"].missing == 1
    assert "prefix: equal in 0 of 1 rows" in str(agreement)
    assert CAUSES["missed"] in str(agreement)


def test_a_tool_call_that_a_road_misses_is_told_as_tool() -> None:
    made, _, _ = chat("qwen3")
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    messages = [
        {"role": "user", "content": "When"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "It is noon"},
    ]
    agreement = compare_roads([{"messages": messages}], made)
    assert agreement.roads["prefix"].disagreements["tool"].missing > 0
    dumped = json.loads(json.dumps(agreement.to_dict()))
    assert dumped["roads"]["prefix"]["disagreements"]["tool"]["first"] == "row 0"


def test_rows_without_messages_and_foreign_markers_are_refused() -> None:
    ids = [{"input_ids": tokenized(messages)} for messages in chats(3)]
    with pytest.raises(DataError, match="No row has messages"):
        compare_roads(ids, tokenizer())
    with pytest.raises(UnsupportedError, match="leave the policy out"):
        compare_roads(ids, tokenizer(), policy=Policy())
    text = [{"text": "### Q\nred\n### A\nblue"}]
    with pytest.raises(UnsupportedError, match="only where the rows are the chat template's"):
        agreement_of(preview_rows(text, tokenizer(), "### Q\n", "### A\n"))


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


def test_labels_that_were_ignored_before_are_no_disagreement_and_undecided_rows_are_left_out() -> None:
    one, two = chats(2, seed=4)
    ids = tokenized(one)
    half = [-100] * (len(ids) - 3) + ids[-3:]  # the end of the last answer
    assert [label for label in expected(one)[:-3] if label != -100]
    edited = tokenized([*two, {"role": "assistant", "content": "more"}])
    data = [
        {"messages": one, "input_ids": ids, "labels": half},
        {"messages": two, "input_ids": edited, "labels": edited},
    ]
    agreement = compare_roads(data, tokenizer())
    assert agreement.rows == 1
    assert agreement.roads["markers"].equal == agreement.roads["messages"].equal == 1


def test_reasoning_that_a_road_leaves_out_is_told_as_think() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{{ m.content.split('</think>')[0] }}</think>{% generation %}{{ m.content.split('</think>')[1] }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made, _, _ = prepared(source)
    data = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>hm</think>Yes"}]}]
    found = compare_roads(data, made, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n")
    seen = found.roads["generation"].disagreements
    assert set(seen) == {"think"}
    assert (seen["think"].extra, seen["think"].missing) == (0, len(made("<think>hm</think>")["input_ids"]))
