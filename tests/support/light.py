"""Run as a script: what the light installation can do, with the packages of all extras hidden from the interpreter.

Prints one JSON object: the outcome of each feature by its name, or the error that it ended in.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

EXTRAS = {"accelerate", "bitsandbytes", "matplotlib", "peft", "torch", "trl"}


class WithoutExtras(PathFinder):
    """Finds what is installed, except the packages of the extras."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in EXTRAS else super().find_spec(fullname, path, target)


def command(*arguments: str) -> list[Any]:
    """Exit code, output and errors of ``sft-mask``."""
    from sft_mask.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return [code, out.getvalue(), err.getvalue()]


def masked(folder: Path) -> dict[str, Any]:
    """Labels and report of the chats."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    import sft_mask

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    data = Dataset.from_list([json.loads(line) for line in (folder / "chats.jsonl").read_text("utf-8").splitlines()])
    made, report = sft_mask.mask_dataset(data, tokenizer, return_report=True)
    label = sft_mask.train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
    labels = label({"input_ids": made["input_ids"]})["labels"]
    return {
        "labels": list(made["labels"]),
        "report": str(report),
        "by_function": [list(map(int, row)) for row in labels],
    }


def features(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is tried, by name."""
    chats = (str(folder / "model"), str(folder / "chats.jsonl"))
    snapshot, page = str(folder / "mask.jsonl"), str(folder / "mask.html")
    return {
        "mask_dataset": lambda: masked(folder),
        "check": lambda: command("check", *chats),
        "preview": lambda: command("preview", *chats),
        "html": lambda: command("preview", *chats, "--html", page),
        "detect": lambda: command("detect", chats[0]),
        "diff": lambda: command("diff", *chats, "--other-turns", "last"),
        "write": lambda: command("snapshot", "write", *chats, snapshot),
        "compare": lambda: command("snapshot", "check", *chats, snapshot),
        "functional": lambda: str(import_module("sft_mask.functional")),
        "trainer": lambda: str(import_module("sft_mask").train_on_responses_only(object())),
        "tracking": lambda: str(import_module("sft_mask").LogMask),
        "sampling": lambda: str(import_module("sft_mask").SampleAnswers),
        "doctor": lambda: str(import_module("sft_mask.doctor").diagnose(object())),
    }


def outcome(feature: Callable[[], Any]) -> Any:
    try:
        return feature()
    except ImportError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.meta_path[:] = [WithoutExtras if finder is PathFinder else finder for finder in sys.meta_path]
    outcomes = {name: outcome(feature) for name, feature in features(Path(sys.argv[1])).items()}
    loaded = sorted(EXTRAS & {name.partition(".")[0] for name in sys.modules})
    print(json.dumps({**outcomes, "loaded": loaded}))
