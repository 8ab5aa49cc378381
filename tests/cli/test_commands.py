"""The command line, as a person and as a pipe meet it."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from ast import literal_eval
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from local_model import smollm2_folder
from rich.cells import cell_len
from support.tiny import chats, expected, messages_dataset, tokenized, tokenizer
from transformers import AutoTokenizer

from sft_mask.cli.main import main
from sft_mask.cli.options import marker

ROOT = Path(__file__).parents[2]
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
COMMANDS = ("preview", "check", "detect", "diff", "snapshot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder, and the same chats in every kind of file."""
    made = tmp_path_factory.mktemp("cli")
    tokenizer().save_pretrained(made / "model")
    bare = AutoTokenizer.from_pretrained(made / "model")
    bare.chat_template = None
    bare.save_pretrained(made / "bare")
    data = messages_dataset(8)
    data.to_json(made / "chats.jsonl")
    data.to_parquet(made / "chats.parquet")
    (made / "chats.json").write_text(json.dumps(data.to_list()), "utf-8")
    data.save_to_disk(made / "saved")
    (made / "files").mkdir()
    data.to_json(made / "files" / "train.jsonl")
    messages_dataset(3, seed=5).to_json(made / "files" / "test.jsonl")
    return made


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in the folder and gives its code, its output and its errors."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return command


def process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "sft_mask", *arguments], cwd=ROOT, **options)


