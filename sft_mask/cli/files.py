"""Reads DATA from a file, a folder or standard input; what is broken is named by its file and line."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from sft_mask.errors import DataError

KINDS = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_MOST_CHARACTERS = 60
STDIN = "-"


def kind_of(path: Path) -> str | None:
    """How a file is read, by its ending; ``None`` if it is not one of :data:`KINDS`, compressed or not.

    >>> kind_of(Path("chats.jsonl.gz")), kind_of(Path("notes.txt"))
    ('json', None)
    """
    endings = [ending for ending in path.suffixes if ending not in _COMPRESSED]
    return KINDS.get(endings[-1].lower()) if endings else None


def read_path(path: Path, subset: str | None) -> Any:
    """The data of a file or a folder.

    Raises:
        DataError: it holds no data, or is broken.
        OSError, ValueError, DatasetsError: it cannot be read for another reason.
    """
    if path.is_file():
        return _read_file(path, str(path))
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return load_from_disk(str(path))
    files = sorted(each for each in path.rglob("*") if each.is_file() and kind_of(each) is not None)
    if not files:
        raise DataError(f"The folder {path} has no data: no file in it ends in {', '.join(KINDS)}.")
    for each in files:
        _check_file(each, str(each))
    try:
        return load_dataset(str(path), subset)
    except (OSError, ValueError, DatasetsError) as error:
        for each in files:
            _raise_if_broken(each, str(each), error)
        raise


def read_stdin() -> Any:
    """The data on standard input: JSON (compressed or not), or CSV.

    Raises:
        DataError: there is nothing, or it is neither.
    """
    if sys.stdin.isatty():
        raise DataError("DATA is -, but nothing is piped into the command: cat chats.jsonl | sft-mask ... MODEL -")
    with tempfile.TemporaryDirectory() as folder:
        piped = Path(folder) / "stdin"
        with piped.open("wb") as sink:
            shutil.copyfileobj(sys.stdin.buffer, sink)
        beginning = _beginning(piped)
        packed = next((ending for magic, ending in _MAGIC.items() if beginning.startswith(magic)), "")
        named = piped.rename(piped.with_suffix(f".data{packed}"))
        content = _content(named, "standard input") if packed else beginning
        kind = ".jsonl" if _begins_like_json(content.decode("utf-8-sig", "replace")) else ".csv"
        return _read_file(
            named.rename(Path(folder) / f"stdin{kind}{packed}"), "standard input", keep_in_memory=True, cache_dir=folder
        )


def _begins_like_json(text: str) -> bool:
    """Whether a text is JSON, broken or not, and not CSV.

    >>> _begins_like_json('{"text": "a"'), _begins_like_json("null"), _begins_like_json("text,label")
    (True, True, False)
    """
    first = next((line for line in text.splitlines() if line.strip()), "").strip()
    return first.startswith(("{", "[")) or not _wrong_json(first)


def _read_file(path: Path, name: str, **options: Any) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{name} is not of a known kind. Give a file that ends in {', '.join(KINDS)}.")
    _check_file(path, name)
    try:
        return load_dataset(kind, data_files=str(path), **options)
    except (OSError, ValueError, DatasetsError) as error:
        _raise_if_broken(path, name, error)
        raise


def _check_file(path: Path, name: str) -> None:
    """Refuses a file without any content."""
    if not _content(path, name).strip(b"\xef\xbb\xbf\0 \t\r\n"):
        raise DataError(f'{name} is empty. Give one JSON object a line, such as {{"messages": [...]}}.')


def _content(path: Path, name: str) -> bytes:
    """The first bytes of a file, unpacked."""
    try:
        return _beginning(path)
    except _DAMAGED as error:
        raise _damaged(path, name, error) from error


def _beginning(path: Path) -> bytes:
    with _open(path) as file:
        return bytes(file.read(1 << 16))


def _open(path: Path) -> Any:
    import fsspec  # type: ignore[import-untyped]

    return fsspec.open(str(path), "rb", compression="infer")


def _damaged(path: Path, name: str, error: BaseException) -> DataError:
    return DataError(f"{name} cannot be unpacked: {error}. It is cut off, or not a {path.suffix} file: make it again.")


def _raise_if_broken(path: Path, name: str, error: Exception) -> None:
    """Raises an error that names the broken line, if one of a JSON file is."""
    if kind_of(path) != "json":
        return
    try:
        broken = _broken_line(path)
    except _DAMAGED as damage:
        raise _damaged(path, name, damage) from error
    except UnicodeDecodeError as coding:
        raise DataError(
            f"{name} is not UTF-8 text ({coding.reason} at byte {coding.start}). Save it as UTF-8."
        ) from error
    if broken:
        raise DataError(f"{name} cannot be read: {broken}") from error


def _broken_line(path: Path) -> str:
    """What is wrong with the first line that is not a JSON object; ``""`` if all are."""
    with _open(path) as file:
        first = next((line for line in file if line.strip()), b"").decode("utf-8-sig").strip()
        file.seek(0)
        if first.startswith("[") or _wrong_json(first):  # one value, or values over several lines
            return _broken_values(file.read().decode("utf-8-sig"))
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text and (wrong := _wrong_object(text)):
                return f"line {number} {wrong}: {_excerpt(text)}. Give one object a line; repair or remove this one."
    return ""


def _broken_values(text: str) -> str:
    decoder, at = json.JSONDecoder(), 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            lines = text.splitlines()
            line = lines[min(error.lineno, len(lines)) - 1].strip()
            return f"line {error.lineno} {_not_json(error.colno, error.msg)}: {_excerpt(line)}. Repair it."
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(item, dict):
                return f"item {number} of the list is {_JSON_NAMES[type(item)]}, not an object. Give a list of objects."
    return ""


def _wrong_object(text: str) -> str:
    wrong = _wrong_json(text)
    if wrong:
        return wrong
    value = json.loads(text)
    return "" if isinstance(value, dict) else f"is {_JSON_NAMES[type(value)]}, not an object"


def _wrong_json(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return _not_json(error.pos + 1, error.msg)
    return ""


def _not_json(character: int, why: str) -> str:
    return f"is not JSON (character {character}: {why.removesuffix(' at').lower()})"


_JSON_NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…")
