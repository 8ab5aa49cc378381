"""Why a token is trained or not, in words: read from the turns that masking found, never from a second search."""

from __future__ import annotations

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
from sft_mask.explanations.losses import lost_by_turn
from sft_mask.explanations.rows import InspectedRow
from sft_mask.explanations.segments import RoleSegment, SegmentReader
from sft_mask.templates.tracing.traced_str import TEMPLATE

PartKind = Literal["answer", "eot", "header", "prefilled", "after", "other", "padding", "media"]
"""Where tokens are: in an answer, in its end-of-turn token, in its header, in what the template prefills after that
header, in what the template writes after an answer, in another speaker's turn or header, in padding, in an image."""

_MOST_CHARACTERS = 60
_ASSISTANT = [ROLES.index(role) for role in ASSISTANT_ROLES]


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens ``[start, end)`` of a row that have one reason; the parts of a row cover it without a gap.

    Attributes:
        role: who speaks, ``""`` where that is unknown.
        turn: number of the role segment, ``None`` before the first.
        kind: where the tokens are.
        reason: ``"trained: ..."`` or ``"masked: ..."``.
    """

    start: int
    end: int
    role: str
    turn: int | None
    kind: PartKind
    reason: str


class RowExplainer:
    """Explains rows that one masker labelled."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._segments = SegmentReader(masker)

    def parts(self, row: InspectedRow) -> list[Part]:
        """The whole row, in parts."""
        sources = self._segments.sources(row)
        tokens = _Tokens(row, self._masker, sources, self._segments.find(row, sources))
        explained = ((start, end, tokens.explain(start)) for start, end in pairwise(tokens.edges()))
        parts = []
        for (role, turn, kind, reason), group in groupby(explained, key=lambda each: each[2]):
            members = list(group)
            parts.append(Part(members[0][0], members[-1][1], role, turn, kind, reason))
        return parts