# ---- help ------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom sft_mask.cli.main import build_parser\nbuild_parser().format_help()\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'transformers', 'datasets', 'numpy', 'rich', 'jinja2', 'pyarrow'}))"
    )
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("snapshot", "write"), ("snapshot", "check")])
def test_help_of_every_command_teaches(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: sft-mask {' '.join(command)}".rstrip())
    if command[:1] != ("snapshot",) or len(command) == 1:
        assert "examples:" in text
        assert f"sft-mask {command[0] if command else 'preview'}" in text


def test_every_command_is_listed_and_python_m_runs_it() -> None:
    out, _ = process("--help", stdout=subprocess.PIPE).communicate(timeout=60)
    assert all(f"    {name} " in out.decode() for name in COMMANDS)


# ---- commands --------------------------------------------------------------------------------------------------------


def test_detect_prints_literals_that_can_be_copied(run: Any) -> None:
    code, out, _ = run("detect", "model")
    assert code == 0
    values = {name: literal_eval(value.split("  #")[0]) for name, value in assignments(out)}
    assert values["instruction_part"] == "<|im_start|>user\n"
    assert values["response_part"] == "<|im_start|>assistant\n"
    assert values["eots"] == ["<|im_end|>"]
    assert values["generation_prompt"] == "<|im_start|>assistant\n"
    call = out[out.rindex("train_on_responses_only(") :]
    assert f"instruction_part={values['instruction_part']!r}, response_part={values['response_part']!r}" in call


def assignments(out: str) -> list[tuple[str, str]]:
    pairs = (line.split(" = ", 1) for line in out.splitlines() if " = " in line and not line.startswith("trainer"))
    return [(name, value) for name, value in pairs]


def test_detect_as_json(run: Any) -> None:
    found = json.loads(run("detect", "model", "--json")[1])
    assert found["instruction_part"] == ["<|im_start|>user\n"]
    assert found["complete"] is True


@pytest.mark.parametrize("data", ["chats.jsonl", "chats.parquet", "chats.json", "saved", "files"])
def test_preview_marks_what_is_trained_from_every_kind_of_data(run: Any, data: str) -> None:
    code, out, _ = run("preview", "model", data, "--row", "3")
    assert code == 0
    messages = messages_dataset(8)["messages"][3]
    for message in messages:
        if message["role"] == "assistant":
            assert f"⟦{message['content']}<|im_end|>⟧" in out
        else:
            assert f"⟦{message['content']}" not in out
    assert out.startswith("train 3 · ")


def test_preview_shows_three_rows_or_as_many_as_asked_and_why(run: Any) -> None:
    _, three, _ = run("preview", "model", "chats.jsonl")
    _, five, _ = run("preview", "model", "chats.jsonl", "--rows", "5")
    assert [text.count("legend:") for text in (three, five)] == [3, 5]
    _, why, _ = run("preview", "model", "chats.jsonl", "--rows", "1", "--why")
    assert "the model must learn to stop" in why


def test_preview_as_json_holds_runs_and_reasons(run: Any) -> None:
    rows = json.loads(run("preview", "model", "chats.jsonl", "--rows", "2", "--json")[1])
    for row, messages in zip(rows, messages_dataset(8)["messages"], strict=False):
        assert row["trained"] == sum(label != -100 for label in expected(messages))
        assert row["parts"][-1]["end"] == row["tokens"]


def test_preview_writes_a_page(run: Any, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("preview", "model", "chats.jsonl", "--html", str(tmp_path / "mask.html"))
    assert (code, out) == (0, f"8 rows: {(tmp_path / 'mask.html').as_uri()}\n")
    assert "What is trained of chats.jsonl" in (tmp_path / "mask.html").read_text("utf-8")


def test_check_is_zero_where_all_is_well_and_one_where_not(run: Any, folder: Path) -> None:
    code, out, _ = run("check", "model", "chats.jsonl")
    assert (code, out.splitlines()[-1]) == (0, "no problems")
    assert out.startswith("train: 8 rows")
    code, out, _ = run("check", "model", "chats.jsonl", "--stop", "never", "--json")
    report = json.loads(out)
    assert report["splits"]["train"]["stops_trained"] == 0
    assert code == (1 if report["problems"] else 0)


def test_check_counts_rows_that_cannot_be_decided_as_a_problem(run: Any, folder: Path) -> None:
    good, other = chats(2, seed=3)
    edited = tokenized([*other, {"role": "assistant", "content": "more"}])
    rows = [{"messages": good, "input_ids": tokenized(good)}, {"messages": other, "input_ids": edited}]
    (folder / "edited.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    code, out, _ = run("check", "model", "edited.jsonl")
    assert code == 1
    assert "1 rows are decided by neither markers nor messages" in out
    code, _, err = run("check", "model", "edited.jsonl", "--on-ambiguous", "error")
    assert code == 1
    assert err.startswith("sft-mask: In the train dataset: ")


def test_diff_finds_the_rows_in_which_only_the_last_answer_is_trained(run: Any) -> None:
    code, out, _ = run("diff", "model", "chats.jsonl", "--other-turns", "last")
    several = sum(
        sum(message["role"] == "assistant" for message in messages) > 1 for messages in messages_dataset(8)["messages"]
    )
    assert code == 1
    assert f"{several} of 8 rows differ" in out
    assert "trained → masked" in out
    assert run("diff", "model", "chats.jsonl", "--other-turns", "all") == (
        0,
        "The two masks are equal in all 8 rows.\n",
        "",
    )


def test_what_the_other_side_is_not_told_is_the_same(run: Any) -> None:
    both = ("--stop", "never", "--turns", "last")
    assert run("diff", "model", "chats.jsonl", *both, "--other-turns", "last")[0] == 0
    assert run("diff", "model", "chats.jsonl", *both, "--other-stop", "always")[0] == 1


def test_diff_of_two_templates(run: Any, folder: Path) -> None:
    template = tokenizer().chat_template.replace("<|im_end|>\n", "<|im_end|>")
    (folder / "other.jinja").write_text(template, "utf-8")
    code, out, _ = run("diff", "model", "chats.jsonl", "--other-chat-template", "other.jinja", "--rows", "2", "--json")
    assert (code, json.loads(out)["rows_different"]) == (1, 2)


def test_a_snapshot_is_written_and_checked(run: Any, folder: Path) -> None:
    assert run("snapshot", "write", "model", "chats.jsonl", "mask.jsonl", "--rows", "4", "--turns", "last")[0] == 0
    code, out, _ = run("snapshot", "check", "model", "chats.jsonl", "mask.jsonl")
    assert (code, out) == (0, "The mask equals the snapshot in all 4 rows.\n")
    text = (folder / "mask.jsonl").read_text("utf-8")
    (folder / "mask.jsonl").write_text(text.replace('"turns": "last"', '"turns": "all"'), "utf-8")
    code, out, _ = run("snapshot", "check", "model", "chats.jsonl", "mask.jsonl")
    assert code == 1
    assert "masked → trained" in out
    assert json.loads(run("snapshot", "check", "model", "chats.jsonl", "mask.jsonl", "--json")[1])["equal"] is False


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("preview", "./none", "chats.jsonl"), "There is no folder ./none"),
        (("preview", "files", "chats.jsonl"), "has no tokenizer"),
        (("preview", "chats.jsonl", "chats.jsonl"), "chats.jsonl is a file"),
        (("preview", "model", "none.jsonl"), "There is no file or folder none.jsonl"),
        (("preview", "model", "broken.jsonl"), "broken.jsonl cannot be read"),
        (("preview", "model", "notes.txt"), "is not of a known kind"),
        (("preview", "model", "files", "--split", "dev"), "no split 'dev': it has train, test"),
        (("preview", "model", "chats.jsonl", "--row", "99"), "There is no row 99"),
        (("preview", "model", "chats.jsonl", "--rows", "0"), "show at least one row"),
        (("preview", "model", "chats.jsonl", "--open"), "--open opens the page of --html"),
        (("preview", "model", "chats.jsonl", "--html", "none/page.html"), "there is no folder none"),
        (("check", "model", "chats.jsonl", "--turns", "some"), "--turns some is unknown. Use one of all, last"),
        (("check", "model", "chats.jsonl", "--tool-calls", "some"), "give yes or no"),
        (("check", "model", "chats.jsonl", "--prompt-weight", "-1"), "a weight must be a finite number"),
        (("check", "model", "chats.jsonl", "--response-part", "A:"), "--instruction-part is missing"),
        (("check", "model", "chats.jsonl", "--chat-template", "none.jinja"), "none.jinja cannot be read"),
        (("check", "bare", "chats.jsonl"), "has no chat template, so messages cannot be rendered"),
        (("detect", "bare"), "has no chat template, so the markers cannot be read"),
        (("check", "model", "other.jsonl"), "no input_ids, messages"),
        (("diff", "model", "chats.jsonl"), "The two masks are the same"),
        (("snapshot", "check", "model", "chats.jsonl", "chats.jsonl"), "is not a snapshot"),
    ],
)
def test_wrong_use_is_one_line_and_code_two(run: Any, folder: Path, arguments: tuple[str, ...], words: str) -> None:
    (folder / "broken.jsonl").write_text("{\n", "utf-8")
    (folder / "notes.txt").write_text("notes", "utf-8")
    (folder / "other.jsonl").write_text('{"prose": "x"}\n', "utf-8")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("sft-mask: ")
    assert words in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(run: Any) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        main(["preview", "./none", "chats.jsonl", "--debug"])


