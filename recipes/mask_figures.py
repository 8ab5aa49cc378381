"""Two figures of a mask: how the trained share is spread over the rows, and what the mask does to the gradient.

    python recipes/mask_figures.py
    python recipes/mask_figures.py --data my_chats.jsonl --model Qwen/Qwen3-0.6B --row 17

Hardware: 2 CPU cores and 4 GB of memory, half a minute; or any CUDA GPU. Needs `pip install 'sft-mask[viz]'`.
Expected: shares.png with 49 % of all tokens trained, and gradient.png with bars over the answer's tokens only.

The height of a bar is the norm of the loss gradient at the logits that predict the token,

    || d loss / d logits[t - 1] ||,   loss = sum(w * nll) / sum(w),

once with a weight of 1 for every token, and once with the weights of the mask. The first token is never predicted: 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from local_model import find_model
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_mask import preview_rows
from sft_mask.functional import compute_sft_loss
from sft_mask.preview import PreviewRow, visible

TRAINED, MASKED, INK = "#2fae63", "#7a7d84", "#0f2418"
MOST_TOKENS = 120
"""Of a row whose tokens can still be read below the bars."""


def main() -> None:
    args = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(find_model(args.model))
    rows = preview_rows(load_dataset("json", data_files=args.data, split="train"), tokenizer)
    row = rows[args.row] if args.row is not None else shortest_with_two_answers(rows)
    model = AutoModelForCausalLM.from_pretrained(find_model(args.model))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    draw_shares(rows).savefig(folder / "shares.png", dpi=120)
    draw_gradients(row, model).savefig(folder / "gradient.png", dpi=110)
    print(f"{folder}/shares.png: {len(rows)} rows; {folder}/gradient.png: {row.heading}")


def shortest_with_two_answers(rows: Sequence[PreviewRow]) -> PreviewRow:
    """Of the rows with the most answers up to two, the shortest one."""

    def rank(row: PreviewRow) -> tuple[int, int]:
        answers = {note.turn for note in row.notes if note.reason.startswith("trained")}
        return -min(len(answers), 2), len(row.input_ids)

    return min(rows, key=rank)


def draw_shares(rows: Sequence[PreviewRow]) -> Figure:
    """A histogram of the trained share of each row, with the share of all tokens as a line."""
    tokens, trained = np.array([(len(row.input_ids), row.trained_tokens) for row in rows]).T
    shares, whole = 100 * trained / np.maximum(tokens, 1), 100 * trained.sum() / tokens.sum()
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")  # it belongs to no window
    axes = figure.add_subplot(
        xlim=(0, 100), xlabel="trained, % of the row's tokens", ylabel="rows", title="Trained share of each row"
    )
    axes.hist(shares, bins=20, range=(0, 100), color=TRAINED, edgecolor="white")
    axes.axvline(whole, color=INK, linewidth=1.2, label=f"of all tokens: {whole:.1f} %")
    axes.axvline(np.median(shares), color=MASKED, linewidth=1.2, linestyle="--", label="median row")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def gradient_norms(model: Any, input_ids: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """``(tokens,)`` as above; the model is not changed."""
    ids = torch.tensor([input_ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
    logits.requires_grad_()
    loss = compute_sft_loss(logits, ids, torch.tensor([weights], device=model.device))
    (gradient,) = torch.autograd.grad(loss, logits)
    return np.concatenate([[0.0], gradient[0, :-1].norm(dim=-1).cpu().numpy()])


def draw_gradients(row: PreviewRow, model: Any) -> Figure:
    """Two panels over the same tokens: every token trained, and only those of the mask."""
    count = len(row.input_ids)
    if count > MOST_TOKENS or not any(row.weights[1:]):
        raise SystemExit(f"{row.heading}: choose a --row of at most {MOST_TOKENS} tokens, some of them trained")
    figure = Figure(figsize=(max(6.4, 0.19 * count), 4.8), layout="constrained")
    panels = {"every token is trained, the prompt too": [1.0] * count, "only the answers are trained": row.weights}
    colours = [TRAINED if weight else MASKED for weight in row.weights]
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for panel, (title, weights) in zip(axes, panels.items(), strict=True):
        panel.bar(range(count), gradient_norms(model, row.input_ids, weights), color=colours, width=0.8)
        panel.set_title(title, fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    texts = [visible(token.decode(errors="replace")).replace("\n", "") for token in row.token_bytes]
    axes[1].set_xticks(range(count), texts, rotation=90, fontsize=7, fontfamily="monospace", parse_math=False)
    for tick, colour in zip(axes[1].get_xticklabels(), colours, strict=True):
        tick.set_color(colour)
    axes[0].set_xlim(-0.7, count - 0.3)
    figure.suptitle("Gradient of the loss, token by token", color=INK)
    figure.supylabel("norm of the gradient at the logits", fontsize=9)
    return figure


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Two figures of a mask.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub name of a chat model")
    add("--data", default="recipes/data/house_style_train.jsonl", help="one conversation a line, as messages")
    add("--output", default="outputs/mask_figures", help="folder for the figures")
    add("--row", type=int, help="whose gradient is drawn; a short one where left out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
