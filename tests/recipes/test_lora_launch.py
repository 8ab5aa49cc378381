"""What the recipe refuses of a launch, before anything is loaded: one sentence each."""

from __future__ import annotations

import importlib.util
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lora_sft
import pytest
from support.recipe_runner import run_recipe
from support.tiny import chats

ASKED: dict[str, Any] = {
    "use_cpu": True,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "use_peft": True,
    "merge": False,
}
FSDP = {"ACCELERATE_USE_FSDP": "true"}
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "DS_ACCELERATOR": "cpu"}
TWO = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
CASES: dict[str, tuple[dict[str, Any], dict[str, str], set[str], str]] = {
    "more processes than GPUs": (
        {"use_cpu": False},
        TWO,
        set(),
        "2 processes were launched on this machine, which has 0 CUDA GPUs",
    ),
    "no DeepSpeed": ({}, ZERO3, set(), "asks for DeepSpeed, which is missing: `pip install deepspeed`"),
    "no bitsandbytes": ({"load_in_4bit": True}, {}, set(), "QLoRA needs bitsandbytes, which is missing"),
    "all weights in 4 bits": ({"load_in_4bit": True, "use_peft": False}, {}, {"bitsandbytes"}, "cannot be trained"),
    "4 bits and ZeRO-3": (
        {"load_in_4bit": True},
        ZERO3,
        {"bitsandbytes", "deepspeed"},
        "ZeRO-3 does not shard weights in 4 or 8 bits; use recipes/accelerate/fsdp2_qlora.yaml",
    ),
    "8 bits and FSDP": (
        {"load_in_8bit": True},
        FSDP,
        {"bitsandbytes"},
        "FSDP does not shard weights in 8 bits; use --load_in_4bit true",
    ),
    "a merged model": ({"merge": True, "use_peft": False}, {}, set(), "there is no adapter to merge; leave merge out"),
}
"""What is asked, what the launcher sets, what is installed, and the sentence."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One without GPUs, and not launched."""
    monkeypatch.setattr(lora_sft.torch.cuda, "device_count", lambda: 0)
    for name in ("RANK", "LOCAL_RANK", *TWO, *FSDP, *ZERO3):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_launched_is_one_sentence(name: str, machine: pytest.MonkeyPatch) -> None:
    asked, launched, installed, sentence = CASES[name]
    for variable, value in launched.items():
        machine.setenv(variable, value)
    machine.setattr(importlib.util, "find_spec", lambda package: package if package in installed else None)
    with pytest.raises(SystemExit, match=r"^lora_sft: ") as ended:
        lora_sft.check_request(Namespace(**{**ASKED, **asked}))
    assert sentence in str(ended.value)
    assert "\n" not in str(ended.value)


def test_4_bits_on_a_cpu_and_deepspeed_on_cpus_are_not_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(importlib.util, "find_spec", lambda package: package)
    lora_sft.check_quantization(Namespace(**{**ASKED, "load_in_4bit": True, "use_cpu": True}))
    for variable, value in {**TWO, **ZERO3}.items():
        machine.setenv(variable, value)
    lora_sft.check_launch(Namespace(**{**ASKED, "use_cpu": False}))


def test_fsdp_that_accelerate_replaces_with_ddp_is_refused(machine: pytest.MonkeyPatch) -> None:
    lora_sft.check_sharding(SimpleNamespace(is_fsdp_enabled=False))
    machine.setenv("ACCELERATE_USE_FSDP", "true")
    lora_sft.check_sharding(SimpleNamespace(is_fsdp_enabled=True))
    with pytest.raises(SystemExit, match="does not run FSDP on CPUs and would run DDP instead"):
        lora_sft.check_sharding(SimpleNamespace(is_fsdp_enabled=False))


def test_one_process_of_each_machine_says_why(machine: pytest.MonkeyPatch) -> None:
    where = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for rank, local in ((0, 0), (1, 1), (2, 0), (3, 1)):
        for variable, value in {**where, "RANK": str(rank), "LOCAL_RANK": str(local)}.items():
            machine.setenv(variable, value)
        with pytest.raises(SystemExit) as ended:
            lora_sft.refuse("there is no checkpoint")
        said = f"lora_sft: there is no checkpoint (on {os.uname().nodename}, one of 2 machines)"
        assert ended.value.code == (said if local == 0 else 1)


def test_more_processes_than_gpus_are_refused_by_one_of_them(tmp_path: Path) -> None:
    if lora_sft.torch.cuda.device_count():
        pytest.skip("this machine has GPUs")
    data = tmp_path / "chats.jsonl"
    data.write_text(str(chats(1)[0]))
    given = ("lora_sft.py", "--model_name_or_path", "x", "--train_data", data)
    first = run_recipe(*given, RANK="0", LOCAL_RANK="0", **TWO)
    second = run_recipe(*given, RANK="1", LOCAL_RANK="1", **TWO)
    assert (first.code, second.code) == (1, 1)
    assert "--num_processes 1, or pass --use_cpu true" in first.output
    assert second.output.strip() == ""
