"""Every token can say why it is trained or not; what it says is checked against character offsets."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from support.tiny import chats, expected, rendered, tokenized, tokenizer
from support.tiny_chat import chat, tokenizer_for

from sft_mask import Policy, Region, explain, preview_rows
from sft_mask.errors import DataError
from sft_mask.preview import PreviewRow, build_row

CHAT = [
    {"role": "system", "content": "the river"},
    {"role": "user", "content": "walk, you"},
    {"role": "assistant", "content": "yes! 東京"},
    {"role": "user", "content": "under the stone"},
    {"role": "assistant", "content": "over seven"},
]


def row_of(messages: Any = CHAT, policy: Policy | None = None, **columns: Any) -> PreviewRow:
    return preview_rows([{"messages": messages, **columns}], tokenizer(), policy=policy)[0]


def place(text: str, messages: Any = CHAT, nth: int = 0) -> tuple[int, int]:
    """The tokens that hold a part of the rendered text, by the tokenizer's own offsets."""
    whole, low = rendered(messages), -1
    for _ in range(nth + 1):
        low = whole.index(text, low + 1)
    high = low + len(text)
    offsets = tokenizer()(whole, return_offsets_mapping=True)["offset_mapping"]
    inside = [at for at, (start, stop) in enumerate(offsets) if start < high and stop > low]
    return inside[0], inside[-1] + 1


def span(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}-{bounds[1] - 1}"


def test_a_reason_says_trained_exactly_where_character_offsets_say_so() -> None:
    conversations = chats(30, seed=5)
    rows = preview_rows([{"messages": messages} for messages in conversations], tokenizer())
    for messages, row in zip(conversations, rows, strict=True):
        told = [explain(row, token).startswith("trained: ") for token in range(len(row.input_ids))]
        assert told == [label != -100 for label in expected(messages)]


def test_a_users_word_names_its_turn_and_its_marker() -> None:
    header, words = place("<|im_start|>user\n", nth=1), place("under the stone")
    assert explain(row_of(), words[0] + 1) == (
        f"masked: inside the user turn that starts at token {words[0]}, marker '<|im_start|>user\\n' at {span(header)}"
    )
    assert explain(row_of(), header[0]) == f"masked: header of the user turn: '<|im_start|>user\\n' at {span(header)}"


def test_an_answer_its_eot_its_header_and_what_follows_have_different_reasons() -> None:
    header, words = place("<|im_start|>assistant\n"), place("yes! 東京")
    stop = place("<|im_end|>", nth=2)[0]
    answer = f"answer 1 of 2, which starts at token {words[0]}"
    row = row_of()
    assert explain(row, words[0]) == f"trained: inside {answer}"
    assert explain(row, stop) == f"trained: the end-of-turn token of {answer}; the model must learn to stop"
    assert explain(row, stop + 1) == f"masked: written by the template after the end-of-turn token of {answer}"
    assert explain(row, header[0]) == (
        f"masked: header of {answer}: '<|im_start|>assistant\\n' at {span(header)} is given at inference"
    )


def test_a_negative_number_counts_from_the_end() -> None:
    row = row_of()
    assert explain(row, -1) == explain(row, len(row.input_ids) - 1)


def test_a_token_that_is_not_there_and_a_row_without_reasons_are_refused() -> None:
    row = row_of()
    with pytest.raises(DataError, match=rf"0 to {len(row.input_ids) - 1}, so there is no token 9999"):
        explain(row, 9999)
    with pytest.raises(DataError, match="built without spans"):
        explain(build_row(tokenizer(), [1, 2], [1, 2]), 0)


@pytest.mark.parametrize(
    ("policy", "word", "why"),
    [
        (Policy(turns="last"), "yes!", "only the last answer is trained (turns='last')"),
        (Policy(regions=(Region(text=" seven"),)), "seven", "it is in a region that is not trained"),
    ],
)
def test_the_policy_that_masks_a_word_is_named(policy: Policy, word: str, why: str) -> None:
    row = row_of(policy=policy)
    assert explain(row, place(word)[0]).endswith(f", but {why}")
    assert row.weights[place(word)[0]] == 0


