"""What figures of a whole dataset and of a model's gradients show, against numbers counted without the library."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from support.tiny import expected, messages_dataset, model, tokenizer

from sft_mask import Policy, mask_dataset, preview_rows
from sft_mask.errors import DataError
from sft_mask.preview import build_row
from sft_mask.preview.gradient import Gradients, draw_gradients, measure_gradients
from sft_mask.preview.shares import draw_shares, trained_counts


def test_counts_of_a_dataset_and_of_its_rows_are_those_of_character_offsets() -> None:
    data = messages_dataset(15)
    labels = [expected(messages) for messages in data["messages"]]
    tokens, trained = trained_counts(mask_dataset(data, tokenizer()))
    assert tokens.tolist() == [len(row) for row in labels]
    assert trained.tolist() == [sum(label != -100 for label in row) for row in labels]
    again = trained_counts(preview_rows(data, tokenizer()))
    assert [column.tolist() for column in again] == [tokens.tolist(), trained.tolist()]


def test_weighted_labels_are_counted_as_trained() -> None:
    data = messages_dataset(5)
    tokens, trained = trained_counts(mask_dataset(data, tokenizer(), policy=Policy(prompt_weight=0.5)))
    assert trained.tolist() == tokens.tolist()


def test_the_histogram_holds_every_row_and_names_the_share_of_all_tokens() -> None:
    data = messages_dataset(30)
    figure = draw_shares(mask_dataset(data, tokenizer()))
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 30
    labels = [label for messages in data["messages"] for label in expected(messages)]
    whole = 100 * sum(label != -100 for label in labels) / len(labels)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0] == f"of all tokens: {whole:.1f} %"
    figure.savefig(io.BytesIO(), format="png")


def test_what_has_no_labels_or_no_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="no labels: mask it first"):
        draw_shares(messages_dataset(2))
    with pytest.raises(DataError, match="no row to be shown"):
        draw_shares([[1, 2]])
    with pytest.raises(DataError, match="no tokens"):
        draw_shares([])


# ---- gradients -------------------------------------------------------------------------------------------------------


def by_hand(network: torch.nn.Module, ids: list[int], weights: list[float]) -> np.ndarray:
    """``|| softmax - onehot || * w / sum(w)`` at the position before each token, in double precision."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([ids])).logits[0].double()
    pulls = logits.softmax(-1)[:-1]
    pulls[range(len(ids) - 1), ids[1:]] -= 1
    share = torch.tensor(weights[1:], dtype=torch.double) / sum(weights[1:])
    return np.concatenate([[0.0], (pulls.norm(dim=-1) * share).numpy()])


def test_measured_gradients_are_those_of_the_formula_and_zero_where_masked() -> None:
    row = preview_rows(messages_dataset(1), tokenizer())[0]
    network = model()
    measured = measure_gradients(network, row)
    ids = list(row.input_ids)
    np.testing.assert_allclose(measured.everything, by_hand(network, ids, [1.0] * len(ids)), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(measured.masked, by_hand(network, ids, list(row.weights)), rtol=1e-4, atol=1e-8)
    masked = [weight == 0 for weight in row.weights]
    assert not measured.masked[masked].any()
    assert measured.masked[np.flatnonzero(row.weights)].all()


def test_measuring_leaves_no_gradient_in_the_model() -> None:
    network = model()
    measure_gradients(network, preview_rows(messages_dataset(1), tokenizer())[0])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_figure_has_two_panels_with_the_measured_heights() -> None:
    row = preview_rows(messages_dataset(1), tokenizer())[0]
    gradients = measure_gradients(model(), row)
    figure = draw_gradients(row, gradients)
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [gradients.everything.tolist(), gradients.masked.tolist()]
    ticks = figure.axes[1].get_xticklabels()
    assert len(ticks) == len(row.input_ids)
    assert len({tick.get_color() for tick in ticks}) == 2
    figure.savefig(io.BytesIO(), format="png")


def test_a_dollar_sign_in_a_token_opens_no_formula() -> None:
    row = build_row(tokenizer(), *[tokenizer()("$x_$ $")["input_ids"]] * 2)
    count = len(row.input_ids)
    draw_gradients(row, Gradients(np.ones(count), np.ones(count))).savefig(io.BytesIO(), format="png")


def test_rows_that_cannot_be_measured_or_read_are_refused() -> None:
    with pytest.raises(DataError, match="trains nothing"):
        measure_gradients(model(), build_row(tokenizer(), [1, 2], [-100, -100]))
    long = build_row(tokenizer(), [1] * 121, [1] * 121)
    with pytest.raises(DataError, match="at most 120"):
        draw_gradients(long, Gradients(np.ones(121), np.ones(121)))
    short = build_row(tokenizer(), [1, 2], [1, 2])
    with pytest.raises(DataError, match="of 3 tokens, and the row has 2"):
        draw_gradients(short, Gradients(np.ones(3), np.ones(3)))
