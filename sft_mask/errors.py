"""One family of errors; each also has the standard-library parent that callers already catch.

Every message says what was seen (row, marker, ids), why that is wrong, and a way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SftMaskError(Exception):
    """Parent of everything this library raises on purpose."""


class MarkerError(SftMaskError, ValueError):
    """A marker is empty, ambiguous, missing, or occurs in no row."""


class DetectionError(MarkerError):
    """Markers could not be read from a chat template, or could not be proven in a rendered conversation."""


class DataError(SftMaskError, ValueError):
    """A dataset lacks a column, or a row is malformed."""


class NothingToTrainError(DataError):
    """Every row of a split would be masked completely."""


class AmbiguousRowError(DataError):
    """Neither markers nor messages can decide which tokens of a row are the assistant's."""


class UnsupportedError(SftMaskError, NotImplementedError):
    """A tokenizer, trainer or option that is refused by name."""


class MaskChangedError(SftMaskError, AssertionError):
    """A mask is not what its snapshot holds."""


class LabelsChangedError(SftMaskError, RuntimeError):
    """Labels reached the loss that are not the mask that was prepared."""


class MissingExtraError(SftMaskError, ImportError):
    """A package that an extra of this library installs is missing."""


@contextmanager
def extra(name: str, feature: str) -> Iterator[None]:
    """Names the extra to install where an import inside the block finds no such package.

    >>> with extra("train", "sft_mask.example"):
    ...     import there_is_no_such_package
    Traceback (most recent call last):
    sft_mask.errors.MissingExtraError: sft_mask.example needs there_is_no_such_package: pip install 'sft-mask[train]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{feature} needs {error.name}: pip install 'sft-mask[{name}]'") from error
