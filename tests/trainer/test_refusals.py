"""Every refusal of weights, by name: what is said, and the trainer as it was.

Weights are asked for in each way there is, of each trainer whose loss would pass them over.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from support.refusing import CHATS, WEIGHTS, refused, rows, state_of
from support.tiny import build, expected, messages_dataset, rendered, tokenized, tokenizer
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_mask import Policy, Region, mask_dataset, train_on_responses_only
from sft_mask.errors import AmbiguousRowError, DataError, LabelsChangedError, SftMaskError, UnsupportedError

pytestmark = [
    pytest.mark.filterwarnings("ignore:`label_smoothing_factor`:FutureWarning"),
    pytest.mark.usefixtures("in_tmp_path"),
]


# trainers whose loss passes weights over


def smoothing(trainer: SFTTrainer, _: pytest.MonkeyPatch) -> None:
    trainer.args.label_smoothing_factor = 0.1


def own_loss(trainer: SFTTrainer, _: pytest.MonkeyPatch) -> None:
    trainer.compute_loss_func = lambda outputs, labels, **_: outputs.logits.sum()


def dynamic(trainer: SFTTrainer, _: pytest.MonkeyPatch) -> None:
    trainer.args.loss_type = "dft"


def parallel(**enabled: bool) -> Callable[[SFTTrainer, pytest.MonkeyPatch], None]:
    def set_up(trainer: SFTTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        config = SimpleNamespace(**{"cp_enabled": False, "sp_enabled": False, **enabled})
        monkeypatch.setattr(type(trainer.accelerator), "parallelism_config", config)

    return set_up


def older_trl(trainer: SFTTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.14.2" if name == "trl" else real(name))


LOSSES: dict[str, Callable[[SFTTrainer, pytest.MonkeyPatch], None]] = {
    "label_smoothing_factor": smoothing,
    "compute_loss_func": own_loss,
    "loss_type='dft'": dynamic,
    "context parallelism": parallel(cp_enabled=True),
    "sequence parallelism": parallel(sp_enabled=True),
    "trl < 1.15": older_trl,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_are_refused_where_the_loss_would_pass_them_over(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, asked in WEIGHTS.items():
        trainer = build("out", rows(name), {"some": messages_dataset(3)})
        with monkeypatch.context() as patched:
            LOSSES[loss](trainer, patched)
            match = (
                f"Token weights do not work with {loss}: .* would be silently ignored. Leave it out, or train without"
            )
            refused(trainer, UnsupportedError, match, **asked)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mask_without_weights_is_not_refused_there(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build("out")
    LOSSES[loss](trainer, monkeypatch)
    train_on_responses_only(trainer)
    assert list(trainer.train_dataset["labels"]) == [expected(chat) for chat in CHATS]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_is_changed_after_the_call_is_refused_before_the_first_step(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train_on_responses_only(build("out"), prompt_weight=0.1)
    LOSSES[loss](trainer, monkeypatch)
    with pytest.raises(UnsupportedError, match=f"Token weights do not work with {loss}"):
        trainer.get_train_dataloader()
    assert trainer.state.global_step == 0


def test_two_reasons_are_both_named() -> None:
    trainer = build("out", label_smoothing_factor=0.1)
    trainer.compute_loss_func = lambda *_, **__: None
    refused(trainer, UnsupportedError, "with label_smoothing_factor and compute_loss_func", prompt_weight=0.1)


def test_weights_that_came_with_the_data_are_refused_too() -> None:
    before = mask_dataset(messages_dataset(24), tokenizer(), policy=Policy(prompt_weight=0.1))
    refused(build("out", before, loss_type="dft"), UnsupportedError, "do not work with loss_type='dft'")


# weights that are none


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), True, "0.1"])
def test_a_weight_that_is_none_is_refused(weight: Any) -> None:
    match = r"is .*: a weight must be a finite number, 0 or more"
    refused(build("out"), SftMaskError, rf"prompt_weight.*{match}", prompt_weight=weight)
    with pytest.raises(SftMaskError, match=rf"Policy\(roles=...\) of 'assistant' {match}"):
        Policy(roles={"assistant": weight})


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "0.1"])
def test_a_region_with_a_weight_that_is_none_is_refused(weight: Any) -> None:
    with pytest.raises(SftMaskError, match="a weight must be a finite number, 0 or more"):
        Region("a", "b", weight=weight)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_loss_weight_that_is_none_is_refused_with_its_row(weight: float) -> None:
    column = [[1.0] * len(tokenized(chat)) for chat in CHATS]
    column[17][5] = weight
    for data in (messages_dataset(24), messages_dataset(24).shuffle(seed=2)):
        at = list(data["n"]).index(17)
        trainer = build("out", data.add_column("loss_weights", [column[n] for n in data["n"]]))
        match = (
            rf"In the train dataset: Row {at} has the loss weight {weight}: a weight must be finite and not negative"
        )
        refused(trainer, DataError, match)


@pytest.mark.parametrize("weight", [-2.0, float("nan")])
def test_a_message_weight_that_is_none_is_refused_with_its_row(weight: float) -> None:
    data = [[{**message, "weight": 1.0} for message in chat] for chat in CHATS]
    data[9][-1]["weight"] = weight
    trainer = build("out", Dataset.from_list([{"messages": chat} for chat in data]))
    refused(trainer, SftMaskError, r"(?i)row 9.*The weight of a message is", policy=Policy(turns="flagged"))


def test_a_weight_beyond_float32_is_refused() -> None:
    refused(build("out"), DataError, "weight 1e\\+39.*float32", prompt_weight=1e39)
    column = [[1e39] * len(tokenized(chat)) for chat in CHATS]
    refused(build("out", messages_dataset(24).add_column("loss_weights", column)), DataError, "weight 1e\\+39.*float32")


@pytest.mark.parametrize("stream", [False, True], ids=["dataset", "stream"])
def test_loss_weights_of_another_length_are_refused_with_their_row_and_what_to_do(stream: bool) -> None:
    column = [[1.0] * len(tokenized(chat)) for chat in CHATS]
    column[17].pop()
    data = messages_dataset(24).add_column("loss_weights", column)
    trainer = build("out", data.to_iterable_dataset() if stream else data)
    size = len(tokenized(CHATS[17]))
    match = rf"Row 17 has {size - 1} loss_weights for {size} input_ids.*mask_dataset\(dataset, tokenizer\)"
    refused(trainer, DataError, match)


def test_loss_weights_of_truncated_rows_are_refused_and_go_through_when_masked_before() -> None:
    column = [[0.5] * len(tokenized(chat)) for chat in CHATS]
    data = messages_dataset(24).add_column("loss_weights", column)
    refused(build("out", data, max_length=40), DataError, r"loss_weights for 40 input_ids.*mask_dataset")
    trainer = train_on_responses_only(build("out", mask_dataset(data, tokenizer()), max_length=40))
    assert max(map(len, trainer.train_dataset["labels"])) == 40


@pytest.mark.parametrize("column", [["a"], [["a"]], [None], [[None]], [[True]]], ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["dataset", "stream"])
def test_loss_weights_that_are_no_numbers_are_refused(column: Any, stream: bool) -> None:
    data = messages_dataset(24).add_column("loss_weights", column * 24)
    trainer = build("out", data.to_iterable_dataset() if stream else data)
    refused(trainer, DataError, "loss_weights")


def test_a_weight_of_the_prompt_has_no_place_in_a_mean_of_turns() -> None:
    match = r"Policy\(prompt_weight=..., reduction='turn'\) has no meaning: .* Use reduction='token' or 'sequence'"
    refused(build("out"), SftMaskError, match, prompt_weight=0.1, reduction="turn")
    refused(build("out"), SftMaskError, match, policy=Policy(reduction="turn"), prompt_weight=0.1)


# policies that only messages can answer


@pytest.mark.parametrize(
    "policy",
    [Policy(turns="flagged"), Policy(roles=["assistant", "user"]), Policy(tool_calls=False)],
    ids=["flags", "roles", "tool calls"],
)
@pytest.mark.parametrize("shape", ["text", "ids", "packed", "packed eval"])
def test_a_policy_that_needs_messages_is_refused_on_rows_without_them(shape: str, policy: Policy) -> None:
    ids = Dataset.from_dict({"input_ids": [tokenized(chat) for chat in CHATS]})
    trainer = {
        "text": lambda: build("out", Dataset.from_dict({"text": [rendered(chat) for chat in CHATS]})),
        "ids": lambda: build("out", ids),
        "packed": lambda: build("out", packing=True, max_length=128),
        "packed eval": lambda: build("out", evals=messages_dataset(6), max_length=128, eval_packing=True),
    }[shape]()
    match = r"asks for roles, tool calls or flags of messages, but the rows have no messages.*mask_dataset\("
    refused(trainer, UnsupportedError, match, policy=policy)


def test_messages_that_are_not_those_of_the_row_cannot_answer_either() -> None:
    rows = [{"messages": chat, "text": f"### Q: a\n### A: b{n}"} for n, chat in enumerate(CHATS)]
    data = Dataset.from_list(rows).map(lambda row: {"input_ids": tokenizer()(row["text"])["input_ids"]})
    trainer = build("out", data, dataset_kwargs={"skip_prepare_dataset": True})
    before = state_of(trainer)
    with pytest.raises(AmbiguousRowError, match=r"words of message 0 .* do not follow a header in the row"):
        train_on_responses_only(trainer, "### Q:", "### A:", policy=Policy(turns="flagged"))
    assert state_of(trainer) == before


def test_a_policy_after_masking_is_refused() -> None:
    before = mask_dataset(messages_dataset(24), tokenizer(), policy=Policy(prompt_weight=0.1))
    trainer = build("out", before)
    refused(trainer, UnsupportedError, "its labels are final, and this policy would not change them", prompt_weight=0.2)
    train_on_responses_only(trainer, prompt_weight=0.1)


def test_weighted_labels_cannot_be_masked_a_second_time() -> None:
    before = mask_dataset(messages_dataset(24), tokenizer(), policy=Policy(prompt_weight=0.1))
    with pytest.raises(DataError, match=r"labels carry weights: mask_dataset made them"):
        mask_dataset(before, tokenizer())


# collators and images


class Rebuilding(DataCollatorForLanguageModeling):
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["labels"] = batch["input_ids"].clone()
        return batch


class Flattening(DataCollatorForLanguageModeling):
    """Takes the weights off, and leaves the ids where they are."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        trained = batch["labels"] != -100
        batch["labels"] = batch["input_ids"].where(trained, batch["labels"])
        return batch


class Narrowing(DataCollatorForLanguageModeling):
    """Labels of 32 bits, as some frameworks like them."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        return {**batch, "labels": batch["labels"].int()}


@pytest.mark.parametrize("kind", [Rebuilding, Flattening, Narrowing])
def test_a_collator_that_changes_weighted_labels_is_caught_before_training(kind: type) -> None:
    trainer = build("out", collator=kind(pad_token_id=tokenizer().pad_token_id))
    refused(trainer, LabelsChangedError, rf"data collator \({kind.__name__}\) changes labels", prompt_weight=0.1)
