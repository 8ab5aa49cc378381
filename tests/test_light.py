"""The light installation: masks and the command line without torch and TRL; a missing extra is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import light
from support.tiny import messages_dataset, tokenizer

import sft_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("light")
    tokenizer().save_pretrained(made / "model")
    messages_dataset(8).to_json(made / "chats.jsonl")
    return made


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Any]:
    """Of each feature, in a process of its own that finds no package of an extra."""
    command = [sys.executable, light.__file__, str(folder)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] == []
    return found


def test_labels_and_report_are_the_same_without_torch_and_trl(outcomes: dict[str, Any]) -> None:
    made, report = sft_mask.mask_dataset(messages_dataset(8), tokenizer(), return_report=True)
    assert outcomes["mask_dataset"]["labels"] == outcomes["mask_dataset"]["by_function"] == list(made["labels"])
    assert outcomes["mask_dataset"]["report"] == str(report)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("check", 0, "16 found, 16 trained"),
        ("preview", 0, "legend: "),
        ("html", 0, "8 rows"),
        ("detect", 0, "<|im_start|>assistant"),
        ("diff", 1, "of 8 rows differ"),
        ("write", 0, "8 rows"),
        ("compare", 0, "all 8 rows"),
    ],
)
def test_commands_run_without_torch_and_trl(outcomes: dict[str, Any], command: str, code: int, said: str) -> None:
    exit_code, out, errors = outcomes[command]
    assert (exit_code, errors) == (code, "")
    assert said in out


@pytest.mark.parametrize(
    ("feature", "sentence"),
    [
        ("functional", "sft_mask.functional needs torch: pip install 'sft-mask[train]'"),
        ("trainer", "A trainer needs trl: pip install 'sft-mask[train]'"),
        ("tracking", "LogMask needs torch: pip install 'sft-mask[train]'"),
        ("sampling", "SampleAnswers needs torch: pip install 'sft-mask[train]'"),
        ("doctor", "The doctor needs torch: pip install 'sft-mask[train]'"),
    ],
)
def test_one_sentence_names_the_extra(outcomes: dict[str, Any], feature: str, sentence: str) -> None:
    assert outcomes[feature] == f"MissingExtraError: {sentence}"
