"""What the trainer logs of the mask: numbers of tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from support.tiny import build, chats, expected, tokenized
from trl import SFTTrainer

from sft_mask import Policy, train_on_responses_only

CHATS = chats(8, seed=4)


pytestmark = pytest.mark.usefixtures("in_tmp_path")


def masked(policy: Policy | None = None, **options: Any) -> SFTTrainer:
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    defaults = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    return train_on_responses_only(build("out", data, evals=data, **{**defaults, **options}), policy=policy)


def logged(trainer: SFTTrainer) -> list[dict[str, Any]]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("policy", [None, Policy(reduction="sequence")], ids=str)
@pytest.mark.parametrize("options", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "padding-free"])
def test_tokens_are_those_that_are_predicted_and_the_share_is_that_of_all(
    options: dict[str, Any], policy: Policy | None
) -> None:
    (entry,) = logged(masked(policy, **options))
    trained = sum(label != -100 for chat in CHATS for label in expected(chat)[1:])
    everything = sum(len(tokenized(chat)) for chat in CHATS)
    assert entry["supervised_tokens"] == trained / 4
    assert entry["supervised_share"] == pytest.approx(trained / everything)


def test_tokens_of_the_prompt_that_are_trained_count() -> None:
    (entry,) = logged(masked(Policy(prompt_weight=0.1)))
    assert entry["supervised_tokens"] == sum(len(tokenized(chat)) - 1 for chat in CHATS) / 4


def test_tokens_per_second_are_counted_from_the_first_batch_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100, 200, 5))
    monkeypatch.setattr("sft_mask.trainer.metrics.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    entries = logged(masked(max_steps=2))
    trained = sum(label != -100 for chat in CHATS for label in expected(chat)[1:])
    assert [entry["supervised_tokens_per_second"] for entry in entries] == [trained / 5, trained / 5]


def test_what_is_logged_starts_again_after_each_log() -> None:
    entries = logged(masked(max_steps=4, logging_steps=2))
    trained = sum(label != -100 for chat in CHATS for label in expected(chat)[1:])
    assert [entry["supervised_tokens"] for entry in entries] == [trained / 4, trained / 4]
