"""Counts of the fields of a batch: trained, masked, cut off, or not rendered; and of the forms of its answers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, ROLES
from sft_mask.data.accounting.accountant import CUT, UNKNOWN, UNWRITTEN, WRITTEN, Account
from sft_mask.data.read.census import ANSWER
from sft_mask.report import SplitReport
from sft_mask.templates.fields import FieldKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sft_mask.core.arrays import Bools, Ints
    from sft_mask.core.spans import Turns

_IS_ASSISTANT = np.array([role in ASSISTANT_ROLES for role in ROLES])
_NAMES: Mapping[int, str] = {
    FieldKind.REASONING: "reasoning",
    FieldKind.CALL: "tool calls",
    FieldKind.TOOLS: "tool definitions",
}


def name_of(kind: int, role: int) -> str:
    """How a report calls a field.

    >>> name_of(FieldKind.CALL, 2), name_of(FieldKind.CONTENT, ROLES.index("tool"))
    ('tool calls', 'tool contents')
    """
    if kind in _NAMES:
        return _NAMES[kind]
    return f"{'assistant' if ROLES[role] == 'model' else ROLES[role]} contents"


FIELD_NAMES: Final = tuple(
    dict.fromkeys((*_NAMES.values(), *(name_of(FieldKind.CONTENT, role) for role in range(len(ROLES)))))
)
"""Every name that a report has for a field."""


def count_fields(account: Account, turns: Turns, trained: Turns, first_row: int) -> SplitReport:
    """Counts over all rows of a batch whose messages were accounted for.

    Args:
        account: what became of each field.
        turns: the turns that were found.
        trained: those of them that are trained.
        first_row: number of the batch's first row in its dataset.
    """
    census = account.census
    is_trained = _are_trained(account, turns, trained)
    is_field = (census.kind != ANSWER) & (account.fate != UNKNOWN)

    code = census.kind * len(ROLES) + census.role

    def named(chosen: Bools) -> Counter[str]:
        return _by_name(code[chosen])

    return SplitReport(
        fields=named(is_field),
        fields_trained=named(is_field & is_trained & (account.fate == WRITTEN)),
        fields_cut=named(is_field & (account.fate == CUT)),
        not_rendered=named(is_field & (account.fate == UNWRITTEN)),
        first_not_rendered=_first_rows(account, first_row),
        answers_cut_off=int(account.answers_cut.sum()),
        tokens_cut_off=int(account.tokens_cut.sum()),
        **_forms(account, is_trained),
    )


def _by_name(codes: Ints) -> Counter[str]:
    found: Counter[str] = Counter()
    counts = np.bincount(codes)
    for code in np.flatnonzero(counts).tolist():
        found[name_of(*divmod(code, len(ROLES)))] += int(counts[code])
    return found


def _first_rows(account: Account, first_row: int) -> dict[str, int]:
    census, first = account.census, {}
    for at in np.flatnonzero(account.fate == UNWRITTEN)[::-1].tolist():
        first[name_of(int(census.kind[at]), int(census.role[at]))] = first_row + int(census.row[at])
    return first


def _are_trained(account: Account, turns: Turns, trained: Turns) -> Bools:
    """``(fields,)`` whether the turn that says a field is trained.

    A turn found by messages knows its message, the last of those that it holds; of one found by markers it is the
    answer with the same number in its row.
    """
    census = account.census
    answers = np.flatnonzero(census.kind == ANSWER)
    message = turns.message.copy()
    unknown = np.flatnonzero(message < 0)
    of_row = np.searchsorted(census.row[answers], turns.document[unknown])
    number = unknown - np.searchsorted(turns.document, turns.document[unknown])
    place = of_row + number
    fits = place < len(answers)
    fits[fits] = census.row[answers[place[fits]]] == turns.document[unknown[fits]]
    message[unknown[fits]] = census.message[answers[place[fits]]]
    widest = int(census.message.max(initial=0)) + 2
    keys = turns.document * widest + message
    wanted = census.row * widest + census.message
    at = np.searchsorted(keys, wanted)
    there = at < len(turns)
    there[there] = turns.document[at[there]] == census.row[there]
    found = np.zeros(len(census), np.bool_)
    number = np.searchsorted(trained.start, turns.start)
    own = np.append(trained.start, -1)[number] == turns.start
    is_same = (message[at[there]] == census.message[there]) | _IS_ASSISTANT[census.role[there]]
    found[there] = own[at[there]] & is_same
    return found & (census.message >= 0)


def _forms(account: Account, is_trained: Bools) -> dict[str, Any]:
    """The counts of a report that tell of the forms of trained answers."""
    chosen = account.form[is_trained & (account.form >= 0)]
    counts = np.bincount(chosen, minlength=len(account.forms)).tolist()
    found = [(form, count) for form, count in zip(account.forms, counts, strict=True) if count]
    prompts: Counter[str] = Counter()
    of_inference: Counter[str] = Counter()
    for form, count in found:
        if form.prompt is not None:
            prompts[form.prompt] += count
            of_inference[form.prompt] += count if form.same else 0
    return {
        "turns_compared": sum(count for _, count in found),
        "turns_in_other_form": sum(count for form, count in found if not form.same),
        "turns_without_reasoning": sum(count for form, count in found if form.lost_reasoning),
        "turns_after_no_prompt": sum(count for form, count in found if form.prompt is None),
        "prompts": prompts,
        "prompts_of_inference": +of_inference,
    }
