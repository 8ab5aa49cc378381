"""Rows with images, collated when they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sft_mask.explanations.collated import CollatedRow, inspect_collated
from sft_mask.explanations.reasons import RowExplainer
from sft_mask.preview.pictures import thumbnail
from sft_mask.preview.rows import Note, Picture, PreviewRow, build_row

if TYPE_CHECKING:
    from sft_mask.vision.collator import ResponseOnlyCollator


class CollatedSource:
    """Rows of a dataset with images, as the trainer's collator makes them.

    Args:
        dataset: holds messages and images.
        collator: of the trainer.
        name: of the split.
    """

    def __init__(self, dataset: Any, collator: ResponseOnlyCollator, name: str) -> None:
        self._dataset, self._collator, self.name = dataset, collator, name

    def rows(self, numbers: Sequence[int]) -> Iterator[PreviewRow]:
        """The rows at these positions."""
        for number in numbers:
            (collated,) = inspect_collated([self._dataset[number]], self._collator, [number])
            yield self._row(collated)

    def _row(self, collated: CollatedRow) -> PreviewRow:
        row, parts = collated.row, RowExplainer(collated.masker).parts(collated.row)
        images = [piece for piece in row.pieces if piece.kind == "image"]
        known = dict(zip(images, collated.images, strict=False))
        pictures = [
            Picture(piece.start, piece.end, piece.kind, thumbnail(known[piece]) if piece in known else "")
            for piece in row.pieces
        ]
        return build_row(
            self._collator.labeller.info.tokenizer,
            row.ids.tolist(),
            row.labels.tolist(),
            weights=row.weights.tolist(),
            spans=[Note(part.start, part.end, part.role, part.reason, part.turn) for part in parts],
            status=row.status,
            name=f"{self.name} {row.number}",
            pictures=pictures,
            lost=map(str, row.account.losses),
        )
