"""``train_on_responses_only`` on real trainers: one test a dataset shape, one test a refusal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from support.tiny import (
    ASSISTANT,
    STOP,
    USER,
    build,
    chats,
    expected,
    messages_dataset,
    model,
    rendered,
    segments,
    tokenized,
    tokenizer,
    trained_share,
)
from support.trained_texts import trained_texts
from transformers import DataCollatorForLanguageModeling as RebuildingCollator
from transformers import Trainer, TrainingArguments
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_mask import MaskReport, Policy, mask_dataset, train_on_responses_only
from sft_mask.errors import DataError, LabelsChangedError, MarkerError, NothingToTrainError, UnsupportedError
from sft_mask.trainer.checks import check_collator

CHATS = chats(24)


pytestmark = pytest.mark.usefixtures("in_tmp_path")


def masked(*arguments: Any, **options: Any) -> SFTTrainer:
    trainer = build("out", *arguments, **options)
    assert train_on_responses_only(trainer, USER, ASSISTANT) is trainer
    return trainer


def agrees(dataset: Any, conversations: Any = CHATS) -> None:
    """Every row holds the labels of the conversation that its column ``n`` names."""
    rows = list(dataset)
    assert rows
    for row in rows:
        assert list(map(int, row["labels"])) == expected(conversations[int(row["n"])])


def wanted_segments(conversations: Any = CHATS) -> list[tuple[int, ...]]:
    return segments([{"labels": expected(messages)} for messages in conversations])


def batch_labels(trainer: SFTTrainer) -> list[tuple[int, ...]]:
    """Trained runs of everything that the train dataloader yields."""
    return segments({"labels": row} for batch in trainer.get_train_dataloader() for row in batch["labels"])


# every shape of dataset


def test_messages() -> None:
    trainer = masked()
    agrees(trainer.train_dataset)
    assert trainer.train_dataset.column_names == ["messages", "n", "input_ids", "labels"]
    assert len(trainer.train_dataset) == 24
    assert batch_labels(trainer) == wanted_segments()
    trainer.train()


def test_messages_with_markers_from_the_template() -> None:
    trainer = train_on_responses_only(build("out"))
    agrees(trainer.train_dataset)
    assert trainer.mask_report.markers.detected


def test_text() -> None:
    rows = [{"text": rendered(messages).rstrip("\n"), "n": at} for at, messages in enumerate(CHATS)]
    trainer = masked(Dataset.from_list(rows))
    for row in trainer.train_dataset:
        assert row["labels"] == expected(CHATS[row["n"]])[: len(row["labels"])]
        assert row["labels"][-1] == tokenizer().eos_token_id
    trainer.train()


def test_conversations_of_from_and_value() -> None:
    rows = [
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in messages], "n": at}
        for at, messages in enumerate(CHATS)
    ]
    agrees(masked(Dataset.from_list(rows)).train_dataset)


def prompt_completion() -> Dataset:
    return Dataset.from_list(
        [{"prompt": messages[:-1], "completion": messages[-1:], "n": at} for at, messages in enumerate(CHATS)]
    )


def test_prompt_completion_keeps_its_own_mask() -> None:
    trainer = masked(prompt_completion())
    for row in trainer.train_dataset:
        messages = CHATS[row["n"]]
        assert row["labels"] == expected(messages, only={len(messages) - 1})


def test_prompt_completion_without_its_own_mask_trains_every_answer() -> None:
    agrees(masked(prompt_completion(), completion_only_loss=False).train_dataset)


def test_pre_tokenized_ids() -> None:
    rows = [{"input_ids": tokenized(messages), "n": at} for at, messages in enumerate(CHATS)]
    trainer = masked(Dataset.from_list(rows))
    agrees(trainer.train_dataset)
    assert trainer.mask_report.splits["train"].rows_unchecked == 24


def test_pre_tokenized_labels_that_were_masked_stay_masked() -> None:
    rows = [
        {"input_ids": tokenized(messages), "labels": [-100] * 15 + tokenized(messages)[15:], "n": at}
        for at, messages in enumerate(CHATS)
    ]
    for row in masked(Dataset.from_list(rows)).train_dataset:
        assert row["labels"] == [-100] * 15 + expected(CHATS[row["n"]])[15:]


def test_skip_prepare_dataset() -> None:
    rows = [{"input_ids": tokenized(messages), "n": at} for at, messages in enumerate(CHATS)]
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = masked(Dataset.from_list(rows), Dataset.from_list(rows[:5]), **options)
    agrees(trainer.train_dataset)
    agrees(trainer.eval_dataset)
    trainer.train()
    first = trainer.evaluate()
    assert trainer.evaluate(Dataset.from_list(rows[:5]))["eval_loss"] == first["eval_loss"]
    both = trainer.evaluate({"a": Dataset.from_list(rows[:5]), "b": Dataset.from_list(rows[:5])})
    assert both["eval_a_loss"] == both["eval_b_loss"] == first["eval_loss"]


def test_remove_unused_columns_off() -> None:
    class Seeing(DataCollatorForLanguageModeling):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            seen.update(*examples)
            return super().torch_call(examples)

    seen: set[str] = set()
    collator = Seeing(pad_token_id=tokenizer().pad_token_id)
    trainer = masked(collator=collator, remove_unused_columns=False)
    trainer.train()
    assert {"messages", "n", "input_ids", "labels"} <= seen
    assert trainer.data_collator is collator


def test_formatting_func() -> None:
    def line(row: dict[str, Any]) -> str:
        return f"{USER}{row['q']}{STOP}\n{ASSISTANT}{row['a']}"

    data = Dataset.from_list([{"q": f"red {n}", "a": f"blue {n}", "n": n} for n in range(9)])
    trainer = masked(data, formatting_func=line)
    answers = [[f"blue {row['n']}{STOP}"] for row in trainer.train_dataset]
    assert trained_texts(trainer.train_dataset) == answers


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_formats(kind: str) -> None:
    rows = [{"input_ids": tokenized(messages), "n": at} for at, messages in enumerate(CHATS)]
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = masked(Dataset.from_list(rows).with_format(kind), **options)
    assert trainer.train_dataset.format["type"] == kind
    agrees(trainer.train_dataset)
    trainer.train()


def test_a_column_subset() -> None:
    rows = [{"input_ids": tokenized(messages), "n": at, "x": "y"} for at, messages in enumerate(CHATS)]
    dataset = Dataset.from_list(rows).with_format(None, columns=["input_ids"])
    trainer = masked(dataset, dataset_kwargs={"skip_prepare_dataset": True})
    assert set(trainer.train_dataset[0]) == {"input_ids", "labels"}
    trainer.train()


def test_a_shuffled_selection() -> None:
    dataset = messages_dataset(24).shuffle(seed=1).select(range(4, 20))
    trainer = masked(dataset)
    assert sorted(trainer.train_dataset["n"]) == sorted(dataset["n"])
    agrees(trainer.train_dataset)


def test_shuffle_dataset() -> None:
    trainer = masked(shuffle_dataset=True)
    agrees(trainer.train_dataset)
    assert list(trainer.train_dataset["n"]) != sorted(trainer.train_dataset["n"])


def test_packing_bfd() -> None:
    trainer = masked(packing=True, max_length=128)
    assert trainer.train_dataset.column_names == ["input_ids", "seq_lengths", "labels"]
    assert segments(trainer.train_dataset) == wanted_segments()
    assert trainer.mask_report.splits["train"].documents == 24
    assert batch_labels(trainer) == wanted_segments()
    trainer.train()


def test_padding_free() -> None:
    trainer = masked(padding_free=True, max_length=None)
    agrees(trainer.train_dataset)
    assert "attention_mask" not in next(iter(trainer.get_train_dataloader()))
    assert batch_labels(trainer) == wanted_segments()
    trainer.train()


def test_eval_packing_off_while_training_packs() -> None:
    trainer = masked(evals=messages_dataset(9), packing=True, eval_packing=False, max_length=128)
    agrees(trainer.eval_dataset)
    assert segments(trainer.train_dataset) == wanted_segments()
    assert trainer.evaluate(messages_dataset(9))["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_a_dict_of_eval_sets() -> None:
    evals = {"short": messages_dataset(5), "train": messages_dataset(9)}
    trainer = masked(evals=evals)
    assert isinstance(trainer.eval_dataset, dict)
    assert list(trainer.eval_dataset) == ["short", "train"]
    for split in trainer.eval_dataset.values():
        agrees(split)
    assert list(trainer.mask_report.splits) == ["train", "eval:short", "eval:train"]
    metrics = trainer.evaluate()
    assert {"eval_short_loss", "eval_train_loss"} <= set(metrics)
    assert trainer.evaluate("short")["eval_loss"] == metrics["eval_short_loss"]


def test_a_dataset_dict_of_eval_sets() -> None:
    trainer = masked(evals=DatasetDict(one=messages_dataset(5), two=messages_dataset(9)))
    for split in trainer.eval_dataset.values():
        agrees(split)


def test_extra_columns_stay() -> None:
    trainer = masked(messages_dataset(24).add_column("source", ["web"] * 24))
    assert trainer.train_dataset["source"] == ["web"] * 24


def test_a_trainer_subclass_keeps_its_own_methods() -> None:
    class Mine(SFTTrainer):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            calls.append(1)
            return super().compute_loss(*arguments, **named)

    calls: list[int] = []
    trainer = masked(kind=Mine)
    trainer.train()
    assert calls
    assert isinstance(trainer, Mine)
    assert type(trainer).__qualname__ == Mine.__qualname__
    assert type(trainer).__module__ == Mine.__module__


# streams


def stream(count: int = 24) -> IterableDataset:
    return messages_dataset(count).to_iterable_dataset()


def test_a_stream_is_masked_as_it_is_read() -> None:
    trainer = masked(stream())
    assert trainer.mask_report.splits["train"].rows == 24
    agrees(trainer.train_dataset)
    assert trainer.mask_report.splits["train"].rows == 24


def test_the_report_of_a_stream_grows_while_it_trains() -> None:
    trainer = masked(stream(200), stream(5), max_steps=30)
    assert trainer.mask_report.splits["train"].rows == 64
    trainer.train()
    assert trainer.mask_report.splits["train"].rows == 128
    assert trainer.state.global_step == 30
    assert trainer.mask_report.splits["eval"].rows == 5
    assert trainer.evaluate()["eval_supervised_tokens"] > 0


@pytest.mark.newest  # train_sampling_strategy
def test_a_stream_trains_as_the_dataset_does() -> None:
    losses = []
    for data in (stream(), messages_dataset(24)):
        trainer = masked(data, max_steps=4, train_sampling_strategy="sequential")
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def test_a_stream_through_dataloader_workers_may_train_words_that_this_process_never_read() -> None:
    late = [[{"role": "user", "content": "red"}, {"role": "assistant", "content": "ÄÖ§ßµ XYZ 98"}]] * 12
    rows = [{"messages": messages} for messages in [*chats(68), *late]]
    trainer = masked(Dataset.from_list(rows).to_iterable_dataset(), dataloader_num_workers=1, max_steps=20)
    trainer.train()
    assert trainer.state.global_step == 20
    assert trainer.mask_report.splits["train"].rows == 64


def test_a_stream_in_which_the_marker_never_occurs_is_refused_at_once() -> None:
    with pytest.raises(MarkerError, match="none of the rows looked at"):
        train_on_responses_only(build("out", stream()), "### Q:", "### A:")


def test_a_stream_whose_first_rows_train_nothing_is_refused_at_once() -> None:
    rows = [{"input_ids": tokenized(chat), "labels": [-100] * len(tokenized(chat))} for chat in CHATS]
    data = Dataset.from_list(rows).to_iterable_dataset()
    trainer = build("out", data, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(NothingToTrainError, match="The first 24 rows of the train dataset"):
        train_on_responses_only(trainer, USER, ASSISTANT)
    assert trainer.train_dataset is data


# later data


def test_evaluate_of_raw_data_trains_exactly_the_tokens_of_the_prepared_eval_set() -> None:
    raw = messages_dataset(13, seed=5)
    trainer = masked(evals=raw)
    seen: list[tuple[int, ...]] = []
    inner = trainer.data_collator

    def watching(rows: Any) -> Any:
        batch = inner(rows)
        seen.extend(tuple(row.tolist()) for row in batch["labels"])
        return batch

    trainer.data_collator = watching
    trainer.get_eval_dataloader()  # which tries a few rows on a collator that is new
    seen.clear()
    prepared_loss, prepared = trainer.evaluate()["eval_loss"], list(seen)
    seen.clear()
    assert trainer.evaluate(raw)["eval_loss"] == prepared_loss
    assert seen == prepared
    assert segments({"labels": row} for row in seen) == wanted_segments(chats(13, seed=5))


def test_evaluate_of_words_that_training_never_saw_is_no_error() -> None:
    trainer = masked()
    other = Dataset.from_list(
        [{"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "ÄÖ§ßµ XYZ 98"}]}] * 3
    )
    assert trainer.evaluate(other)["eval_supervised_tokens"] > 5


def test_evaluate_of_a_dict_of_raw_data() -> None:
    trainer = masked(evals=messages_dataset(7))
    one = trainer.evaluate()["eval_loss"]
    metrics = trainer.evaluate({"a": messages_dataset(7), "b": messages_dataset(7)})
    assert metrics["eval_a_loss"] == metrics["eval_b_loss"] == one


def test_evaluate_of_raw_data_that_would_train_nothing_is_refused() -> None:
    trainer = masked()
    other = Dataset.from_list([{"messages": [{"role": "user", "content": "red"}]}] * 3)
    with pytest.raises(NothingToTrainError, match="All 3 rows of the eval dataset"):
        trainer.evaluate(other)


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_predict_is_masked_and_keeps_a_row_a_prediction() -> None:
    rows = [{"input_ids": tokenized(messages)} for messages in CHATS[:4]]
    rows.insert(2, {"input_ids": tokenized([{"role": "user", "content": "red"}])})
    trainer = masked()
    out = trainer.predict(Dataset.from_list(rows))
    assert len(out.predictions) == 5
    labels = [row[row != -100].tolist() for row in out.label_ids]
    assert labels[2] == []
    for at, messages in zip((0, 1, 3, 4), CHATS[:4], strict=True):
        assert labels[at] == [label for label in expected(messages) if label != -100]


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_predict_of_a_stream_is_masked() -> None:
    rows = Dataset.from_list([{"input_ids": tokenized(messages)} for messages in CHATS[:4]])
    out = masked().predict(rows.to_iterable_dataset())
    labels = [row[row != -100].tolist() for row in out.label_ids]
    assert labels == [[label for label in expected(messages) if label != -100] for messages in CHATS[:4]]


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_predict_of_raw_data_says_what_to_do() -> None:
    trainer = masked()
    with pytest.raises(DataError, match=r"no input_ids column in the test dataset .* mask_dataset"):
        trainer.predict(messages_dataset(3))
    out = trainer.predict(mask_dataset(messages_dataset(3), tokenizer()))
    assert len(out.predictions) == 3


# what is logged


def test_supervised_tokens_and_share_are_in_the_log() -> None:
    trainer = masked(evals=messages_dataset(8), max_steps=6, eval_strategy="steps", eval_steps=6, num_train_epochs=1)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 6
    trained, everything = trained_share(trainer.train_dataset)
    assert sum(entry["supervised_tokens"] for entry in steps) == trained
    assert all(0 < entry["supervised_share"] < 1 for entry in steps)
    assert trained / everything == pytest.approx(np.mean([e["supervised_share"] for e in steps]), abs=0.05)
    (evaluated,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated["eval_supervised_tokens"] == trained_share(trainer.eval_dataset)[0]


def test_padding_is_not_counted_in_the_share() -> None:
    trainer = masked(pad_to_multiple_of=256)
    trainer.train()
    assert all(entry["supervised_share"] > 0.15 for entry in trainer.state.log_history if "loss" in entry)


def test_warnings_of_the_report_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sft_mask"):
        trainer = masked(max_length=40)
    assert trainer.mask_report.warnings
    assert [record.getMessage() for record in caplog.records] == list(trainer.mask_report.warnings)


# calling it again


def snapshot(trainer: SFTTrainer) -> list[Any]:
    return [list(trainer.train_dataset["labels"]), list(trainer.eval_dataset["labels"]), str(trainer.mask_report)]


def test_calling_twice_is_calling_once() -> None:
    trainer = masked(evals=messages_dataset(7))
    kind, once, name = type(trainer), snapshot(trainer), trainer.train_dataset._fingerprint
    assert train_on_responses_only(trainer, USER, ASSISTANT) is trainer
    assert type(trainer) is kind
    assert snapshot(trainer) == once
    assert trainer.train_dataset._fingerprint == name


def test_a_second_call_with_other_settings_starts_from_the_unmasked_data() -> None:
    trainer = build("out", evals=messages_dataset(7))
    train_on_responses_only(trainer, USER, ASSISTANT, last_response_only=True)
    assert trainer.mask_report.splits["train"].turns_trained == 24
    train_on_responses_only(trainer, USER, ASSISTANT)
    agrees(trainer.train_dataset)
    agrees(trainer.eval_dataset)


def test_a_failing_second_call_leaves_the_first_in_place() -> None:
    trainer = masked(evals=messages_dataset(7))
    once, train = snapshot(trainer), trainer.train_dataset
    with pytest.raises(MarkerError):
        train_on_responses_only(trainer, "### Q:", "### A:")
    assert trainer.train_dataset is train
    assert snapshot(trainer) == once


def test_a_dataset_that_was_exchanged_between_two_calls_is_masked() -> None:
    trainer = masked()
    trainer.train_dataset = trainer._prepare_dataset(
        messages_dataset(6, seed=9), tokenizer(), trainer.args, False, None, "train"
    )
    train_on_responses_only(trainer, USER, ASSISTANT)
    agrees(trainer.train_dataset, chats(6, seed=9))


# options


def test_last_response_only() -> None:
    trainer = train_on_responses_only(build("out"), USER, ASSISTANT, last_response_only=True)
    for row in trainer.train_dataset:
        messages = CHATS[row["n"]]
        assert row["labels"] == expected(messages, only={len(messages) - 1})


def test_last_response_only_in_packed_rows_is_the_last_of_each_document() -> None:
    trainer = train_on_responses_only(
        build("out", packing=True, max_length=128), USER, ASSISTANT, last_response_only=True
    )
    wanted = [{"labels": expected(messages, only={len(messages) - 1})} for messages in CHATS]
    assert segments(trainer.train_dataset) == segments(wanted)


def test_a_policy_is_applied() -> None:
    trainer = train_on_responses_only(build("out"), USER, ASSISTANT, policy=Policy(stop="never"))
    assert tokenizer().eos_token_id not in {label for row in trainer.train_dataset["labels"] for label in row}
    assert not trainer.mask_report.warnings, "what was asked for is no failure"


def test_several_markers_and_ids_as_markers() -> None:
    by_id = tokenizer()(ASSISTANT)["input_ids"]
    trainer = train_on_responses_only(build("out"), [USER, "### Q:"], by_id)
    agrees(trainer.train_dataset)


def test_arguments_of_the_function_elsewhere_are_accepted() -> None:
    agrees(train_on_responses_only(build("out"), USER, ASSISTANT, True, tokenizer(), False, 4).train_dataset)


def test_return_function_labels_batches() -> None:
    label = train_on_responses_only(None, USER, ASSISTANT, tokenizer=tokenizer(), return_function=True)
    rows = [tokenized(messages) for messages in CHATS]
    assert label({"input_ids": rows})["labels"] == [expected(messages) for messages in CHATS]
    assert label({"input_ids": rows[:1]})["labels"] == [expected(CHATS[0])]


def test_return_function_leaves_the_trainer_alone_and_goes_through_map() -> None:
    trainer = build("out")
    kind, train = type(trainer), trainer.train_dataset
    label = train_on_responses_only(trainer, return_function=True)
    assert type(trainer) is kind
    assert trainer.train_dataset is train
    mapped = train.map(label, batched=True, batch_size=5)
    agrees(mapped)
    assert train.map(label, batched=True, batch_size=5)._fingerprint == mapped._fingerprint


def test_return_function_needs_a_tokenizer() -> None:
    with pytest.raises(UnsupportedError, match="needs a tokenizer"):
        train_on_responses_only(return_function=True)


def test_return_function_refuses_bad_markers_at_once() -> None:
    with pytest.raises(MarkerError, match="for both roles"):
        train_on_responses_only(None, "a", "a", tokenizer=tokenizer(), return_function=True)


def test_resume_from_a_checkpoint_gives_identical_parameters() -> None:
    straight = masked(max_steps=4, save_strategy="steps", save_steps=2)
    straight.train()
    resumed = masked(max_steps=4, save_strategy="no")
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert resumed.state.global_step == 4
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


# masking before there is a trainer


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_masking_before_packing_trains_exactly_the_same_tokens(strategy: str) -> None:
    before = mask_dataset(messages_dataset(24), tokenizer(), USER, ASSISTANT)
    trainer = build("out", before, packing=True, packing_strategy=strategy, max_length=64)
    trained, _ = trained_share(trainer.train_dataset)
    whole = sum(map(len, wanted_segments()))
    kept = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    if kept == sum(len(tokenized(messages)) for messages in CHATS):
        assert trained == whole
    if strategy == "wrapped":
        flat = [label for row in trainer.train_dataset for label in row["labels"]]
        assert flat == [label for messages in CHATS for label in expected(messages)][: len(flat)]
    trainer.train()


def test_masking_before_and_after_packing_agree() -> None:
    before = mask_dataset(messages_dataset(24), tokenizer(), USER, ASSISTANT)
    early = build("out", before, packing=True, max_length=128)
    late = masked(packing=True, max_length=128)
    assert segments(early.train_dataset) == segments(late.train_dataset) == wanted_segments()
    train_on_responses_only(early, USER, ASSISTANT)
    assert segments(early.train_dataset) == wanted_segments()


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda: messages_dataset(24), id="messages"),
        pytest.param(prompt_completion, id="prompt-completion"),
        pytest.param(lambda: Dataset.from_list([{"text": rendered(messages)} for messages in CHATS]), id="text"),
        pytest.param(
            lambda: Dataset.from_list(
                [
                    {"prompt": rendered(messages[:-1]) + ASSISTANT, "completion": messages[-1]["content"]}
                    for messages in CHATS
                ]
            ),
            id="prompt-completion-text",
        ),
        pytest.param(
            lambda: Dataset.from_list(
                [{"conversations": [{"from": m["role"], "value": m["content"]} for m in chat]} for chat in CHATS]
            ),
            id="conversations",
        ),
    ],
)
def test_mask_dataset_gives_what_the_trainer_call_gives(shape: Any) -> None:
    early = build("out", mask_dataset(shape(), tokenizer(), USER, ASSISTANT))
    late = masked(shape())
    assert list(early.train_dataset["input_ids"]) == list(late.train_dataset["input_ids"])
    assert list(early.train_dataset["labels"]) == list(late.train_dataset["labels"])


# refusals: what is said, and the trainer as it was


def state_of(trainer: Any) -> dict[str, Any]:
    names = ("train_dataset", "eval_dataset", "data_collator", "processing_class", "args", "compute_loss_func", "model")
    kept = {name: getattr(trainer, name, None) for name in names}
    evals = trainer.eval_dataset
    return {
        **{name: id(value) for name, value in kept.items()},
        "attributes": sorted(vars(trainer)),
        "values": {name: id(value) for name, value in vars(trainer).items()},
        "class": type(trainer),
        "evals": {name: id(split) for name, split in evals.items()} if isinstance(evals, dict) else None,
        "report": hasattr(trainer, "mask_report"),
    }


def refused(trainer: Any, error: type[Exception], match: str, *arguments: Any, **named: Any) -> None:
    before = state_of(trainer)
    with pytest.raises(error, match=match):
        train_on_responses_only(trainer, *arguments, **named)
    assert state_of(trainer) == before
    assert not hasattr(trainer, "mask_report")


def test_one_marker_for_both_roles_is_refused() -> None:
    refused(build("out"), MarkerError, r"'<\|im_start\|>' was given for both roles", "<|im_start|>", "<|im_start|>")


@pytest.mark.parametrize("markers", [("", ASSISTANT), (USER, ""), (USER, []), (USER, [ASSISTANT, ""])])
def test_an_empty_marker_is_refused(markers: Any) -> None:
    refused(build("out"), MarkerError, "empty", *markers)


@pytest.mark.parametrize(("user", "assistant"), [(USER, "### A:"), ("### Q:", ASSISTANT), ("### Q:", "### A:")])
def test_a_marker_that_occurs_in_no_row_is_refused_with_the_first_row(user: str, assistant: str) -> None:
    first = rendered(CHATS[0])[:20].replace("|", r"\|").splitlines()[0]
    match = rf"(?s)'### [AQ]:'.*none of the rows.*{first}.*with ids \[\d+"
    refused(build("out"), MarkerError, match, user, assistant)


@pytest.mark.parametrize(
    ("markers", "missing"), [((USER, None), "response_part"), ((None, ASSISTANT), "instruction_part")]
)
def test_one_of_two_markers_is_refused(markers: Any, missing: str) -> None:
    refused(build("out"), MarkerError, f"Only one marker was given .*{missing} is missing", *markers)


def test_no_markers_and_no_chat_template_is_refused() -> None:
    trainer = build("out")
    bare = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, eos_token=STOP, pad_token="<pad>")
    refused(trainer, MarkerError, "has no chat template.*Give both", tokenizer=bare)


def test_a_dataset_without_input_ids_is_refused() -> None:
    raw = messages_dataset(5)
    trainer = build("out", raw, dataset_kwargs={"skip_prepare_dataset": True})
    refused(trainer, DataError, r"no input_ids column in the train dataset \(it has messages, n\)")
    assert trainer.train_dataset is raw


def test_an_eval_set_without_input_ids_is_refused_by_its_name() -> None:
    trainer = build("out", evals={"one": messages_dataset(4), "two": messages_dataset(4)})
    trainer.eval_dataset["two"] = messages_dataset(4)
    refused(trainer, DataError, "no input_ids column in the eval:two dataset")


def test_a_trainer_without_a_train_dataset_is_refused() -> None:
    trainer = build("out")
    trainer.train_dataset = None
    refused(trainer, DataError, "has no train_dataset")


def test_an_empty_split_is_refused() -> None:
    trainer = build("out", evals=messages_dataset(4))
    trainer.eval_dataset = trainer.eval_dataset.select([])
    refused(trainer, DataError, "no rows in the eval dataset")


def test_every_row_masked_is_refused_and_says_that_truncation_did_it() -> None:
    long = [{"role": "user", "content": "red blue " * 90}, {"role": "assistant", "content": "blue"}]
    rows = [{"messages": chat} for chat in [CHATS[0], *[long] * 20]]
    trainer = build("out", Dataset.from_list(rows), Dataset.from_list(rows[1:]), max_length=100)
    refused(
        trainer,
        NothingToTrainError,
        r"All 20 rows of the eval dataset.*100 tokens long.*truncation removed the answers",
    )


def test_every_row_masked_already_is_refused_and_says_so() -> None:
    rows = [{"input_ids": tokenized(chat), "labels": [-100] * len(tokenized(chat))} for chat in CHATS]
    trainer = build("out", Dataset.from_list(rows), dataset_kwargs={"skip_prepare_dataset": True})
    refused(trainer, NothingToTrainError, "All 24 rows of the train dataset .*masked already")


def test_answers_cut_off_by_max_length_are_named() -> None:
    long = [{"role": "user", "content": "red blue " * 90}, {"role": "assistant", "content": "blue"}]
    trainer = build("out", Dataset.from_list([{"messages": long}] * 5), max_length=100)
    refused(trainer, (MarkerError, NothingToTrainError), r"(?s)5 of 5 rows looked at are 100 tokens long.*truncation")


def test_a_slow_tokenizer_is_refused_by_name() -> None:
    class SlowTokenizer:
        chat_template = None

    refused(build("out"), UnsupportedError, "SlowTokenizer is not a fast tokenizer", tokenizer=SlowTokenizer())


def test_another_trainer_needs_rows_that_are_tokenized() -> None:
    args = TrainingArguments("out", use_cpu=True, report_to=[])
    trainer = Trainer(model(), args, train_dataset=messages_dataset(3), processing_class=tokenizer())
    refused(trainer, DataError, r"no input_ids column in the train dataset .*mask_dataset\(dataset, tokenizer\)")
    with pytest.raises(UnsupportedError, match="not NoneType"):
        train_on_responses_only(None, USER, ASSISTANT)


def test_an_unknown_on_ambiguous_is_refused() -> None:
    refused(build("out"), DataError, "on_ambiguous='keep' is unknown", on_ambiguous="keep")


def test_a_transform_is_refused() -> None:
    rows = Dataset.from_list([{"input_ids": tokenized(chat)} for chat in CHATS]).with_transform(lambda batch: batch)
    trainer = build("out", rows, dataset_kwargs={"skip_prepare_dataset": True})
    refused(trainer, UnsupportedError, "computed when they are read")


def test_a_bad_row_is_refused_with_its_number() -> None:
    rows = [{"input_ids": tokenized(chat)} for chat in CHATS]
    rows[11] = {"input_ids": None}  # type: ignore[dict-item]
    trainer = build("out", Dataset.from_list(rows), dataset_kwargs={"skip_prepare_dataset": True})
    refused(trainer, DataError, "In the train dataset: row 11: ")


# collators


class Dropping(DataCollatorForLanguageModeling):
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        del batch["labels"]
        return batch


class Rebuilding(DataCollatorForLanguageModeling):
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["labels"] = batch["input_ids"].clone()
        return batch


class Truncating(DataCollatorForLanguageModeling):
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: value[:, :40] for name, value in super().torch_call(examples).items()}


PAD = {"pad_token_id": tokenizer().pad_token_id}


@pytest.mark.parametrize(
    ("collator", "match"),
    [
        pytest.param(Dropping(**PAD), r"\(Dropping\) returns no labels", id="drops"),
        pytest.param(Rebuilding(**PAD), r"\(Rebuilding\) changes labels: \d+ trained .* \d+ came out", id="rebuilds"),
        pytest.param(
            RebuildingCollator(tokenizer(), mlm=False), "cannot collate rows that have labels", id="transformers"
        ),
    ],
)
def test_a_collator_that_loses_the_mask_is_caught_before_training(collator: Any, match: str) -> None:
    refused(build("out", collator=collator), LabelsChangedError, match)
    refused(build("out", stream(), collator=collator), LabelsChangedError, match)


def test_a_collator_that_only_shortens_rows_is_let_through() -> None:
    collator = Truncating(**PAD)
    trainer = masked(collator=collator)
    assert trainer.data_collator is collator
    trainer.train()


@pytest.mark.parametrize("lengths", [None, [2, 3]])
def test_a_padding_free_collator_may_mask_the_first_token_of_a_document(lengths: Any) -> None:
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, -100, 9]}
    dataset = Dataset.from_list([{**row, **({"seq_lengths": lengths} if lengths else {})}] * 3)
    args = SimpleNamespace(remove_unused_columns=False)
    collator = DataCollatorForLanguageModeling(**PAD, padding_free=True)
    check_collator(SimpleNamespace(args=args, data_collator=collator), dataset, "train")


def test_the_collator_and_its_options_stay() -> None:
    collator = DataCollatorForLanguageModeling(**PAD, pad_to_multiple_of=32)
    trainer = masked(collator=collator)
    assert trainer.data_collator is collator
    assert next(iter(trainer.get_train_dataloader()))["labels"].shape[1] % 32 == 0


@pytest.mark.parametrize("collator", [Dropping(**PAD), Rebuilding(**PAD)], ids=["drops", "rebuilds"])
@pytest.mark.parametrize("data", [lambda: messages_dataset(24), stream], ids=["dataset", "stream"])
def test_a_collator_swapped_after_the_call_is_caught_before_the_first_step(collator: Any, data: Any) -> None:
    trainer = masked(data())
    trainer.data_collator = collator
    with pytest.raises(LabelsChangedError, match=type(collator).__name__):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_eval_collator_that_rebuilds_labels_is_caught_before_the_evaluation() -> None:
    trainer = masked(evals=messages_dataset(4))
    trainer.data_collator = Rebuilding(**PAD)
    with pytest.raises(LabelsChangedError, match=r"Rebuilding\) changes labels"):
        trainer.evaluate()
    with pytest.raises(LabelsChangedError, match=r"Rebuilding\) changes labels"):
        trainer.predict(Dataset.from_list([{"input_ids": tokenized(chat)} for chat in CHATS]))


def test_a_dataset_swapped_after_the_call_is_caught() -> None:
    trainer = masked()
    trainer.train_dataset = Dataset.from_list([{"input_ids": tokenized(chat)} for chat in CHATS])
    with pytest.raises(LabelsChangedError, match=r"have no labels .* replaced after"):
        trainer.train()
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"labels": row["input_ids"]})
    with pytest.raises(LabelsChangedError, match="call train_on_responses_only again"):
        trainer.train()


def test_nothing_is_assigned_before_everything_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Iterator[Any]:
        raise LabelsChangedError("late")

    monkeypatch.setattr("sft_mask.trainer.entry.check_collator", fails)
    refused(build("out", evals={"a": messages_dataset(4)}), LabelsChangedError, "late", USER, ASSISTANT)


def test_the_report_is_a_mask_report_of_all_splits() -> None:
    trainer = masked(evals=messages_dataset(7))
    report = trainer.mask_report
    assert isinstance(report, MaskReport)
    assert report.splits["eval"].trained_tokens == trained_share(trainer.eval_dataset)[0]
    assert report.splits["train"].trained_tokens == trained_share(trainer.train_dataset)[0]