def test_nothing_to_train_is_a_problem_and_no_wrong_use(run: Any, folder: Path) -> None:
    ids = [tokenized(messages) for messages in chats(2)]
    rows = [{"input_ids": row, "labels": [-100] * len(row)} for row in ids]
    (folder / "silent.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    code, out, err = run("check", "model", "silent.jsonl")
    assert (code, out) == (1, "")
    assert "would be masked completely" in err


def test_a_marker_is_read_as_it_was_typed() -> None:
    assert marker(None) is None
    assert marker("A:\\n") == "A:\n"
    assert marker('"A:\\n"') == "A:\n"
    with pytest.raises(ValueError, match="not a Python string"):
        marker('"\\x"')


# ---- the page about it -----------------------------------------------------------------------------------------------


def documented() -> list[str]:
    text = (ROOT / "docs" / "command_line.md").read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_command_of_the_page_runs_as_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    lines = documented()
    assert {line.split()[1] for line in lines} == set(COMMANDS)
    for line in lines:
        command, _, comment = line.partition("  # exits with ")
        program, *arguments = shlex.split(command.replace(HUB_NAME, str(smollm2_folder())))
        assert program == "sft-mask"
        assert main(arguments) == int(comment or 0), capsys.readouterr().err
    assert (tmp_path / "mask.html").exists()


# ---- pipes and terminals ---------------------------------------------------------------------------------------------


def test_a_pipe_gets_no_colour_and_whole_lines(run: Any) -> None:
    _, out, _ = run("preview", "model", "chats.jsonl", "--rows", "8")
    assert "\x1b" not in out
    longest = max(len(message["content"]) for messages in messages_dataset(8)["messages"] for message in messages)
    assert max(map(len, out.splitlines())) >= longest


@pytest.mark.parametrize(
    "arguments",
    [
        ("preview", "model", "chats.jsonl", "--rows", "8"),
        ("check", "model", "chats.jsonl", "--turns", "last", "--max-length", "40"),
        ("detect", "model"),
        ("diff", "model", "chats.jsonl", "--other-turns", "last", "--show", "8"),
        ("snapshot", "check", "model", "chats.jsonl", "mask.jsonl"),
    ],
)
def test_nothing_is_lost_in_a_narrow_terminal(
    run: Any, folder: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("snapshot", "write", "model", "chats.jsonl", "mask.jsonl", "--force")
    snapshot = folder / "mask.jsonl"
    snapshot.write_text(snapshot.read_text("utf-8").replace("[1, [", "[0, ["), "utf-8")
    whole = run(*arguments)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = run(*arguments)
    assert whole[0] == narrow[0] != 2
    assert "".join(narrow[1].split()) == "".join(whole[1].split())
    longest = max(map(cell_len, narrow[1].splitlines()))
    if arguments[0] == "detect":
        assert narrow[1] == whole[1], "what is to be copied is left whole"
    else:
        assert 40 < longest <= 60 < max(map(cell_len, whole[1].splitlines()))


def test_reasons_wrap_under_their_own_column(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, _ = run("preview", "model", "chats.jsonl", "--rows", "1", "--why")
    monkeypatch.setenv("COLUMNS", "60")
    _, narrow, _ = run("preview", "model", "chats.jsonl", "--rows", "1", "--why")
    assert max(map(cell_len, narrow.splitlines())) <= 60
    wide = [re.split(r"  +", line.strip()) for line in whole.split("masked\n", 1)[1].splitlines()]
    parts: list[list[str]] = []
    for line in narrow.split("masked\n", 1)[1].splitlines():
        span, text, words = column(line, 0, 7), column(line, 7, 24), column(line, 24, 60)
        if span.strip():
            parts.append([span.strip(), "", ""])
        parts[-1][1] += text
        parts[-1][2] += words
    squeezed = [["".join(cell.split()) for cell in part] for part in parts]
    assert squeezed == [["".join(cell.split()) for cell in part] for part in wide]
    assert len(wide) > 5


def column(line: str, start: int, end: int) -> str:
    """What a line shows from one place in the terminal to another."""
    places = accumulate(map(cell_len, line), initial=0)
    return "".join(sign for sign, at in zip(line, places, strict=False) if start <= at < end)


@pytest.mark.slow
def test_a_pipe_that_closes_early_leaves_no_traceback(folder: Path) -> None:
    rows = [{"messages": messages} for messages in chats(512)] * 4
    (folder / "many.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    shown = process(
        *("preview", str(folder / "model"), str(folder / "many.jsonl"), "--rows", "2048"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    assert shown.stdout.read(40)
    shown.stdout.close()
    errors = shown.stderr.read().decode()
    shown.wait(timeout=120)
    assert errors == ""
    shown.stderr.close()


def in_terminal(folder: Path, columns: int, **environment: str) -> str:
    """What a person sees in a terminal so many columns wide."""
    parent, child = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    shown = process(
        *("preview", str(folder / "model"), str(folder / "chats.jsonl"), "--rows", "2"),
        stdout=child,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment},
    )
    os.close(child)
    out = b""
    while True:
        try:
            piece = os.read(parent, 1 << 16)
        except OSError:  # how a pty says that the other end is closed
            break
        if not piece:
            break
        out += piece
    shown.wait(timeout=120)
    os.close(parent)
    return out.decode()


@pytest.mark.slow
def test_a_terminal_gets_colours_unless_it_wants_none(folder: Path) -> None:
    colourful, plain = in_terminal(folder, 40), in_terminal(folder, 40, NO_COLOR="1")
    assert "\x1b[1;32m" in colourful
    assert "⟦" not in colourful
    assert "\x1b[1;32m" not in plain
    assert "⟦" in plain
    assert max(map(len, plain.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())) <= 44


def test_help_answers_before_anybody_waits() -> None:
    process("--help", stdout=subprocess.DEVNULL).wait(timeout=60)
    empty, ours = [], []
    for _ in range(5):
        for command, times in (([sys.executable, "-c", "import argparse, textwrap"], empty), (None, ours)):
            began = time.perf_counter()
            if command is None:
                process("--help", stdout=subprocess.DEVNULL).wait(timeout=60)
            else:
                subprocess.run(command, check=True, cwd=ROOT)
            times.append(time.perf_counter() - began)
    assert min(ours) < 5 * min(empty), f"{min(ours):.3f} s, a Python that only imports argparse {min(empty):.3f} s"
