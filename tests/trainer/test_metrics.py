"""What the trainer logs of the mask: numbers of tokens, and losses that are measured but not trained."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from support.tiny import STOP, build, chats, expected, model, tokenized, tokenizer
from trl import SFTTrainer

from sft_mask import Policy, Region, train_on_responses_only

CHATS = chats(8, seed=4)
BLUE = re.compile(" ?blue")


pytestmark = pytest.mark.usefixtures("in_tmp_path")


def masked(policy: Policy | None = None, **options: Any) -> SFTTrainer:
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    defaults = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    return train_on_responses_only(build("out", data, evals=data, **{**defaults, **options}), policy=policy)


def logged(trainer: SFTTrainer) -> list[dict[str, Any]]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# the plain loop


@cache
def negative_log_probs(row: int) -> list[float]:
    """Of every token of a conversation; 0 for the first, which nothing predicts."""
    ids = torch.tensor([tokenized(CHATS[row])])
    with torch.no_grad():
        logits = copy.deepcopy(model()).double()(input_ids=ids, use_cache=False).logits[0]
    return [0.0, *F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none").tolist()]


def named(row: int) -> Iterator[tuple[int, set[str]]]:
    """Every token that is predicted, with the names of the groups it belongs to."""
    text, places = "", []
    answers = 0
    for message in CHATS[row]:
        text += f"<|im_start|>{message['role']}\n"
        answers += message["role"] == "assistant"
        names = {message["role"], f"turn_{answers}"} if message["role"] == "assistant" else {message["role"]}
        places.append((len(text), len(text + message["content"] + STOP), names))
        if message["role"] == "assistant":
            found = BLUE.finditer(message["content"])
            places += [(len(text) + at.start(), len(text) + at.end(), {"region_1"}) for at in found]
        text += message["content"] + STOP + "\n"
    offsets = tokenizer()(text, return_offsets_mapping=True)["offset_mapping"]
    for at, (low, high) in enumerate(offsets[1:], start=1):
        names = set()
        for start, stop, given in places:
            inside = start <= low and high <= stop if "region_1" in given else low < stop and high > start
            names |= given if inside else set()
        yield at, names


def group_losses(prompt_is_everything_but: tuple[str, ...] = ("assistant",)) -> dict[str, float]:
    sums: dict[str, list[float]] = defaultdict(list)
    for row in range(len(CHATS)):
        for at, names in named(row):
            for name in names or {"nothing"}:
                sums[name].append(negative_log_probs(row)[at])
            if not names & set(prompt_is_everything_but):
                sums["prompt"].append(negative_log_probs(row)[at])
    return {name: sum(values) / len(values) for name, values in sums.items()}


# numbers of tokens


@pytest.mark.parametrize("policy", [None, Policy(measure="prompt"), Policy(reduction="sequence")], ids=str)
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


# losses that are measured


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (Policy(measure="prompt"), {"prompt"}),
        (Policy(measure="role"), {"prompt", "assistant"}),
        (Policy(measure="turn"), {"prompt", "turn_1", "turn_2", "turn_3"}),
        (Policy(measure="region", regions=[Region(pattern=BLUE.pattern, weight=0.5)]), {"prompt", "region_1"}),
        (Policy(measure="role", prompt_weight=0.2, reduction="sequence"), {"prompt", "assistant"}),
    ],
    ids=["prompt", "role", "turn", "region", "weighed"],
)
@pytest.mark.parametrize("options", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "padding-free"])
def test_measured_losses_are_plain_means(options: dict[str, Any], policy: Policy, names: set[str]) -> None:
    trainer = masked(policy, **options)
    wanted = {f"loss_{name}": value for name, value in group_losses().items() if name in names}
    assert set(wanted) == {f"loss_{name}" for name in names}
    evaluated = {name: value for name, value in trainer.evaluate().items() if name.startswith("eval_loss_")}
    assert evaluated == pytest.approx({f"eval_{name}": value for name, value in wanted.items()}, rel=2e-6)
    (entry,) = logged(trainer)
    assert {k: v for k, v in entry.items() if k.startswith("loss_")} == pytest.approx(wanted, rel=2e-6)


def test_a_role_that_is_trained_beside_the_model_has_its_own_loss() -> None:
    (entry,) = logged(masked(Policy(roles={"assistant": 1.0, "user": 0.2}, measure="role")))
    wanted = group_losses(prompt_is_everything_but=("assistant", "user"))
    found = {name: value for name, value in entry.items() if name.startswith("loss_")}
    assert found == pytest.approx({f"loss_{n}": wanted[n] for n in ("prompt", "assistant", "user")}, rel=2e-6)


@pytest.mark.parametrize("measure", ["prompt", "role", "turn"])
def test_measuring_changes_nothing_else(measure: Any) -> None:
    kept = (
        "loss",
        "grad_norm",
        "entropy",
        "mean_token_accuracy",
        "num_tokens",
        "supervised_tokens",
        "supervised_share",
    )
    without, measured = logged(masked(max_steps=3)), logged(masked(Policy(measure=measure), max_steps=3))
    for one, other in zip(without, measured, strict=True):
        assert {name: other[name] for name in kept} == pytest.approx({name: one[name] for name in kept}, rel=1e-5)
    assert set(measured[0]) - set(without[0]) == {name for name in measured[0] if name.startswith("loss_")}
