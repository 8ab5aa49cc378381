"""``ResponseOnlyCollator``: a collator for images or audio, whose labels become response-only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

from sft_mask._compat import is_main_process
from sft_mask.core.policy import Policy, Reduction, combined
from sft_mask.data.masker import OnAmbiguous
from sft_mask.data.setup import MaskSettings
from sft_mask.errors import DataError, SftMaskError, UnsupportedError, extra
from sft_mask.vision.conversations import VisionRow, read_row
from sft_mask.vision.counts import CollatedCounts
from sft_mask.vision.expansion import recording
from sft_mask.vision.labels import BatchLabeller, LabelledRows

logger = logging.getLogger(__name__)

Collate = Callable[[list[Any]], Any]
_BUILD = RLock()


class ResponseOnlyCollator:
    """Collates as another collator does, and trains only the assistant's words and end-of-turn tokens.

    For each row: the messages are rendered with the source of every character, the processor's own expansion of the
    placeholders is recorded while ``inner`` runs, and the turns are laid on the ids that came out. So no image, video,
    audio or padding token is trained, nor what the template writes around an image, nor a marker that a user typed. A
    label that ``inner`` ignores stays ignored; everything else of the batch is what ``inner`` returned.

    Args:
        inner: the collator: TRL's ``DataCollatorForVisionLanguageModeling``, or one of your own. Its examples have
            ``messages``, or ``prompt`` and ``completion``; its batches ``input_ids`` and ``attention_mask``.
        processor: the processor that ``inner`` uses, with a fast tokenizer and a chat template.
        policy: see :func:`~sft_mask.train_on_responses_only`; so are the other arguments. Weights travel inside the
            labels (:mod:`sft_mask.core.label_codec`), which the trainer of ``train_on_responses_only`` reads.
        last_response_only: see there.
        mask_out_tokens: see there.
        prompt_weight: see there.
        reduction: see there.
        on_ambiguous: see there; a row cannot leave a batch, so with ``"drop"`` it is masked too.
        chat_template: the template that ``inner`` renders with, if it is not the processor's own.

    Raises:
        UnsupportedError: no processor, a slow tokenizer, or no chat template.
        DetectionError: the chat template does not show where an answer begins.

    Source of the idea: TRL makes the labels of images in its collator, so that is where they must be made right.
    """

    inner: Collate
    processor: Any
    counts: CollatedCounts

    def __init__(
        self,
        inner: Collate,
        processor: Any,
        *,
        policy: Policy | None = None,
        last_response_only: bool = False,
        mask_out_tokens: str | Sequence[str] | None = None,
        prompt_weight: float | None = None,
        reduction: Reduction | None = None,
        on_ambiguous: OnAmbiguous = "error",
        chat_template: str | None = None,
    ) -> None:
        chosen = combined(policy, last_response_only, mask_out_tokens, prompt_weight, reduction)
        settings = MaskSettings(policy=chosen, on_ambiguous=on_ambiguous)
        self._set(inner, processor, settings, chat_template, CollatedCounts())
        self.labeller  # noqa: B018  what cannot work is refused now, not at the first batch
        if self.carries_weights and is_main_process():
            logger.warning(
                "The labels of this collator carry weights. In a loop of your own, read them with label_ids and "
                "label_weights of sft_mask.core.label_codec; a trainer needs train_on_responses_only(trainer, ...)."
            )

    @classmethod
    def of_settings(
        cls, inner: Collate, processor: Any, settings: MaskSettings, chat_template: str | None, counts: CollatedCounts
    ) -> ResponseOnlyCollator:
        """The collator for settings that were read before; what counts is added to ``counts``."""
        made = cls.__new__(cls)
        made._set(inner, processor, settings, chat_template, counts)
        return made

    def _set(
        self, inner: Collate, processor: Any, settings: MaskSettings, chat_template: str | None, counts: CollatedCounts
    ) -> None:
        if isinstance(inner, ResponseOnlyCollator):
            inner = inner.inner
        if not callable(inner):
            raise UnsupportedError(f"{inner!r:.80} is not a collator: give a function from examples to a batch.")
        self.inner = inner
        self.processor = processor
        self.counts = counts
        self._settings, self._chat_template = settings, chat_template
        self._labeller: BatchLabeller | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """What was given: a worker that is spawned reads the processor again, and comes to the same labels."""
        given = (self.inner, self.processor, self._settings, self._chat_template, self.counts)
        return ResponseOnlyCollator.of_settings, given

    @property
    def labeller(self) -> BatchLabeller:
        """Makes the labels; built once in each process."""
        with _BUILD:
            if self._labeller is None:
                self._labeller = BatchLabeller(self.processor, self._settings, self._chat_template)
            return self._labeller

    @property
    def carries_weights(self) -> bool:
        """Whether labels carry weights."""
        return self.labeller.masker.carries_weights(())

    def counting(self, counts: CollatedCounts) -> ResponseOnlyCollator:
        """The same collator, which adds to other counts."""
        made = self.of_settings(self.inner, self.processor, self._settings, self._chat_template, counts)
        made._labeller = self.labeller
        return made

    def never_raising(self) -> ResponseOnlyCollator:
        """A copy that masks a row which it cannot decide, and counts elsewhere."""
        settings = replace(self._settings, on_ambiguous="mask")
        return self.of_settings(self.inner, self.processor, settings, self._chat_template, CollatedCounts())

    def __call__(self, examples: list[Any]) -> Any:
        """The batch of ``inner``, with response-only labels.

        Raises:
            DataError: an example is malformed, holds a placeholder as text, or cannot be decided.
            LabelsChangedError: the batch cannot be read.
        """
        batch, labelled = self.collate(examples)
        self.counts.add(labelled.masked.report, int(labelled.rows.real.sum()))
        with extra("train", "A collator"):
            import torch
        batch["labels"] = torch.from_numpy(labelled.in_batch()).to(batch["input_ids"].device)
        return batch

    def collate(self, examples: list[Any], *, with_sources: bool = False) -> tuple[Any, LabelledRows]:
        """The batch as ``inner`` makes it, and its labels beside it; with the message of each token if asked for."""
        labeller = self.labeller
        given = [_read(example, at) for at, example in enumerate(examples)]
        _check_placeholders(given, labeller)
        with recording(self.processor) as recorded:
            batch = self._inner(examples, given)
        name = type(self.inner).__name__
        if not isinstance(batch, Mapping) and not hasattr(batch, "get"):
            raise DataError(f"{name} returned a {type(batch).__name__}, not a mapping with input_ids.")
        texts = recorded.rows(len(given))
        return batch, labeller.label(batch, given, texts, name, with_sources=with_sources)

    def _inner(self, examples: list[Any], given: Sequence[VisionRow]) -> Any:
        try:
            return self.inner(examples)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, SftMaskError):
                raise
            first = given[0].begins if given else ""
            images = [len(row.images) for row in given]
            raise DataError(
                f"{type(self.inner).__name__} cannot collate the batch of {len(given)} rows that begins with "
                f"{first!r} (images in each row: {images}): {type(error).__name__}: {error}{_hint(str(error))}"
            ) from error


def _read(example: Any, at: int) -> VisionRow:
    if not isinstance(example, Mapping):
        raise DataError(f"Row {at} of a batch is a {type(example).__name__}, not a mapping with messages.")
    try:
        return read_row(example)
    except DataError as error:
        raise DataError(f"Row {at} of a batch: {error}") from error


def _check_placeholders(given: Sequence[VisionRow], labeller: BatchLabeller) -> None:
    """Refuses typed placeholders before the processor sees them: its own error would not name the row."""
    from sft_mask.vision.rows import typed_placeholder

    for at, row in enumerate(given):
        found = typed_placeholder(row, labeller.reader.media.texts)
        if found is not None:
            raise DataError(f"Row {at} of a batch: {found}")


def _hint(why: str) -> str:
    """What to do about an error of a processor."""
    if "truncation" in why or "ismatch" in why:
        return " max_length cuts an image in two: raise it, set it to None, or make the images smaller."
    return ""
