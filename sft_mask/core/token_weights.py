"""How much each token of a batch counts: from turns, regions and a policy to labels that carry weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import encode_labels
from sft_mask.core.labels import over_turns, trained_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Floats, Ids, Ints
    from sft_mask.core.policy import Policy
    from sft_mask.core.spans import Turns

_NOTHING: Final = float(np.finfo(np.float32).tiny)
"""Weights that sum to less are 0 in float32."""


@dataclass(frozen=True, slots=True)
class UnweightedBatch:
    """A batch before its tokens get their weights.

    Attributes:
        ids: ``(tokens,)``.
        labels: ``(tokens,)`` int32, the answers that are trained; everything else is ``IGNORE_INDEX``.
        turns: the assistant's turns that were found, trained or not.
        trained: the turns that are trained.
        documents: ``(documents + 1,)`` offsets.
        factor: ``(tokens,)`` by which regions and a ``loss_weights`` column multiply each token's weight.
        may_prompt: ``(tokens,)`` whether a token outside of turns could be trained: it is not padding, was not masked
            before, and its row trains an answer.
        units: ``(documents,)`` number of the conversation that each document belongs to; by default each is one.
    """

    ids: Ids
    labels: NDArray[np.int32]
    turns: Turns
    trained: Turns
    documents: Ints
    factor: Floats
    may_prompt: Bools
    units: Ints | None = None


def weighted_labels(batch: UnweightedBatch, policy: Policy) -> tuple[Ints, int]:
    """Labels with weights, and how many tokens of the prompt are trained.

    With ``w`` the weight of each token (of its turn, times those of its regions, times its ``loss_weights``)::

        reduction="token"      w
        reduction="turn"       turn's weight * w / sum(w over the turn)
        reduction="sequence"   w / sum(w over the document, or over all documents of its conversation)

    A document with two turns of weight 1, and a region of weight 0.5 over token 4::

        token        0    1    2    3    4    5    6    7
        turns                 [2 ----------- 5)    [6 -- 8)
        "token"      -    -    1    1   .5    -    1    1
        "turn"       -    -   .4   .4   .2    -   .5   .5       each turn sums to 1
        "sequence"   -    -  2/9  2/9  1/9    -  2/9  2/9       the document sums to 1
    """
    size = len(batch.ids)
    first_tokens = batch.documents[:-1][np.diff(batch.documents) > 0]
    weights = np.where(batch.labels != IGNORE_INDEX, batch.factor, 0.0)
    if policy.reduction == "turn":
        numbers = np.arange(len(batch.trained))
        weights = mean_within(weights, over_turns(batch.trained, numbers, size), first_tokens)  # 0 outside of turns
    weights *= over_turns(batch.trained, batch.trained.weight, size)
    of_prompt = 0
    if policy.prompt_weight:
        prompt = batch.may_prompt & ~trained_mask(batch.turns, size) & (batch.factor > 0)
        weights[prompt] = policy.prompt_weight * batch.factor[prompt]
        of_prompt = int(prompt.sum())
    if policy.reduction == "sequence":
        numbers = np.arange(len(batch.documents) - 1) if batch.units is None else batch.units
        units = np.repeat(numbers, np.diff(batch.documents))
        weights = mean_within(weights, units, first_tokens)
    labels = np.where(weights > 0, batch.ids, IGNORE_INDEX)
    return encode_labels(labels, weights), of_prompt


def mean_within(weights: Floats, units: Ints, first_tokens: Ints) -> Floats:
    """Weights scaled so that those of each unit sum to 1: every unit counts the same.

    Args:
        weights: ``(tokens,)``.
        units: ``(tokens,)`` number of each token's unit.
        first_tokens: first token of each document, which nothing predicts: its weight becomes 0.
    """
    weights = weights.copy()
    weights[first_tokens] = 0
    sums = np.bincount(units, weights)[units]
    return np.divide(weights, sums, out=np.zeros(len(weights)), where=sums > _NOTHING)
