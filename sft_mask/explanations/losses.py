"""What a row lost of its messages: fields that the chat template does not write, and answers that were cut off.

Read from the account that masking made (:mod:`sft_mask.data.accounting.accountant`), never from a second rendering.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, IGNORE_INDEX, REASONING
from sft_mask.core.arrays import offsets_of
from sft_mask.data.accounting.accountant import CUT, UNWRITTEN, Account
from sft_mask.data.accounting.totals import count_fields, name_of
from sft_mask.data.read.census import ANSWER
from sft_mask.report import SplitReport
from sft_mask.report.accounting import EXPAND
from sft_mask.templates.fields import FieldKind, text_of

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ints
    from sft_mask.core.spans import Turns
    from sft_mask.data.outcome import MaskedBatch
    from sft_mask.data.read.conversations import Conversation

_MOST_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Loss:
    """A field of a message that is not in its row.

    Attributes:
        message: index of the message, ``-1`` for tool definitions.
        role: who says it, ``""`` for tool definitions.
        what: ``"tool call"``, ``"reasoning"``, ``"content"`` or ``"tool definitions"``.
        words: how it begins.
        why: what became of it.
        is_cut: whether truncation cut it off; else the chat template does not write it.
    """

    message: int
    role: str
    what: str
    words: str
    why: str
    is_cut: bool = False

    def __str__(self) -> str:
        where = f"message {self.message} ({self.role}), {self.what}" if self.message >= 0 else self.what
        return f"{where}: {self.why}: {self.words}"


@dataclass(frozen=True, slots=True)
class RowAccount:
    """What became of the messages of one row.

    Attributes:
        losses: what the row does not hold, in the order of the messages.
        counts: the fields and the forms of its answers, counted as in a report.
    """

    losses: tuple[Loss, ...] = ()
    counts: SplitReport = field(default_factory=SplitReport)

    @property
    def status(self) -> tuple[str, ...]:
        """``("lost: 2 tool calls not rendered; 1 answer of 40 tokens cut off whole",)``, or nothing."""
        unwritten = [_counted(count, name) for name, count in self.counts.not_rendered.items()]
        parts = [f"{', '.join(unwritten)} not rendered"] if unwritten else []
        if self.counts.answers_cut_off:
            answers = _counted(self.counts.answers_cut_off, "answers")
            parts.append(f"{answers} of {self.counts.tokens_cut_off:,} tokens cut off whole")
        return (f"lost: {'; '.join(parts)}",) if parts else ()


def row_accounts(
    masked: MaskedBatch, conversations: Mapping[int, Conversation], *, can_expand: bool = True
) -> dict[int, RowAccount]:
    """The account of each row of a batch whose messages were accounted for.

    Args:
        masked: the batch.
        conversations: the messages of its rows.
        can_expand: whether ``expand=True`` could show each answer as inference does; not for rows with images.
    """
    account = masked.decided.account
    if account is None:
        return {}
    turns = masked.decided.turns
    before = offsets_of(masked.labels != IGNORE_INDEX)
    trained = turns.select(before[turns.end] > before[turns.start])
    cure = f" ({EXPAND})" if can_expand else ""
    return {row: _of_row(account, turns, trained, row, talk, cure) for row, talk in conversations.items()}


def lost_by_turn(turns: Turns, talk: Conversation | None, losses: Sequence[Loss]) -> dict[int, str]:
    """What each answer lost, as the end of a sentence: ``"; its reasoning (message 1) is not in the row: ..."``.

    A turn found by messages knows its message; of one found by markers it is the answer with the same number.
    """
    if talk is None or not losses:
        return {}
    answers = [at for at, message in enumerate(talk.messages) if message.get("role") in ASSISTANT_ROLES]
    said: dict[int, dict[str, None]] = {}
    for loss in losses:
        if loss.role not in ASSISTANT_ROLES:
            continue
        later = np.flatnonzero(turns.message >= loss.message)
        turn = int(later[0]) if len(later) else answers.index(loss.message)
        said.setdefault(turn, {})[f"; its {loss.what} (message {loss.message}) is {loss.why}"] = None
    return {turn: "".join(texts) for turn, texts in said.items()}


def _of_row(account: Account, turns: Turns, trained: Turns, row: int, talk: Conversation, cure: str) -> RowAccount:
    entries = np.flatnonzero(account.census.row == row)
    own = Account(
        account.census.select(entries),
        account.fate[entries],
        account.form[entries],
        account.forms,
        account.answers_cut[row : row + 1],
        account.tokens_cut[row : row + 1],
    )
    counts = count_fields(own, turns.select(turns.document == row), trained.select(trained.document == row), 0)
    return RowAccount(tuple(_losses(account, entries, talk, cure)), counts)


def _losses(account: Account, entries: Ints, talk: Conversation, cure: str) -> Iterator[Loss]:
    census = account.census
    shown_otherwise = {
        int(census.message[at])
        for at in entries.tolist()
        if account.form[at] >= 0 and account.forms[account.form[at]].lost_reasoning
    }
    for at in entries.tolist():
        kind, message, fate = int(census.kind[at]), int(census.message[at]), int(account.fate[at])
        role = str(talk.messages[message].get("role", "")) if message >= 0 else ""
        is_cut = fate == CUT and role in ASSISTANT_ROLES
        if kind == ANSWER or not (fate == UNWRITTEN or is_cut):
            continue
        why = "cut off by max_length" if is_cut else "not written by the chat template"
        if kind == FieldKind.REASONING and fate == UNWRITTEN and message in shown_otherwise:
            why = f"left out because other messages follow, although inference shows it{cure}"
        what = name_of(kind, int(census.role[at])).removesuffix("s") if kind == FieldKind.CALL else _NAMES[kind]
        yield Loss(message, role, what, _short(_words(talk, kind, message, int(census.item[at]))), why, is_cut)


_NAMES: Mapping[int, str] = {
    FieldKind.CONTENT: "content",
    FieldKind.REASONING: "reasoning",
    FieldKind.TOOLS: "tool definitions",
}


def _words(talk: Conversation, kind: int, message: int, item: int) -> str:
    if kind == FieldKind.TOOLS:
        return f"{talk.tools}"
    said = talk.messages[message]
    if kind == FieldKind.CALL:
        calls = said.get("tool_calls")
        call = calls[item] if isinstance(calls, Sequence) and not isinstance(calls, str) else calls
        function = call.get("function", call) if isinstance(call, Mapping) else call
        return f"{function}"
    if kind == FieldKind.REASONING:
        own = next((said[name] for name in REASONING if said.get(name)), None)
        return f"{own}" if own is not None else text_of(said.get("content"))
    return text_of(said.get("content")) or f"{said.get('content')}"


def _counted(count: int, name: str) -> str:
    """A count of a name in the plural; tool definitions are one field."""
    is_one = count == 1 and name != "tool definitions"
    return f"{count:,} {name.removesuffix('s') if is_one else name}"


def _short(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= _MOST_CHARACTERS else f"{words[: _MOST_CHARACTERS - 1]}…"
