"""Rows as a trainer would hold them, before there is a trainer: expanded, truncated, packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sft_mask._compat import pack_rows
from sft_mask.data.expand import expanded_dataset, refuse_what_cannot_expand
from sft_mask.data.mask_dataset import head, tokenized
from sft_mask.data.prelabelled import note_masked
from sft_mask.data.read.formats import column_names, in_format_of, plain, sample_rows
from sft_mask.data.read.rows import LOSS_WEIGHTS
from sft_mask.data.setup import MaskSettings, TokenizerInfo, masker_for
from sft_mask.data.splits import SplitMasker
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.data.masker import Masker
    from sft_mask.report import MaskReport

Packing = Literal["bfd", "bfd_split", "wrapped"]
_PER_TOKEN = ("input_ids", "labels", LOSS_WEIGHTS)


@dataclass(frozen=True, slots=True)
class RowShape:
    """What a trainer makes of conversations.

    Attributes:
        max_length: where rows are truncated, as ``SFTConfig(max_length=...)``.
        packing: TRL's strategy, if rows are packed to ``max_length`` tokens.
        expand: whether conversations are expanded first (:mod:`sft_mask.data.expand`).

    Raises:
        DataError: ``max_length`` is below 1, or missing where rows are packed.
    """

    max_length: int | None = None
    packing: Packing | None = None
    expand: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise DataError(f"max_length={self.max_length}: give 1 or more, or leave it out.")
        if self.packing is not None and self.max_length is None:
            raise DataError(
                "packing needs a max_length: rows are packed to that many tokens (SFTConfig's own default is 1024)."
            )

    @property
    def truncated_at(self) -> int | None:
        """Where rows lose their end; ``bfd_split`` and ``wrapped`` continue it in another row."""
        return None if self.packing in ("bfd_split", "wrapped") else self.max_length


def prepared(
    dataset: Any, info: TokenizerInfo, settings: MaskSettings, name: str, chat_template: str | None, shape: RowShape
) -> tuple[Any, Masker]:
    """Rows with ``input_ids``, expanded and truncated but not packed, and the masker for them.

    Raises:
        DataError, MarkerError, UnsupportedError: as in :func:`~sft_mask.data.mask_dataset.mask_dataset`.
    """
    if shape.expand:
        refuse_what_cannot_expand(dataset, name)
    ready = tokenized(head(dataset) if shape.expand else dataset, info, chat_template, name)
    masker = masker_for(info, sample_rows(ready), settings, dataset, f"the {name} dataset")
    if shape.expand:
        ready = expanded_dataset(dataset, masker, name)
    return (ready if shape.truncated_at is None else _truncated(ready, shape.truncated_at)), masker


def _truncated(dataset: Any, length: int) -> object:
    columns = [name for name in _PER_TOKEN if name in column_names(dataset)]

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [row[:length] for row in batch[name]] for name in columns}

    return in_format_of(dataset, plain(dataset).map(cut, batched=True, desc="Truncating"))


def report_as_trained(
    dataset: Any, info: TokenizerInfo, settings: MaskSettings, chat_template: str | None, shape: RowShape, name: str
) -> MaskReport:
    """The report of ``mask_dataset`` on rows that are truncated as the trainer will truncate them."""
    ready, masker = prepared(dataset, info, settings, name, chat_template, shape)
    splits = SplitMasker(masker, shape.truncated_at)
    _, stats = splits.label(ready, name, source=dataset, expand=shape.expand)
    return splits.report({name: stats})


def packed_rows(
    dataset: Any, info: TokenizerInfo, settings: MaskSettings, chat_template: str | None, shape: RowShape, name: str
) -> Any:
    """Rows that ``mask_dataset`` made, packed by TRL: columns ``input_ids``, ``labels`` and ``seq_lengths``.

    Raises:
        MissingExtraError: TRL is not installed.
    """
    assert shape.packing is not None
    assert shape.max_length is not None
    ready, masker = prepared(dataset, info, settings, name, chat_template, RowShape(expand=shape.expand))
    masked, _ = SplitMasker(masker).label(ready, name, source=dataset, expand=shape.expand)
    return pack_rows(note_masked(masked, masker.policy), shape.max_length, shape.packing)
