"""Weights asked for in each way there is, and what a refusal must leave as it was."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from support.tiny import chats, messages_dataset, tokenized
from trl import SFTTrainer

from sft_mask import Policy, Region, train_on_responses_only

CHATS = chats(24)


def state_of(trainer: SFTTrainer) -> dict[str, Any]:
    """Everything about a trainer that could have been changed."""
    evals = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    splits = {"train": trainer.train_dataset, **evals}
    return {
        "class": type(trainer),
        "attributes": {name: id(value) for name, value in vars(trainer).items()},
        "splits": {name: (id(split), getattr(split, "_fingerprint", None)) for name, split in splits.items()},
        "collator": dict(vars(trainer.data_collator)),
        "args": trainer.args.to_dict(),
        "model": {name: int(value.data_ptr()) for name, value in trainer.model.named_parameters()},
    }


def refused(trainer: SFTTrainer, error: type[Exception], match: str, **asked: Any) -> None:
    before = state_of(trainer)
    with pytest.raises(error, match=match):
        train_on_responses_only(trainer, **asked)
    assert state_of(trainer) == before
    assert not hasattr(trainer, "mask_report")


WEIGHTS: dict[str, dict[str, Any]] = {
    "prompt_weight": {"prompt_weight": 0.1},
    "reduction": {"reduction": "turn"},
    "role": {"policy": Policy(roles={"assistant": 0.5})},
    "region": {"policy": Policy(regions=[Region("red", "blue", weight=0.5)])},
    "messages": {"policy": Policy(turns="flagged")},
    "column": {},
}


def rows(asked: str) -> Dataset:
    made = messages_dataset(24)
    if asked == "column":
        return made.add_column("loss_weights", [[0.5] * len(tokenized(chat)) for chat in CHATS])
    return made
