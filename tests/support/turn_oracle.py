"""What inference shows of each answer, by the tokenizer's own renderings; and conversations drawn at random.

The answer of message k is what rendering ``messages[:k + 1]`` adds to ``messages[:k]`` with the generation prompt.
Nothing here is the library's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from jinja2.exceptions import TemplateError

from sft_mask import IGNORE_INDEX

Messages = list[dict[str, Any]]

LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "the word"}},
            "required": ["word"],
        },
    },
}
_MODES: tuple[dict[str, bool], ...] = ({}, {"enable_thinking": False}, {"enable_thinking": True})
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


class Writer:
    """Draws conversations in which no words occur twice."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._count = 0

    def words(self) -> str:
        self._count += 1
        return (
            f"{self._random.choice(('amber', 'basil', 'cedar'))} {self._random.choice(('fox', 'gull'))} {self._count}"
        )

    def conversation(
        self, *, tools: bool = True, reasoning: bool = True
    ) -> tuple[Messages, list[dict[str, Any]] | None]:
        """One to four questions; perhaps a system message, reasoning, (parallel) tool calls, an empty answer."""
        draw = self._random.random
        has_tools, has_reasoning = tools and draw() < 0.5, reasoning and draw() < 0.6
        said: Messages = [{"role": "system", "content": self.words()}] if draw() < 0.4 else []
        for _ in range(self._random.randint(1, 4)):
            said.append({"role": "user", "content": self.words()})
            while has_tools and draw() < 0.5:
                said.extend(self._call(has_reasoning, 2 if draw() < 0.3 else 1))
            answer: dict[str, Any] = {"role": "assistant", "content": self.words() if draw() < 0.9 else ""}
            if has_reasoning and draw() < 0.8:
                answer["reasoning_content"] = self.words()
            said.append(answer)
        return said, [LOOK_UP] if has_tools else None

    def _call(self, has_reasoning: bool, count: int) -> Iterator[dict[str, Any]]:
        calls = [
            {
                "id": f"call{self._count + number:05d}",
                "type": "function",
                "function": {"name": "look_up", "arguments": {"word": self.words()}},
            }
            for number in range(count)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
        if has_reasoning:
            message["reasoning_content"] = self.words()
        yield message
        for call in calls:
            yield {"role": "tool", "name": "look_up", "tool_call_id": call["id"], "content": self.words()}


def rendered(tokenizer: Any, messages: Messages, tools: object = None, **more: Any) -> str | None:
    """The text of a conversation; ``None`` where the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **more))
    except _REFUSALS:
        return None


def sampled(tokenizer: Any, messages: Messages, index: int, tools: object = None) -> list[tuple[str, str]]:
    """Context and answer of a message, one pair for each generation prompt that leads to it."""
    finished = rendered(tokenizer, messages[: index + 1], tools)
    if finished is None:
        return []
    asked = [rendered(tokenizer, messages[:index], tools, add_generation_prompt=True, **mode) for mode in _MODES]
    pairs = [(each, finished[len(each) :].rstrip()) for each in asked if each is not None and finished.startswith(each)]
    return list(dict.fromkeys(pairs))


def trained_turns(tokenizer: Any, row: Mapping[str, Sequence[int]]) -> list[tuple[str, str]]:
    """Context and words of each run of trained tokens."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    found, at = [], 0
    for is_trained, run in groupby(labels, key=lambda label: label != IGNORE_INDEX):
        end = at + len(list(run))
        if is_trained:
            assert labels[at:end] == ids[at:end]
            found.append((tokenizer.decode(ids[:at]), tokenizer.decode(ids[at:end]).rstrip()))
        at = end
    return found
