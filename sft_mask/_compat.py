"""What differs between versions of the libraries underneath, in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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


_HEAD_ARGUMENTS = (
    "ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, outputs"
)


@dataclass(frozen=True, slots=True)
class ChunkedHead:
    """How TRL's loss projects hidden states, on devices with Triton and on others.

    Attributes:
        module: which looks the other two up on each call.
        apply: projects and scores; its arguments are those of :class:`sft_mask.head._Head`.
        is_compact: whether supervised positions only are scored on a device.
    """

    module: Any
    apply: Callable[..., Any]
    is_compact: Callable[[Any], bool]

    @contextmanager
    def replaced_by(self, head: Any) -> Iterator[None]:
        """Has the loss score supervised positions only, and by ``head``, while the block runs."""
        before = {name: getattr(self.module, name) for name in ("_ChunkedLogProbFunction", "_use_triton")}
        self.module._ChunkedLogProbFunction, self.module._use_triton = head, lambda _: True
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.module, name, value)


def chunked_head() -> ChunkedHead | None:
    """TRL's head as trl 1.16 has it; ``None`` where it is another, which is then left alone."""
    from trl.trainer import utils

    function: Any = getattr(utils, "_ChunkedLogProbFunction", None)
    is_compact = getattr(utils, "_use_triton", None)
    if is_compact is None or not hasattr(function, "forward"):
        return None
    arguments = ", ".join(inspect.signature(function.forward).parameters)
    return ChunkedHead(utils, function.apply, is_compact) if arguments == _HEAD_ARGUMENTS else None
