"""Which trainers are taken, and one sentence for each kind that is not: what it trains on, and what to do."""

from __future__ import annotations

from typing import Any

from sft_mask._compat import is_hf_trainer, is_sft_trainer
from sft_mask.errors import DataError, UnsupportedError

_PAIRS = (
    "compares a chosen with a rejected answer and makes its own labels from rows of prompt, chosen and rejected, "
    "without the prompt. Call its train() as it is; to train on the chosen answers alone, give prompt and chosen as "
    "messages to an SFTTrainer."
)
_SAMPLED = (
    "trains on answers that the model samples itself, so its rows are prompts without labels, and every trained token "
    "is the model's own. Call its train() as it is; there is nothing to mask."
)
_TEACHER = (
    "learns from the probabilities of a teacher, and makes its own labels while collating. Call its train() as it is; "
    "to train on the answers as they are written, use an SFTTrainer."
)
_SCORES = (
    "trains a score for a whole answer, not its tokens, so there are no labels to mask. Call its train() as it is."
)
_OTHERS = {
    **dict.fromkeys(("DPOTrainer", "CPOTrainer", "TPOTrainer"), _PAIRS),
    "ORPOTrainer": (
        "compares a chosen with a rejected answer and adds cross-entropy over the whole chosen row, prompt included, "
        "as ORPO is defined; it makes its own labels. Call its train() as it is, or use an SFTTrainer."
    ),
    **dict.fromkeys(
        ("KTOTrainer", "BCOTrainer"),
        "judges single answers as good or bad and makes its own labels from rows of prompt, completion and label, "
        "without the prompt. Call its train() as it is; to train on the good answers alone, give those rows to an "
        "SFTTrainer.",
    ),
    **dict.fromkeys(("RewardTrainer", "PRMTrainer"), _SCORES),
    **dict.fromkeys(
        ("GRPOTrainer", "RLOOTrainer", "OnlineDPOTrainer", "NashMDTrainer", "XPOTrainer", "PPOTrainer", "A2POTrainer"),
        _SAMPLED,
    ),
    **dict.fromkeys(("AsyncGRPOTrainer", "IWOPDTrainer"), _SAMPLED),
    **dict.fromkeys(("GKDTrainer", "GOLDTrainer", "DistillationTrainer", "AsyncDistillationTrainer"), _TEACHER),
    **dict.fromkeys(("SDFTTrainer", "SDPOTrainer", "MiniLLMTrainer"), _TEACHER),
}
"""By the name of a class: a class of one's own, or Unsloth's, has it among its bases."""
_OTHER_LOSSES = {
    "ForMaskedLM": "fills in masked tokens",
    "ForSequenceClassification": "classifies whole rows",
    "ForTokenClassification": "classifies tokens",
    "ForQuestionAnswering": "marks the answer in a text",
}


def check_kind(trainer: Any, verb: str) -> bool:
    """Whether a trainer is an ``SFTTrainer``; ``False`` for any other ``transformers.Trainer`` of a language model.

    Args:
        trainer: a built trainer.
        verb: the function it was given to, for errors.

    Raises:
        UnsupportedError: another kind of trainer or model, or none.
    """
    name = type(trainer).__name__
    bases = [kind.__name__.lstrip("_").removeprefix("Unsloth") for kind in type(trainer).__mro__]
    other = next((base for base in bases if base in _OTHERS), None)
    if other is not None:
        which = name if name == other else f"{name} (a {other})"
        raise UnsupportedError(f"{verb} does not take a {which}: it {_OTHERS[other]}")
    if is_sft_trainer(trainer):
        return True
    if not is_hf_trainer(trainer):
        raise UnsupportedError(
            f"{verb} needs a built trl.SFTTrainer or transformers.Trainer, not {name}. For your own loop, "
            "mask the data before: mask_dataset(dataset, tokenizer)."
        )
    if any((kind.__module__ or "").startswith("trl.") for kind in type(trainer).__mro__):
        raise UnsupportedError(
            f"{verb} needs a trl.SFTTrainer, not {name}: of TRL's trainers only that one computes cross-entropy over "
            "the labels of its dataset. Call the train() of this one as it is, or use an SFTTrainer."
        )
    _check_model(trainer, verb)
    return False


def _check_model(trainer: Any, verb: str) -> None:
    """Refuses models whose labels are not the tokens of ``input_ids``."""
    model = trainer.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        does = "writes its answer in a decoder, so its labels are another text than input_ids and hold no prompt"
    elif (loss := getattr(base, "loss_type", None)) in _OTHER_LOSSES:
        does = f"{_OTHER_LOSSES[loss]}, so its labels are not the tokens of a conversation"
    else:
        return
    raise UnsupportedError(
        f"{verb} is for models that continue a text (AutoModelForCausalLM). The trainer's {type(base).__name__} "
        f"{does}. There is nothing to mask; train it as it is."
    )


def check_rows(split: object, name: str, owner: str) -> None:
    """Refuses splits that are not datasets with columns, such as a list or a ``torch.utils.data.Dataset``.

    Raises:
        DataError: with the line that makes a dataset of it.
    """
    if isinstance(split, dict):
        choices = " or ".join(f"{owner} = {owner}[{key!r}]" for key in split)
        raise DataError(f"The {name} dataset is a dict of splits. Choose one: {choices}.")
    if hasattr(split, "column_names"):
        return
    raise DataError(
        f"The {name} dataset is a {type(split).__name__}, not a datasets.Dataset, so its labels cannot be replaced. "
        f"Make it one: {owner} = datasets.Dataset.from_list([dict(row) for row in {owner}])"
    )
