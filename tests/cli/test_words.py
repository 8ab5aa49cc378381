"""What a person at the shell reads: no argument of Python, and what was meant where something was mistyped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.tiny import chats, messages_dataset, tokenized, tokenizer

from sft_mask.cli.main import main
from sft_mask.cli.words import in_shell_words

ROOT = Path(__file__).parents[2]
PYTHON = re.compile(r"\b\w+=(?!=)|\b[a-z]+_[a-z_]+\b(?!\.json)|\bPolicy\b|\w\(\w*\)")
"""Arguments, names with underscores and calls."""
ALLOWED = ("input_ids", "tool_calls", "max_length")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("words")
    tokenizer().save_pretrained(made / "model")
    messages_dataset(8).to_json(made / "chats.jsonl")
    good, other = chats(2, seed=3)
    edited = [{"messages": good, "input_ids": tokenized(good)}, {"messages": other, "input_ids": tokenized(good)}]
    (made / "edited.jsonl").write_text("\n".join(map(json.dumps, edited)), "utf-8")
    flagged = [{"messages": [{**message, "weight": 1.0} for message in talk]} for talk in chats(3)]
    (made / "flagged.jsonl").write_text("\n".join(map(json.dumps, flagged)), "utf-8")
    (made / "two.jinja").write_text("{{ raise_exception('no') }}", "utf-8")
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ("chats.jsonl", "--turns", "some"),
        ("chats.jsonl", "--stop", "some"),
        ("chats.jsonl", "--cut-answers", "some"),
        ("chats.jsonl", "--prompt-weight", "-1"),
        ("chats.jsonl", "--prompt-weight", "nan"),
        ("chats.jsonl", "--roles", ","),
        ("chats.jsonl", "--response-part", "A:"),
        ("chats.jsonl", "--instruction-part", "A:"),
        ("chats.jsonl", "--instruction-part", "A:", "--response-part", "A:"),
        ("chats.jsonl", "--instruction-part", "A:", "--response-part", "B:"),
        ("chats.jsonl", "--mask-region", "", "x"),
        ("chats.jsonl", "--chat-template", "two.jinja"),
        ("chats.jsonl", "--on-ambiguous", "some"),
        ("edited.jsonl", "--on-ambiguous", "error"),
        ("edited.jsonl",),
        ("flagged.jsonl",),
    ],
    ids=" ".join,
)
def test_errors_and_warnings_name_options(
    folder: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code = main(["check", "model", *arguments])
    out, err = capsys.readouterr()
    lines = [err, *(line for line in out.splitlines() if line.startswith(("warning:", "problem:")))]
    said = re.sub(r"<\|\w+\|>", "", " ".join(lines))
    assert said.strip() or code == 0
    found = [name for name in PYTHON.findall(said) if name not in ALLOWED]
    assert not found, f"{found} in: {said}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Give both instruction_part and response_part.", "Give both --instruction-part and --response-part."),
        ("on_ambiguous='drop' leaves them out", "--on-ambiguous drop leaves them out"),
        ("Policy(turns='last', stop='last') needs", "--turns last --stop last needs"),
        ("Policy(prompt_weight=...) is -1.0", "--prompt-weight is -1.0"),
        ("Policy(roles=['assistant', 'tool'])", "--roles assistant,tool"),
        ("Policy(tool_calls=False)", "--tool-calls no"),
        ("give another one as chat_template=.", "give another one as --chat-template."),
        ("the column 'chat_template' and chat_template_kwargs", "the column 'chat_template' and chat_template_kwargs"),
        ("the row stops=1 here", "the row stops=1 here"),
    ],
)
def test_each_argument_becomes_its_option(text: str, words: str) -> None:
    assert in_shell_words(text) == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("previw", "model", "x"), "There is no command previw. Did you mean preview? The commands are preview, check"),
        (("xyz",), "There is no command xyz. The commands are"),
        ((), "Give a command: preview, check, detect, diff, snapshot."),
        (("snapshot", "wirte", "m", "d", "f"), "There is no command wirte. Did you mean write?"),
        (("check", "m", "d", "--tunrs", "last"), "--tunrs last is not understood. Did you mean --turns?"),
        (
            ("check", "m", "d", "--on-ambigous=drop"),
            "--on-ambigous=drop is not understood. Did you mean --on-am",
        ),
        (("check", "m"), "The following arguments are required: DATA. See `sft-mask check --help`."),
        (
            ("preview", "m", "d", "--rows", "x"),
            "Argument --rows: invalid int value: 'x'. See `sft-mask preview --help`.",
        ),
    ],
)
def test_what_was_mistyped_is_corrected(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    err = capsys.readouterr().err
    assert done.value.code == 2
    assert err.startswith(f"sft-mask: {words}")
    assert err.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"sft-mask {version('sft-mask')}\n"


@pytest.mark.parametrize("arguments", ["preview model chats.jsonl --rows 8", "check model chats.jsonl", "--help"])
def test_a_closed_pipe_ends_quietly_with_the_shells_own_code(folder: Path, arguments: str) -> None:
    """The reader is gone before anything is written, as after ``head`` has what it wants."""
    script = (
        f"cd {folder}; (sleep 0.5; PYTHONPATH={ROOT} {sys.executable} -m sft_mask {arguments}; echo $? >code) | true"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert (folder / "code").read_text().strip() == "141"
    assert done.stderr == ""
