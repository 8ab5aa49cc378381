"""What was trained, in the names and numbers that a log and a model card hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sft_mask.core.policy import Policy
from sft_mask.data.prelabelled import masked_by
from sft_mask.report import MaskReport
from sft_mask.trainer.inference import prompt_arguments

_ALWAYS = ("rows", "tokens", "trained_tokens", "share")


def policy_settings(policy: Policy) -> dict[str, object]:
    """The settings of a policy, ready for ``json.dumps``.

    >>> policy_settings(Policy(turns="last"))["turns"]
    'last'
    """
    return {each.name: _plain(getattr(policy, each.name)) for each in fields(policy)}


def _plain(value: Any) -> object:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, str | int | float) else repr(value)


def mask_settings(trainer: Any) -> dict[str, object]:
    """What was asked for: markers, end-of-turn tokens, policy, and the arguments of the generation prompt."""
    report, masker = trainer.mask_report, trainer._sft_mask.masker
    markers = report.markers.to_dict() if report.markers is not None else None
    policy: object = policy_settings(masker.policy) if masker is not None else None
    if is_masked_before(trainer):
        policy = masked_by(trainer.train_dataset)
    known = {"markers": markers, "policy": policy, "chat_template_kwargs": prompt_arguments(trainer)}
    return {name: value for name, value in known.items() if value is not None}


def is_masked_before(trainer: Any) -> bool:
    """Whether ``mask_dataset`` labelled the rows, by a policy that is known by its text alone."""
    train = trainer.mask_report.splits.get("train")
    return train is not None and train.rows_masked_before > 0


def mask_numbers(report: MaskReport) -> dict[str, float]:
    """The counts of each split as ``mask/train/share`` and so on; zeros are left out.

    >>> from sft_mask import SplitReport
    >>> mask_numbers(MaskReport({"train": SplitReport(rows=1, tokens=4, trained_tokens=1)}))["mask/train/share"]
    0.25
    """
    found: dict[str, float] = {}
    for split, counts in report.splits.items():
        for name, value in counts.to_dict().items():
            if isinstance(value, int | float) and (value or name in _ALWAYS):
                found[f"mask/{split.replace(':', '/')}/{name}"] = value
    return found
