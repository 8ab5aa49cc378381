"""Golden folders: one conversation under one template, with the mask it must have, readable and small.

    case.json       tokenizer, template, messages, tools, chat_template_kwargs, markers
    template.jinja  only where the template is not one of TRL's ("trl:NAME") or of the table's plain-text formats
    text.txt        the rendered conversation
    ids.json        its tokens
    trained.txt     one line for each trained stretch of tokens: START:STOP and the text of it

To add a template, write a folder with a ``case.json`` and run ``python tests/golden/regenerate.py --write``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from support.conformance.alignment import align, read_vocabulary
from support.conformance.harness import IGNORED, added_tokens
from support.conformance.oracle import Case, Judgement, judge, render
from support.conformance.templates import PLAIN_TEXT, SHIPPED, Format, format_of, shipped_template

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@dataclass(frozen=True, slots=True)
class Golden:
    """What a ``case.json`` says."""

    folder: Path
    tokenizer: str
    template: str
    messages: list[dict[str, Any]]
    instruction_part: str
    response_part: str
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    today: str | None = None  # stands in for the clock in templates that print the date

    @property
    def case(self) -> Case:
        return Case(self.messages, self.tools, self.chat_template_kwargs)

    def template_text(self) -> str:
        source, _, name = self.template.partition(":")
        if source == "trl":
            text = shipped_template(name)
        elif source == "plain":
            text = PLAIN_TEXT[name][0]
        else:
            text = (self.folder / self.template).read_text()
        return text if self.today is None else text.replace('strftime_now("%Y-%m-%d")', json.dumps(self.today))

    def form(self, tokenizer: Any) -> Format:
        """The row of the table that the oracle reads the template with."""
        source, _, name = self.template.partition(":")
        if source == "trl":
            return SHIPPED[name]
        if source == "plain":
            return PLAIN_TEXT[name][1].with_eos(tokenizer.eos_token)
        found = format_of(render(tokenizer, self.case), added_tokens(read_vocabulary(tokenizer)))
        assert found is not None, f"{self.folder.name}: no row of the table fits its template"
        return found


def golden_folders() -> list[Path]:
    return sorted(path.parent for path in GOLDEN.glob("*/case.json"))


def read_golden(folder: Path) -> Golden:
    return Golden(folder, **json.loads((folder / "case.json").read_text()))


def independent_judgement(golden: Golden, tokenizer: Any) -> Judgement:
    """The oracle's word on the case; ``tokenizer.chat_template`` is the case's."""
    return judge(tokenizer, read_vocabulary(tokenizer), golden.form(tokenizer), golden.case)


def record_of(golden: Golden, ids: list[int]) -> dict[str, Any]:
    """The row of a dataset that holds the case."""
    record: dict[str, Any] = {"input_ids": ids, "messages": golden.messages}
    if golden.tools is not None:
        record["tools"] = golden.tools
    if golden.chat_template_kwargs:
        record["chat_template_kwargs"] = golden.chat_template_kwargs
    return record


def trained_lines(text: str, ids: list[int], labels: Sequence[int], tokenizer: Any) -> list[str]:
    """``START:STOP "text"`` for each trained stretch, in tokens."""
    spans = align(text, ids, read_vocabulary(tokenizer))
    data = text.encode()
    lines: list[str] = []
    for is_trained, group in groupby(range(len(ids)), lambda i: labels[i] != IGNORED):
        indices = list(group)
        if is_trained:
            words = data[spans[indices[0]][0] : spans[indices[-1]][1]].decode(errors="replace")
            lines.append(f"{indices[0]}:{indices[-1] + 1} {json.dumps(words, ensure_ascii=False)}")
    return lines


def token_diff(ids: list[int], labels: Sequence[int], expected: list[str], tokenizer: Any) -> str:
    """Every token whose mask is not the expected one, with its neighbours: ``+`` trained now, ``-`` no longer."""
    ranges = [tuple(map(int, line.split(" ", 1)[0].split(":"))) for line in expected]
    before = [any(start <= i < stop for start, stop in ranges) for i in range(len(ids))]
    after = [label != IGNORED for label in labels]
    changed = {i for i in range(len(ids)) if before[i] != after[i]}
    shown = sorted({near for i in changed for near in range(max(0, i - 2), min(len(ids), i + 3))})
    return "\n".join(
        f"{('+' if after[i] else '-') if i in changed else ' '} {i:5d} {ids[i]:7d} {tokenizer.decode([ids[i]])!r}"
        for i in shown
    )