def test_an_end_of_turn_token_that_is_not_trained_names_the_policy() -> None:
    row = row_of(policy=Policy(stop="never"))
    reason = explain(row, place("<|im_end|>", nth=2)[0])
    assert reason.startswith("masked: the end-of-turn token of answer 1 of 2, ")
    assert reason.endswith("end-of-turn tokens are not trained here (stop='never')")


def test_a_weight_is_named() -> None:
    policy = Policy(regions=(Region(text=" seven", weight=0.25),))
    assert explain(row_of(policy=policy), place("seven")[0]).endswith(", with weight 0.25")


def test_a_message_that_is_flagged_names_itself() -> None:
    messages = [*CHAT[:2], {**CHAT[2], "train": False}, *[{**message, "train": None} for message in CHAT[3:]]]
    row = row_of(messages, Policy(turns="flagged"))
    assert explain(row, place("yes!")[0]).endswith("but its message or its role is not trained")
    assert explain(row, place("over")[0]).startswith("trained: ")


def test_a_cut_answer_says_so_and_can_be_left_out() -> None:
    ids = tokenized(CHAT)[: place("over seven")[0] + 1]
    kept = preview_rows([{"input_ids": ids}], tokenizer())[0]
    assert kept.status == ("cut",)
    assert explain(kept, -1).endswith("it is cut off at the end of the row")
    masked = preview_rows([{"input_ids": ids}], tokenizer(), policy=Policy(cut_answers="mask"))[0]
    assert explain(masked, -1).endswith("but it is cut off (cut_answers='mask')")


def test_an_open_header_at_the_end_is_followed_by_nothing() -> None:
    row = preview_rows([{"input_ids": tokenized(CHAT) + tokenized(CHAT)[: place("walk")[0]]}], tokenizer())[0]
    assert explain(row, -1).startswith("masked: header of the user turn")
    header = tokenizer()("<|im_start|>assistant\n")["input_ids"]
    opened = preview_rows([{"input_ids": tokenized(CHAT) + header}], tokenizer())[0]
    assert explain(opened, -1).startswith("masked: a header that no answer follows")


def test_a_label_that_was_ignored_before_says_so() -> None:
    ids = tokenized(CHAT)
    first = place("yes! 東京")[0]
    row = preview_rows([{"input_ids": ids, "labels": [-100] * (first + 1) + ids[first + 1 :]}], tokenizer())[0]
    assert explain(row, first).endswith("but its label was already ignored")
    assert explain(row, first + 1).startswith("trained: ")


def test_padding_is_padding() -> None:
    ids = tokenized(CHAT)
    pad = tokenizer().pad_token_id
    row = preview_rows([{"input_ids": [*ids, pad, pad]}], tokenizer())[0]
    assert explain(row, -1) == "masked: padding"
    assert row.notes[-1].role == "padding"
    assert explain(row, len(ids) - 1) != "masked: padding"


def test_a_quoted_marker_in_user_text_opens_no_segment() -> None:
    quoting = [
        {"role": "user", "content": "say <|im_start|>assistant\nstone"},
        {"role": "assistant", "content": "yes!"},
    ]
    row = row_of(quoting)
    word = place("stone", quoting)[0]
    header = place("<|im_start|>user\n", quoting)
    assert explain(row, word) == (
        f"masked: inside the user turn that starts at token {header[1]}, marker '<|im_start|>user\\n' at {span(header)}"
    )


def test_an_empty_block_that_the_template_injects_is_prefilled() -> None:
    made, _, _ = chat("qwen3")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = preview_rows([{"messages": messages}], made)[0]
    prefilled = [note for note in row.notes if "prefilled" in note.reason]
    assert [b"".join(row.token_bytes[note.start : note.end]) for note in prefilled] == [b"<think>\n\n</think>\n\n"]
    assert explain(row, prefilled[0].start).startswith("masked: prefilled before the answer, which starts at token")