class _Tokens:
    """What is known about each token of one row.

    ``segment_of``, ``turn_of`` and ``header_of`` are ``(tokens,)`` numbers of the segment, the answer and the answer's
    header that a token lies in, or -1.
    """

    def __init__(
        self, row: InspectedRow, masker: Masker, sources: Ints | None, segments: Sequence[RoleSegment]
    ) -> None:
        self.row, self.turns, self.masker, self.policy = row, row.turns, masker, masker.policy
        self.sources, self.segments = sources, segments
        self.vocabulary = masker.finder.vocabulary
        self.segment_of, self.turn_of, self.header_of = np.full((3, len(row.ids)), -1, np.int64)
        for number, segment in enumerate(segments):
            self.segment_of[segment.header : segment.end] = number
        for number, bounds in enumerate(zip(self.turns.header, self.turns.start, self.turns.end, strict=True)):
            header, start, end = map(int, bounds)
            self.header_of[header:start] = number
            self.turn_of[start:end] = number
        self.media = np.zeros(len(row.ids), np.bool_) if row.media is None else row.media
        self.piece_of = np.full(len(row.ids), -1, np.int64)
        for number, piece in enumerate(row.pieces):
            self.piece_of[piece.start : piece.end] = number
        self.lost = lost_by_turn(row.turns, row.conversation, row.account.losses)
        self.padding = self._padding()
        self.is_last = is_last_of_document(self.turns)
        self.in_region = np.zeros(len(row.ids), np.bool_)
        if self.policy.regions:
            self.in_region = in_regions(row.ids, self.turns, self.vocabulary, self.policy.regions) == 0

    def _padding(self) -> Bools:
        """Pad tokens at the end of each document, but for the end-of-turn token of an answer."""
        pad, ids = self.masker.finder.pad_token_id, self.row.ids
        padding = np.zeros(len(ids), np.bool_)
        if pad is not None:
            for start, end in pairwise(offsets_of(self.row.documents).tolist()):
                others = np.flatnonzero(ids[start:end] != pad)
                padding[start + (int(others[-1]) + 1 if len(others) else 0) : end] = True
        return padding & (self.turn_of < 0)

    def edges(self) -> list[int]:
        """The tokens where the reason may change, from 0 to the row's length."""
        size = len(self.row.ids)
        changes = np.ones(size + 1, np.bool_)
        known = [
            self.media,
            self.piece_of,
            self.segment_of,
            self.turn_of,
            self.padding,
            self.in_region,
            self.row.weights,
        ]
        known.extend(given for given in (self.sources, self.row.existing) if given is not None)
        inner = changes[1:size]
        inner[:] = (self.header_of[1:] >= 0) | (self.header_of[1:] != self.header_of[:-1])
        for values in known:
            inner |= values[1:] != values[:-1]
        changes[self.turns.eot_start] = True
        changes[[segment.start for segment in self.segments]] = True
        edges: list[int] = np.flatnonzero(changes).tolist()
        return edges

    def explain(self, token: int) -> tuple[str, int | None, PartKind, str]:
        """Role, number of the segment, kind and reason of a token."""
        trained = bool(self.row.weights[token])
        number = int(self.segment_of[token])
        kind, why = self._why(token, trained=trained)
        return self._role(token), number if number >= 0 else None, kind, f"{'trained' if trained else 'masked'}: {why}"

    def _role(self, token: int) -> str:
        if self.padding[token]:
            return "padding"
        source = TEMPLATE if self.sources is None else int(self.sources[token])
        if source >= 0 and self.row.conversation is not None:
            return str(self.row.conversation.messages[source].get("role", ""))
        turn = self.turn_of[token] if self.turn_of[token] >= 0 else self.header_of[token]
        if turn >= 0:
            return ROLES[self.turns.role[turn]]
        number = int(self.segment_of[token])
        return self.segments[number].role if number >= 0 else ""

    def _why(self, token: int, *, trained: bool) -> tuple[PartKind, str]:
        if self.padding[token]:
            return "padding", "padding"
        if self.media[token]:
            return "media", self._in_media(token)
        turn = int(self.turn_of[token])
        if turn >= 0:
            why = self._why_trained(token, turn) if trained else self._why_masked(token, turn)
            return ("eot" if self._is_eot(token, turn) else "answer"), why
        header = int(self.header_of[token])
        kind, why = self._in_header(token, header) if header >= 0 else self._outside(token)
        return kind, f"{why}; the policy trains it{self._weight(token)}" if trained else why

    def _in_media(self, token: int) -> str:
        number = int(self.piece_of[token])
        if number < 0:
            return "a token of an image or a sound, which the model never samples"
        piece = self.row.pieces[number]
        of = f"{number + 1} of {len(self.row.pieces)}" if len(self.row.pieces) > 1 else "the only one"
        tokens = f"{piece.end - piece.start} tokens at {_span(piece.start, piece.end)}"
        return f"inside an {piece.kind} ({of}, {tokens}), which the model never samples"

    # inside an answer

    def _answer(self, turn: int) -> str:
        """Names a turn: ``"answer 1 of 2, which starts at token 14"``."""
        role, start = ROLES[self.turns.role[turn]], int(self.turns.start[turn])
        same_side = np.flatnonzero(np.isin(self.turns.role, _ASSISTANT) == (role in ASSISTANT_ROLES))
        count = f"{int(np.searchsorted(same_side, turn)) + 1} of {len(same_side)}"
        if role not in ASSISTANT_ROLES:
            return f"non-assistant turn {count} ({role}), which starts at token {start}"
        return f"{'the answer' if len(same_side) == 1 else f'answer {count}'}, which starts at token {start}"

    def _weight(self, token: int) -> str:
        weight = float(self.row.weights[token])
        return "" if weight == 1 else f", with weight {weight:g}"

    def _is_eot(self, token: int, turn: int) -> bool:
        return bool(self.turns.has_eot[turn]) and token >= int(self.turns.eot_start[turn])

    def _why_trained(self, token: int, turn: int) -> str:
        if self._is_eot(token, turn):
            return (
                f"the end-of-turn token of {self._answer(turn)}; the model must learn to stop"
                f"{self.lost.get(turn, '')}{self._weight(token)}"
            )
        cut = "; it is cut off at the end of the row" if self.turns.cut[turn] else ""
        return f"inside {self._answer(turn)}{cut}{self.lost.get(turn, '')}{self._weight(token)}"

    def _why_masked(self, token: int, turn: int) -> str:
        """The first rule that masks a token of a turn."""
        row, policy, is_eot = self.row, self.policy, self._is_eot(token, turn)
        rules = (
            (bool(row.undecided), "the whole row is masked because neither markers nor messages decide it"),
            (row.existing is not None and row.existing[token] == IGNORE_INDEX, "its label was already ignored"),
            (not self.turns.weight[turn], "its message or its role is not trained"),
            (policy.turns == "last" and not self.is_last[turn], "only the last answer is trained (turns='last')"),
            (self.turns.cut[turn] and policy.cut_answers == "mask", "it is cut off (cut_answers='mask')"),
            (is_eot and policy.stop != "always", f"end-of-turn tokens are not trained here (stop={policy.stop!r})"),
            (self.in_region[token], "it is in a region that is not trained"),
        )
        why = next((why for applies, why in rules if applies), "the policy leaves it out")
        return f"{'the end-of-turn token of' if is_eot else 'inside'} {self._answer(turn)}, but {why}"

    # outside answers

    def _in_header(self, token: int, turn: int) -> tuple[PartKind, str]:
        """An answer's header: the plain header is the same before all answers, what follows it is prefilled."""
        header, start = int(self.turns.header[turn]), int(self.turns.start[turn])
        tokens = [self.vocabulary.token_bytes(token_id) for token_id in self.row.ids[header:start].tolist()]
        text, plain = b"".join(tokens), str(self.masker.markers.response[0]).encode()
        plain_end = text.index(plain) + len(plain) if plain in text else len(text)
        begins = list(accumulate(map(len, tokens), initial=0))[:-1]
        if begins[token - header] >= plain_end:
            prefilled = _quoted(text[plain_end:].decode(errors="replace"))
            why = f"the template writes {prefilled}, so the model never samples it"
            return "prefilled", f"prefilled before {self._answer(turn)}: {why}"
        end = header + sum(begin < plain_end for begin in begins)
        shown = f"{_quoted(text[:plain_end].decode(errors='replace'))} at {_span(header, end)}"
        return "header", f"header of {self._answer(turn)}: {shown} is given at inference"

    def _outside(self, token: int) -> tuple[PartKind, str]:
        number = int(self.segment_of[token])
        if number < 0:
            return "other", "before the first header"
        segment = self.segments[number]
        if token < segment.start:
            name = f"header of the {segment.role} turn" if segment.role else "header of what follows"
            name = "a header that no answer follows" if segment.role == "assistant" else name
            return "other", f"{name}: {_marker(segment)}"
        answers = np.flatnonzero((self.turns.start >= segment.start) & (self.turns.start < segment.end))
        ended = answers[self.turns.end[answers] <= token]
        if len(ended) and (self.sources is None or self.sources[token] == TEMPLATE):  # else a tool's result, say
            turn = int(ended[-1])
            eot = "the end-of-turn token of " if self.turns.has_eot[turn] else ""
            return "after", f"written by the template after {eot}{self._answer(turn)}"
        if segment.role == "assistant" and not len(answers):
            return "other", f"after a header that no answer follows, marker {_marker(segment)}"
        role = self._role(token)
        words = "inside" if role in (segment.role, "") else f"words of the {role} inside"
        name = f"the {segment.role} turn" if segment.role else "the turn"
        return "other", f"{words} {name} that starts at token {segment.start}, marker {_marker(segment)}"


def _marker(segment: RoleSegment) -> str:
    return f"{_quoted(segment.marker)} at {_span(segment.header, segment.start)}"


def _span(start: int, end: int) -> str:
    return str(start) if end - start <= 1 else f"{start}-{end - 1}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…")
