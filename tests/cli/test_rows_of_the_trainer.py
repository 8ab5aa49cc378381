"""``--max-length``, ``--packing``, ``--expand`` and ``--allow-lost``: the row shown is the row that is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import build, messages_dataset, tokenizer
from support.tiny_chat import chat

from sft_mask import mask_dataset, train_on_responses_only
from sft_mask.cli.main import main

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def asked(*answers: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        part for answer in answers for part in ({"role": "user", "content": "red"}, {"role": "assistant", **answer})
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shapes")
    tokenizer().save_pretrained(made / "model")
    chat("qwen3")[0].save_pretrained(made / "qwen3")
    messages_dataset(12).to_json(made / "chats.jsonl")
    lossy = [asked({"content": "blue", "tool_calls": [CALL]}), asked({"content": "", "tool_calls": [CALL]})]
    whole = [asked({"content": "blue"})] * 6
    reasoned = [asked(*({"content": word, "reasoning_content": "stone"} for word in ("blue", "seven", "walk")))] * 2
    for name, rows in {"lossy": [*lossy, *whole], "reasoned": reasoned}.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return made


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(folder)

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(arguments), *capsys.readouterr())

    return command


def trained(rows: Any) -> list[list[tuple[int, int]]]:
    """Runs of trained tokens of each row of a preview as JSON."""
    found = []
    for row in rows:
        ends = [*(run["start"] for run in row["runs"][1:]), row["tokens"]]
        pairs = zip(row["runs"], ends, strict=True)
        found.append([(run["start"], end) for run, end in pairs if run["weight"]])
    return found


def runs_of(labels: list[int]) -> list[tuple[int, int]]:
    inside = [False, *(label != -100 for label in labels), False]
    edges = [at for at in range(len(labels) + 1) if inside[at] != inside[at + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.usefixtures("in_tmp_path")
def test_truncated_rows_are_those_of_the_trainer(run: Any, folder: Path) -> None:
    trainer = train_on_responses_only(build("out", messages_dataset(12), max_length=40))
    given = (str(folder / "model"), str(folder / "chats.jsonl"), "--max-length", "40", "--json")
    shown = json.loads(run("preview", *given, "--rows", "12")[1])
    kept = [row for row in shown if row["trained"]]
    assert trained(kept) == [runs_of(row["labels"]) for row in trainer.train_dataset]
    report = json.loads(run("check", *given)[1])
    wanted = trainer.mask_report.splits["train"].to_dict()
    found = report["splits"]["train"]
    for name in ("tokens", "trained_tokens", "turns", "turns_cut", "stops_trained"):
        assert found[name] == wanted[name], name
    assert found["answers_cut_off"] >= wanted["answers_cut_off"]


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.usefixtures("in_tmp_path")
def test_packed_rows_are_those_that_the_trainer_packs(strategy: str, run: Any, folder: Path) -> None:
    masked = mask_dataset(messages_dataset(12), tokenizer())
    trainer = build("out", masked, packing=True, packing_strategy=strategy, max_length=64)
    given = (str(folder / "model"), str(folder / "chats.jsonl"), "--max-length", "64", "--packing", strategy, "--json")
    shown = json.loads(run("preview", *given, "--rows", "99")[1])
    assert trained(shown) == [runs_of(row["labels"]) for row in trainer.train_dataset]
    assert [row["tokens"] for row in shown] == [len(row["input_ids"]) for row in trainer.train_dataset]
    report = json.loads(run("check", *given)[1])
    assert report["rows_packed"] == len(trainer.train_dataset)


def test_packing_needs_a_length_and_trl(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("preview", "model", "chats.jsonl", "--packing")
    assert (code, "--packing bfd needs --max-length N" in err) == (2, True)
    code, _, err = run("check", "model", "chats.jsonl", "--max-length", "0")
    assert (code, "--max-length 0: give 1 or more" in err) == (2, True)
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    code, _, err = run("check", "model", "chats.jsonl", "--packing", "--max-length", "64")
    assert code == 2
    assert "Packing rows as TRL does needs trl: pip install 'sft-mask[train]'" in err


def test_expanded_rows_are_those_of_mask_dataset(run: Any, folder: Path) -> None:
    from datasets import load_dataset

    chats = load_dataset("json", data_files=str(folder / "reasoned.jsonl"), split="train")
    masked, report = mask_dataset(chats, chat("qwen3")[0], expand=True, return_report=True)
    assert len(masked) == 6
    shown = json.loads(run("preview", "qwen3", "reasoned.jsonl", "--expand", "--rows", "9", "--json")[1])
    assert trained(shown) == [runs_of(row["labels"]) for row in masked]
    assert not any(row["lost"] for row in shown)
    code, out, _ = run("check", "qwen3", "reasoned.jsonl", "--expand", "--json")
    assert code == 0
    assert json.loads(out)["splits"]["train"] == report.splits["train"].to_dict()
    code, out, _ = run("check", "qwen3", "reasoned.jsonl")
    assert code == 1
    assert "lost their reasoning" in out


def test_lost_words_are_a_problem_unless_they_are_accepted(run: Any) -> None:
    code, out, _ = run("check", "model", "lossy.jsonl")
    assert code == 1
    assert "not rendered: 2 of 2 tool calls" in out
    code, out, _ = run("check", "model", "lossy.jsonl", "--allow-lost")
    assert (code, "no problems" in out) == (0, True)
    assert "not rendered: 2 of 2 tool calls" in out
    assert "does not write 2 of 2 tool calls" in out


def test_accepted_losses_leave_other_problems(run: Any) -> None:
    code, out, _ = run("check", "qwen3", "reasoned.jsonl", "--allow-lost")
    assert code == 1
    assert "lost their reasoning" in out


def test_the_preview_lists_what_a_row_lost(run: Any) -> None:
    shown = json.loads(run("preview", "model", "lossy.jsonl", "--json")[1])
    assert [len(row["lost"]) for row in shown] == [1, 1, 0]
    out = "".join(run("preview", "model", "lossy.jsonl", "--row", "0", "--why")[1].split())  # whatever the width
    assert "lost:message1(assistant),toolcall:notwrittenbythechattemplate:{" in out
    assert "itstoolcall(message1)isnotwrittenbythechattemplate" in out
