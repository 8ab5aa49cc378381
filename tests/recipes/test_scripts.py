"""Every other recipe: two steps through its command line, counted so that none can be forgotten."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.recipe_runner import RECIPES, Run, run_recipe
from support.tiny_families import save

RECIPES_THAT_TRAIN = {
    "alpaca.py": ("smollm2-135m", "### Response:"),
    "last_turn.py": ("smollm2-135m", "<|im_start|>assistant"),
    "plain_loop.py": ("smollm2-135m", "<|im_start|>assistant"),
    "prompt_weight.py": ("smollm2-135m", "<|im_start|>assistant"),
    "reasoning.py": ("qwen3-0.6b", "<|im_start|>assistant"),
    "tool_calling.py": ("qwen3-0.6b", "<|im_start|>assistant"),
}
"""The model that each is tried with, and the header that its report must name."""

ELSEWHERE = {
    "answer.py": "test_lora.py",
    "chat.py": "test_chat.py",
    "house_style.py": "test_quickstart_data.py",
    "local_model.py": "test_local_model.py",
    "lora_sft.py": "test_lora.py",
    "mask_figures.py": "test_figures.py",
    "mask_study.py": "test_study.py",
    "quickstart.py": "test_quickstart.py",
    "saved_model.py": "test_chat.py",
    "shapes.py": "test_vision.py",
    "turn_study.py": "test_turn_study.py",
    "vision_sft.py": "test_vision.py",
    "vision_study.py": "test_vision.py",
}
LINES = 120
"""A longer file is not a recipe."""

TwoSteps = Callable[..., tuple[Run, Path]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in {name for name, _ in RECIPES_THAT_TRAIN.values()}:
        save(name, folder / name)
    return folder


def test_every_recipe_is_tried() -> None:
    assert {path.name for path in RECIPES.glob("*.py")} == RECIPES_THAT_TRAIN.keys() | ELSEWHERE.keys()
    for name, test in ELSEWHERE.items():
        assert name.removesuffix(".py") in (Path(__file__).parent / test).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def two_steps(models: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoSteps:
    """Runs a recipe for two steps: how it ended and the folder it wrote. Tests share runs with equal arguments."""

    @cache
    def run(name: str, *more: str) -> tuple[Run, Path]:
        folder = tmp_path_factory.mktemp("recipe")
        given = ("--model", models / RECIPES_THAT_TRAIN[name][0], "--output", folder, "--steps", 2, "--batch-size", 2)
        return run_recipe(name, *given, *more), folder

    return run


@pytest.mark.parametrize("name", RECIPES_THAT_TRAIN)
def test_a_recipe_trains_two_steps(name: str, two_steps: TwoSteps) -> None:
    run, folder = two_steps(name)
    assert run.code == 0, run.output[-3000:]
    assert (folder / "adapter_model.safetensors").stat().st_size > 0
    assert re.search(r"train: (400|64) rows · [\d,]+ tokens, [\d,]+ trained", run.output), run.output
    assert RECIPES_THAT_TRAIN[name][1] in run.output
    assert "'loss'" in run.output or "loss " in run.output


@pytest.mark.parametrize("name", RECIPES_THAT_TRAIN)
def test_a_recipe_is_short_and_says_how_it_is_run(name: str) -> None:
    text = (RECIPES / name).read_text(encoding="utf-8")
    assert text.count("\n") < LINES
    assert f"    python recipes/{name}" in text
    assert "\nHardware: " in text
    assert "\nExpected: " in text


def trained_of_first_row(output: str) -> str:
    found = re.search(r"trained of the first row: (.*)", output)
    assert found, output
    return found[1]


def test_a_call_is_trained_and_its_result_is_not(two_steps: TwoSteps) -> None:
    trained = trained_of_first_row(two_steps("tool_calling.py")[0].output)
    first = json.loads((RECIPES / "data" / "tools.jsonl").read_text(encoding="utf-8").splitlines()[0])
    call, result, answer = first["messages"][1:4]
    assert call["tool_calls"][0]["function"]["arguments"] in trained
    assert answer["content"] in trained
    assert result["content"] not in trained
    assert "tool_response" not in trained
    assert trained.count("<|im_end|>") == 2


def test_thinking_is_trained_or_masked(two_steps: TwoSteps) -> None:
    first = json.loads((RECIPES / "data" / "reasoning.jsonl").read_text(encoding="utf-8").splitlines()[0])
    thought, answer = first["messages"][1]["content"].removeprefix("<think>\n").split("\n</think>\n\n")
    graded = trained_of_first_row(two_steps("reasoning.py")[0].output)
    assert thought in graded
    assert answer in graded
    masked = trained_of_first_row(two_steps("reasoning.py", "--thinking=masked")[0].output)
    assert thought not in masked
    assert answer in masked


def test_the_last_answer_alone_is_trained(two_steps: TwoSteps) -> None:
    first = json.loads((RECIPES / "data" / "house_style_train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    trained = trained_of_first_row(two_steps("last_turn.py")[0].output)
    assert trained == repr(first["messages"][-1]["content"] + "<|im_end|>")


def test_alpaca_trains_the_answer_and_the_end_of_text(two_steps: TwoSteps) -> None:
    trained = trained_of_first_row(two_steps("alpaca.py")[0].output)
    first = json.loads((RECIPES / "data" / "house_style_train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert trained == repr(first["messages"][2]["content"] + "</s>")


def test_the_prompt_counts_with_its_weight(two_steps: TwoSteps) -> None:
    assert "of its tokens are trained too" in two_steps("prompt_weight.py")[0].output


def test_the_small_data_sets_are_what_their_script_writes(tmp_path: Path) -> None:
    run = run_recipe("data/make_tools_and_reasoning.py", tmp_path)
    assert run.code == 0, run.output
    for name in ("tools.jsonl", "reasoning.jsonl"):
        assert (tmp_path / name).read_bytes() == (RECIPES / "data" / name).read_bytes()


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    run = run_recipe("answer.py", tmp_path / "nothing", "Hello?")
    assert run.code == 2
    assert "there is no folder" in run.output
