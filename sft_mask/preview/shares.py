"""How the trained share is spread over the rows of a dataset, as a matplotlib histogram."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.label_codec import label_weights
from sft_mask.errors import DataError
from sft_mask.preview.figure import INK, MASKED, TRAINED, new_figure
from sft_mask.preview.rows import PreviewRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sft_mask.core.arrays import Ints

_ROWS_AT_ONCE = 2000
_BINS = 20


def trained_counts(data: Any) -> tuple[Ints, Ints]:
    """``(rows,)`` tokens of each row, and ``(rows,)`` how many of them are trained.

    Args:
        data: a masked ``Dataset`` (it has ``labels``), or rows of :func:`sft_mask.preview.preview_rows`.

    Raises:
        DataError: neither.
    """
    if hasattr(data, "with_format"):
        if "labels" not in data.column_names:
            raise DataError("The dataset has no labels: mask it first with mask_dataset(dataset, tokenizer).")
        pairs = list(_of_dataset(data))
    else:
        pairs = [_of_row(row) for row in data]
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _of_row(row: object) -> tuple[int, int]:
    if not isinstance(row, PreviewRow):
        raise DataError(
            f"{type(row).__name__} is no row to be shown. Give a masked dataset, or rows of preview_rows(...)."
        )
    return len(row.input_ids), row.trained_tokens


def _of_dataset(dataset: Any) -> Iterable[tuple[int, int]]:
    for batch in dataset.with_format("numpy").iter(_ROWS_AT_ONCE):
        for labels in batch["labels"]:
            yield len(labels), int((label_weights(np.asarray(labels)) > 0).sum())


def draw_shares(data: Any, *, title: str = "Trained share of each row") -> Figure:
    """A histogram of ``trained tokens / tokens`` over the rows, with the share of all tokens as a line.

    The figure belongs to no window: ``draw_shares(masked).savefig("shares.png")``.

    Args:
        data: as for :func:`trained_counts`.
        title: above the figure.

    Raises:
        DataError: there are no rows, or ``data`` is neither a masked dataset nor rows.
        ImportError: matplotlib is not installed; it comes with ``pip install 'sft-mask[viz]'``.
    """
    tokens, trained = trained_counts(data)
    if not tokens.sum():
        raise DataError("There are no tokens to draw the trained share of.")
    shares = 100 * trained / np.maximum(tokens, 1)
    whole = 100 * trained.sum() / tokens.sum()
    figure = new_figure((6.4, 3.2))
    axes = figure.add_subplot()
    axes.hist(shares, bins=_BINS, range=(0, 100), color=TRAINED, edgecolor="white")
    axes.axvline(whole, color=INK, linewidth=1.2, label=f"of all tokens: {whole:.1f} %")
    axes.axvline(float(np.median(shares)), color=MASKED, linewidth=1.2, linestyle="--", label="median row")
    axes.set(xlim=(0, 100), xlabel="trained, % of the row's tokens", ylabel="rows", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    return figure
