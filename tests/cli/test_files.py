"""DATA from files, folders and standard input; what cannot be read is named by file and line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support.tiny import chats, messages_dataset, rendered, tokenizer

from sft_mask.cli.main import main

TALKS = chats(6)
JSONL = "".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS)
TEXTS = [rendered(talk) for talk in TALKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    tokenizer().save_pretrained(made / "model")
    Dataset.from_dict({"text": TEXTS}).to_csv(made / "text.csv", index=False)
    (made / "list.json").write_text(json.dumps([{"messages": talk} for talk in TALKS]), "utf-8")
    for ending, pack in {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.items():
        (made / f"chats.jsonl.{ending}").write_bytes(pack(JSONL.encode()))
    for name, files in {
        "two": ("a.jsonl", "b.jsonl.gz"),
        "bad": ("a.jsonl", "b.jsonl"),
        "none": ("notes.txt",),
    }.items():
        (made / name).mkdir()
        for file in files:
            text = JSONL + ("{\n" if (name, file) == ("bad", "b.jsonl") else "")
            (made / name / file).write_bytes(gzip.compress(text.encode()) if file.endswith("gz") else text.encode())
    return made


def check(folder: Path, capsys: pytest.CaptureFixture[str], data: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["check", str(folder / "model"), data])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("chats.jsonl.gz", 6),
        ("chats.jsonl.bz2", 6),
        ("chats.jsonl.xz", 6),
        ("list.json", 6),
        ("text.csv", 6),
        ("two", 12),
    ],
)
def test_files_and_folders_are_read(folder: Path, capsys: pytest.CaptureFixture[str], data: str, rows: int) -> None:
    code, out, err = check(folder, capsys, str(folder / data))
    assert (code, err) == (0, "")
    assert out.startswith(f"train: {rows} rows")


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "cut.jsonl": (
        JSONL + '{"messages": [{"role": "user"\n' + JSONL,
        'line 7 is not JSON (character 30: expecting \',\' delimiter): \'{"messages": [{"role": "user"\'. Give',
    ),
    "last.jsonl": (JSONL[:-5], "line 6 is not JSON"),
    "items.jsonl": (f"{JSONL}[1]\n", "line 7 is a list, not an object: '[1]'"),
    "list.json": (json.dumps([{"text": "a"}, "b"]), "item 1 of the list is a string, not an object"),
    "long.json": (json.dumps([{"text": "a"}], indent=1)[:-4], "line 4 is not JSON"),
    "pretty.jsonl": ('{\n "text": "a"\n}\n{\n "text" "b"\n}\n', "line 5 is not JSON (character 9: expecting ':' delim"),
    "empty.jsonl": ("", "empty.jsonl is empty. Give one JSON object a line"),
    "blank.jsonl": ("\n \n", "blank.jsonl is empty"),
    "empty.csv": ("", "empty.csv is empty"),
    "utf16.jsonl": (JSONL.encode("utf-16"), "is not UTF-8 text"),
    "empty.jsonl.gz": (gzip.compress(b""), "empty.jsonl.gz is empty"),
    "cut.jsonl.gz": (gzip.compress(JSONL.encode())[:-20], "cannot be unpacked"),
    "plain.jsonl.gz": (JSONL, "Not a gzipped file"),
    "broken.jsonl.gz": (gzip.compress((JSONL + "{\n").encode()), "line 7 is not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_by_file_and_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, words = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = check(folder, capsys, str(path))
    assert (code, out) == (2, "")
    assert err.startswith("sft-mask: ")
    assert str(path) in err
    assert words in err
    assert err.count("\n") == 1


def test_the_broken_file_of_a_folder_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = check(folder, capsys, str(folder / "bad"))
    assert code == 2
    assert f"{folder / 'bad' / 'b.jsonl'} cannot be read: line 7 is not JSON" in err
    assert "has no data: no file in it ends in .jsonl" in check(folder, capsys, str(folder / "none"))[2]


class Piped(io.TextIOWrapper):
    def __init__(self, content: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content))
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


PIPED: dict[str, bytes] = {
    "JSONL": JSONL.encode(),
    "gz": gzip.compress(JSONL.encode()),
    "a list": json.dumps([{"messages": talk} for talk in TALKS]).encode(),
    "with a BOM": b"\xef\xbb\xbf" + JSONL.encode(),
    "CSV": ("text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in TEXTS)).encode(),
}


@pytest.mark.parametrize("kind", PIPED)
def test_standard_input_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(PIPED[kind]))
    code, out, err = check(folder, capsys, "-")
    assert (code, err) == (0, "")
    assert out.startswith("train: 6 rows")


@pytest.mark.parametrize(
    ("content", "terminal", "words"),
    [
        (b"", False, "standard input is empty"),
        (JSONL.encode() + b"{\n", False, "standard input cannot be read: line 7 is not JSON"),
        (b"", True, "nothing is piped into the command: cat chats.jsonl | sft-mask"),
    ],
)
def test_standard_input_without_rows_is_named(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    terminal: bool,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(content, terminal))
    code, _, err = check(folder, capsys, "-")
    assert code == 2
    assert words in err


def test_the_page_of_standard_input_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(JSONL.encode()))
    assert main(["preview", str(folder / "model"), "-", "--html", str(tmp_path / "mask.html")]) == 0
    assert "What is trained of standard input" in (tmp_path / "mask.html").read_text("utf-8")


def test_a_snapshot_is_not_lost(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, kept = tmp_path / "chats.jsonl", tmp_path / "mask.jsonl"
    messages_dataset(4).to_json(data)
    write: list[Any] = ["snapshot", "write", str(folder / "model"), str(data), str(kept)]
    assert main(write) == 0
    before = kept.read_bytes()
    capsys.readouterr()
    assert main([*write, "--turns", "last"]) == 2
    assert f"{kept} exists, and what it records would be lost" in capsys.readouterr().err
    assert kept.read_bytes() == before
    assert main([*write, "--turns", "last", "--force"]) == 0
    assert kept.read_bytes() != before
