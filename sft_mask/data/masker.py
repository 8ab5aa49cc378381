"""One batch of rows, as Arrow columns, to labels: markers first, messages where markers cannot know.

Every row that still has its messages is checked. It is decided by them if the number of turns is not the number of the
model's messages, if any message quotes a piece of a marker, or if its conversation has a signature that has not
been proven (:mod:`sft_mask.data.signatures`).

Messages decide by the chat template where it renders them to the row (:mod:`sft_mask.templates.turns`), and otherwise
by their own words (:mod:`sft_mask.templates.words`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from sft_mask.constants import ASSISTANT_ROLES, IGNORE_INDEX, ROLES
from sft_mask.core.labels import make_labels
from sft_mask.core.markers import Markers
from sft_mask.core.packing import RowCutting, cut_at, joined_offsets
from sft_mask.core.policy import Policy
from sft_mask.core.regions import in_regions
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.core.token_weights import UnweightedBatch, weighted_labels
from sft_mask.data.conversations import Conversation, Decoder
from sft_mask.data.rows import LOSS_WEIGHTS, documents_of, existing_labels, loss_weights, token_ids
from sft_mask.data.signatures import SignatureCache
from sft_mask.data.stats import Trained, count_batch
from sft_mask.errors import AmbiguousRowError, DataError, LostWordsError, UnsupportedError
from sft_mask.report import SplitReport
from sft_mask.templates.turns import ConversationAligner
from sft_mask.templates.words import WordAligner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Floats, Ids, Ints, Labels


OnAmbiguous = Literal["error", "drop", "mask"]
_NOT_IN_ROW = "whose messages do not match their text"


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """What became of a batch.

    Attributes:
        labels: ``(tokens,)`` flat labels; int64 where they carry weights (:mod:`sft_mask.core.label_codec`).
        offsets: ``(rows + 1,)``.
        trained: ``(rows,)`` trained tokens of each row, the prompt's aside.
        reasons: why rows must be dropped although they may hold answers: ``{row: reason}``.
        report: counts over the rows that count.
        decided: the turns before the policy chose among them, and how each row was decided.
    """

    labels: Labels
    offsets: Ints
    trained: Ints
    reasons: dict[int, str]
    report: SplitReport
    decided: Decided


@dataclass(slots=True)
class Decided:
    """Turns of a batch, and how each row was decided.

    Attributes:
        turns: all that were found.
        exact: ``(rows,)`` decided by messages.
        checked: ``(rows,)`` decided by markers, which agree with the messages.
        unmatched: why rows with messages were decided by markers alone.
        ambiguous: why rows could not be decided.
        lost: those of them whose chat template leaves out the words of an answer.
        mid_turn: rows that begin inside a turn; what comes before their first header is masked.
        unread_flags: rows whose messages have flags that the policy does not ask for.
    """

    turns: Turns
    exact: Bools
    checked: Bools
    unmatched: dict[int, str] = field(default_factory=dict)
    ambiguous: dict[int, str] = field(default_factory=dict)
    mid_turn: int = 0
    lost: set[int] = field(default_factory=set)
    unread_flags: int = 0


class Masker:
    """Everything that is needed to label rows; built once per call, used for every split.

    Args:
        finder: the marker search.
        markers: its texts.
        policy: what is trained of the turns found.
        aligner: turns by a rendering of the messages, ``None`` where there is no chat template.
        on_ambiguous: what happens to a row that cannot be decided.
        from_template: whether the markers are those of the chat template, so that it must have rendered the rows.
        prompt_answers: whether answers in the prompt of a prompt/completion row count too.
        signatures: what earlier rows have shown; kept up to date.
        key: what these arguments were made from, for fingerprints.
    """

    def __init__(
        self,
        finder: SpanFinder,
        markers: Markers,
        policy: Policy,
        aligner: ConversationAligner | None,
        on_ambiguous: OnAmbiguous = "error",
        *,
        from_template: bool = True,
        prompt_answers: bool = False,
        signatures: SignatureCache | None = None,
        key: tuple[object, ...] = (),
    ) -> None:
        self.finder = finder
        self.markers = markers
        self.policy = policy
        self.aligner = aligner
        self.on_ambiguous = on_ambiguous
        self.cutting: RowCutting | None = None
        self.quotable = quotable_texts(finder)
        self.from_template = from_template
        self.prompt_answers = prompt_answers
        self._key = key
        self._words = WordAligner(finder, markers)
        self.signatures = SignatureCache() if signatures is None else signatures
        self._rendered = 0  # rows that were what the chat template renders from their messages

    @property
    def key(self) -> tuple[object, ...]:
        """Everything that decides a label, for fingerprints."""
        return (*self._key, self.cutting)

    def for_rows_cut(self, cutting: RowCutting | None) -> Masker:
        """The same masker for rows that the trainer cut, some of which may begin inside an answer.

        Raises:
            UnsupportedError: the policy asks for the last turn of a conversation, or for the mean over one, and the
                packing does not record where conversations end.
        """
        if cutting == self.cutting:
            return self
        if cutting is not None and cutting.kind != "tail":
            self._refuse_unknown_ends(cutting)
        other = copy(self)
        other.cutting = cutting
        return other

    def _refuse_unknown_ends(self, cutting: RowCutting) -> None:
        needs = {
            "turns='last'": self.policy.turns == "last",
            "stop='last'": self.policy.stop == "last",
            "reduction='sequence'": self.policy.reduction == "sequence",
        }
        asked = [name for name, wanted in needs.items() if wanted]
        if asked:
            strategy = "wrapped" if cutting.kind == "wrapped" else "bfd_split"
            raise UnsupportedError(
                f"Policy({', '.join(asked)}) needs to know where a conversation ends, which packing_strategy="
                f"{strategy!r} does not leave behind. Mask before the trainer is built (mask_dataset), or pack with "
                "'bfd'."
            )

    def mask(self, table: pa.Table, decode: Decoder, *, first_row: int = 0, adjacent: bool = False) -> MaskedBatch:
        """Labels of a batch.

        Args:
            table: columns ``input_ids``, optionally ``labels``, ``seq_lengths``, ``loss_weights``, the conversation.
            decode: reads one row of the conversation; see :class:`Decoder`.
            first_row: number of the batch's first row in its dataset, for messages.
            adjacent: whether each row stands where the trainer's packing put it, after the one before it.

        Raises:
            DataError: a row holds nulls or things that are no ids.
            AmbiguousRowError: a row cannot be decided and ``on_ambiguous`` is ``"error"``.
        """
        ids, offsets = token_ids(table)
        existing = existing_labels(table, offsets)
        documents = documents_of(table, offsets, first_row)
        chain = adjacent and self.cutting is not None and self.cutting.kind == "wrapped"
        turns = self._weighted(self._marked(ids, documents, chain))
        decided = self._decide(table, decode, (ids, offsets, documents), turns)
        if self.cutting is not None and not chain:
            self._count_mid_turn(decided, ids, offsets, documents)
        trained_turns = self.policy.apply(decided.turns)
        labels = make_labels(ids, trained_turns, existing)
        factor = self._region_weights(ids, trained_turns) * loss_weights(table, offsets, first_row)
        counts_everywhere = bool(np.all(factor))
        if not counts_everywhere:
            labels[factor == 0] = IGNORE_INDEX
        reasons = self._settle(labels, offsets, decided, first_row)
        if existing is None and counts_everywhere and not reasons:
            trained = Trained.of_turns(trained_turns, offsets)
        else:
            trained = Trained.of_labels(labels, trained_turns, offsets)
        report = count_batch(decided, trained_turns, trained, (offsets, documents), reasons)
        if not self.carries_weights(table.column_names):
            return MaskedBatch(labels, offsets, trained.rows, reasons, report, decided)
        may_prompt = self._may_be_prompt(ids, documents, existing) & np.repeat(trained.rows > 0, np.diff(offsets))
        factor = np.broadcast_to(factor, labels.shape)
        batch = UnweightedBatch(ids, labels, decided.turns, trained_turns, documents, factor, may_prompt)
        weighted, prompt = weighted_labels(batch, self.policy)
        report = replace(report, prompt_trained_tokens=prompt)
        return MaskedBatch(weighted, offsets, trained.rows, reasons, report, decided)

    def carries_weights(self, columns: Collection[str]) -> bool:
        """Whether labels of rows with these columns are int64 and carry weights."""
        return self.policy.is_weighted or self.policy.turns == "flagged" or LOSS_WEIGHTS in columns

    def _marked(self, ids: Ids, documents: Ints, chain: bool) -> Turns:
        """The turns by markers; of rows that go on in each other, those of the text they were cut from."""
        if not chain or self.cutting is None:
            return self.finder.find(ids, documents)
        return cut_at(self.finder.find(ids, joined_offsets(documents, self.cutting.length)), documents)

    def _count_mid_turn(self, decided: Decided, ids: Ids, offsets: Ints, documents: Ints) -> None:
        """Notes how many of the rows that messages did not decide begin inside a turn."""
        inside = documents[:-1][self.finder.begin_inside_turn(ids, documents)]
        rows = np.unique(np.searchsorted(offsets, inside, side="right") - 1)
        decided.mid_turn = int((~decided.exact & ~decided.checked)[rows].sum())

    def _weighted(self, turns: Turns) -> Turns:
        """Turns that markers found, with the weight of the model's role."""
        weight = self.policy.role_weights["assistant"]
        return turns if weight == 1 else replace(turns, weight=np.full(len(turns), weight))

    def _region_weights(self, ids: Ids, turns: Turns) -> Floats:
        """The factor of each token's weight by regions; one value for all without any."""
        if not self.policy.regions:
            return np.ones(1)
        return in_regions(ids, turns, self.finder.vocabulary, self.policy.regions)

    def _may_be_prompt(self, ids: Ids, documents: Ints, existing: Labels | None) -> Bools:
        ends = self.finder.content_ends(ids, documents)
        inside: Bools = np.arange(len(ids)) < np.repeat(ends, np.diff(documents))
        return inside if existing is None else inside & (existing != IGNORE_INDEX)

    # by markers or by messages

    def _decide(
        self,
        table: pa.Table,
        decode: Decoder,
        row_data: tuple[Ids, Ints, Ints],
        turns: Turns,
    ) -> Decided:
        ids, offsets, documents = row_data
        count = len(offsets) - 1
        none = np.zeros(count, np.bool_)
        if not decode.has_conversation(table) or len(documents) != len(offsets):
            self._refuse_without_messages(table, decode)
            packed = range(count) if decode.has_conversation(table) else ()
            return Decided(turns, none, none.copy(), dict.fromkeys(packed, "packed"))
        if self.aligner is None:
            self._refuse_without_messages(table, decode)
        known = ~decode.unknown(table)
        seen = decode.signatures(table, self.quotable)
        flagged = decode.flagged(table)
        doubtful = seen.quotes | (np.bincount(turns.document, minlength=count) != seen.answers)
        if not self.prompt_answers:
            doubtful |= seen.answered_before  # markers alone cannot tell these from answers of the completion
        doubtful |= self.policy.needs_messages | (flagged & (self.policy.turns == "flagged"))
        unmatched = dict.fromkeys(np.flatnonzero(~known).tolist(), "with null messages")
        decided = Decided(turns, none, known & ~doubtful, unmatched)
        if self.policy.turns != "flagged":
            decided.unread_flags = int(flagged.sum())
        if self.policy.needs_messages:
            decided.ambiguous.update(dict.fromkeys(decided.unmatched, "Its messages are null."))
        replaced: dict[int, Turns] = {}
        for row in np.flatnonzero(known & (doubtful | ~self.signatures.trusted(seen.signature))).tolist():
            signature = int(seen.signature[row])
            if not doubtful[row] and self.signatures.trusts(signature):
                continue
            row_ids = ids[offsets[row] : offsets[row + 1]]
            exact = self._by_messages(decided, table, decode, (row, signature, row_ids), doubtful=bool(doubtful[row]))
            if exact is None:
                continue
            if not doubtful[row]:
                agreed = _is_same(exact, turns.select(turns.document == row), int(offsets[row]))
                self.signatures.add_comparison(signature, agreed=agreed)
            replaced[row] = exact
            decided.exact[row] = True
        decided.turns = _with_replaced(turns, replaced, offsets)
        return decided

    def _by_messages(
        self,
        decided: Decided,
        table: pa.Table,
        decode: Decoder,
        row_data: tuple[int, int, Ids],
        *,
        doubtful: bool,
    ) -> Turns | None:
        """The turns of a row by its messages; notes why where these decide nothing."""
        row, signature, ids = row_data
        decided.checked[row] = False
        if not doubtful and self.signatures.is_unmatched(signature):
            exact: Turns | str = _NOT_IN_ROW
        else:
            try:
                exact = self._exact_turns(table, decode, row, ids)
            except LostWordsError as error:
                decided.ambiguous[row] = str(error)
                decided.lost.add(row)
                return None
        if not isinstance(exact, str):
            return exact
        self._undecidable(decided, row, exact, doubtful=doubtful, signature=signature)
        return None

    def _undecidable(self, decided: Decided, row: int, why: str, *, doubtful: bool, signature: int) -> None:
        """Notes a row whose messages decide nothing: ambiguous, or by markers where nothing speaks against them."""
        if doubtful or self.from_template:
            decided.ambiguous[row] = why
            return
        decided.unmatched[row] = _NOT_IN_ROW
        self.signatures.add_unmatched(signature)

    def _refuse_without_messages(self, table: pa.Table, decode: Decoder) -> None:
        """Refuses a policy that only messages can answer, for rows that have none (or none that can be laid along)."""
        if not self.policy.needs_messages and self.policy.turns != "flagged":
            return
        if not decode.has_conversation(table):
            why = f"the rows have no messages (they have {', '.join(table.column_names)})"
        elif self.aligner is None:
            if not self.policy.needs_messages:
                return
            why = "there is no chat template that the messages could be rendered by"
        else:
            why = "the rows are packed"
        kept = " and ".join(decode.columns(table)) or "messages (conversations, or prompt and completion)"
        raise UnsupportedError(
            f"The policy asks for roles, tool calls or flags of messages, but {why}. Keep {kept}, or mask before the "
            "trainer is built: mask_dataset(dataset, tokenizer, policy=...)."
        )

    def _exact_turns(self, table: pa.Table, decode: Decoder, row: int, ids: Ids) -> Turns | str:
        """The turns by messages, or why there are none."""
        conversation = decode.row(table, row)
        weights = self.policy.message_weights(conversation.messages)
        given = 0 if self.prompt_answers else conversation.prompt
        weights[:given] = [0.0] * given
        roles = [str(message.get("role")) for message in conversation.messages]
        others = [at for at, weight in enumerate(weights) if weight and roles[at] not in ASSISTANT_ROLES]
        found = self._rendered_turns(conversation, ids, others) if self.aligner is not None else ""
        if isinstance(found, str):
            spoken = self._spoken_turns(conversation, ids)
            if isinstance(spoken, str):
                return found if self.from_template else spoken
            found = spoken
        return _of_messages(found, weights, roles, given)

    def _rendered_turns(self, conversation: Conversation, ids: Ids, others: list[int]) -> Turns | str:
        """The turns by the chat template, or why there are none."""
        assert self.aligner is not None, "nothing is rendered without a template"
        try:
            found = self.aligner.turns(
                conversation.messages,
                ids,
                tools=conversation.tools,
                variables=conversation.variables,
                others=others,
                tool_calls=self.policy.tool_calls,
            )
        except LostWordsError:
            raise
        except DataError as error:
            return str(error)
        self._rendered += 1
        return found

    def _spoken_turns(self, conversation: Conversation, ids: Ids) -> Turns | str:
        """The turns by the words of the messages, or why there are none."""
        if self.policy.needs_messages:
            return "The policy asks for roles or tool calls, which only a rendering of the messages shows."
        try:
            return self._words.turns(conversation.messages, ids)
        except DataError as error:
            return str(error)

    # what became of it

    def _settle(self, labels: NDArray[np.int32], offsets: Ints, decided: Decided, first_row: int) -> dict[int, str]:
        """Applies ``on_ambiguous``: raises, or masks the rows (and gives the reason for dropping them)."""
        reasons: dict[int, str] = {}
        for row, why in decided.ambiguous.items():
            if self.on_ambiguous == "error":
                raise self._undecided(first_row + row, why, lost=row in decided.lost)
            labels[offsets[row] : offsets[row + 1]] = IGNORE_INDEX
            reasons[row] = "ambiguous" if self.on_ambiguous == "drop" else "ambiguous, masked"
        return reasons

    def _undecided(self, row: int, why: str, *, lost: bool) -> AmbiguousRowError:
        if lost:
            return AmbiguousRowError(
                f"Row {row} has an answer without its words: {why} Or leave such rows out (on_ambiguous='drop' or "
                "'mask')."
            )
        if not self.from_template:
            return AmbiguousRowError(
                f"Row {row} cannot be decided: {why} A message of it quotes a marker, or its markers open another "
                "number of answers than its messages hold. Repair or remove the row, give the markers of its format, "
                "or choose on_ambiguous='drop' or 'mask'."
            )
        if not self._rendered:
            return AmbiguousRowError(
                f"Row {row} cannot be decided, nor can any row before it: {why} So the rows were rendered by another "
                "chat template, or with other template arguments. Give the one that was used as chat_template=, or "
                "the headers of their format as instruction_part and response_part, or choose on_ambiguous='drop' or "
                "'mask'."
            )
        return AmbiguousRowError(
            f"Row {row} cannot be decided: {why} Other rows are what the template renders ({self._rendered} so far), "
            "so this one was edited, or has other template arguments. Repair or remove it, or choose "
            "on_ambiguous='drop' or 'mask'."
        )


