"""Evaluation is masked and weighted as training is, and its loss is a mean over tokens, whatever the batches.

The reference is a float64 loop over one conversation after the other, with masks from character offsets.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from support.tiny import STOP, arms, build, chats, expected, messages_dataset, model, rendered, tokenized, tokenizer
from trl import SFTTrainer

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.errors import DataError, UnsupportedError

pytestmark = [
    pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning"),
    pytest.mark.usefixtures("in_tmp_path"),
]

CHATS = chats(13, seed=5)
PROMPT = 0.3
ARMS: dict[str, dict[str, Any]] = {
    "mask": {},
    "prompt": {"prompt_weight": PROMPT},
    "turn": {"reduction": "turn"},
    "sequence": {"reduction": "sequence"},
}


# the reference


def answers(chat: list[dict[str, str]]) -> list[list[int]]:
    """Places of the tokens of each answer."""
    text, places = "", []
    for message in chat:
        text += f"<|im_start|>{message['role']}\n"
        if message["role"] == "assistant":
            places.append((len(text), len(text + message["content"] + STOP)))
        text += message["content"] + STOP + "\n"
    offsets = tokenizer()(text, return_offsets_mapping=True)["offset_mapping"]
    return [[at for at, (low, high) in enumerate(offsets) if low < stop and high > start] for start, stop in places]


def weights(chat: list[dict[str, str]], arm: str) -> list[float]:
    made = [float(label != -100) for label in expected(chat)]
    if arm == "prompt":
        made = [weight or PROMPT for weight in made]
    if arm == "turn":
        for places in answers(chat):
            for at in places:
                made[at] = 1 / len(places)
    if arm == "sequence":
        made = [weight / sum(made[1:]) for weight in made]
    return made


@cache
def negative_log_probs(chat: int, seed: int = 5) -> torch.Tensor:
    """Of every token but the first, of one conversation by itself."""
    ids = torch.tensor([tokenized(chats(13, seed=seed)[chat])])
    with torch.no_grad():
        logits = copy.deepcopy(model()).double()(input_ids=ids, use_cache=False).logits[0]
    return F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")


def plain_loss(arm: str, rows: range = range(13)) -> float:
    total = weight = 0.0
    for row in rows:
        counts = torch.tensor(weights(CHATS[row], arm), dtype=torch.float64)[1:]
        total += float((counts * negative_log_probs(row)).sum())
        weight += float(counts.sum())
    return total / weight


# the trainer


def masked(arm: str = "mask", **options: Any) -> SFTTrainer:
    return train_on_responses_only(build("out", **options), **ARMS[arm])


def raw(rows: range = range(13)) -> Dataset:
    return messages_dataset(13, seed=5).select(rows)


def watched(trainer: SFTTrainer) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ids and labels of every row that the trainer collates from now on."""
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    inner = trainer.data_collator

    def collate(rows: Any) -> Any:
        batch = inner(rows)
        pairs = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        seen.extend((tuple(ids), tuple(labels)) for ids, labels in pairs)
        return batch

    trainer.data_collator = collate
    trainer.get_eval_dataloader()  # which tries a few rows on a collator that is new
    seen.clear()
    return seen


@pytest.mark.parametrize("arm", arms(ARMS))
def test_evaluate_of_raw_data_trains_exactly_the_tokens_of_the_prepared_set(arm: str) -> None:
    trainer = masked(arm, evals=raw())
    seen = watched(trainer)
    first = trainer.evaluate()
    prepared = list(seen)
    seen.clear()
    again = trainer.evaluate(raw())
    assert seen == prepared
    assert len(seen) == 13
    assert again["eval_loss"] == first["eval_loss"]
    assert again["eval_supervised_tokens"] == first["eval_supervised_tokens"]
    trained = [[int(label) & 0xFFFFFF for label in labels if label != -100] for _, labels in seen]
    assert trained == [[t for t, w in zip(tokenized(c), weights(c, arm), strict=True) if w] for c in CHATS]


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("arm", arms(ARMS))
def test_the_loss_is_the_plain_one_for_every_batch_size(arm: str, size: int) -> None:
    trainer = masked(arm, evals=raw(), per_device_eval_batch_size=size)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)


