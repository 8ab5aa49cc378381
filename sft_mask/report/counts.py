"""Counts of one split, in numbers that add up: workers, shards and streams just sum."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

_REASONS = (
    *("dropped_reasons", "unchecked_reasons", "unread_flags", "fields", "fields_trained", "fields_cut"),
    *("not_rendered", "prompts", "prompts_of_inference"),
)
"""Fields of a split that count by name."""

OF_ASSISTANT = ("tool calls", "reasoning", "assistant contents")
"""Names of the fields that the assistant has to say."""


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Counts over one split. ``+`` adds every field; rows that were dropped are counted in ``rows_dropped`` only.

    >>> left = SplitReport(rows=2, tokens=100, trained_tokens=30, dropped_reasons={"no answer": 1}, rows_dropped=1)
    >>> both = left + left
    >>> both.rows, both.trained_tokens, both.prompt_tokens, both.share, both.dropped_reasons
    (4, 60, 140, 0.3, {'no answer': 2})
    """

    rows: int = 0
    """Rows that stay in the split."""
    documents: int = 0
    """Documents in them: more than rows where rows are packed."""
    tokens: int = 0
    trained_tokens: int = 0
    """Tokens of answers whose label is not ignored, whatever their weight."""
    prompt_trained_tokens: int = 0
    """Tokens of prompts that a policy trains too (``prompt_weight``)."""
    turns: int = 0
    """Assistant turns found."""
    turns_trained: int = 0
    turns_with_stop: int = 0
    """Turns whose end-of-turn token is in the row."""
    stops_trained: int = 0
    turns_cut: int = 0
    """Answers that run into the end of a row without their end-of-turn token."""
    rows_cut: int = 0
    """Rows with at least one such answer."""
    rows_dropped: int = 0
    """Rows that would train nothing (or were ambiguous) and were removed."""
    dropped_reasons: Mapping[str, int] = field(default_factory=dict, hash=False)
    rows_exact: int = 0
    """Rows decided by their messages."""
    rows_checked: int = 0
    """Rows decided by markers that agree with their messages."""
    rows_unchecked: int = 0
    """Rows decided by markers with nothing to check against (text only, or tokenized before)."""
    unchecked_reasons: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of these, the rows that have messages, and why the messages decided nothing."""
    rows_ambiguous: int = 0
    """Rows that neither markers nor messages could decide; dropped ones are in ``dropped_reasons`` too."""
    rows_without_words: int = 0
    """Of these, the rows with an answer of which the chat template writes nothing but an end-of-turn token."""
    rows_mid_turn: int = 0
    """Rows that begin inside a turn, because packing or truncation cut them; all of it before their first header is
    masked."""
    rows_masked_before: int = 0
    """Rows whose labels ``mask_dataset`` had made before the trainer was built."""
    images: int = 0
    """Images, videos and sounds in the rows, as far as the processor told where they are."""
    image_tokens: int = 0
    """Their tokens, those of their frames included; never trained."""
    rows_with_unread_flags: int = 0
    """Rows whose messages carry ``train``, ``weight``, ``loss`` or the like, which the policy did not ask for."""
    unread_flags: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of these, the rows by the name of the flag."""
    rows_at_max_length: int = 0
    """Rows as long as the trainer lets them be, of which nothing tells whether the end is missing: without messages, or
    masked before the trainer was built."""
    answers_cut_off: int = 0
    """Answers of which truncation left nothing in their row; known of rows with messages."""
    tokens_cut_off: int = 0
    """Their tokens."""
    fields: Mapping[str, int] = field(default_factory=dict, hash=False)
    """What the messages hold, by name (``"tool calls"``, ``"reasoning"``, ``"assistant contents"``, ``"tool
    definitions"``, ...), in all rows whose messages were accounted for, dropped ones too. Each is trained, cut off, not
    rendered, or else in its row and masked."""
    fields_trained: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of these, what is trained."""
    fields_cut: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of these, what truncation cut off whole."""
    not_rendered: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of these, what the chat template does not write."""
    first_not_rendered: Mapping[str, int] = field(default_factory=dict, hash=False)
    """The first row of each kind that the chat template does not write."""
    turns_compared: int = 0
    """Trained turns that were compared with what inference shows."""
    turns_in_other_form: int = 0
    """Of these, the turns whose context or words are others at inference."""
    turns_without_reasoning: int = 0
    """Of these, the turns whose reasoning inference shows and the row lacks."""
    turns_after_no_prompt: int = 0
    """Compared turns that no generation prompt of the template leads to."""
    prompts: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Compared turns by the arguments of the generation prompt that leads to them (``"enable_thinking=False"``)."""
    prompts_of_inference: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of these, the turns that are as inference shows them."""
    rows_before: int = 0
    """Conversations that ``expand=True`` made the rows from; 0 without it."""
    tokens_before: int = 0
    """Tokens of these conversations in one row each."""

    def __post_init__(self) -> None:
        for name in (*_REASONS, "first_not_rendered"):
            counts = getattr(self, name)
            object.__setattr__(self, name, dict(sorted(counts.items()) if len(counts) > 1 else counts))

    def __repr__(self) -> str:
        """Without what is zero, so that the rest can be read.

        >>> SplitReport(rows=2, tokens=100)
        SplitReport(rows=2, tokens=100)
        """
        counts = {each.name: getattr(self, each.name) for each in fields(self)}
        return f"SplitReport({', '.join(f'{name}={count!r}' for name, count in counts.items() if count)})"

    def __add__(self, other: SplitReport) -> SplitReport:
        if not isinstance(other, SplitReport):
            return NotImplemented
        first = [*self.first_not_rendered.items(), *other.first_not_rendered.items()]
        added: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        added.update({name: _sum(getattr(self, name), getattr(other, name)) for name in _REASONS})
        return SplitReport(**added, first_not_rendered=dict(sorted(first, key=lambda kind: -kind[1])))

    @property
    def rows_seen(self) -> int:
        """Rows before any was dropped."""
        return self.rows + self.rows_dropped

    @property
    def turns_without_stop(self) -> int:
        """Assistant turns without an end-of-turn token, although their row goes on after them."""
        return max(self.turns - self.turns_with_stop - self.turns_cut, 0)

    @property
    def lost(self) -> dict[str, int]:
        """What the assistant's messages hold and the chat template does not write: tool calls, reasoning, contents."""
        return {name: count for name, count in self.not_rendered.items() if name in OF_ASSISTANT}

    def accepting_losses(self) -> SplitReport:
        """The counts as if the assistant's fields that are not rendered, and rows that are left out for it, were not.

        >>> SplitReport(not_rendered={"tool calls": 2, "tool definitions": 1}).accepting_losses().not_rendered
        {'tool definitions': 1}
        """
        without = self.rows_without_words
        kept = {name: count for name, count in self.not_rendered.items() if name not in OF_ASSISTANT}
        return replace(
            self,
            not_rendered={
                **kept,
                **({"reasoning": self.turns_without_reasoning} if self.turns_without_reasoning else {}),
            },
            rows_ambiguous=self.rows_ambiguous - without,
            rows_dropped=max(self.rows_dropped - without, 0),
            rows_without_words=0,
        )

    @property
    def prompt_arguments(self) -> dict[str, object]:
        """Template arguments of the generation prompt that most answers come after; give them at inference too.

        >>> SplitReport(prompts_of_inference={"enable_thinking=False": 3, "no arguments": 1}).prompt_arguments
        {'enable_thinking': False}
        """
        if not self.prompts_of_inference:
            return {}
        most = max(self.prompts_of_inference.items(), key=lambda prompt: prompt[1])[0]
        return read_arguments(most)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are read but not trained: ``tokens - trained_tokens``."""
        return self.tokens - self.trained_tokens

    @property
    def share(self) -> float:
        """``trained_tokens / tokens``, 0.0 for an empty split."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def response_prompt_ratio(self) -> float:
        """``trained_tokens / prompt_tokens``: infinite where everything is trained, 0.0 for an empty split."""
        if self.prompt_tokens:
            return self.trained_tokens / self.prompt_tokens
        return math.inf if self.trained_tokens else 0.0

    def to_dict(self) -> dict[str, object]:
        """Every count and the derived numbers, ready for ``json.dumps`` (an infinite ratio becomes None).

        >>> SplitReport(rows=1, tokens=4, trained_tokens=4).to_dict()["response_prompt_ratio"] is None
        True
        """
        ratio = self.response_prompt_ratio
        derived: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "share": self.share,
            "response_prompt_ratio": ratio if math.isfinite(ratio) else None,
        }
        counts = {name: getattr(self, name) for name in _COUNTS}
        reasons = {name: dict(getattr(self, name)) for name in (*_REASONS, "first_not_rendered")}
        return {**counts, **reasons, **derived}


_COUNTS = tuple(f.name for f in fields(SplitReport) if f.name not in (*_REASONS, "first_not_rendered"))


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> Mapping[str, int]:
    """The sum of counts by name; mostly one of the two is empty."""
    return Counter(left) + Counter(right) if left and right else left or right


def read_arguments(spelled: str) -> dict[str, object]:
    """Template arguments that were spelled as one types them.

    >>> read_arguments("enable_thinking=False"), read_arguments("no arguments")
    ({'enable_thinking': False}, {})
    """
    if "=" not in spelled:
        return {}
    call = ast.parse(f"f({spelled})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def spelled_reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