def _is_same(exact: Turns, marked: Turns, offset: int) -> bool:
    """Whether turns of a row are those that markers found ``offset`` tokens further on."""
    return np.array_equal(marked.start - offset, exact.start) and np.array_equal(marked.end - offset, exact.end)


def quotable_texts(finder: SpanFinder) -> tuple[str, ...]:
    """Texts that show that a message quotes a marker or a stop: its control tokens, or its visible text."""
    texts: dict[str, None] = {}
    vocabulary = finder.vocabulary
    for pattern in finder.trie.patterns:
        tokens = [atom - 256 for atom in pattern.atoms if atom >= 256]
        for token in tokens:
            texts.update(dict.fromkeys(_halves(vocabulary.text([token]))))
        if tokens:
            continue
        if isinstance(pattern.text, str) and pattern.text.strip():
            texts[pattern.text.strip()] = None
    return tuple(text for text in texts if text.strip())


def _halves(text: str) -> tuple[str, ...]:
    """Of a control token in two pieces, which a template may put together, one holds a half; a short one is whole."""
    middle = len(text) // 2
    return (text[:middle], text[middle:]) if middle > 2 else (text,)


def _of_messages(turns: Turns, weights: Sequence[float], roles: Sequence[str], prompt: int) -> Turns:
    """Turns with the weights and the roles of their messages, the first ``prompt`` of which are given."""
    codes = [ROLES.index(role) if role in ROLES else len(ROLES) - 1 for role in roles]
    known = turns.message >= 0
    at = np.where(known, turns.message, 0)
    spoken = zip(weights[prompt:], roles[prompt:], strict=True)
    own = next((weight for weight, role in spoken if role in ASSISTANT_ROLES), 1.0)
    return replace(
        turns,
        weight=np.where(known, np.array([*weights, own])[at], own),
        role=np.where(known, np.array([*codes, 0])[at], turns.role),
    )


def _with_replaced(turns: Turns, replaced: Mapping[int, Turns], offsets: Ints) -> Turns:
    """The turns of a batch with those of some rows exchanged."""
    if not replaced:
        return turns
    rows = sorted(replaced)
    kept = turns.select(~np.isin(turns.document, rows))
    moved = [replace(replaced[row].moved(offsets[row]), document=np.full(len(replaced[row]), row)) for row in rows]
    merged = Turns.joined([kept, *moved])
    return merged.select(np.argsort(merged.start, kind="stable"))
