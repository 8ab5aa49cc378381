"""What differs between versions of the libraries underneath, and where another package changed them, in one place."""

from __future__ import annotations

import ast
import inspect
import textwrap
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


_TRAINER = ("trl.trainer.sft_trainer", "SFTTrainer")
"""Where TRL defines its trainer: what else it is called by can be exchanged, and Unsloth does so."""


def is_sft_trainer(trainer: Any) -> bool:
    """Whether a trainer is of TRL's class, or of one that another package has put in its place."""
    import trl
    from trl.trainer import sft_trainer

    in_its_place = (trl.SFTTrainer, trl.trainer.SFTTrainer, sft_trainer.SFTTrainer)
    return any((kind.__module__, kind.__name__) == _TRAINER or kind in in_its_place for kind in type(trainer).__mro__)


@dataclass(frozen=True, slots=True)
class LossPath:
    """Which ``compute_loss`` of a trainer calls which, as far as their code shows.

    Attributes:
        before: classes with a ``compute_loss`` of their own that is called before TRL's, from the first to the last.
        trls: the class that has TRL's own; ``None`` where the last of ``before`` calls another one, or none.
    """

    before: tuple[type, ...]
    trls: type | None

    @property
    def is_trls(self) -> bool:
        """Whether TRL's is called directly."""
        return self.trls is not None and not self.before

    @classmethod
    def of(cls, kind: type) -> LossPath:
        """Of a trainer's class; what this library has put in front is left out."""
        before: list[type] = []
        for owner in kind.__mro__:
            function = vars(owner).get("compute_loss")
            module = getattr(function, "__module__", None) or ""
            if function is None or module.startswith("sft_mask."):
                continue
            if module == _TRAINER[0] and _scope(function).startswith("trl."):
                return cls(tuple(before), owner)
            before.append(owner)
            if not _calls_the_next(function, owner):
                break
        return cls(tuple(before), None)


def loss_path(trainer: Any) -> LossPath:
    """Of a trainer, whose own attribute ``compute_loss`` would come before that of every class."""
    if "compute_loss" in vars(trainer):
        return LossPath((type(trainer),), None)
    return LossPath.of(type(trainer))


def _scope(function: Any) -> str:
    """Where a function was written; what ``functools.wraps`` made says another ``__module__``."""
    return str(getattr(function, "__globals__", {}).get("__name__"))


def _calls_the_next(function: Any, owner: type) -> bool:
    """Whether a method's source has a call of ``super().compute_loss``; the first step tells whether it is made."""
    if not inspect.isfunction(function):
        return False
    function = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # made without a file: its names must do
        return "super" in getattr(function, "__code__", _calls_the_next.__code__).co_names
    wanted = {"super().compute_loss", f"super({owner.__name__}, self).compute_loss"}
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in wanted for node in ast.walk(tree))


_HEAD_ARGUMENTS = (
    "ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, outputs"
)


@dataclass(frozen=True, slots=True)
class ChunkedHead:
    """How TRL's loss projects hidden states, on devices with Triton and on others.

    Attributes:
        module: which looks the other two up on each call.
        apply: projects and scores; its arguments are those of :class:`sft_mask.trainer.lm_head._Head`.
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
