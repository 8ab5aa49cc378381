"""Trainers whose loss would ignore weights or apply them wrongly; each is refused by name before the first step."""

from __future__ import annotations

from typing import Any

from sft_mask._compat import LossPath, has_fused_lm_head, is_sft_trainer, loss_path
from sft_mask.errors import UnsupportedError

_WITHOUT = "train without weights (prompt_weight, reduction, weights of roles, regions or messages, loss_weights)."


def refuse_with_weights(trainer: Any) -> None:
    """Refuses what cannot train with weights.

    Raises:
        UnsupportedError: a trainer that is not an ``SFTTrainer``, label smoothing, ``compute_loss_func``,
            ``loss_type="dft"``, context or sequence parallelism, a TRL without the fused LM head, or a class whose
            ``compute_loss`` does not call TRL's, or not with the number of tokens of the step.
    """
    if not is_sft_trainer(trainer):
        raise UnsupportedError(
            f"Token weights do not work with a {type(trainer).__name__}: it trains with the loss that the model "
            "computes from its labels, in which every trained token counts the same, so the weights would be ignored. "
            f"Use trl.SFTTrainer, or {_WITHOUT}"
        )
    args = trainer.args
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    reasons = {
        "label_smoothing_factor": args.label_smoothing_factor != 0,
        "compute_loss_func": trainer.compute_loss_func is not None,
        "loss_type='dft'": getattr(args, "loss_type", None) == "dft",
        "context parallelism": getattr(parallelism, "cp_enabled", False),
        "sequence parallelism": getattr(parallelism, "sp_enabled", False),
        "trl < 1.15": not has_fused_lm_head(),
    }
    found = [name for name, there in reasons.items() if there]
    if found:
        raise UnsupportedError(
            f"Token weights do not work with {' and '.join(found)}: that loss does not see the weights, so they "
            f"would be silently ignored. Leave it out, or {_WITHOUT}"
        )
    _refuse_class(trainer, loss_path(trainer))


def _refuse_class(trainer: Any, path: LossPath) -> None:
    name = type(trainer).__name__
    if path.trls is None:
        overriding = ", then ".join(f"that of {kind.__name__}" for kind in path.before)
        place = "one set on the trainer itself" if "compute_loss" in vars(trainer) else overriding
        raise UnsupportedError(
            f"Token weights do not work with this {name}: its compute_loss ({place}) does not call that of TRL's "
            "SFTTrainer, in which weights are applied, so they would be ignored. Let it call super().compute_loss(...) "
            f"of TRL's class, use TRL's own SFTTrainer (Unsloth replaces it), or {_WITHOUT}"
        )
    if not (trainer.model_accepts_loss_kwargs or normalizes_by_tokens(trainer)):
        raise UnsupportedError(
            f"Token weights do not work with this {name}: trainer.model_accepts_loss_kwargs is False, so its loss is a "
            "mean over each batch, not over the whole optimizer step, and only for TRL's own compute_loss is that "
            "changed here. If yours passes num_items_in_batch on to super().compute_loss(...), set "
            f"trainer.model_accepts_loss_kwargs = True before this call; or {_WITHOUT}"
        )


def normalizes_by_tokens(trainer: Any) -> bool:
    """Whether the trainer itself divides the loss by the number of tokens of the step, even if the model does not.

    TRL's own ``compute_loss`` does. Another ``compute_loss`` may leave the division to the model.
    """
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    by_model = trainer.compute_loss_func is not None or getattr(parallelism, "sp_enabled", False)
    by_batches = getattr(trainer, "loss_is_scaled_for_ga", None) is False
    is_trls = has_fused_lm_head() and loss_path(trainer).is_trls
    return is_trls and not by_model and not by_batches and trainer.args.label_smoothing_factor == 0
