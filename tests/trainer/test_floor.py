"""What differs with the oldest versions that are allowed: weights, and they are refused by name.

scripts/test_floor.sh runs this file, and those of the trainer path, on these versions; here the version is pretended.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from support.refusing import WEIGHTS, refused, rows
from support.tiny import build, chats, expected, messages_dataset, tokenized, tokenizer

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.errors import UnsupportedError


@pytest.fixture(autouse=True)
def before_the_fused_head(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    if Version(real("trl")) >= Version("1.15"):
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.9.0" if name == "trl" else real(name))


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_every_kind_are_refused_by_name(name: str) -> None:
    refused(build("out", rows(name)), UnsupportedError, r"do not work with trl < 1\.15: .*", **WEIGHTS[name])


def test_weights_that_came_with_the_data_are_refused() -> None:
    before = mask_dataset(messages_dataset(24), tokenizer(), policy=Policy(prompt_weight=0.1))
    refused(build("out", before), UnsupportedError, r"do not work with trl < 1\.15")


def test_weights_that_come_with_a_set_to_evaluate_are_refused() -> None:
    trainer = train_on_responses_only(build("out"))
    halves = [[0.5] * len(tokenized(chat)) for chat in chats(24)]
    with pytest.raises(UnsupportedError, match=r"do not work with trl < 1\.15"):
        trainer.evaluate(messages_dataset(24).add_column("loss_weights", halves))


@pytest.mark.parametrize("policy", [Policy(), Policy(turns="last"), Policy(stop="never")], ids=str)
def test_a_mask_without_weights_is_trained(policy: Policy) -> None:
    trainer: Any = train_on_responses_only(build("out", evals=messages_dataset(5)), policy=policy)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    if policy == Policy():
        assert list(trainer.train_dataset["labels"]) == [expected(chat) for chat in chats(24)]
