"""Labels of a collated batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.arrays import offsets_of
from sft_mask.data.decide import RowDecider
from sft_mask.data.masker import Masker, OnAmbiguous
from sft_mask.data.outcome import Batch, MaskedBatch
from sft_mask.data.setup import MaskSettings, TokenizerInfo, build_masker, read_tokenizer
from sft_mask.errors import LabelsChangedError, UnsupportedError
from sft_mask.vision.decide import CollatedDecider, GivenRows
from sft_mask.vision.media import MediaTokens
from sft_mask.vision.reader import ReadRow, RowReader

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ids, Ints, Labels
    from sft_mask.vision.conversations import VisionRow
    from sft_mask.vision.expansion import ExpandedText


@dataclass(frozen=True, slots=True)
class CollatedRows:
    """The rows of a batch without their padding, as flat arrays.

    Attributes:
        ids: ``(tokens,)``.
        labels: ``(tokens,)`` as the collator made them; the ids themselves where it makes none.
        offsets: ``(rows + 1,)`` where rows begin.
        real: ``(rows, length)`` which tokens of the batch are not padding.
    """

    ids: Ids
    labels: Labels
    offsets: Ints
    real: Bools

    @classmethod
    def of(cls, batch: Mapping[str, Any], name: str) -> CollatedRows:
        """Reads a batch.

        Raises:
            LabelsChangedError: it has no ids, no attention mask, or labels of another shape.
        """
        ids, mask, labels = (batch.get(key) for key in ("input_ids", "attention_mask", "labels"))
        if ids is None or mask is None:
            missing = "input_ids" if ids is None else "attention_mask"
            raise LabelsChangedError(
                f"The batches of {name} have no {missing}, so padding cannot be told from text. Have the processor "
                "return it."
            )
        given, real = np.asarray(ids), np.asarray(mask).astype(np.bool_)
        kept = given if labels is None else np.asarray(labels)
        if kept.shape != given.shape or real.shape != given.shape:
            raise LabelsChangedError(
                f"The batches of {name} have ids of shape {given.shape}, an attention mask of {real.shape} and labels "
                f"of {kept.shape}: they must be the same, one label for each token, not shifted."
            )
        moved = (kept != IGNORE_INDEX) & (kept != given)
        if moved.any():
            row, at = (int(place) for place in np.argwhere(moved)[0])
            raise LabelsChangedError(
                f"{name} gives row {row} of a batch the label {kept[row, at]} at position {at}, where the token is "
                f"{given[row, at]}: labels must not be shifted, the model does that."
            )
        return cls(given[real].astype(np.int64), kept[real].astype(np.int64), offsets_of(real.sum(1)), real)


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Labels of a batch, and what was read of its rows.

    Attributes:
        masked: the labels and how each row was decided.
        rows: the rows without padding; their labels are those of before, ignored at images.
        read: turns and images of each row that messages decided, by its place.
        masker: that made the labels.
        media: ``(tokens,)`` whether each token belongs to an image, a video or a sound.
    """

    masked: MaskedBatch
    rows: CollatedRows
    read: Mapping[int, ReadRow]
    masker: Masker
    media: Bools

    def in_batch(self) -> Labels:
        """``(rows, length)`` int64 labels, ignored at padding."""
        labels = np.full(self.rows.real.shape, IGNORE_INDEX, np.int64)
        labels[self.rows.real] = self.masked.labels
        return labels


