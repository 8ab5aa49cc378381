"""How much each token of a batch counts: from turns, regions and a policy to labels that carry weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import encode_labels, mean_within
from sft_mask.core.labels import over_turns, trained_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Floats, Ids, Ints
    from sft_mask.core.policy import Policy
    from sft_mask.core.spans import Turns


@dataclass(frozen=True, slots=True)
class UnweightedBatch:
    """A batch that is about to get its weights.

    Attributes:
        ids: ``(tokens,)``.
        labels: ``(tokens,)`` int32, the answers that are trained; everything else is ``IGNORE_INDEX``.
        turns: those of the model that were found, trained or not.
        trained: the turns that are trained.
        documents: ``(documents + 1,)`` offsets.
        factor: ``(tokens,)`` what regions and a ``loss_weights`` column make of each token's weight.
        may_prompt: ``(tokens,)`` whether a token could be trained as prompt: of a row that trains an answer, not
            padding, not ignored before.
    """

    ids: Ids
    labels: NDArray[np.int32]
    turns: Turns
    trained: Turns
    documents: Ints
    factor: Floats
    may_prompt: Bools


def weighted_labels(batch: UnweightedBatch, policy: Policy) -> tuple[Ints, int]:
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
    labels = np.where(weights > 0, batch.ids, IGNORE_INDEX)
    return encode_labels(labels, weights), int(prompt_trained.sum())
