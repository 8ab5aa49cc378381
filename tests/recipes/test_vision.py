"""``recipes/vision_sft.py`` and its configurations, on small models of each architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import shapes
import vision_sft
import vision_study
from support.marks import slow_but
from support.recipe_runner import RECIPES
from support.vision_families import build

CONFIGS = {"smolvlm-256m": "smolvlm", "gemma3-4b": "gemma3", "qwen2.5-vl-7b": "qwen2_5_vl"}
"""The family of each configuration."""
ON_CPU = "--use_cpu true --bf16 false --dtype float32 --report_to none --gradient_checkpointing false"


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Saves a small model where the recipe looks for one; its processor cannot be loaded without torchvision."""

    def save(family: str) -> Path:
        processor, model = build(family)
        model.save_pretrained(tmp_path / "model")
        monkeypatch.setattr(vision_sft.AutoProcessor, "from_pretrained", lambda name: processor)
        monkeypatch.setattr(type(processor), "save_pretrained", lambda *_, **__: None)
        return tmp_path / "model"

    return save


def test_every_configuration_has_a_small_model() -> None:
    assert {path.stem for path in (RECIPES / "configs" / "vision").glob("*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize("config", slow_but(["smolvlm-256m"], list(CONFIGS)))
def test_a_configuration_trains_two_steps(config: str, saved: Any, tmp_path: Path) -> None:
    model = saved(CONFIGS[config])
    out = tmp_path / "out"
    yaml = RECIPES / "configs" / "vision" / f"{config}.yaml"
    given = f"--config {yaml} --model_name_or_path {model} --output_dir {out} --max_steps 2 --rows 8 --questions 1"
    measured = vision_sft.main([*given.split(), *ON_CPU.split(), "--gradient_accumulation_steps", "1"])
    assert measured["loss_after"] != measured["loss_before"]
    assert (out / "adapter_config.json").exists()


def test_the_pictures_are_the_same_for_the_same_seed_and_answer_their_questions() -> None:
    one, other = list(shapes.rows(6, seed=3)), list(shapes.rows(6, seed=3))
    assert [row["images"][0].tobytes() for row in one] == [row["images"][0].tobytes() for row in other]
    for row in one:
        colours = {row["images"][0].getpixel((x, y)) for x in range(112) for y in range(112)} - {(245, 245, 240)}
        (drawn,) = colours
        for question, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            if "colour" in question["content"][-1]["text"]:
                assert shapes.COLOURS[answer["content"][0]["text"].rstrip(".").lower()] == drawn


@pytest.mark.slow
def test_a_small_model_learns_how_answers_look_and_where_they_end(saved: Any, tmp_path: Path) -> None:
    model = saved("llava")
    given = f"--model_name_or_path {model} --output_dir {tmp_path / 'out'} --max_steps 300 --rows 512 --questions 48"
    more = "--use_peft false --learning_rate 3e-3 --per_device_train_batch_size 8 --save_strategy no --max_length 2048"
    measured = vision_sft.main([*given.split(), *ON_CPU.split(), *more.split()])
    assert measured["right_before"] == 0
    assert measured["right_after"] > 0.15, "an answer counts only if it is whole and ends where it should"
    assert measured["loss_after"] < 0.1 * measured["loss_before"]


def test_the_study_of_seeing_asks_about_pictures_that_were_not_trained(capsys: pytest.CaptureFixture[str]) -> None:
    results = vision_study.main(["--seeds", "3", "--steps", "2", "--rows", "32", "--questions", "6"])
    assert results[3].keys() == {"before", "after", "another picture"}
    assert set(results[3]["before"].values()) == {0.0}, "random weights answer nothing"
    assert capsys.readouterr().out.count("| 3 |") == 3
    trained = {row["images"][0].tobytes() for row in shapes.rows(32, seed=3)}
    held_out = {row["images"][0].tobytes() for row in shapes.rows(6, seed=1_000_003)}
    assert not trained & held_out
