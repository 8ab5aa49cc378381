"""Rows that begin in the middle of a conversation: decided exactly, or refused, never guessed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import ASSISTANT, STOP, USER, build, chats, expected, messages_dataset, tokenized, tokenizer

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.core.markers import Markers, compile_patterns
from sft_mask.core.packing import Pieces, chained, cut_at
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.errors import AmbiguousRowError, LabelsChangedError, UnsupportedError

CHATS = chats(24)


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


def test_a_piece_that_goes_on_in_the_next_row_is_not_cut_off() -> None:
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
            yield row["input_ids"][low:high], row["labels"][low:high]


@pytest.mark.parametrize("length", [24, 48])
def test_split_documents_are_exact_where_they_are_not_dropped(length: int) -> None:
    pieces: dict[tuple[int, ...], list[list[int]]] = {}
    for messages in CHATS:
        ids, labels = tokenized(messages), expected(messages)
        for at in range(0, len(ids), length):
            pieces.setdefault(tuple(ids[at : at + length]), []).append(labels[at : at + length])
    options = {"packing": True, "packing_strategy": "bfd_split", "max_length": length}
    with pytest.raises(AmbiguousRowError, match=r"mask_dataset\(dataset, tokenizer\) is exact"):
        train_on_responses_only(build("out", **options))
    trainer = train_on_responses_only(build("out", **options), on_ambiguous="drop")
    assert trainer.mask_report.splits["train"].rows_ambiguous > 0
    answers = sum(label != -100 for each in pieces.values() for labels in each for label in labels)
    trained = 0
    for ids, labels in split_documents(trainer.train_dataset):
        assert labels in pieces[tuple(ids)]
        trained += sum(label != -100 for label in labels)
    assert trained > 0.4 * answers
    begins_inside = sum(labels[0] != -100 for _, labels in split_documents(trainer.train_dataset))
    assert begins_inside, "some answers that were cut in two must be trained in both parts"


def test_keep_end_of_text_is_refused_where_a_system_prompt_could_have_been_cut() -> None:
    data = Dataset.from_list([{"text": text(messages)} for messages in CHATS])
    trainer = build("out", data, max_length=30, truncation_mode="keep_end")
    kind, dataset = type(trainer), trainer.train_dataset
    with pytest.raises(AmbiguousRowError, match="could be the model's, a system prompt or a tool's result"):
        train_on_responses_only(trainer)
    assert (type(trainer), trainer.train_dataset) == (kind, dataset)
    with_messages = train_on_responses_only(
        build("out", messages_dataset(24), max_length=30, truncation_mode="keep_end")
    )
    for row in with_messages.train_dataset:
        messages = CHATS[row["n"]]
        assert row["labels"] == expected(messages)[-30:]


def text(messages: list[dict[str, str]]) -> str:
    return str(tokenizer().apply_chat_template(messages, tokenize=False)).removesuffix("\n")


def test_keep_end_of_text_is_decided_where_only_two_speak() -> None:
    """A format of the caller's own, in which nobody but the user and the model has a header."""
    plain = [[m for m in messages if m["role"] != "system"] for messages in CHATS]
    rows = ["".join(f"{'Q' if m['role'] == 'user' else 'A'}: {m['content']}{STOP}" for m in m_) for m_ in plain]
    bare = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, eos_token=STOP, pad_token="<pad>")
    length = 24
    trainer = build(
        "out", Dataset.from_list([{"text": row} for row in rows]), max_length=length, truncation_mode="keep_end"
    )
    trainer.processing_class = bare
    train_on_responses_only(trainer, "Q: ", "A: ", on_ambiguous="drop")
    seen = 0
    for row in trainer.train_dataset:
        source = next(r for r in rows if row["text"] == r or row["text"].startswith(r))
        wanted = answers_of(source)[-length:] if len(row["input_ids"]) == length else answers_of(source)
        assert row["labels"] == wanted
        seen += row["labels"][0] != -100
    assert seen


