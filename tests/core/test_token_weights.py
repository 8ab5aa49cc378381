"""Weights per token, from policy and regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.policy import Policy
from sft_mask.core.spans import Turns
from sft_mask.core.token_weights import UnweightedBatch, weighted_labels


def single_tokens(count: int) -> Turns:
    """Turns of one token each, one token apart, in one document."""
    start, yes = np.arange(1, 2 * count, 2), np.ones(count, np.bool_)
    return Turns.of_assistant(start, start + 1, ~yes, ~yes, start * 0, start - 1, start + 1)


def graded_labels(
    turns: Turns, size: int, policy: Policy, factor: Sequence[float] | None = None
) -> tuple[list[int], int]:
    ids, trained = np.arange(size), np.zeros(size, np.bool_)
    trained[turns.start] = True
    labels = np.where(trained, ids, IGNORE_INDEX).astype(np.int32)
    factors = np.ones(size) if factor is None else np.array(factor)
    batch = UnweightedBatch(ids, labels, turns, turns, np.array([0, size]), factors, np.ones(size, np.bool_))
    encoded, prompt = weighted_labels(batch, policy)
    return encoded.tolist(), prompt


def test_a_token_of_the_prompt_that_weighs_nothing_is_not_trained() -> None:
    labels, prompt = graded_labels(single_tokens(1), 4, Policy(prompt_weight=0.5), [1.0, 1.0, 0.0, 1.0])
    assert (labels[2], prompt) == (IGNORE_INDEX, 2)
