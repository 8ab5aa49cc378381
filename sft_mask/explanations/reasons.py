"""Why a token is trained or not, in words; from the turns that masking found and nothing else."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Literal

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, IGNORE_INDEX, ROLES
from sft_mask.core.arrays import Bools, Ints, offsets_of
from sft_mask.core.policy import is_last_of_document
from sft_mask.core.regions import in_regions
from sft_mask.data.masker import Masker
from sft_mask.explanations.rows import InspectedRow
from sft_mask.explanations.segments import NOBODY, Section, Sections

PartKind = Literal["answer", "stop", "header", "prefilled", "after", "other", "padding"]
"""Where tokens lie: in an answer, in its stop, in its header, in what is prefilled behind that, in what the template
writes after an answer, in anybody else's turn or header, in padding."""

_SHOWN = 60
_MODEL = [ROLES.index(role) for role in ASSISTANT_ROLES]


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens ``[start, end)`` of a row that share their story; the parts of a row follow each other without a gap."""

    start: int
    end: int
    role: str
    turn: int | None
    kind: PartKind
    reason: str


class Storyteller:
    """Tells the story of rows that one masker masked."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._sections = Sections(masker)

    def parts(self, row: InspectedRow) -> list[Part]:
        """The whole row, in parts."""
        owners = self._sections.owners(row)
        story = _Story(row, self._masker, owners, self._sections.find(row, owners))
        edges = story.edges()
        told = [(story.of(start), start, end) for start, end in pairwise(edges)]
        parts = []
        for (role, turn, kind, reason), group in groupby(told, key=operator.itemgetter(0)):
            pieces = list(group)
            parts.append(Part(pieces[0][1], pieces[-1][2], role, turn, kind, reason))
        return parts


