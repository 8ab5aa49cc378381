"""Which tokens a rank is given, and with which other ranks it shares them.

Ranks of data parallelism (DDP, FSDP, ZeRO) have rows of their own. Those of tensor parallelism have the same rows.
Those of context and sequence parallelism have parts of the same rows. The token after the last one of a part is on the
next rank, so labels are shifted before rows are cut: ``shift_labels[i]`` is the token after ``input_ids[i]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_mask.data.read import Row

if TYPE_CHECKING:
    from torch import Tensor


def batch_labels(inputs: Row) -> Tensor:
    """Labels as they are aligned with ``input_ids``, or shifted where there are only those (sequence parallelism)."""
    labels: Tensor | None = inputs.get("labels")
    return inputs["shift_labels"] if labels is None else labels


def predicted_labels(inputs: Row) -> Tensor:
    """Labels of the tokens that the positions of a batch predict: the first of a row is predicted by none."""
    shifted: Tensor | None = inputs.get("shift_labels")
    return inputs["labels"][..., 1:] if shifted is None else shifted


def ranks_with_the_same_tokens(trainer: Any) -> int:
    """How many ranks are given the same tokens at the loss: the size of tensor parallelism."""
    return int(trainer.get_tp_size())


def ranks_with_the_same_rows(trainer: Any) -> int:
    """How many ranks are given the same rows before these are cut, as ``transformers`` has it for the step's tokens."""
    return int(trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size())


def place_among_rows(accelerator: Any) -> int:
    """Which part of a batch of all ranks this rank's dataloader takes."""
    parallelism = getattr(accelerator, "parallelism_config", None)
    same = getattr(parallelism, "tp_size", 1) * getattr(parallelism, "cp_size", 1)
    return int(accelerator.process_index // same)


def is_sequence_parallel(trainer: Any) -> bool:
    """Whether DeepSpeed cuts each row into parts, one for each rank (Ulysses)."""
    return bool(getattr(getattr(trainer.accelerator, "parallelism_config", None), "sp_enabled", False))


def what_depends_on_the_ranks(trainer: Any) -> list[str]:
    """What to know before the first step: why this loss is not the same on any number of ranks."""
    args, found = trainer.args, []
    if args.world_size > 1 and not args.average_tokens_across_devices:
        found.append(
            "average_tokens_across_devices=False: each rank divides its loss by the number of its own trained tokens, "
            "so a token counts more on a rank that has few of them, and the result depends on the number of ranks. "
            "Leave it at True, its default, for the mean over all trained tokens of the step."
        )
    if is_sequence_parallel(trainer):
        found.append(
            "Sequence parallelism: the loss of each batch is the mean over its own trained tokens, and the loss of a "
            "step the mean over its batches, so a token counts more in a batch that has few of them. Leave "
            "gradient_accumulation_steps at 1 for the mean over all trained tokens of the step."
        )
    return found
