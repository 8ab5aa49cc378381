"""The loss with a weight per token."""

from __future__ import annotations

import torch

from sft_mask.trainer.weighted_loss import WeightedModel


def test_weights_come_after_the_tokens_that_prompt_learning_puts_in_front() -> None:
    weighted = WeightedModel(None, torch.ones(1, 4), None, None)
    weighted.log_probs = torch.zeros(1, 5)
    assert weighted.aligned(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0.0, 0.0, 1.0, 2.0, 3.0]]