@pytest.mark.parametrize("options", [{"padding_free": True, "max_length": None}, {"packing": True, "max_length": 200}])
@pytest.mark.parametrize("arm", arms(["mask", "prompt", "sequence"]))
def test_the_loss_is_the_plain_one_where_rows_are_joined(arm: str, options: dict[str, Any]) -> None:
    trainer = masked(arm, evals=raw(), per_device_eval_batch_size=2, **options)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)
    assert trainer.evaluate(raw())["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)


@pytest.mark.parametrize("kind", [dict, DatasetDict])
@pytest.mark.parametrize("arm", arms(ARMS))
def test_every_set_of_a_dict_has_its_own_loss(arm: str, kind: type) -> None:
    trainer = masked(arm)
    metrics = trainer.evaluate(kind(some=raw(range(4)), rest=raw(range(4, 13))))
    assert metrics["eval_some_loss"] == pytest.approx(plain_loss(arm, range(4)), rel=1e-6)
    assert metrics["eval_rest_loss"] == pytest.approx(plain_loss(arm, range(4, 13)), rel=1e-6)


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_a_stream_is_evaluated_alike(arm: str) -> None:
    trainer = masked(arm, evals=raw().to_iterable_dataset(), per_device_eval_batch_size=3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)
    assert trainer.evaluate(raw().to_iterable_dataset())["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)


@pytest.mark.newest
def test_evaluation_during_training_leaves_the_loss_of_training_alone() -> None:
    losses = []
    for more in ({}, {"evals": raw(), "eval_strategy": "steps", "eval_steps": 1}):
        trainer = masked("prompt", max_steps=3, gradient_accumulation_steps=2, **more)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]


@pytest.mark.parametrize("arm", arms(ARMS))
def test_a_set_that_was_masked_before_is_evaluated_as_it_is(arm: str) -> None:
    policy = Policy(**ARMS[arm])
    before = mask_dataset(raw(), tokenizer(), policy=policy)
    trainer = masked(arm)
    assert trainer.evaluate(before)["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)
    both = train_on_responses_only(build("out", before))
    assert both.evaluate(before)["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)


@pytest.mark.parametrize("arm", arms(ARMS))
def test_a_set_of_the_trainer_and_a_part_of_it_can_be_given_again(arm: str) -> None:
    trainer = masked(arm, train=raw(), evals=raw())
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)
    part = trainer.eval_dataset.select(range(2, 6))
    assert trainer.evaluate(part)["eval_loss"] == pytest.approx(plain_loss(arm, range(2, 6)), rel=1e-6)
    assert len(trainer.predict(part).predictions) == 4


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_sets_that_nothing_prepares_are_masked_once(arm: str) -> None:
    rows = Dataset.from_dict({"input_ids": [tokenized(chat) for chat in CHATS]})
    trainer = masked(arm, train=rows, dataset_kwargs={"skip_prepare_dataset": True})
    metrics = trainer.evaluate({"some": rows.select(range(4)), "all": rows})
    assert metrics["eval_some_loss"] == pytest.approx(plain_loss(arm, range(4)), rel=1e-6)
    assert metrics["eval_all_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)


@pytest.mark.newest
def test_weights_that_come_with_a_later_set_count() -> None:
    halves = [[0.5 if at % 2 else 1.0 for at in range(len(tokenized(chat)))] for chat in CHATS]
    trainer = masked("mask")
    trainer.train()
    total = weight = 0.0
    for row, chat in enumerate(CHATS):
        mask = torch.tensor(weights(chat, "mask"), dtype=torch.float64)[1:]
        counts = mask * torch.tensor(halves[row], dtype=torch.float64)[1:]
        ids = torch.tensor([tokenized(chat)])
        with torch.no_grad():
            logits = copy.deepcopy(trainer.model).double()(input_ids=ids, use_cache=False).logits[0]
        total += float((counts * F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")).sum())
        weight += float(counts.sum())
    metrics = trainer.evaluate(raw().add_column("loss_weights", halves))
    assert metrics["eval_loss"] == pytest.approx(total / weight, rel=1e-6)


@pytest.mark.newest  # before, weights are refused for another reason as well
def test_weights_that_come_with_a_later_set_are_refused_where_training_with_them_is() -> None:
    trainer = masked("mask", label_smoothing_factor=0.1)
    halves = [[0.5] * len(tokenized(chat)) for chat in CHATS]
    with pytest.raises(UnsupportedError, match="Token weights do not work with label_smoothing_factor"):
        trainer.evaluate(raw().add_column("loss_weights", halves))


# predictions


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_prediction_i_is_that_of_row_i_and_its_labels_are_plain_ids(arm: str) -> None:
    rows = [tokenized(chat) for chat in CHATS]
    rows.insert(4, tokenized([{"role": "user", "content": "red"}]))
    trainer = masked(arm, per_device_eval_batch_size=3)
    trainer.train()
    out = trainer.predict(Dataset.from_dict({"input_ids": rows}))
    assert len(out.predictions) == len(out.label_ids) == 14
    wanted = [*CHATS[:4], None, *CHATS[4:]]
    with torch.no_grad():
        for row, (ids, chat) in enumerate(zip(rows, wanted, strict=True)):
            labels = [] if chat is None else [t for t, w in zip(ids, weights(chat, arm), strict=True) if w]
            assert out.label_ids[row][out.label_ids[row] != -100].tolist() == labels
            logits = trainer.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
            np.testing.assert_allclose(out.predictions[row][: len(ids)], logits, atol=1e-5)


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_the_loss_of_a_prediction_is_the_plain_one(arm: str) -> None:
    trainer = masked(arm, per_device_eval_batch_size=4)
    out = trainer.predict(Dataset.from_dict({"input_ids": [tokenized(chat) for chat in CHATS]}))
    assert out.metrics["test_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)


@pytest.mark.parametrize("arm", arms(["mask", "prompt", "turn"]))
def test_predict_of_a_set_that_was_masked_before_keeps_its_rows(arm: str) -> None:
    before = mask_dataset(raw(), tokenizer(), policy=Policy(**ARMS[arm]))
    empty = before.map(lambda row, at: {"labels": [-100] * len(row["labels"])} if at == 3 else {}, with_indices=True)
    out = masked(arm).predict(empty)
    assert len(out.predictions) == 13
    assert set(out.label_ids[3]) == {-100}
    rows = [row for row in range(13) if row != 3]
    for row in rows:
        wanted = [t for t, w in zip(tokenized(CHATS[row]), weights(CHATS[row], arm), strict=True) if w]
        assert out.label_ids[row][out.label_ids[row] != -100].tolist() == wanted


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_compute_metrics_sees_plain_labels(arm: str) -> None:
    seen: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.label_ids)
        at = prediction.label_ids[:, 1:] != -100
        return {"right": float((prediction.predictions.argmax(-1)[:, :-1] == prediction.label_ids[:, 1:])[at].mean())}

    trainer = masked(arm, evals=raw(), compute_metrics=metrics, per_device_eval_batch_size=16)
    found = trainer.evaluate()
    (labels,) = seen
    assert labels.max() < len(tokenizer())
    right = total = 0
    with torch.no_grad():
        for chat in CHATS:
            ids = torch.tensor([tokenized(chat)])
            at = torch.tensor(weights(chat, arm))[1:] > 0
            right += int((trainer.model(input_ids=ids).logits[0, :-1].argmax(-1) == ids[0, 1:])[at].sum())
            total += int(at.sum())
    assert found["eval_right"] == pytest.approx(right / total)
    assert found["eval_loss"] == pytest.approx(plain_loss(arm), rel=1e-6)


def test_a_set_without_messages_is_refused_where_the_policy_needs_them() -> None:
    trainer = train_on_responses_only(build("out"), policy=Policy(roles=["assistant", "user"]))
    texts = Dataset.from_dict({"text": [rendered(chat) for chat in CHATS]})
    with pytest.raises((UnsupportedError, DataError), match="rows have no messages"):
        trainer.evaluate(texts)