class _Story:
    """One row while it is told."""

    def __init__(self, row: InspectedRow, masker: Masker, owners: Ints | None, sections: Sequence[Section]) -> None:
        self.row, self.masker, self.owners, self.sections = row, masker, owners, sections
        self.vocabulary = masker.finder.vocabulary
        size = len(row.ids)
        self.section_of = np.full(size, -1, np.int64)
        for number, section in enumerate(self.sections):
            self.section_of[section.header : section.end] = number
        self.turn_of = np.full(size, -1, np.int64)
        self.header_of = np.full(size, -1, np.int64)
        for number, turn in enumerate(zip(row.turns.header, row.turns.start, row.turns.end, strict=True)):
            header, start, end = map(int, turn)
            self.header_of[header:start] = number
            self.turn_of[start:end] = number
        self.padding = self._padding()
        self.is_last = is_last_of_document(row.turns)
        regions = masker.policy.regions
        self.in_region = _masked_regions(row, masker) if regions else np.zeros(size, np.bool_)

    def _padding(self) -> Bools:
        """Trailing padding of each document, but for what a turn ends with."""
        pad, ids = self.masker.finder.pad_token_id, self.row.ids
        padding = np.zeros(len(ids), np.bool_)
        if pad is None:
            return padding
        for start, end in _bounds(self.row.documents):
            others = np.flatnonzero(ids[start:end] != pad)
            padding[start + (int(others[-1]) + 1 if len(others) else 0) : end] = True
        return padding & (self.turn_of < 0)

    def edges(self) -> list[int]:
        """Tokens before which the story may change, from the row's first to its end; between them it does not."""
        row, size = self.row, len(self.row.ids)
        changes = np.ones(size + 1, np.bool_)
        if not size:
            return [0]
        changes[1:size] = self.header_of[1:] >= 0
        follows = [self.section_of, self.turn_of, self.header_of, self.padding, self.in_region, row.weights]
        follows.extend(given for given in (self.owners, row.existing) if given is not None)
        for values in follows:
            changes[1:size] |= values[1:] != values[:-1]
        changes[row.turns.eot_start] = True
        changes[[section.start for section in self.sections]] = True
        edges: list[int] = np.flatnonzero(changes).tolist()
        return edges

    # one token

    def of(self, token: int) -> tuple[str, int | None, PartKind, str]:
        """Role, number of the turn in its row, where the token lies, and the reason."""
        trained = bool(self.row.weights[token])
        number = int(self.section_of[token])
        turn = number if number >= 0 else None
        kind, why = self._why(token, trained=trained)
        return self._role(token), turn, kind, f"{'trained' if trained else 'masked'}: {why}"

    def _role(self, token: int) -> str:
        if self.padding[token]:
            return "padding"
        owner = self.owners[token] if self.owners is not None else NOBODY
        if owner >= 0 and self.row.conversation is not None:
            return str(self.row.conversation.messages[int(owner)].get("role", ""))
        for number in (int(self.turn_of[token]), int(self.header_of[token])):
            if number >= 0:
                return ROLES[self.row.turns.role[number]]
        number = int(self.section_of[token])
        return self.sections[number].role if number >= 0 else ""

    def _why(self, token: int, *, trained: bool) -> tuple[PartKind, str]:
        if self.padding[token]:
            return "padding", "padding"
        if self.turn_of[token] >= 0:
            number = int(self.turn_of[token])
            why = self._why_answered(token, number) if trained else self._why_not(token, number)
            return ("stop" if self._is_stop(token, number) else "answer"), why
        if self.header_of[token] >= 0:
            kind, why = self._why_header(token, int(self.header_of[token]))
        else:
            kind, why = self._where(token)
        return kind, f"{why}; the policy trains it{self._weight(token)}" if trained else why

    # inside an answer

    def _answer(self, number: int) -> str:
        turns = self.row.turns
        role = ROLES[turns.role[number]]
        alike = np.flatnonzero(np.isin(turns.role, _MODEL) == (role in ASSISTANT_ROLES))
        kind = "answer" if role in ASSISTANT_ROLES else "turn of others"
        count = f"{kind} {int(np.searchsorted(alike, number)) + 1} of {len(alike)}"
        whole = "the answer" if len(alike) == 1 and role in ASSISTANT_ROLES else count
        named = whole if role in ASSISTANT_ROLES else f"{whole} ({role})"
        return f"{named}, which starts at token {int(turns.start[number])}"

    def _weight(self, token: int) -> str:
        weight = float(self.row.weights[token])
        return "" if weight == 1 else f", with weight {weight:g}"

    def _is_stop(self, token: int, number: int) -> bool:
        turns = self.row.turns
        return bool(turns.has_eot[number]) and token >= int(turns.eot_start[number])

    def _why_answered(self, token: int, number: int) -> str:
        if self._is_stop(token, number):
            return f"the stop of {self._answer(number)}; the model must learn to stop{self._weight(token)}"
        cut = "; it is cut off at the end of the row" if bool(self.row.turns.cut[number]) else ""
        return f"inside {self._answer(number)}{cut}{self._weight(token)}"

    def _why_not(self, token: int, number: int) -> str:
        """Why a token of the model's turn is masked: the first rule that takes it out."""
        row, policy = self.row, self.masker.policy
        stop = self._is_stop(token, number)
        what = f"{'the stop of' if stop else 'inside'} {self._answer(number)}"
        rules = (
            (bool(row.undecided), "the whole row is masked because it could not be decided"),
            (self._was_ignored(token), "its label was ignored before"),
            (not row.turns.weight[number], "its message or its role is not trained"),
            (policy.turns == "last" and not self.is_last[number], "only the last answer is trained (turns='last')"),
            (bool(row.turns.cut[number]) and policy.cut_answers == "mask", "it is cut off (cut_answers='mask')"),
            (stop and policy.stop != "always", f"stops are not trained here (stop={policy.stop!r})"),
            (bool(self.in_region[token]), "it lies in a region that is not trained"),
        )
        return f"{what}, but {next((why for applies, why in rules if applies), 'the policy leaves it out')}"

    def _was_ignored(self, token: int) -> bool:
        return self.row.existing is not None and int(self.row.existing[token]) == IGNORE_INDEX

    # outside of answers

    def _why_header(self, token: int, number: int) -> tuple[PartKind, str]:
        turns = self.row.turns
        header, start = int(turns.header[number]), int(turns.start[number])
        core = str(self.masker.markers.response[0])
        pieces = [self.vocabulary.token_bytes(int(piece)) for piece in self.row.ids[header:start]]
        text = b"".join(pieces).decode(errors="replace")
        begins = [0, *accumulate(map(len, pieces))]
        ends = text.index(core) + len(core) if core in text else len(text)
        core_ends = len(text[:ends].encode())
        if begins[token - header] >= core_ends:
            return "prefilled", (
                f"prefilled before {self._answer(number)}: {_shown(text[ends:])} is the template's, so the model never "
                "samples it"
            )
        end = header + sum(begin < core_ends for begin in begins[:-1])
        span = f"{_shown(text[:ends])} at {_span(header, end)}"
        return "header", f"header of {self._answer(number)}: {span} is given at inference"

    def _where(self, token: int) -> tuple[PartKind, str]:
        number = int(self.section_of[token])
        if number < 0:
            return "other", "before the first header"
        section = self.sections[number]
        if token < section.start:
            return "other", self._at_header(section)
        ended = self._answer_before(token, section)
        if ended is not None:
            return (
                "after",
                f"written by the template after {'the stop of ' if ended[1] else ''}{self._answer(ended[0])}",
            )
        return "other", self._inside(token, section)

    def _inside(self, token: int, section: Section) -> str:
        marker = f"marker {_shown(section.marker)} at {_span(section.header, section.start)}"
        if section.role == "assistant" and not self._own_turns(section):
            return f"after a header that no answer follows, {marker}"
        role = self._role(token)
        words = f"words of the {role} inside" if role not in (section.role, "") else "inside"
        name = f"the {section.role} turn" if section.role else "the turn"
        return f"{words} {name} that starts at token {section.start}, {marker}"

    def _at_header(self, section: Section) -> str:
        span = f"{_shown(section.marker)} at {_span(section.header, section.start)}"
        if section.role == "assistant":
            return f"a header that no answer follows: {span}"
        name = f"the {section.role} turn" if section.role else "what follows"
        return f"header of {name}: {span}"

    def _own_turns(self, section: Section) -> list[int]:
        starts = self.row.turns.start
        return np.flatnonzero((starts >= section.start) & (starts < section.end)).tolist()

    def _answer_before(self, token: int, section: Section) -> tuple[int, bool] | None:
        """The answer of this section that ended before the token, and whether with a stop.

        What a message says behind it (a tool's result inside of the model's turn) is no word of the template's.
        """
        owned = self.owners is not None and self.owners[token] != NOBODY
        before = [number for number in self._own_turns(section) if int(self.row.turns.end[number]) <= token]
        if not before or owned:
            return None
        return before[-1], bool(self.row.turns.has_eot[before[-1]])


def _masked_regions(row: InspectedRow, masker: Masker) -> Bools:
    masked: Bools = in_regions(row.ids, row.turns, masker.finder.vocabulary, masker.policy.regions) == 0
    return masked


def _bounds(lengths: Ints) -> list[tuple[int, int]]:
    edges = offsets_of(lengths).tolist()
    return list(pairwise(edges))


def _span(start: int, end: int) -> str:
    return str(start) if end - start <= 1 else f"{start}-{end - 1}"


def _shown(text: str | Sequence[str]) -> str:
    whole = str(text)
    return repr(whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}…")
