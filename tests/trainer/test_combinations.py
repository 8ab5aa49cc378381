"""What people combine with a mask, with and without weights: adapters, checkpointing, compiling, experts, resuming.

The reference runs a float64 copy of the very model over one conversation after the other.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, load_from_disk
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from support.marks import slow_but
from support.reference_loss import Gradients
from support.tiny import build, chats, expected, model, tokenized
from transformers import LlamaForCausalLM
from trl import SFTTrainer

import sft_mask.data.dataset
from sft_mask import train_on_responses_only
from sft_mask.data.masker import Masker

CHATS = chats(8, seed=4)
PROMPT = 0.1
ARMS: dict[str, dict[str, Any]] = {"mask": {}, "prompt": {"prompt_weight": PROMPT}}
SPLITS = {"1x8": (8, 1), "4x2": (2, 4), "8x1": (1, 8)}


pytestmark = pytest.mark.usefixtures("in_tmp_path")


def weights(chat: list[dict[str, str]], arm: str) -> torch.Tensor:
    base = PROMPT if arm == "prompt" else 0.0
    return torch.tensor([base if label == -100 else 1.0 for label in expected(chat)], dtype=torch.float64)


def plain(network: Any, arm: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all conversations; logits of virtual tokens, which stand in front, are cut off."""
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for chat in CHATS:
        ids, counts = torch.tensor([tokenized(chat)]), weights(chat, arm)[1:]
        logits = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -ids.shape[1] :]
        total = total + (counts * F.cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")).sum()
        weight += float(counts.sum())
    loss = total / weight
    loss.backward()
    gradients = {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def masked(arm: str, network: Any, *, split: str = "4x2", **options: Any) -> SFTTrainer:
    size, accumulation = SPLITS[split]
    trainer = build(
        "out",
        Dataset.from_list([{"messages": chat} for chat in CHATS]),
        network=network,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        **{"max_steps": 1, **options},
    )
    return train_on_responses_only(trainer, **ARMS[arm])


def agrees(arm: str, network: Any, **options: Any) -> None:
    wanted_loss, wanted = plain(copy.deepcopy(network).double(), arm)
    trainer = masked(arm, network, **options)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(wanted_loss, rel=2e-6)
    (given,) = gradients.steps
    given = {name.replace("_orig_mod.", ""): gradient for name, gradient in given.items()}
    assert given.keys() == wanted.keys()
    apart = sum(float((given[k].double() - g).square().sum()) for k, g in wanted.items())
    assert (apart / sum(float(g.square().sum()) for g in wanted.values())) ** 0.5 < 2e-6


# adapters


def lora(**more: Any) -> Any:
    torch.manual_seed(7)
    return get_peft_model(
        model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0, init_lora_weights=False, **more)
    )


def prompt_tuning() -> Any:
    torch.manual_seed(7)
    return get_peft_model(model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))


NETWORKS: dict[str, Callable[[], Any]] = {
    "full": model,
    "LoRA": lora,
    "DoRA": lambda: lora(use_dora=True),
    "prompt tuning": prompt_tuning,
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "full"])
def test_adapters_have_the_loss_and_the_gradients_of_a_plain_loop(name: str, arm: str) -> None:
    agrees(arm, NETWORKS[name]())


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", ["full", "LoRA"])
def test_gradient_checkpointing_changes_nothing(name: str, arm: str) -> None:
    agrees(arm, NETWORKS[name](), gradient_checkpointing=True)


@pytest.mark.parametrize("arm", slow_but(["mask"], ARMS))
def test_a_compiled_model_has_the_same_loss_and_gradients(arm: str) -> None:
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    agrees(arm, model(), split="1x8", torch_compile=True, torch_compile_backend="aot_eager")
    assert graphs["unique_graphs"] > 0


# models that leave the number of tokens aside


