"""Every Python block of the README and of the pages in docs/ runs, in order, in one namespace per page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from local_model import smollm2_folder

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_readme_runs_before_line_30() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30]
    assert "```python" in first
    assert any("train_on_responses_only(trainer" in line for line in first)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks(page):
        # No hub here: the same model from a package. The names of files and everything else run as they stand.
        exec(compile(block.replace(HUB_NAME, str(smollm2_folder())), page.name, "exec"), namespace)
    assert page.name != "README.md" or namespace["trainer"].state.global_step > 0


def test_the_reference_says_what_the_docstrings_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_reference.py"))
    wanted = "run python scripts/make_reference.py"
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_a_page_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
