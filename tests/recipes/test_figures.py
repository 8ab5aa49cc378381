"""``recipes/mask_figures.py``: both figures are drawn, and the gradient is that of the formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from mask_figures import draw_gradients, draw_shares, gradient_norms
from support.recipe_runner import run_recipe
from support.tiny import expected, messages_dataset, model, tokenizer
from support.tiny_families import save

from sft_mask import preview_rows


def test_both_figures_are_drawn(tmp_path: Path) -> None:
    save("smollm2-135m", tmp_path / "model")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}), "utf-8")
    paths = ("--model", tmp_path / "model", "--data", tmp_path / "chats.jsonl", "--output", tmp_path)
    run = run_recipe("mask_figures.py", *paths)
    assert run.code == 0, run.output[-3000:]
    assert "train 0 · " in run.output
    assert {path.name for path in tmp_path.glob("*.png")} == {"shares.png", "gradient.png"}


def test_the_histogram_holds_every_row_and_names_the_share_of_all_tokens() -> None:
    data = messages_dataset(30)
    (axes,) = draw_shares(preview_rows(data, tokenizer())).axes
    assert sum(bar.get_height() for bar in axes.patches) == 30
    labels = [label for messages in data["messages"] for label in expected(messages)]
    whole = 100 * sum(label != -100 for label in labels) / len(labels)
    assert axes.get_legend().get_texts()[0].get_text() == f"of all tokens: {whole:.1f} %"


def test_the_gradient_is_that_of_cross_entropy_and_zero_where_masked() -> None:
    """``|| softmax - onehot || * w / sum(w)`` at the position before each token."""
    row = preview_rows(messages_dataset(1), tokenizer())[0]
    network, ids = model(), list(row.input_ids)
    with torch.no_grad():
        pulls = network(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)[:-1]
    pulls[range(len(ids) - 1), ids[1:]] -= 1
    weights = np.array(row.weights)
    wanted = np.concatenate([[0.0], pulls.norm(dim=-1).numpy() * weights[1:] / weights[1:].sum()])
    measured = gradient_norms(network, ids, row.weights)
    np.testing.assert_allclose(measured, wanted, rtol=1e-4, atol=1e-8)
    assert not measured[weights == 0].any()
    heights = [bar.get_height() for bar in draw_gradients(row, network).axes[1].patches]
    np.testing.assert_allclose(heights, measured, rtol=1e-6)
