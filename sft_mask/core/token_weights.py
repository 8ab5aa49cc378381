"""How much each token of a batch counts: from turns, regions and a policy to labels that carry weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import IGNORE_INDEX, ROLES
from sft_mask.core.label_codec import GROUP_MASK, encode_labels, mean_within
from sft_mask.core.labels import over_turns, trained_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Floats, Ids, Ints
    from sft_mask.core.policy import Policy
    from sft_mask.core.spans import Turns


_PROMPT, _FIRST = 1, 2
_NUMBERED_TURNS = 16
"""Turns from this one on are counted together."""


@dataclass(frozen=True, slots=True)
class Graded:
    """A batch that is about to get its weights.

    Attributes:
        ids: ``(tokens,)``.
        labels: ``(tokens,)`` int32, the answers that are trained; everything else is ``IGNORE_INDEX``.
        turns: those of the model that were found, trained or not.
        trained: the turns that are trained.
        documents: ``(documents + 1,)`` offsets.
        factor: ``(tokens,)`` what regions and a ``loss_weights`` column make of each token's weight.
        region: ``(tokens,)`` number of the region each token lies in, from 1, or 0.
        may_prompt: ``(tokens,)`` whether a token could be trained as prompt: of a row that trains an answer, not
            padding, not ignored before.
    """

    ids: Ids
    labels: NDArray[np.int32]
    turns: Turns
    trained: Turns
    documents: Ints
    factor: Floats
    region: Ints
    may_prompt: Bools


def grade(batch: Graded, policy: Policy) -> tuple[Ints, int]:
    """Labels with weights, and how many tokens of the prompt are trained.

    With ``w`` the weight of each token (of its turn, times its regions', times its ``loss_weights``)::

        reduction="token"      w
        reduction="turn"       turn's weight * w / sum(w over the turn)
        reduction="sequence"   w / sum(w over the document)
    """
    size = len(batch.ids)
    first_tokens = batch.documents[:-1][np.diff(batch.documents) > 0]
    weights = np.where(batch.labels != IGNORE_INDEX, batch.factor, 0.0)
    if policy.reduction == "turn":
        numbers = np.arange(len(batch.trained))
        weights = mean_within(weights, over_turns(batch.trained, numbers, size, outside=-1), first_tokens)
    weights *= over_turns(batch.trained, batch.trained.weight, size)
    prompt = batch.may_prompt & ~trained_mask(batch.turns, size)
    prompt_trained = prompt & (batch.factor > 0) if policy.prompt_weight else np.zeros(size, np.bool_)
    weights[prompt_trained] = policy.prompt_weight * batch.factor[prompt_trained]
    if policy.reduction == "sequence":
        units = np.repeat(np.arange(len(batch.documents) - 1), np.diff(batch.documents))
        weights = mean_within(weights, units, first_tokens)
    measured = prompt if policy.measure != "none" else prompt_trained
    labels = np.where((weights > 0) | measured, batch.ids, IGNORE_INDEX)
    return encode_labels(labels, weights, _groups(batch, policy, prompt)), int(prompt_trained.sum())


def _groups(batch: Graded, policy: Policy, prompt: Bools) -> Ints | None:
    if policy.measure == "none":
        return None
    trained, size = batch.trained, len(batch.ids)
    match policy.measure:
        case "role":
            groups = over_turns(trained, _FIRST + trained.role, size)
        case "turn":
            first = np.searchsorted(trained.document, trained.document)
            number = np.minimum(np.arange(len(trained)) - first, _NUMBERED_TURNS - 1)
            groups = over_turns(trained, _FIRST + number, size)
        case "region":
            groups = np.where(batch.region > 0, _FIRST - 1 + np.minimum(batch.region, GROUP_MASK - _FIRST), 0)
        case _:
            groups = np.zeros(size, np.int64)
    numbered: Ints = np.where(prompt, _PROMPT, groups)
    return numbered


def group_names(policy: Policy) -> tuple[str, ...]:
    """Names of the groups that are measured, by their number; group 0 is what is not measured by itself.

    >>> from sft_mask.core.policy import Policy
    >>> group_names(Policy(measure="prompt"))
    ('', 'prompt')
    """
    further: dict[str, tuple[str, ...]] = {
        "role": ROLES,
        "turn": (*(f"turn_{number}" for number in range(1, _NUMBERED_TURNS)), f"turn_{_NUMBERED_TURNS}_on"),
        "region": tuple(f"region_{number}" for number in range(1, len(policy.regions) + 1)),
    }
    if policy.measure == "none":
        return ()
    return tuple(chain(("", "prompt"), further.get(policy.measure, ())))
