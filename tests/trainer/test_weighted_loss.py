"""The loss with a weight per token."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import encode_labels, label_weights
from sft_mask.trainer.weighted_loss import WeightedModel, split_labels


def test_weights_come_after_the_tokens_that_prompt_learning_puts_in_front() -> None:
    weighted = WeightedModel(None, torch.ones(1, 4), None, None)
    weighted.log_probs = torch.zeros(1, 5)
    assert weighted.aligned(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0.0, 0.0, 1.0, 2.0, 3.0]]


labels_and_weights = st.tuples(
    st.one_of(st.just(IGNORE_INDEX), st.integers(0, (1 << 24) - 1)), st.floats(0, 2.0**100, width=32)
)


@given(st.lists(labels_and_weights, max_size=40))
def test_labels_are_split_in_torch_as_in_numpy(rows: list[tuple[int, float]]) -> None:
    labels = np.array([row[0] for row in rows], np.int64)
    encoded = encode_labels(labels, np.array([row[1] for row in rows], np.float64))
    ids, weights = split_labels(torch.from_numpy(encoded))
    assert ids.tolist() == labels.tolist()
    assert weights.tolist() == label_weights(encoded).tolist()
