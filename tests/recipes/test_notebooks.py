"""``recipes/notebooks``: each runs from an empty kernel and shows what is stored; what is stored is small and clean."""

from __future__ import annotations

import json
import os
import runpy
from itertools import chain
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.marks import slow_but
from support.recipe_runner import RECIPES, ROOT, environment

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))
FOLDER = RECIPES / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
WITHOUT_MODEL = "why_did_my_model_stop_thinking"


def stored(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def kinds(notebook: Any) -> list[list[str]]:
    """Of each cell, what its outputs are."""
    cells = SCRIPT["code_cells"](notebook)
    return [["+".join(sorted(out.get("data", {"stream": ""}))) for out in cell.outputs] for cell in cells]


def texts(notebook: Any) -> list[str]:
    outputs = [out for cell in SCRIPT["code_cells"](notebook) for out in cell.outputs]
    return [out.get("text") or out["data"]["text/plain"] for out in outputs]


def test_the_three_notebooks_are_there() -> None:
    assert NAMES == ["fine_tune_and_see_it", "what_loss_masking_does", WITHOUT_MODEL]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_small_complete_and_of_no_machine(name: str) -> None:
    assert list(SCRIPT["faults"](FOLDER / f"{name}.ipynb")) == []
    assert sum(map(len, kinds(stored(name)))) >= 6
    assert "text/html+text/plain" in chain.from_iterable(kinds(stored(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_exists(name: str) -> None:
    words = "\n".join(cell.source for cell in stored(name).cells if cell.cell_type == "markdown")
    links = [part.partition(")")[0] for part in words.split("](")[1:]]
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []


@pytest.mark.parametrize("name", slow_but([WITHOUT_MODEL], NAMES))
def test_it_runs_from_an_empty_kernel_and_shows_what_is_stored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in RECIPES.iterdir():
        if each != FOLDER:
            (tmp_path / each.name).symlink_to(each)
    (tmp_path / "notebooks").mkdir()
    for variable, value in environment().items():
        monkeypatch.setitem(os.environ, variable, value)
    before = stored(name)
    after = SCRIPT["execute"](stored(name), tmp_path / "notebooks")
    assert kinds(after) == kinds(before)
    if name == WITHOUT_MODEL:
        assert texts(after) == texts(before)


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ({"execution_count": 3}, "its cells were not run in order from an empty kernel"),
        ({"source": "x\n" * 30}, "cell 1 is longer than 25 lines"),
        ({"outputs": [{"output_type": "stream", "name": "stderr", "text": "x"}]}, "cell 1 shows an error"),
        (
            {"outputs": [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]},
            "cell 1 shows an error",
        ),
        (
            {"outputs": [{"output_type": "stream", "name": "stdout", "text": "in /home/me/x.py"}]},
            "cell 1 shows a path of one machine: /home/",
        ),
        (
            {"outputs": [{"output_type": "stream", "name": "stdout", "text": "x" * 300_000}]},
            "300,220 bytes are stored: at most 300,000",
        ),
    ],
)
def test_each_fault_of_a_stored_notebook_is_named(cell: dict[str, Any], fault: str, tmp_path: Path) -> None:
    whole = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1", "execution_count": 1, "outputs": [], **cell}
    notebook = {"cells": [whole], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps(notebook), "utf-8")
    assert list(SCRIPT["faults"](path)) == [fault]
