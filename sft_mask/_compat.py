"""What differs between versions of the libraries underneath, in one place."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def main_process_first() -> AbstractContextManager[Any]:
    """Runs a block on the first process of each node, then on the others, which find its cache.

    trl < 1.14 has no ``global_then_local_main_first``; drop the fallback when the floor reaches it.
    """
    try:
        from trl.trainer.utils import global_then_local_main_first
    except ImportError:
        from accelerate import PartialState

        first: AbstractContextManager[Any] = PartialState().main_process_first()
        return first
    return global_then_local_main_first()


def is_main_process() -> bool:
    """Whether this process is the one that talks."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def has_fused_lm_head() -> bool:
    """Whether the trainer's loss is made from log-probabilities of tokens, as since trl 1.15."""
    from importlib.metadata import version

    from packaging.version import Version

    return Version(version("trl")) >= Version("1.15")
