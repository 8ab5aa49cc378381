"""Runs the notebooks of recipes/notebooks, each from an empty kernel, and stores what they show.

.venv/bin/python scripts/run_notebooks.py [NAME ...]    # those named, or all; --check stores nothing

Progress bars and log lines (stderr) are not stored, nor anything that differs from run to run without being shown.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = Path(__file__).parents[1] / "recipes" / "notebooks"
MOST_BYTES = 300_000
MOST_LINES = 25
SECONDS = 600
"""For one cell, on a busy machine."""
_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|work|Users|mnt|content)/|site-packages|[A-Z]:\\\\")


def execute(notebook: Any, folder: Path) -> Any:
    """The notebook with the outputs of a new kernel that works in ``folder``.

    Raises:
        CellExecutionError: a cell raised.
    """
    resources = {"metadata": {"path": str(folder)}}
    with tempfile.TemporaryDirectory() as profile:  # nobody's start-up files, and no network, not even a local one
        environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        kernel = {"transport": "ipc", "connection_file": f"{profile}/kernel.json"}
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources=resources,
            record_timing=False,
            config=Config({"KernelManager": kernel}),
        )
        client.execute(env={**environment, "IPYTHONDIR": profile})
    return tidied(notebook)


def tidied(notebook: Any) -> Any:
    """The notebook without stderr and without what its kernel says of itself."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in code_cells(notebook):
        cell.metadata = {}
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(path: Path) -> Iterator[str]:
    """What is wrong with a stored notebook."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if path.stat().st_size > MOST_BYTES:
        yield f"{path.stat().st_size:,} bytes are stored: at most {MOST_BYTES:,}"
    cells = code_cells(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "its cells were not run in order from an empty kernel"
    for number, cell in enumerate(cells, start=1):
        if len(cell.source.splitlines()) > MOST_LINES:
            yield f"cell {number} is longer than {MOST_LINES} lines"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"cell {number} shows an error"
            found = _MACHINE.search(str({**output, "data": {**output.get("data", {}), "image/png": ""}}))
            if found:
                yield f"cell {number} shows a path of one machine: {found[0]}"


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--check", action="store_true", help="run them, and look at what is stored")
    args = parser.parse_args()
    failed = False
    for name in args.names or names:
        path = FOLDER / f"{name}.ipynb"
        try:
            notebook = execute(nbformat.read(path, as_version=4), FOLDER)
        except CellExecutionError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if not args.check:
            nbformat.write(notebook, path)
        wrong = list(faults(path))
        failed = failed or bool(wrong)
        print(f"{name}: {'; '.join(wrong) or f'runs, {path.stat().st_size:,} bytes'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
