"""Launches the project's own configurations with ``accelerate launch`` on two CPU processes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SECONDS = int(os.environ.get("LAUNCH_SECONDS", "500"))
"""Longer than any launch needs on a busy machine; one that hangs is ended, and its exit code says so."""


@dataclass(frozen=True)
class Configuration:
    """A file of ``recipes/accelerate``, and what a launch with it must turn out to be.

    Attributes:
        file: its name.
        kind: ``distributed_type`` of the accelerator on CPUs.
        is_sharded: whether parameters are sharded.
        same_rows: whether both ranks share the rows of a batch.
        ours: whether the loss uses the library's LM head; elsewhere that of TRL.
        resumes: whether it can be resumed within one launch.
        needs: a package without which it cannot be launched.
        more: environment variables that put it on CPUs.
    """

    file: str
    kind: str
    is_sharded: bool = False
    same_rows: bool = False
    ours: bool = True
    resumes: bool = True
    needs: str = "accelerate"
    more: dict[str, str] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


_DEEPSPEED: dict[str, Any] = {"kind": "DEEPSPEED", "needs": "deepspeed", "more": {"DS_ACCELERATOR": "cpu"}}
CONFIGURATIONS = {
    "ddp": Configuration("ddp.yaml", "MULTI_CPU"),
    "fsdp2": Configuration("fsdp2.yaml", "FSDP", is_sharded=True),
    "fsdp2_qlora": Configuration("fsdp2_qlora.yaml", "FSDP", is_sharded=True, resumes=False, needs="bitsandbytes"),
    "zero2": Configuration("zero2.yaml", **_DEEPSPEED),
    "zero3": Configuration("zero3.yaml", is_sharded=True, ours=False, **_DEEPSPEED),
    "two_nodes": Configuration("two_nodes.yaml", "MULTI_CPU"),
    "tensor": Configuration(
        "ddp.yaml", "MULTI_GPU", is_sharded=True, same_rows=True, resumes=False, more={"TENSOR_PARALLEL": "true"}
    ),
    "sequence": Configuration(
        "sequence_parallel.yaml", is_sharded=True, same_rows=True, ours=False, resumes=False, **_DEEPSPEED
    ),
}


@dataclass(frozen=True)
class Ended:
    """How a launch ended, what all of its processes said, how many seconds it took, and when it was over."""

    code: int
    output: str
    seconds: float
    at: float


def launch_jobs(name: str, jobs: Sequence[dict[str, Any]], folder: Path) -> Ended:
    """Trains the jobs one after the other, in one launch of two processes."""
    folder.mkdir(parents=True, exist_ok=True)
    return launch(name, [str(HERE / "jobs.py"), str(folder), json.dumps(list(jobs))])


def launch(name: str, script: Sequence[str], **more: str) -> Ended:
    """``accelerate launch`` of a script and its arguments with a configuration, by two processes."""
    configuration = CONFIGURATIONS[name]
    started = time.monotonic()
    if name == "two_nodes":
        with two_machines() as machines:
            code, output = _together([machine.command(rank, script) for rank, machine in enumerate(machines)], more)
    else:
        one = [*_accelerate(configuration.file), "--main_process_port", str(free_port()), *_on_cpu(script)]
        code, output = _together([one], {**configuration.more, **more})
    return Ended(code, output, time.monotonic() - started, time.time())


def _accelerate(file: str) -> list[str]:
    chosen = ["--config_file", str(ROOT / "recipes" / "accelerate" / file), "--num_processes", "2"]
    return [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", *chosen, "--mixed_precision", "no"]


def _on_cpu(script: Sequence[str]) -> list[str]:
    return [str(HERE / "on_cpu.py"), *script]


def environment(**more: str) -> dict[str, str]:
    """What a launch is given: the package and the tests of this checkout, no hub, one thread."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    fixed = {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **fixed, "PYTHONUNBUFFERED": "1", **more}


def _together(commands: Sequence[Sequence[str]], more: dict[str, str]) -> tuple[int, str]:
    """Runs commands at once; the first exit code that is not 0, and everything they said."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        started: dict[str, Any] = {"cwd": ROOT, "env": environment(**more), "stdout": log, "stderr": log}
        running = [subprocess.Popen(command, start_new_session=True, **started) for command in commands]
        deadline = time.monotonic() + SECONDS
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        codes = [process.wait() for process in running]
        log.seek(0)
        return next((code for code in codes if code), 0), log.read()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# two machines


@dataclass(frozen=True)
class Machine:
    """One of two machines with a process each.

    Attributes:
        address: of the first machine.
        port: of the first machine.
        inside: what runs a command on this one.
    """

    address: str
    port: int
    inside: tuple[str, ...]

    def command(self, rank: int, script: Sequence[str]) -> list[str]:
        place = ["--machine_rank", str(rank), "--main_process_ip", self.address, "--main_process_port", str(self.port)]
        return [*self.inside, *_accelerate("two_nodes.yaml"), *place, *_on_cpu(script)]


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two network namespaces joined by a cable, where root may make them; otherwise this machine, twice."""
    names = [f"sft{os.getpid()}{end}" for end in "ab"]
    with tempfile.TemporaryDirectory() as folder:
        caches = [f"HF_DATASETS_CACHE={folder}/{name}" for name in names]  # machines do not share theirs
        if can_make_networks():
            with _two_networks(names):
                # Without the name of the interface, gloo takes the one of the host's name, and the other machine waits.
                within = [("ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=v0") for name in names]
                first, second = ((*place, own) for place, own in zip(within, caches, strict=True))
                yield (Machine("10.0.0.1", 29500, first), Machine("10.0.0.1", 29500, second))
        else:
            port = free_port()
            yield (
                Machine("127.0.0.1", port, ("env", caches[0])),
                Machine("127.0.0.1", port, ("env", caches[1])),
            )


@contextmanager
def _two_networks(names: Sequence[str]) -> Iterator[None]:
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v0", "netns", names[1])
        for at, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.0.0.{at}/24", "dev", "v0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "v0", "up")
        yield
    finally:
        for name in names:
            _ip("netns", "del", name, check=False)


def can_make_networks() -> bool:
    """Whether network namespaces can be made here."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    probe = f"sft{os.getpid()}probe"
    made = _ip("netns", "add", probe, check=False).returncode == 0
    if made:
        _ip("netns", "del", probe, check=False)
    return made


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)