def test_a_tools_result_inside_the_users_turn_is_the_tools() -> None:
    made, _, _ = chat("qwen3")
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    messages = [
        {"role": "user", "content": "When"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon sharp"},
        {"role": "assistant", "content": "It is noon"},
    ]
    row = preview_rows([{"messages": messages}], made)[0]
    text = b"".join(row.token_bytes).decode()
    ends = np.cumsum([len(token.decode()) for token in row.token_bytes])
    at = int(np.searchsorted(ends, text.index("noon sharp"), side="right"))
    assert explain(row, at).startswith("masked: words of the tool inside the user turn that starts at token")
    assert next(note.role for note in row.notes if note.start <= at < note.end) == "tool"


def test_a_row_without_messages_is_explained_by_its_markers() -> None:
    template = "{% for m in messages %}{{ m.role|upper }}: {{ m.content }}</s>\n{% endfor %}"
    made = tokenizer_for(template)
    ids = made("USER: red</s>\nASSISTANT: blue</s>\n")["input_ids"]
    row = preview_rows([{"input_ids": ids}], made, "USER: ", "ASSISTANT: ")[0]
    told = [explain(row, token) for token in range(len(ids))]
    assert [reason.split(":")[0] for reason in told].count("trained") == len(made("blue</s>")["input_ids"])
    assert sum("inside the user turn" in reason for reason in told) >= 3


def test_an_ambiguous_row_says_that_neither_markers_nor_messages_decide_it() -> None:
    edited = tokenized([*CHAT[:-1], {"role": "assistant", "content": "something else"}])
    good = {"messages": CHAT, "input_ids": tokenized(CHAT)}
    rows = preview_rows([good, {"messages": CHAT, "input_ids": edited}], tokenizer())
    assert rows[0].status == ()
    kinds = [flag.split(":")[0] for flag in rows[1].status]
    assert kinds == ["dropped", "ambiguous"]
    assert rows[1].trained_tokens == 0
    reasons = {note.reason for note in rows[1].notes}
    assert not any(reason.startswith("trained") for reason in reasons)
    assert any(
        reason.endswith("but the whole row is masked because neither markers nor messages decide it")
        for reason in reasons
    )


def test_the_parts_of_a_row_cover_it_without_a_gap() -> None:
    for row in preview_rows([{"messages": messages} for messages in chats(10, seed=9)], tokenizer()):
        bounds = [(note.start, note.end) for note in row.notes]
        assert [start for start, _ in bounds] == [0, *[stop for _, stop in bounds[:-1]]]
        assert bounds[-1][1] == len(row.input_ids)


def test_rows_that_only_markers_decided_have_the_same_reasons() -> None:
    """The first rows of a shape are decided by markers and by messages, the later ones by markers alone."""
    rows = preview_rows([{"messages": CHAT}] * 8, tokenizer())
    assert [list(row.notes) for row in rows] == [list(rows[0].notes)] * 8
    made, _, _ = chat("qwen3")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    later = preview_rows([{"messages": messages}] * 8, made)
    assert list(later[0].notes) == list(list(later)[7].notes)


def test_the_stop_is_no_padding_where_the_two_are_one_token() -> None:
    made = deepcopy(tokenizer())
    made.pad_token = "<|im_end|>"
    ids = tokenized(CHAT)[:-1]
    row = preview_rows([{"input_ids": [*ids, made.pad_token_id, made.pad_token_id]}], made)[0]
    assert explain(row, len(ids) - 1).startswith("trained: the end-of-turn token of answer 2 of 2")
    assert explain(row, len(ids)) == explain(row, -1) == "masked: padding"


def test_a_users_turn_that_is_trained_is_no_answer() -> None:
    longer = [*CHAT, {"role": "user", "content": "done,"}]
    messages = [{**message, "train": True if message["role"] == "user" else None} for message in longer]
    row = row_of(messages, Policy(turns="flagged"))
    word, answer = place("under the stone")[0], place("over seven")[0]
    assert explain(row, word) == f"trained: inside non-assistant turn 2 of 3 (user), which starts at token {word}"
    assert explain(row, answer) == f"trained: inside answer 2 of 2, which starts at token {answer}"
    assert next(note.role for note in row.notes if note.start <= word < note.end) == "user"
