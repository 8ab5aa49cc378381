"""Runs recipes through their command line, each in a process of its own, without importing torch again for each.

One server process imports what every recipe imports and forks for each command; the fork sets ``sys.argv`` and runs the
file as ``__main__``, as ``python recipes/NAME.py`` does.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SECONDS = 300
"""No recipe needs longer here, even on a busy machine; one that does is ended, and its exit code says so."""


def environment(**more: str) -> dict[str, str]:
    """What a recipe is run with: the package of this checkout, no hub, one thread."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    fixed = {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return {**os.environ, **fixed, "TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8", **more}


@dataclass(frozen=True)
class Run:
    """How a command ended, and all that it said."""

    code: int
    output: str


def run_recipe(name: str, *arguments: Any, **more: str) -> Run:
    """``python recipes/NAME ARGUMENTS`` in the root of the repository."""
    server = _server()
    with tempfile.NamedTemporaryFile("r", suffix=".log", encoding="utf-8") as log:
        command = {"script": str(RECIPES / name), "arguments": [*map(str, arguments)], "log": log.name, "more": more}
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(command) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server of recipes is gone"
        return Run(int(answer), log.read())


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore::FutureWarning", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    atexit.register(server.kill)
    return server


def serve() -> None:
    import peft  # noqa: F401  imported once, for every recipe
    import trl.trainer.sft_trainer  # noqa: F401

    gc.freeze()  # each `train()` collects garbage, and what was imported is none
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        command = json.loads(line)
        child = os.fork()
        if not child:
            return become(command)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    return None


def become(command: dict[str, Any]) -> None:
    """Turns this process into the recipe: it ends as the recipe ends."""
    import runpy
    import signal

    signal.alarm(SECONDS)
    log = os.open(command["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(command["more"])
    sys.argv = [command["script"], *command["arguments"]]
    sys.path[0] = str(Path(command["script"]).parent)
    runpy.run_path(command["script"], run_name="__main__")


if __name__ == "__main__":
    serve()
