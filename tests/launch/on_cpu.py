"""Lets `accelerate launch` run FSDP2, tensor parallelism and DeepSpeed on CPU processes, and then runs a script.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 2 tests/launch/on_cpu.py SCRIPT ...

accelerate 1.15 takes its FSDP branch only where the processes are said to have GPUs; on CPUs it drops FSDP without a
word and runs DDP. Here the processes are relabelled before it looks; device (CPU) and backend (gloo) stay. DeepSpeed
compiles a shared-memory operation for CPUs at start, which needs a compiler and is not what is tested: gloo does it.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from typing import Any


def allow_cpu_ranks() -> None:
    """Changes accelerate and DeepSpeed in this process, as far as the launch asks for them."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("TENSOR_PARALLEL") == "true":
        _relabel_cpu_ranks()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and importlib.util.find_spec("deepspeed") is not None:
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _relabel_cpu_ranks() -> None:
    from accelerate import state
    from accelerate.utils import DistributedType

    original = state.PartialState.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    state.PartialState.__init__ = init  # type: ignore[method-assign]


if __name__ == "__main__":
    allow_cpu_ranks()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
