"""Loads MODEL as a tokenizer and DATA as a dataset."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from sft_mask.cli.files import STDIN, kind_of, read_path, read_stdin
from sft_mask.errors import DataError, SftMaskError

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_SHOWN = 200
"""Characters that are shown of another library's error."""


def quiet_libraries() -> None:
    """Silences the libraries' advice, and their progress bars outside a terminal."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, which is not needed
    import datasets
    import transformers

    logging.getLogger("sft_mask").setLevel(logging.ERROR)  # its warnings are in the report, in words for the shell
    datasets.logging.set_verbosity(logging.CRITICAL)  # it would print an error of a file before the command's own
    transformers.logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def load_tokenizer(model: str, data: object = None) -> object:
    """Loads the tokenizer of a folder or of a name on the Hub; of a model that reads images, its processor.

    If the processor cannot be built here, a line on the error stream says why, and the tokenizer is used.

    Args:
        model: the folder or the name.
        data: the rows that it is for.

    Raises:
        DataError: there is none, it cannot be loaded, or the rows hold images and the processor cannot be built.
    """
    folder = Path(model).expanduser()
    if folder.is_file():
        raise DataError(f"{model} is a file. MODEL is the folder with tokenizer.json, or a name on the Hub.")
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise DataError(f"The folder {model} has no tokenizer (no {', no '.join(_TOKENIZER_FILES[:2])}).")
    if not folder.is_dir() and (model.startswith((".", "~", "/")) or model.count("/") > 1):
        raise DataError(f"There is no folder {model}. MODEL is a folder with a tokenizer, or a name on the Hub.")
    quiet_libraries()
    from transformers import AutoTokenizer

    place = str(folder) if folder.is_dir() else model
    processor, why = _load_processor(place)
    if processor is not None:
        return processor
    try:
        tokenizer: object = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"No tokenizer can be loaded from {model}: {_first_line(error)}") from error
    if why:
        _say_without_processor(model, why, data)
    return tokenizer


def _load_processor(place: str) -> tuple[object, str]:
    """The processor, if there is one, which renders messages in its own way; or why it cannot be built here."""
    from transformers import AutoProcessor, ProcessorMixin

    folder = Path(place)
    if folder.is_dir() and not any((folder / name).exists() for name in _PROCESSOR_FILES):
        return None, ""
    try:
        loaded = AutoProcessor.from_pretrained(place)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        return None, _first_line(error)
    return (loaded, "") if isinstance(loaded, ProcessorMixin) else (None, "")


def _say_without_processor(model: str, why: str, data: object) -> None:
    """Says that the tokenizer is used in place of the processor.

    Raises:
        DataError: the rows hold images, which only the processor can read.
    """
    from sft_mask.data.faults.media import media_columns

    seen = f"{model} has a processor that cannot be built here ({why[:_SHOWN]})"
    images = media_columns(data) if hasattr(data, "column_names") else []
    if images:
        raise DataError(
            f"{seen}, and the rows have the column {images[0]!r}, which only a processor reads. Install what "
            "is missing (torch and torchvision for most processors), or leave the column out of the data."
        )
    sys.stderr.write(
        f"sft-mask: warning: {seen}, so its tokenizer renders the messages: compare a row with your trainer's, or "
        "install what is missing (torch and torchvision for most processors).\n"
    )


def load_data(args: argparse.Namespace) -> object:
    """Loads the dataset that DATA names; of several splits the one asked for, else ``train``, or the only one.

    Raises:
        DataError: it does not exist, cannot be read, or has no such split.
    """
    name, split = args.data, args.split
    path = Path(name).expanduser()
    quiet_libraries()
    from datasets.exceptions import DatasetsError

    if name != STDIN and not path.exists() and ":" in name and split is None:
        name, _, split = name.rpartition(":")
    if name != STDIN and not path.exists() and _looks_like_a_path(name):
        raise DataError(f"There is no file or folder {name}.")
    try:
        data = _read(name, path, args.subset)
    except SftMaskError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{name} cannot be read: {_first_line(error.__cause__ or error)}") from error
    return _one_split(data, split, "standard input" if name == STDIN else name)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or kind_of(Path(name)) is not None


def _read(name: str, path: Path, subset: str | None) -> object:
    from datasets import load_dataset

    if name == STDIN:
        return read_stdin()
    return read_path(path, subset) if path.exists() else load_dataset(name, subset)


def _one_split(data: Any, split: str | None, name: str) -> object:
    if not isinstance(data, dict):
        if split not in (None, str(data.split)):
            raise DataError(f"{name} has no splits, so there is no split {split!r}. Leave --split out.")
        return data
    chosen = split or ("train" if "train" in data else next(iter(data)) if len(data) == 1 else None)
    if chosen not in data:
        asked = f"no split {chosen!r}" if chosen else "no split train"
        raise DataError(f"{name} has {asked}: it has {', '.join(data)}. Choose one with --split.")
    return data[chosen]


def first_rows(data: Any, count: int | None) -> object:
    """The first ``count`` rows, or all."""
    return data if count is None else data.select(range(min(max(count, 0), len(data))))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