class Inexact(LlamaForCausalLM):
    """A model that says it cannot be told the number of tokens of a step, as Gemma 3 and Qwen2.5-VL do."""

    accepts_loss_kwargs = False


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("split", SPLITS)
def test_models_without_loss_arguments_are_exact_under_accumulation(split: str, arm: str) -> None:
    torch.manual_seed(0)
    network = Inexact(model().config)
    network.load_state_dict(model().state_dict())
    agrees(arm, network, split=split)


# experts


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("split", ["1x8", "4x2"])
def test_the_auxiliary_loss_of_experts_is_logged_and_added_once(split: str, arm: str) -> None:
    from support.reference_loss import experts

    torch.manual_seed(3)
    network = experts()
    trainer = masked(arm, network, split=split, router_aux_loss_coef=0.5)
    auxiliary = []
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            auxiliary.append(float(network(**inputs, output_router_logits=True, use_cache=False).aux_loss))
    network.config.output_router_logits = False
    wanted, _ = plain(copy.deepcopy(network).double(), arm)
    network.config.output_router_logits = True
    assert len(auxiliary) == SPLITS[split][1]
    mean = sum(auxiliary) / len(auxiliary)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["aux_loss"] == pytest.approx(mean, rel=1e-5)
    assert entry["loss"] == pytest.approx(wanted + 0.5 * mean, rel=1e-5)


# runs that are cut in two, and rows that are read elsewhere


@pytest.mark.parametrize("name", ["full", "LoRA"])
def test_a_resumed_run_ends_with_the_parameters_of_one_that_was_not_interrupted(name: str) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "split": "4x2"}
    straight = masked("prompt", NETWORKS[name](), save_strategy="steps", **options)
    straight.train()
    resumed = masked("prompt", NETWORKS[name](), **options)
    resumed.train(resume_from_checkpoint="out/checkpoint-2")
    assert resumed.state.global_step == 4
    start, one, other = (dict(t.named_parameters()) for t in (NETWORKS[name](), straight.model, resumed.model))
    moved = [key for key, value in one.items() if not torch.equal(value, start[key])]
    assert moved
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_run_that_was_killed_in_the_middle_of_the_map_starts_again_as_if_it_had_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {"input_ids": [tokenized(chat) for chat in CHATS], "n": list(range(len(CHATS)))}
    for name in ("killed", "whole"):
        Dataset.from_dict(rows).save_to_disk(name)
    whole = Masker.mask

    def dies(self: Masker, *arguments: Any, **named: Any) -> Any:
        if named["first_row"] >= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(sft_mask.data.dataset, "_ROWS_AT_ONCE", 3)
        patched.setattr(Masker, "mask", dies)
        run = multiprocessing.get_context("fork").Process(target=masked_from, args=["killed"])
        run.start()
        run.join(60)
    assert run.exitcode == -signal.SIGKILL
    left = sorted(path.name for path in Path("killed").glob("cache-sft-mask-*"))
    assert left
    assert all(name.endswith(".partial") for name in left), "nothing has the name of something finished"
    again, undisturbed = masked_from("killed"), masked_from("whole")
    assert again.train_dataset._fingerprint == undisturbed.train_dataset._fingerprint
    assert list(again.train_dataset["labels"]) == list(undisturbed.train_dataset["labels"])
    for row, chat in zip(again.train_dataset["labels"], CHATS, strict=True):
        wanted = [token for token, weight in zip(tokenized(chat), weights(chat, "prompt"), strict=True) if weight]
        assert [label & 0xFFFFFF for label in row] == wanted
    assert str(again.mask_report) == str(undisturbed.mask_report)


def masked_from(folder: str) -> SFTTrainer:
    trainer = build("out", load_from_disk(folder), dataset_kwargs={"skip_prepare_dataset": True})
    return train_on_responses_only(trainer, **ARMS["prompt"])


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_spawned_workers_read_the_same_labels(arm: str) -> None:
    agrees(arm, model(), split="1x8", dataloader_num_workers=1, dataloader_multiprocessing_context="spawn")