def answers_of(row: str) -> list[int]:
    encoded = tokenizer()(row, return_offsets_mapping=True)
    spans, at = [], 0
    for part in row.split(STOP)[:-1]:
        if part.startswith("A: "):
            spans.append((at + 3, at + len(part) + len(STOP)))
        at += len(part) + len(STOP)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token if any(a < stop and b > start for start, stop in spans) else -100 for token, (a, b) in pairs]


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 12))
def test_a_chain_ends_with_each_row_that_is_not_full(lengths: list[int], full: int) -> None:
    lengths = [min(length, full) for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    ends, at = [0], 0
    for index, length in enumerate(lengths):
        at += length
        if length < full or index == len(lengths) - 1:
            ends.append(at)
    assert chained(offsets, full).tolist() == (ends if lengths else [0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 80))
def test_no_piece_of_a_conversation_is_trained_that_is_not_the_model_s(seed: int, length: int) -> None:
    """Every piece of every conversation: what is decided is right; the rest is named."""
    from sft_mask.core.packing import FragmentReader

    vocabulary = read_vocabulary(tokenizer())
    markers = Markers((ASSISTANT,), (USER,), others=("<|im_start|>system\n",), eots=(STOP,), complete=True)
    finder = SpanFinder(compile_patterns(markers, vocabulary, tokenizer()), complete=True)
    reader = FragmentReader(finder, markers, Pieces("split", length), None)
    (messages,) = chats(1, seed)
    ids, labels = np.array(tokenized(messages)), expected(messages)
    starts = list(range(0, len(ids), length))
    turns, undecided = reader.read(ids, np.array([*starts, len(ids)]))
    for start, stop, document in zip(turns.start.tolist(), turns.end.tolist(), turns.document.tolist(), strict=True):
        assert start == starts[document]
        assert all(label != -100 for label in labels[start:stop])
    for document, start in enumerate(starts):
        inside = start > 0 and labels[start] != -100 and labels[start - 1] != -100
        if inside and document not in undecided:
            assert document in turns.document.tolist()


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
    with pytest.raises(UnsupportedError, match="its labels are done, and this policy would not reach them"):
        train_on_responses_only(build("out", masked), policy=Policy(stop="never"))
    again = train_on_responses_only(build("out", masked), policy=Policy(turns="last"))
    assert again.mask_report.splits["train"].rows_masked_before == 24


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
@pytest.mark.parametrize("policy", [Policy(turns="last"), Policy(stop="last"), Policy(reduction="sequence")])
def test_what_needs_the_end_of_a_conversation_is_refused_where_packing_hides_it(strategy: str, policy: Policy) -> None:
    trainer = build("out", packing=True, packing_strategy=strategy, max_length=64)
    with pytest.raises(UnsupportedError, match="needs to know where a conversation ends"):
        train_on_responses_only(trainer, policy=policy)


def fragment_reader(length: int) -> Any:
    from sft_mask.core.packing import FragmentReader

    vocabulary = read_vocabulary(tokenizer())
    markers = Markers((ASSISTANT,), (USER,), others=("<|im_start|>system\n",), eots=(STOP,), complete=True)
    finder = SpanFinder(compile_patterns(markers, vocabulary, tokenizer()), complete=True)
    return FragmentReader(finder, markers, Pieces("split", length), None)


def test_the_rest_of_a_long_system_prompt_is_nobody_s_answer() -> None:
    chat = [{"role": "system", "content": "the long rules " * 20}, *chats(1, 3)[0][-2:]]
    ids = np.array(tokenized(chat))
    length = len(tokenized(chat[:1])) - 5
    reader = fragment_reader(length)
    turns, undecided = reader.read(ids, np.array([0, length, len(ids)]))
    assert not len(turns)
    assert list(undecided) == [1]
    turns, undecided = reader.read(ids[length:], np.array([0, len(ids) - length]))  # the rest in another batch
    assert not len(turns)
    assert list(undecided) == [0]


def test_the_rest_of_an_answer_in_a_later_batch_than_its_beginning_is_decided_alike() -> None:
    said = [("user", "hi"), ("assistant", "one two three four"), ("user", "and now"), ("assistant", "no")]
    chat = [{"role": role, "content": content} for role, content in said]
    ids, length = np.array(tokenized(chat)), len(tokenized(chat[:2])) - 5
    rest = ids[length:]
    wanted = [label if label >= 0 else None for label in expected(chat, only={1})[length:]]
    reader = fragment_reader(length)
    assert not len(reader.read(rest, np.array([0, len(rest)]))[0])  # nothing was cut so far
    reader.expect(np.array([length]))
    turns, undecided = reader.read(rest, np.array([0, len(rest)]))
    assert not undecided
    trained = {at for low, high in zip(turns.start, turns.end, strict=True) for at in range(low, high)}
    assert [token if at in trained else None for at, token in enumerate(rest.tolist())] == wanted


def test_labels_of_pieces_do_not_depend_on_where_batches_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def masked(rows_at_once: int) -> Any:
        monkeypatch.setattr("sft_mask.data.dataset._ROWS_AT_ONCE", rows_at_once)
        trainer = build("out", messages_dataset(40, seed=5), packing=True, packing_strategy="bfd_split", max_length=40)
        made = train_on_responses_only(trainer, on_ambiguous="drop")
        return list(made.train_dataset["labels"]), made.mask_report.splits["train"].rows_ambiguous

    assert masked(1000) == masked(3)


def test_an_end_of_turn_token_that_begins_the_next_row_belongs_to_that_row() -> None:
    one, no = np.array([True]), np.array([False])
    turn = Turns.of_model(np.array([2]), np.array([9]), one, no, np.array([0]), np.array([0]), np.array([8]))
    pieces = cut_at(turn, np.array([0, 8, 16]))
    assert (pieces.start.tolist(), pieces.end.tolist()) == ([2, 8], [8, 9])
    assert pieces.has_eot.tolist() == [False, True]


def test_only_the_last_part_of_an_answer_without_an_end_is_cut() -> None:
    yes, no = np.array([True]), np.array([False])
    turn = Turns.of_model(np.array([2]), np.array([12]), no, yes, np.array([0]), np.array([0]), np.array([12]))
    assert cut_at(turn, np.array([0, 8, 16])).cut.tolist() == [False, True]
