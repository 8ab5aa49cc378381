"""Loss, gradients and parameters under every split of a batch and every kind of weight, against a plain loop.

The reference knows nothing of the library: weights come from the character offsets of each message, the loss from one
unpadded conversation after the other, the optimizer is two lines.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support.reference_loss import (
    CHATS,
    MODELS,
    PLAIN_SGD,
    POLICIES,
    STEPS,
    Gradients,
    distance,
    network,
    reference,
)
from support.tiny import build, tokenizer

from sft_mask import mask_dataset, train_on_responses_only
from sft_mask.errors import UnsupportedError

LAYOUTS: dict[str, dict[str, Any]] = {
    "1x8": {"per_device_train_batch_size": 8},
    "2x4": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "4x2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "padding-free": {"per_device_train_batch_size": 8, "padding_free": True, "max_length": None},
    "packed": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 64, "packing": True, "max_length": 500},
}


def train(name: str, arm: str, layout: str, folder: Path, *, before: bool = False) -> tuple[Any, Gradients]:
    """Trains two steps; ``before``: the data is masked before the trainer is built."""
    policy = POLICIES[arm]
    data = Dataset.from_list([{"messages": messages} for messages in CHATS])
    trainer = build(
        folder,
        mask_dataset(data, tokenizer(), policy=policy) if before else data,
        network=copy.deepcopy(network(name)),
        max_steps=STEPS,
        **PLAIN_SGD,
        **LAYOUTS[layout],
    )
    gradients = Gradients()
    trainer.add_callback(gradients)
    train_on_responses_only(trainer, policy=None if before else policy).train()
    return trainer, gradients


def check(name: str, arm: str, trainer: Any, given: Gradients) -> None:
    losses, gradients, parameters = reference(name, arm)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-6)
    for step, wanted in zip(given.steps, gradients, strict=True):
        assert distance(step, wanted) < 1e-6
    assert distance({k: p.detach() for k, p in trainer.model.named_parameters()}, parameters) < 1e-6


def layouts_of(arm: str) -> list[str]:
    """Rows that TRL packed have no messages left: their weights must be given before, which is the next test."""
    return [layout for layout in LAYOUTS if not (layout == "packed" and "messages" in arm)]


@pytest.mark.parametrize(("arm", "layout"), [(arm, layout) for arm in POLICIES for layout in layouts_of(arm)])
@pytest.mark.parametrize("name", MODELS)
def test_loss_gradients_and_parameters_are_those_of_the_reference(
    name: str, layout: str, arm: str, tmp_path: Path
) -> None:
    check(name, arm, *train(name, arm, layout, tmp_path))


@pytest.mark.parametrize("arm", POLICIES)
@pytest.mark.parametrize("layout", ["4x2", "packed"])
def test_weights_travel_inside_labels_through_packing(layout: str, arm: str, tmp_path: Path) -> None:
    check("llama", arm, *train("llama", arm, layout, tmp_path, before=True))


def test_flags_of_packed_rows_are_refused_with_the_trainer_as_it_was(tmp_path: Path) -> None:
    data = Dataset.from_list([{"messages": messages} for messages in CHATS])
    trainer = build(tmp_path, data, **LAYOUTS["packed"])
    kind, before = type(trainer), trainer.train_dataset
    with pytest.raises(UnsupportedError, match="flags of messages, but the rows have no messages"):
        train_on_responses_only(trainer, policy=POLICIES["messages"])
    assert type(trainer) is kind
    assert trainer.train_dataset is before
