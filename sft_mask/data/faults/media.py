"""Errors about images and audio where only text is read: a processor makes their ids while rows are collated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_mask.data.read.formats import column_names
from sft_mask.errors import UnsupportedError

_NAMES = ("image", "images")
_FEATURES = ("Image", "Audio", "Video")


def media_columns(dataset: Any) -> list[str]:
    """Columns of images, audio or video, by their name as TRL reads it or by their type."""
    features: Any = getattr(dataset, "features", None) or {}
    return [name for name in column_names(dataset) if name in _NAMES or _is_media(features.get(name))]


def _is_media(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return any(_is_media(inner) for inner in feature.values())
    if isinstance(feature, list):
        return any(_is_media(inner) for inner in feature)
    inner = getattr(feature, "feature", None)
    return type(feature).__name__ in _FEATURES or (inner is not None and _is_media(inner))


def refuse_media(dataset: Any, name: str) -> None:
    """Refuses a dataset of images, audio or video that a processor is to tokenize as text.

    Args:
        dataset: as it was read, with its columns under the names that are read.
        name: of the split.

    Raises:
        UnsupportedError: that, with the first such column and two ways out.
    """
    there = media_columns(dataset)
    if there:
        raise UnsupportedError(
            f"The {name} dataset has the column {there[0]!r}: a processor makes the ids of such rows, and with them "
            "their labels, while they are collated. Call train_on_responses_only(trainer), or put "
            "ResponseOnlyCollator(collator, processor) around your own collator (TRL's reads a column images or image, "
            "and messages). To train on the text alone, remove the column: "
            f"dataset.remove_columns({there[0]!r})."
        )