class BatchLabeller:
    """Labels batches of one processor.

    Args:
        processor: that the collator uses.
        settings: what is asked for.
        chat_template: of the rows, if it is not the processor's own.

    Raises:
        UnsupportedError: a tokenizer instead of a processor, a slow one, or no chat template.
        DetectionError: the chat template does not show its markers.
    """

    def __init__(self, processor: Any, settings: MaskSettings, chat_template: str | None = None) -> None:
        self.info = read_tokenizer(processor, chat_template)
        self.settings = settings
        _check_processor(self.info, type(processor).__name__)
        # A row cannot leave a batch: dropped means masked.
        undecided: OnAmbiguous = "error" if settings.on_ambiguous == "error" else "mask"
        self.masker = build_masker(self.info, [], replace(settings, on_ambiguous=undecided))
        self.masker = replace(self.masker, settings_key=())

    @cached_property
    def reader(self) -> RowReader:
        """Reads one row."""
        aligner, template = self.masker.decider.aligner, self.info.template
        assert aligner is not None, "a processor without a chat template was refused"
        assert template is not None, "a processor without a chat template was refused"
        media = MediaTokens(self.info.processor, template, self.info.vocabulary)
        return RowReader(aligner, media, self.masker.decider.quotable)

    def label(
        self,
        batch: Mapping[str, Any],
        given: Sequence[VisionRow],
        expanded: Sequence[ExpandedText] | None,
        name: str,
        *,
        with_sources: bool = False,
    ) -> LabelledRows:
        """Labels of a batch.

        Args:
            batch: of the collator.
            given: the rows before the collator ran.
            expanded: what the processor made of each row's text; ``None`` if that was not recorded.
            name: of the collator, for errors.
            with_sources: whether to find the message of each token, which only explanations need.

        Raises:
            AmbiguousRowError: a row cannot be decided, and ``on_ambiguous`` is ``"error"``.
            LabelsChangedError: the batch has no ids or mask, another number of rows, or labels that are not its ids.
        """
        rows = CollatedRows.of(batch, name)
        if len(rows.real) != len(given):
            raise LabelsChangedError(
                f"{name} made {len(rows.real)} rows of {len(given)} examples. Each example must stay a row of its own."
            )
        decider = self._decider(given, expanded, with_sources=with_sources)
        # Images are found together with the turns, so the turns come first.
        masker = replace(self.masker, decider=decider)
        flat = Batch(rows.ids, rows.offsets, rows.offsets)
        decided = masker.decide(flat, GivenRows(given), by_markers=any(row.conversation is None for row in given))
        media = self._media(rows, decider.read)
        labels = np.where(media, IGNORE_INDEX, rows.labels)
        rows = replace(rows, labels=labels)
        masked = masker.label(flat, decided, labels)
        # Images of all rows count: a row that trains nothing stays in its batch.
        pieces = sum(len(each.pieces) for each in decider.read.values())
        masked = replace(masked, report=replace(masked.report, images=pieces, image_tokens=int(media.sum())))
        return LabelledRows(masked, rows, decider.read, masker, media)

    def _decider(
        self, given: Sequence[VisionRow], expanded: Sequence[ExpandedText] | None, *, with_sources: bool
    ) -> CollatedDecider:
        own: RowDecider = self.masker.decider
        return CollatedDecider(
            own.policy,
            own.aligner,
            own.words,
            own.quotable,
            own.from_template,
            own.prompt_answers,
            signatures=own.signatures,
            reader=self.reader,
            expanded=expanded,
            batch=given,
            with_sources=with_sources,
        )

    def _media(self, rows: CollatedRows, read: Mapping[int, ReadRow]) -> Bools:
        flags = self.reader.media.are(rows.ids)
        for row, each in read.items():
            first = int(rows.offsets[row])
            for piece in each.pieces:
                flags[first + piece.start : first + piece.end] = True
        return flags


def _check_processor(info: TokenizerInfo, name: str) -> None:
    if info.processor is None:
        raise UnsupportedError(
            f"{name} is not a processor: a row with images is read through the processor that collates it. Give the "
            "one that your collator uses, AutoProcessor.from_pretrained(...)."
        )
    if info.template is None:
        raise UnsupportedError(
            f"{name} has no chat template, so nothing shows where an answer begins. Set processor.chat_template, or "
            "give one as chat_template=."
        )
