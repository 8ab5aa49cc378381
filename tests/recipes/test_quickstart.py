"""``recipes/quickstart.py`` through its command line, on the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.recipe_runner import run_recipe

HEADINGS = ["Model", "Data", "What will be trained", "Before training", "Training", "After training", "Done"]


@pytest.mark.slow
def test_quickstart_trains_two_steps_and_saves_an_adapter(tmp_path: Path) -> None:
    sizes = ("--steps=2", "--batch-size=2", "--rows=8", "--held-out=4", "--questions=2", "--threads=1")
    run = run_recipe("quickstart.py", *sizes, "--cpu", f"--output={tmp_path / 'adapter'}")
    assert run.code == 0, run.output[-3000:]
    positions = [run.output.find(f"\n{heading} ·") for heading in HEADINGS]
    assert -1 not in positions, run.output
    assert positions == sorted(positions)
    assert "⟦Topic: " in run.output, "one conversation is shown, with its trained tokens marked"
    assert "before: 0 of 2 held-out answers in the house style, response-only loss " in run.output
    assert "after:  " in run.output
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 1e6
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 8


def test_quickstart_explains_itself_without_loading_a_model() -> None:
    run = run_recipe("quickstart.py", "--help")
    assert run.code == 0, run.output
    assert "on the assistant's words only" in run.output
