"""``recipes/lora_sft.py`` by the launch configurations, on two CPU processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launch.launching import CONFIGURATIONS, launch
from safetensors.torch import load_file
from support.recipe_runner import RECIPES, run_recipe
from support.reference_loss import distance, network
from support.tiny import chats, tokenizer

pytestmark = pytest.mark.slow
STEPS = 2
ROWS = 16


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model, data and options with which a split of the step changes nothing."""
    folder = tmp_path_factory.mktemp("recipe")
    network("llama").save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    data = folder / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats(ROWS, seed=4)))
    files = ["--model_name_or_path", folder / "model", "--train_data", data, "--eval_data", data]
    options = ["--lora_dropout", 0, "--gradient_checkpointing", "false", "--report_to", "none", "--logging_steps", 1]
    steps = ["--max_steps", STEPS, "--learning_rate", 1e-2, "--reduction", "turn"]
    return [str(part) for part in (*files, *options, *steps)]


@pytest.fixture(scope="module")
def alone(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe saves when one process takes eight rows a step."""
    out = tmp_path_factory.mktemp("alone")
    run = run_recipe("lora_sft.py", *given, "--per_device_train_batch_size", 8, "--output_dir", out)
    assert run.code == 0, run.output[-3000:]
    return out


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("two_nodes", ("--use_cpu", "true")),  # the machines do not share the cache of datasets
        ("fsdp2", ("--use_cpu", "true")),
        ("zero3", ("--ddp_backend", "gloo")),
        ("fsdp2_qlora", ("--use_cpu", "true", "--load_in_4bit", "true")),
    ],
)
def test_a_launched_recipe_trains_evaluates_and_saves_as_one_process_does(
    name: str, options: tuple[str, ...], given: list[str], alone: Path, tmp_path: Path
) -> None:
    if not CONFIGURATIONS[name].is_installed:
        pytest.skip(f"{CONFIGURATIONS[name].needs} is installed by scripts/test_launch.sh")
    split = ("--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4")
    ended = launch(name, [str(RECIPES / "lora_sft.py"), *given, *split, *options, "--output_dir", str(tmp_path)])
    assert ended.code == 0, ended.output[-6000:]
    assert ended.output.count(f"train: {ROWS} rows") == 1, "one process shows the report"
    evaluation = json.loads((tmp_path / "all_results.json").read_text())["eval_loss"]
    assert len(losses(tmp_path)) == STEPS
    saved = adapter(tmp_path)
    assert saved.keys() == adapter(alone).keys()
    if name == "fsdp2_qlora":  # other weights, so another loss; adapters in bfloat16
        assert losses(tmp_path) == pytest.approx(losses(alone), rel=0.02)
        assert all(bool(value.any()) for value in saved.values()), "every adapter was trained"
        return
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    assert evaluation == pytest.approx(json.loads((alone / "all_results.json").read_text())["eval_loss"], rel=1e-5)
    assert distance(saved, adapter(alone)) < 1e-4, "AdamW, whose first steps have the size of the learning rate"
