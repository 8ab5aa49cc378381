"""Rows that are shown on a page, some of which attack it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from support.shown_rows import BYTES, SPECIALS, TEXT, masked_until

from sft_mask.preview import Note, PreviewRow, build_row

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>&amp;\u2028\x1b[31m<!--\\u003c"
ROWS = 40


def example_row(number: int, text: str = TEXT, **details: Any) -> PreviewRow:
    ids = BYTES(f"<|start|>user {text}<|end|><|start|>{text}<|end|>")["input_ids"]
    answer = ids.index(BYTES.convert_tokens_to_ids(SPECIALS[1])) + 2
    notes = [
        Note(0, answer, "user", "masked: <b>prompt</b>"),
        Note(answer, len(ids), "assistant", "trained: the answer"),
    ]
    details = {"labels": masked_until(ids, answer), "spans": notes, "name": f"train {number}", **details}
    return build_row(BYTES, ids, **details)


def example_rows() -> Iterator[PreviewRow]:
    for number in range(ROWS):
        flags = {3: ("cut",), 5: ("dropped: no answer",), 7: ("ambiguous", "cut")}.get(number, ())
        yield example_row(number, EVIL if number == 2 else TEXT, status=flags)
