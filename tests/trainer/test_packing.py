"""Rows that the trainer cut: exact where they can be joined again, else masked up to their first header and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from support.tiny import build, chats, expected, messages_dataset, tokenized, tokenizer

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.errors import LabelsChangedError, UnsupportedError

CHATS = chats(24)
HEADER = tokenizer().convert_tokens_to_ids("<|im_start|>")


def flat(dataset: Any, column: str) -> list[int]:
    return [value for row in dataset for value in row[column]]


@pytest.mark.parametrize("length", [9, 17, 64, 200, 4000])
def test_wrapped_rows_train_exactly_what_the_conversations_do(length: int) -> None:
    trainer = build("out", packing=True, packing_strategy="wrapped", max_length=length)
    before = flat(trainer.train_dataset, "input_ids")
    train_on_responses_only(trainer)
    wanted = [label for messages in CHATS for label in expected(messages)]
    ids = [token for messages in CHATS for token in tokenized(messages)]
    assert before == ids
    rows = [(ids[at : at + length], wanted[at : at + length]) for at in range(0, len(ids), length)]
    kept = [(row, labels) for row, labels in rows if any(label != -100 for label in labels)]
    assert [(row["input_ids"], row["labels"]) for row in trainer.train_dataset] == kept


def test_an_answer_that_continues_in_the_next_row_is_not_cut_off() -> None:
    trainer = train_on_responses_only(build("out", packing=True, packing_strategy="wrapped", max_length=40))
    assert not trainer.mask_report.splits["train"].turns_cut
    assert not trainer.mask_report.warnings


def test_wrapped_rows_of_several_packed_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thousand conversations the packing begins anew; the library's own batches end elsewhere."""
    monkeypatch.setattr("sft_mask.data.dataset._ROWS_AT_ONCE", 7)
    many = chats(2100, seed=9)
    data = Dataset.from_list([{"messages": messages} for messages in many])
    trainer = train_on_responses_only(build("out", data, packing=True, packing_strategy="wrapped", max_length=64))
    assert [label for label in flat(trainer.train_dataset, "labels") if label != -100] == [
        label for messages in many for label in expected(messages) if label != -100
    ]


def split_documents(dataset: Any) -> Iterator[tuple[list[int], list[int]]]:
    for row in dataset:
        ends = np.cumsum(row["seq_lengths"])
        for low, high in zip([0, *ends[:-1]], ends, strict=True):
            yield row["input_ids"][low:high], row.get("labels", row["input_ids"])[low:high]


def from_first_header(ids: list[int], labels: list[int]) -> list[int]:
    """Labels of a document without those before its first header."""
    start = ids.index(HEADER) if HEADER in ids else len(ids)
    return [-100] * start + labels[start:]


@pytest.mark.parametrize("length", [24, 48])
def test_split_documents_are_masked_up_to_their_first_header_and_exact_after_it(length: int) -> None:
    parts: dict[tuple[int, ...], list[list[int]]] = {}
    for messages in CHATS:
        ids, labels = tokenized(messages), expected(messages)
        for at in range(0, len(ids), length):
            part = ids[at : at + length]
            parts.setdefault(tuple(part), []).append(from_first_header(part, labels[at : at + length]))
    trainer = build("out", packing=True, packing_strategy="bfd_split", max_length=length)
    packed = [list(split_documents([row])) for row in trainer.train_dataset]
    report = train_on_responses_only(trainer).mask_report
    documents = list(split_documents(trainer.train_dataset))
    assert all(labels in parts[tuple(ids)] for ids, labels in documents)
    assert any(label != -100 for _, labels in documents for label in labels)
    mid_turn = sum(any(HEADER not in ids[:2] for ids, _ in row) for row in packed)
    assert 0 < report.splits["train"].rows_mid_turn <= mid_turn
    assert any("begin inside a turn" in warning for warning in report.warnings)


def test_the_end_of_text_is_masked_up_to_its_first_header_and_messages_decide_if_there() -> None:
    data = Dataset.from_list([{"text": text(messages), "n": n} for n, messages in enumerate(CHATS)])
    trainer = train_on_responses_only(build("out", data, max_length=30, truncation_mode="keep_end"))
    for row in trainer.train_dataset:
        assert row["labels"] == from_first_header(row["input_ids"], expected(CHATS[row["n"]])[:-1][-30:])
    assert trainer.mask_report.splits["train"].rows_mid_turn
    with_messages = train_on_responses_only(
        build("out", messages_dataset(24), max_length=30, truncation_mode="keep_end")
    )
    assert not with_messages.mask_report.splits["train"].rows_mid_turn
    for row in with_messages.train_dataset:
        assert row["labels"] == expected(CHATS[row["n"]])[-30:]


def text(messages: list[dict[str, str]]) -> str:
    return str(tokenizer().apply_chat_template(messages, tokenize=False)).removesuffix("\n")


def test_masking_before_packing_needs_no_decision() -> None:
    masked = mask_dataset(messages_dataset(24), tokenizer())
    trainer = build("out", masked, packing=True, packing_strategy="bfd_split", max_length=24)
    train_on_responses_only(trainer)
    trained = sorted(label for label in flat(trainer.train_dataset, "labels") if label != -100)
    assert trained == sorted(label for messages in CHATS for label in expected(messages) if label != -100)
    assert trainer.mask_report.splits["train"].rows_masked_before == len(trainer.train_dataset)


def test_a_dataset_that_says_it_is_masked_but_was_tokenized_anew_is_masked_again() -> None:
    stale = mask_dataset(messages_dataset(24), tokenizer()).remove_columns(["input_ids", "labels"])
    trainer = train_on_responses_only(build("out", stale))
    assert [row["labels"] for row in trainer.train_dataset] == [expected(messages) for messages in CHATS]


def test_a_masked_dataset_whose_labels_were_exchanged_is_refused() -> None:
    masked = mask_dataset(messages_dataset(24), tokenizer())
    changed = masked.map(lambda row: {"labels": row["input_ids"]})
    with pytest.raises(LabelsChangedError, match="every one of its tokens is trained"):
        train_on_responses_only(build("out", changed))


def test_a_policy_that_comes_too_late_is_refused() -> None:
    masked = mask_dataset(messages_dataset(24), tokenizer(), policy=Policy(turns="last"))
    with pytest.raises(UnsupportedError, match="its labels are final, and this policy would not change them"):
        train_on_responses_only(build("out", masked), policy=Policy(stop="never"))
    again = train_on_responses_only(build("out", masked), policy=Policy(turns="last"))
    assert again.mask_report.splits["train"].rows_masked_before == 24


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
@pytest.mark.parametrize("policy", [Policy(turns="last"), Policy(stop="last"), Policy(reduction="sequence")])
def test_what_needs_the_end_of_a_conversation_is_refused_where_packing_hides_it(strategy: str, policy: Policy) -> None:
    trainer = build("out", packing=True, packing_strategy=strategy, max_length=64)
    with pytest.raises(UnsupportedError, match="needs to know where a conversation ends"):
        train_on_responses_only(trainer, policy=policy)
