"""The diagnosis in a narrow terminal."""

from __future__ import annotations

import io

from rich.console import Console

from sft_mask.doctor import Diagnosis, Finding


def shown(diagnosis: Diagnosis, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(diagnosis)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_nothing_of_a_diagnosis_is_lost_in_a_narrow_terminal() -> None:
    why = "The labels cover tokens of the user: 東京 " + "unbroken" * 20 + " and a marker '<|im_start|>user\\n'."
    finding = Finding("it writes both sides", why, "Mask the prompt. " * 9, example="row 3, tokens 5 to 9: 'walk'")
    diagnosis = Diagnosis((finding,), {"train": {"rows": 4, "share": 0.25, "tokens in the loss": 123456.0}})
    narrow = shown(diagnosis, 60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert "".join(narrow.split()) == "".join(str(diagnosis).split())
