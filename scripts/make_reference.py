"""Writes docs/reference.md from the docstrings of the public names: ``python scripts/make_reference.py [--check]``."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
SECTIONS = {
    "Masking": [
        "sft_mask.train_on_responses_only",
        "sft_mask.mask_dataset",
        "sft_mask.ResponseOnlyCollator",
        "sft_mask.detect_markers",
    ],
    "What is trained": ["sft_mask.Policy", "sft_mask.Region", "sft_mask.Markers"],
    "What was done": ["sft_mask.MaskReport", "sft_mask.SplitReport"],
    "Seeing": [
        "sft_mask.preview.preview_rows",
        "sft_mask.preview.build_row",
        "sft_mask.preview.write_html",
        "sft_mask.explain",
    ],
    "In the log": ["sft_mask.LogMask", "sft_mask.SampleAnswers"],
    "What is wrong": ["sft_mask.doctor.diagnose", "sft_mask.doctor.Diagnosis", "sft_mask.doctor.Finding"],
    "Weights inside labels": [
        "sft_mask.core.label_codec.encode_labels",
        "sft_mask.core.label_codec.label_ids",
        "sft_mask.core.label_codec.label_weights",
    ],
    "On plain tensors": [
        f"sft_mask.functional.{name}"
        for name in (
            "create_loss_mask",
            "create_loss_mask_batch",
            "compute_sft_loss",
            "prepare_labels_for_hf",
            "apply_assistant_masking",
        )
    ],
    "Errors": [
        f"sft_mask.errors.{name}"
        for name in (
            "SftMaskError",
            "MarkerError",
            "DetectionError",
            "DataError",
            "NothingToTrainError",
            "AmbiguousRowError",
            "UnsupportedError",
            "LabelsChangedError",
        )
    ],
}
_HEADINGS = ("Args", "Returns", "Raises", "Attributes", "Yields")
_ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def plain(text: str) -> str:
    """Sphinx's references and double ticks, as Markdown has them."""
    text = re.sub(r":\w+:`~?([\w.]+\.)?(\w+)`", r"`\2`", text)
    return text.replace("``", "`")


def body(doc: str) -> str:
    """A docstring as Markdown: sections become lists, examples become code."""
    made = []
    for block in re.split(r"\n{2,}", inspect.cleandoc(doc)):
        first, _, rest = block.partition("\n")
        if block.startswith(">>>"):
            made.append(f"```text\n{block}\n```")
        elif first.rstrip(":") in _HEADINGS and first.endswith(":"):
            inner = plain(inspect.cleandoc("\n" + rest))
            made.append(f"**{first.rstrip(':')}**\n\n" + _ENTRY.sub(r"- `\1`: ", inner).replace("\n    ", "\n  "))
        elif first.startswith(".. code-block"):
            made.append("```python")
        elif block.startswith("    "):
            made.append(block)
        else:
            made.append(plain(block))
    text = "\n\n".join(made)
    return re.sub(r"```python\n\n((?:    .*\n?|\n)+)", lambda m: f"```text\n{inspect.cleandoc(m[1])}\n```\n", text)


def signature(name: str, thing: Any) -> str:
    """A call with its defaults, on one line or one line an argument."""
    found = inspect.signature(thing)
    whole = unquoted(f"{name}{found}")
    if len(whole) <= 100:
        return whole
    arguments, keywords = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            arguments.append("*")
            keywords = True
        arguments.append(unquoted(str(parameter)))
    returned = unquoted(str(found).rpartition(" -> ")[2])
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f") -> {returned}"


def unquoted(text: str) -> str:
    """Annotations without the quotes that postponed evaluation gives them."""
    return re.sub(r"(: |-> |^)'([^']*)'", r"\1\2", text)


def entry(path: str) -> str:
    thing = load(path)
    name = path.rpartition(".")[2]
    if inspect.isclass(thing) and issubclass(thing, Exception):
        parents = ", ".join(parent.__name__ for parent in thing.__bases__)
        return f"- `{name}({parents})`: {plain(inspect.cleandoc(thing.__doc__ or ''))}"
    shown = signature(name, thing)
    return f"### `{name}`\n\n```text\n{shown}\n```\n\n{body(thing.__doc__ or '')}"


def page() -> str:
    parts = [
        "# Reference\n\nEvery public name, from its docstring (`python scripts/make_reference.py` writes this page).",
    ]
    for title, names in SECTIONS.items():
        entries = [entry(path) for path in names]
        parts.append(f"## {title}\n\n" + ("\n" if title == "Errors" else "\n\n").join(entries))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is what it should be")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    return int(PAGE.read_text(encoding="utf-8") != page())


if __name__ == "__main__":
    sys.exit(main())
