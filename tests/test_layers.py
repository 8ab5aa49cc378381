"""The shape of the package: imports go one way, the core knows no framework, one constant stands in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sft_mask"
FILES = {
    "sft_mask." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

FRAMEWORKS = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
HEAVY = FRAMEWORKS | {"numpy", "pyarrow", "rich", "jinja2"}
ALLOWED = {
    "sft_mask._compat": {"trl", "accelerate"},
    "sft_mask.cli.files": {"datasets"},
    "sft_mask.cli.inputs": {"datasets", "transformers"},
    "sft_mask.cli.output": {"datasets"},
    "sft_mask.data.dataset": {"datasets"},
    "sft_mask.data.expand": {"datasets"},
    "sft_mask.data.formats.read": {"datasets"},
    "sft_mask.doctor.checks.loss": {"torch"},
    "sft_mask.doctor.samples": {"datasets"},
    "sft_mask._tensors": {"torch"},
    "sft_mask.functional": {"torch"},
    "sft_mask.trainer.lm_head": {"torch"},
    "sft_mask.data.cache": {"datasets"},
    "sft_mask.tracking.generation": {"torch", "transformers"},
    "sft_mask.tracking.log_mask": {"transformers"},
    "sft_mask.tracking.sample_answers": {"transformers"},
    "sft_mask.tracking.trackers": {"transformers"},
    "sft_mask.trainer.group_loss": {"torch"},
    "sft_mask.trainer.hook": {"torch"},
    "sft_mask.trainer.metrics": {"torch"},
    "sft_mask.preview.source": {"datasets"},
    "sft_mask.data.setup": {"datasets"},
    "sft_mask.data.tokenize.rows": {"transformers"},
    "sft_mask.data.tokenize.shards": {"datasets"},
    "sft_mask.templates.tracing.sandbox": {"transformers"},
    "sft_mask.templates.render": {"transformers"},
    "sft_mask.trainer.weighted_loss": {"torch"},
    "sft_mask.vision.collator": {"torch"},
    "sft_mask.vision.counts": {"torch"},
}
"""Modules that may import a framework at run time; every other module does without."""

BELOW: dict[str, set[str]] = {
    "constants": set(),
    "errors": set(),
    "report": {"constants", "errors"},
    "core": {"constants", "errors", "report"},
    "templates": {"constants", "errors", "report", "core"},
    "_compat": {"constants", "errors"},
    "_tensors": {"errors"},
    "functional": {"constants", "errors", "_tensors"},
    "data": {"constants", "errors", "report", "core", "templates", "_compat"},
}
BELOW["vision"] = {*BELOW["data"], "data"}
BELOW["trainer"] = {*BELOW["vision"], "vision"}
BELOW["explanations"] = {*BELOW["vision"], "vision"} - {"_compat"}
BELOW["preview"] = {*BELOW["explanations"], "explanations"}
BELOW["doctor"] = {*BELOW["trainer"], "trainer", "explanations", "functional"}
BELOW["tracking"] = {*BELOW["preview"], *BELOW["trainer"], "preview", "trainer"}
BELOW["cli"] = {*BELOW["preview"], *BELOW["doctor"], "preview", "doctor"}
"""What each package may import, besides itself; ``sft_mask`` itself and its ``__main__`` only pass names on."""


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not is_for_types(child):
            yield child
            yield from run_time_nodes(child)


def imported(tree: ast.AST) -> set[str]:
    """Modules that a tree imports at run time, inside of functions too."""
    found = set()
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


GRAPH = {name: imported(tree) & FILES.keys() for name, tree in TREES.items()}


def test_the_package_was_found() -> None:
    assert len(FILES) > 15
    assert ALLOWED.keys() <= FILES.keys()
    assert {name.split(".")[1] for name in FILES} - {"__main__"} == BELOW.keys()


def test_imports_go_one_way() -> None:
    done: set[str] = set()
    waiting = dict(GRAPH)
    while waiting:
        free = [name for name, needs in waiting.items() if needs <= done]
        assert free, f"these modules import each other in a circle: {sorted(waiting)}"
        done.update(free)
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("name", FILES)
def test_a_package_imports_what_is_below_it(name: str) -> None:
    home = name.split(".")[1]
    nodes = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name if isinstance(node, ast.Import) else str(node.module) for node in nodes for alias in node.names]
    seen = {module.split(".")[1] for module in names if module.startswith("sft_mask.")}
    assert home == "__main__" or seen <= {home, *BELOW[home]}, "types count too"


@pytest.mark.parametrize("name", FILES)
def test_frameworks_are_imported_where_they_belong(name: str) -> None:
    tops = {module.partition(".")[0] for module in imported(TREES[name])}
    assert tops & FRAMEWORKS <= ALLOWED.get(name, set())


@pytest.mark.parametrize(
    "first", ["import sft_mask", "import sft_mask; dir(sft_mask)", "from sft_mask import IGNORE_INDEX"]
)
def test_importing_the_package_imports_nothing_heavy(first: str) -> None:
    script = f"{first}\nimport sys\nprint(sorted({{name.partition('.')[0] for name in sys.modules}} & {HEAVY!r}))"
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent).stdout
    assert out.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import sft_mask

    for name in sft_mask.__all__:
        assert getattr(sft_mask, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sft_mask.nothing


def minus_hundreds(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
        and node.operand.value == 100
    ]


def test_the_ignored_label_is_written_once() -> None:
    places = {name: minus_hundreds(tree) for name, tree in TREES.items() if minus_hundreds(tree)}
    assert list(places) == ["sft_mask.constants"]
    assert len(places["sft_mask.constants"]) == 1


@pytest.mark.parametrize("name", [name for name in FILES if name != "sft_mask.cli"])
def test_the_library_does_not_print(name: str) -> None:
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]


@pytest.mark.parametrize("name", FILES)
def test_no_exception_is_swallowed(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
            assert node.type is not None, f"{name}:{node.lineno} catches everything"
            assert not names & {"Exception", "BaseException"}, f"{name}:{node.lineno} catches too much"


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(TREES[name])
