"""Differences between versions of TRL, and what another package may have replaced in it.

Each function that bridges two versions names the oldest allowed TRL with which it goes.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sft_mask.errors import extra

if TYPE_CHECKING:
    import torch


def main_process_first() -> AbstractContextManager[None]:
    """Runs a block on the first process of each node, then on the others, which find its cache.

    Without accelerate, or with one process, no process waits for another. The fallback goes with trl >= 1.14, which has
    ``global_then_local_main_first``; without TRL, accelerate alone does the same for a shared cache.
    """
    if _is_alone():
        return nullcontext()
    try:
        from trl.trainer.utils import global_then_local_main_first
    except ImportError:
        try:
            from accelerate import PartialState
        except ModuleNotFoundError:
            return nullcontext()
        first: AbstractContextManager[None] = PartialState().main_process_first()
        return first
    return global_then_local_main_first()


def _is_alone() -> bool:
    """Whether there is one process: nothing has set up several, and no launcher says so.

    Importing TRL takes longer than to mask thousands of rows.
    """
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_NTASKS")
    launched = any(os.environ.get(name, "1") != "1" for name in names)
    return not launched and not {"accelerate", "trl"} & sys.modules.keys()


def is_main_process() -> bool:
    """Whether this is the process that logs: the first of all, by ``RANK`` where accelerate is not installed."""
    if _is_alone():
        return True
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        return os.environ.get("RANK", "0") == "0"
    return bool(PartialState().is_main_process)


def has_fused_lm_head() -> bool:
    """Whether the trainer's loss comes from log-probabilities per token. Goes with trl >= 1.15: always true there."""
    from importlib.metadata import version

    from packaging.version import Version

    return Version(version("trl")) >= Version("1.15")


_TRAINER = ("trl.trainer.sft_trainer", "SFTTrainer")
"""Where TRL defines its trainer. Unsloth puts its own class there, under the same name."""


def is_sft_trainer(trainer: object) -> bool:
    """Whether a trainer is TRL's ``SFTTrainer``, or of a class that another package has put in its place.

    Raises:
        MissingExtraError: TRL is not installed.
    """
    with extra("train", "A trainer"):
        import trl
        from trl.trainer import sft_trainer

    exported = (trl.SFTTrainer, trl.trainer.SFTTrainer, sft_trainer.SFTTrainer)
    return any((kind.__module__, kind.__name__) == _TRAINER or kind in exported for kind in type(trainer).__mro__)


def is_hf_trainer(trainer: object) -> bool:
    """Whether a trainer is a ``transformers.Trainer`` or of a class made from it."""
    return any(
        (kind.__module__, kind.__name__) == ("transformers.trainer", "Trainer") for kind in type(trainer).__mro__
    )


@dataclass(frozen=True, slots=True)
class LossPath:
    """The classes of a trainer whose ``compute_loss`` runs, as far as their source shows.

    Attributes:
        before: classes with their own ``compute_loss``, in the order of the calls, down to TRL's.
        trls: the class that TRL's own ``compute_loss`` belongs to; ``None`` if the last of ``before`` does not call it.
    """

    before: tuple[type, ...]
    trls: type | None

    @property
    def is_trls(self) -> bool:
        """Whether TRL's own is called directly."""
        return self.trls is not None and not self.before

    @classmethod
    def of(cls, trainer_class: type) -> LossPath:
        """The path of a trainer's class, without the classes of this library."""
        before: list[type] = []
        for owner in trainer_class.__mro__:
            method = vars(owner).get("compute_loss")
            module = getattr(method, "__module__", None) or ""
            if method is None or module.startswith("sft_mask."):
                continue
            if module == _TRAINER[0] and _defined_in(method).startswith("trl."):
                return cls(tuple(before), owner)
            before.append(owner)
            if not _calls_super(method, owner):
                break
        return cls(tuple(before), None)


def loss_path(trainer: object) -> LossPath:
    """The path of a trainer; a ``compute_loss`` assigned to the trainer itself replaces those of all its classes."""
    if "compute_loss" in vars(trainer):
        return LossPath((type(trainer),), None)
    return LossPath.of(type(trainer))


def _defined_in(function: object) -> str:
    """The module whose globals a function uses; ``functools.wraps`` copies ``__module__`` but not these."""
    return str(getattr(function, "__globals__", {}).get("__name__"))


def _calls_super(method: object, owner: type) -> bool:
    """Whether a method's source calls ``super().compute_loss``. (That it really does, the first step checks.)"""
    if not inspect.isfunction(method):
        return False
    innermost = inspect.unwrap(method)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(innermost)))
    except (OSError, TypeError, SyntaxError):  # compiled from a string: only the names it uses are known
        code = getattr(innermost, "__code__", None)
        return code is not None and "super" in code.co_names
    calls = {"super().compute_loss", f"super({owner.__name__}, self).compute_loss"}
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in calls for node in ast.walk(tree))


_HEAD_ARGUMENTS = (
    "ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, outputs"
)


@dataclass(frozen=True, slots=True)
class ChunkedHead:
    """How TRL's loss projects hidden states to the vocabulary, on devices with Triton and on others.

    Attributes:
        module: TRL's module, which looks up the next two by name on each call.
        apply: projects and scores; its arguments are those of :class:`sft_mask.trainer.lm_head._Head`.
        is_compact: whether on a device only positions with a label are scored.
    """

    module: ModuleType
    apply: Callable[..., tuple[torch.Tensor | None, ...]]
    is_compact: Callable[[torch.device], bool]

    @contextmanager
    def replaced_by(self, head: object) -> Iterator[None]:
        """Makes TRL's loss score only positions with a label, and by ``head``, while the block runs."""
        before = {name: getattr(self.module, name) for name in ("_ChunkedLogProbFunction", "_use_triton")}
        replacements = {"_ChunkedLogProbFunction": head, "_use_triton": lambda _: True}
        try:
            for name, value in replacements.items():
                setattr(self.module, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self.module, name, value)


def chunked_head() -> ChunkedHead | None:
    """TRL's head; ``None`` before trl 1.16 and wherever its arguments differ from that version's."""
    from trl.trainer import utils

    function: object = getattr(utils, "_ChunkedLogProbFunction", None)
    is_compact = getattr(utils, "_use_triton", None)
    apply, forward = (getattr(function, name, None) for name in ("apply", "forward"))
    if is_compact is None or apply is None or forward is None:
        return None
    arguments = ", ".join(inspect.signature(forward).parameters)
    return ChunkedHead(utils, apply, is_compact) if arguments == _HEAD_ARGUMENTS else None


def pack_rows(dataset: Any, length: int, strategy: str) -> Any:
    """Rows of ``input_ids`` and ``labels``, packed as ``SFTTrainer`` packs them.

    Raises:
        MissingExtraError: TRL is not installed.
    """
    with extra("train", "Packing rows as TRL does"):
        from trl import pack_dataset
    return pack_dataset(dataset.with_format(None).select_columns(["input_ids", "labels"]), length, strategy)
