"""The fewest rows in which every trained turn is as inference shows it.

The answer of message ``k`` is finished at inference as ``F(k) = render(messages[: k + 1])``. A row shows it so if the
row begins with ``F(k)``, up to the end of the answer. One row is needed for each ``F(k)`` that no other begins with,
and it trains all answers that it begins with (``<`` for "is a beginning of")::

    a template that keeps its prefix    F(1) < F(3) < F(5)    one row, trains 1, 3 and 5: the row as it is
    Qwen3, with reasoning               F(1), F(3), F(5)      three rows, each trains its last answer
    Qwen3, tools after one question     F(1) < F(3), F(5)     two rows
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.errors import DataError
from sft_mask.templates.forms import InferenceForms, Sampled

if TYPE_CHECKING:
    from sft_mask.templates.turns import ConversationAligner, TextConversation

Message = Mapping[str, object]


@dataclass(slots=True)
class ExpandedRow:
    """A row that shows some answers of a conversation as inference does.

    Attributes:
        count: it holds this many messages, from the first on.
        text: what it says.
        trained: the messages that are trained in this row and in no other.
        owned: the messages that this row accounts for and no other.
    """

    count: int
    text: str
    trained: list[int] = field(default_factory=list)
    owned: list[int] = field(default_factory=list)


def expanded_rows(
    aligner: ConversationAligner,
    messages: Sequence[Message],
    trained: Collection[int],
    *,
    tools: object = None,
    variables: Mapping[str, object] | None = None,
) -> tuple[str, list[ExpandedRow]]:
    """The text of the whole conversation, and its rows in order of their last answers.

    Args:
        aligner: renders the conversation.
        messages: the conversation.
        trained: indices of the messages that are trained.
        tools: its tool definitions.
        variables: further variables of the template.

    Raises:
        DataError: the template refuses the conversation or a beginning of it, or no generation prompt of it is a
            beginning of a finished answer, so that the answer is never what inference shows.
    """
    whole = aligner.conversation(messages, tools, variables)
    forms = InferenceForms(aligner, messages, tools, variables)
    rows: list[ExpandedRow] = []
    done = len(messages)
    for index in sorted(trained, reverse=True):
        if index >= done or messages[index].get("role") not in ASSISTANT_ROLES:
            continue
        if forms.sampled(index) is None and forms.is_unwritten(index):
            continue  # a call that the template drops, say: there is nothing to train
        sampled = _sampled(forms, messages, index)
        done = sampled.turn.opens_message
        row = next((row for row in reversed(rows) if row.text.startswith(sampled.text)), None)
        if row is None and not rows and whole.rendered.text.startswith(sampled.text):
            row = ExpandedRow(len(messages), whole.rendered.text)
            rows.append(row)
        if row is None:
            row = ExpandedRow(index + 1, _finished(sampled, whole, index))
            rows.append(row)
        row.trained.extend(at for at in range(done, index + 1) if at in trained)
    rows.reverse()
    if max(trained, default=-1) >= max((row.count for row in rows), default=0) or not rows:
        rows.append(ExpandedRow(len(messages), whole.rendered.text))
    return whole.rendered.text, _with_owners(rows, messages, trained)


def _sampled(forms: InferenceForms, messages: Sequence[Message], index: int) -> Sampled:
    sampled = forms.sampled(index)
    if sampled is None:
        raise DataError(
            f"Message {index} ({messages[index].get('role')}) cannot be shown as inference does: the chat template "
            "does not render the conversation up to it with this answer at the end."
        )
    if not forms.opens(sampled):
        text = sampled.text[-160:]
        raise DataError(
            f"Message {index} ({messages[index].get('role')}) is never what inference shows: no generation prompt of "
            f"the chat template is a beginning of the conversation up to it, which ends {text!r}. Give the "
            "chat_template_kwargs that the data were made for, or a template whose prompt is a beginning of its own "
            "finished answer."
        )
    return sampled


def _finished(sampled: Sampled, whole: TextConversation, index: int) -> str:
    """The text of a row that ends with an answer.

    A template whose end of turn is the next message's header leaves a last answer open (GLM): it is closed as in the
    whole conversation.
    """
    text, later = sampled.conversation.rendered.text, whole.turn_of(index)
    if sampled.stops or later is None or later.end == later.eot_start:
        return text
    own = np.flatnonzero(whole.rendered.message_of()[: later.eot_start] == index)
    before = whole.rendered.text[int(own[-1]) + 1 if len(own) else later.start : later.eot_start]
    space = before[len(before.rstrip()) :]
    return text[: sampled.turn.end] + space + whole.rendered.text[later.eot_start : later.end]


def _with_owners(rows: list[ExpandedRow], messages: Sequence[Message], trained: Collection[int]) -> list[ExpandedRow]:
    """The rows, with each message in exactly one of them: where it is trained, or else where it appears first."""
    for index, message in enumerate(messages):
        row = next((row for row in rows if index in row.trained), None)
        if row is None:
            row = next((row for row in rows if row.count > index), None)
        if row is None:
            continue
        row.owned.append(index)
        if index in trained and message.get("role") not in ASSISTANT_ROLES:
            row.trained.append(index)
    for row in rows:
        row.trained.sort()
    return rows
