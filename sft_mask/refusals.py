"""Trainers whose loss would ignore weights in silence, or count them wrong; each is named before the first step."""

from __future__ import annotations

from typing import Any

from sft_mask._compat import has_fused_lm_head
from sft_mask.errors import UnsupportedError


def refuse_with_weights(trainer: Any) -> None:
    """Refuses what cannot train with weights.

    Raises:
        UnsupportedError: label smoothing, ``compute_loss_func``, ``loss_type="dft"``, context or sequence parallelism,
            Liger, or a TRL without the fused LM head.
    """
    args = trainer.args
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    reasons = {
        "label_smoothing_factor": args.label_smoothing_factor != 0,
        "compute_loss_func": trainer.compute_loss_func is not None,
        "loss_type='dft'": getattr(args, "loss_type", None) == "dft",
        "use_liger_kernel": args.use_liger_kernel,
        "context parallelism": getattr(parallelism, "cp_enabled", False),
        "sequence parallelism": getattr(parallelism, "sp_enabled", False),
        "trl < 1.15": not has_fused_lm_head(),
    }
    found = [name for name, there in reasons.items() if there]
    if found:
        raise UnsupportedError(
            f"Token weights do not work with {' and '.join(found)}: that loss is computed past the weights, so they "
            "would be ignored in silence. Leave it out, or train without weights (prompt_weight, reduction, weights of "
            "roles, regions or messages, measure, loss_weights)."
        )
