"""What a mask does to the gradient, measured on a model: each token's pull with and without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_mask.errors import DataError
from sft_mask.functional import compute_sft_loss
from sft_mask.preview.cells import visible
from sft_mask.preview.figure import INK, MASKED, TRAINED, fonts, new_figure
from sft_mask.preview.rows import PreviewRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sft_mask.core.arrays import Floats

_MOST_TOKENS = 120


@dataclass(frozen=True, slots=True)
class Gradients:
    """Norms of the loss gradient, one a token; the first token of a row is predicted by nothing and has 0.

    Attributes:
        everything: ``(tokens,)`` where every token is trained.
        masked: ``(tokens,)`` where the row's own weights count.
    """

    everything: Floats
    masked: Floats


def measure_gradients(model: Any, row: PreviewRow) -> Gradients:
    """Runs the row through the model twice and measures what each token pulls at.

    Of token ``t`` it is the norm of the loss gradient at the logits that predict it::

        || d loss / d logits[t - 1] ||,   loss = sum(w * nll) / sum(w)

    Args:
        model: a causal language model of ``transformers``; it is not changed.
        row: what is trained.

    Raises:
        DataError: the row trains nothing, or is too short to predict anything.
    """
    if len(row.input_ids) < 2 or not any(row.weights[1:]):
        raise DataError("The row trains nothing, so there is no gradient to measure. Choose one that does.")
    everything = [1.0] * len(row.input_ids)
    return Gradients(_norms(model, row, everything), _norms(model, row, list(row.weights)))


def _norms(model: Any, row: PreviewRow, weights: list[float]) -> Floats:
    device = next(model.parameters()).device
    ids = torch.tensor([row.input_ids], device=device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
    logits.requires_grad_()
    loss = compute_sft_loss(logits, ids, torch.tensor([weights], device=device))
    (gradient,) = torch.autograd.grad(loss, logits)
    norms: Floats = gradient[0, :-1].norm(dim=-1).double().cpu().numpy()
    return np.concatenate([[0.0], norms])


def draw_gradients(
    row: PreviewRow, gradients: Gradients, *, title: str = "Gradient of the loss, token by token"
) -> Figure:
    """Two panels over the same tokens: every token trained, and only those of the mask.

    Raises:
        DataError: more than 120 tokens, which nobody could read; or gradients of another row.
        ImportError: matplotlib is not installed; it comes with ``pip install 'sft-mask[viz]'``.
    """
    count = len(row.input_ids)
    if count > _MOST_TOKENS:
        raise DataError(f"The row has {count} tokens, and at most {_MOST_TOKENS} can be read. Choose a shorter one.")
    if len(gradients.masked) != count:
        raise DataError(f"The gradients are of {len(gradients.masked)} tokens, and the row has {count}.")
    figure = new_figure((max(6.4, 0.19 * count), 4.8))
    figure.set_layout_engine("constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
    _panel(upper, row, gradients.everything, "every token is trained: the prompt pulls, too")
    _panel(lower, row, gradients.masked, "masked: only what the model has to say pulls")
    lower.set_xticks(range(count))
    texts = [visible(piece.decode(errors="replace")).replace("\n", "") for piece in row.pieces]
    lower.set_xticklabels(texts, rotation=90, fontsize=7, fontfamily=fonts())
    for tick, weight in zip(lower.get_xticklabels(), row.weights, strict=True):
        tick.set_color(TRAINED if weight else MASKED)
        tick.set_parse_math(False)  # a dollar sign opens no formula
    figure.suptitle(title, color=INK)
    figure.supylabel("norm of the gradient at the logits", fontsize=9)
    return figure


def _panel(axes: Axes, row: PreviewRow, norms: Floats, title: str) -> None:
    colours = [TRAINED if weight else MASKED for weight in row.weights]
    axes.bar(range(len(norms)), norms, color=colours, width=0.8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlim(-0.7, len(norms) - 0.3)
    axes.spines[["top", "right"]].set_visible(False)
