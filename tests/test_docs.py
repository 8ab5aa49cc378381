"""Every Python block of the README and of the pages in docs/ runs, in order, in one namespace per page.

The model they name is SmolLM2 itself in the slow tests, and one with its tokenizer and few weights in the others.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from local_model import smollm2_folder
from support.api_page import documented
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_readme_runs_before_line_30() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30]
    assert "```python" in first
    assert any("train_on_responses_only(trainer" in line for line in first)


@pytest.fixture(scope="module")
def small_smollm2(smollm2: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2's tokenizer and a thousandth of its weights."""
    folder = tmp_path_factory.mktemp("small-smollm2")
    smollm2.save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = AutoConfig.from_pretrained(smollm2_folder(), **sizes, num_attention_heads=1, num_key_value_heads=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def with_models() -> list[Any]:
    """Every page with the small model, and with SmolLM2 in the slow tests; index.md runs the README's blocks."""
    pages = [page for page in PAGES if blocks(page)]
    small = [pytest.param(page, "small", id=f"{page.name}-small") for page in pages]
    whole = [page for page in pages if page.name != "index.md"]
    return small + [pytest.param(page, "smollm2", id=page.name, marks=pytest.mark.slow) for page in whole]


@pytest.mark.parametrize(("page", "model"), with_models())
def test_every_python_block_of_a_page_runs(
    page: Path, model: str, small_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_smollm2 if model == "small" else smollm2_folder()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    before = blocks(ROOT / "README.md")[:1] if page.name == "index.md" else []  # its three lines have the trainer built
    for block in [*before, *blocks(page)]:
        # The hub's name gives way to a folder; the names of files and everything else run as they are written.
        exec(compile(block.replace(HUB_NAME, str(folder)), page.name, "exec"), namespace)
    assert page.name != "README.md" or namespace["trainer"].state.global_step > 0


def test_every_public_name_is_on_the_page_of_names() -> None:
    modules = [import_module(f"sft_mask{part}") for part in ("", ".preview", ".doctor", ".functional")]
    public = {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}
    errors = vars(import_module("sft_mask.errors")).values()
    public |= {error.__name__: error for error in errors if isinstance(error, type) and issubclass(error, Exception)}
    assert len(public) > 40
    shown = documented()
    assert [name for name, thing in public.items() if not any(thing is other for other in shown.values())] == []
    assert [name for name, thing in shown.items() if not inspect.getdoc(thing)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_a_page_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
