"""The machine that numbers were measured on, in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tomllib
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
_PACKAGES = ("torch", "trl", "transformers", "datasets", "pyarrow", "numpy", "sft_mask")


def machine() -> dict[str, Any]:
    """CPU, cores, memory, system, Python, versions, and the GPU where torch is loaded and sees one."""
    described: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    gpu = _gpu()
    return {**described, "gpu": gpu} if gpu else described


def machine_line(described: dict[str, Any]) -> str:
    """The machine on one line, for the caption of a table."""
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items() if version)
    gpu = f", {described['gpu']}" if described.get("gpu") else ""
    return (
        f"{described['cpu']}, {described['cores']} cores, {described['memory_gib']} GiB{gpu}; "
        f"Python {described['python']}, {versions}"
    )


def _cpu() -> str:
    """The processor's name, with its numbers where a virtual machine leaves out the name."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    said = {name.strip(): value.strip() for name, value in fields.items()}
    name = said.get("model name", platform.machine())
    numbers = ", ".join(f"{field} {said[field]}" for field in ("cpu family", "model") if field in said)
    return f"{name} ({numbers})" if numbers else name


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _version(name: str) -> str | None:
    """The installed version; the library's own, where it runs from its clone, is the clone's."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
        return str(project["version"]) if project["name"].replace("-", "_") == name else None


def _gpu() -> str | None:
    """Torch is asked only if the benchmark itself has imported it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    return f"{count} × {properties.name} ({properties.total_memory / 2**30:.0f} GiB), CUDA {torch.version.cuda}"
