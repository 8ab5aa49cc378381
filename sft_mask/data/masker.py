"""One batch of rows, as Arrow columns, to labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.labels import make_labels
from sft_mask.core.markers import Markers
from sft_mask.core.packing import RowCutting, cut_at, joined_offsets
from sft_mask.core.policy import Policy
from sft_mask.core.regions import in_regions
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.core.token_weights import UnweightedBatch, weighted_labels
from sft_mask.data.accounting.stats import Trained, count_batch
from sft_mask.data.decide import RowDecider
from sft_mask.data.expand import Expansion, expansion_of, shared_beginnings
from sft_mask.data.outcome import Batch, Decided, MaskedBatch
from sft_mask.data.read.conversations import Decoder
from sft_mask.data.read.rows import LOSS_WEIGHTS, documents_of, existing_labels, loss_weights, token_ids
from sft_mask.errors import UnsupportedError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Floats, Ids, Labels

OnAmbiguous = Literal["error", "drop", "mask"]


@dataclass(frozen=True, slots=True)
class Masker:
    """Labels batches of rows; built once per call, used for every split.

    Attributes:
        finder: the marker search.
        markers: the markers it searches for.
        decider: decides the turns of each row; it remembers what earlier rows showed.
        on_ambiguous: what happens to a row that cannot be decided.
        cutting: how the trainer cut the rows, if it may have cut inside a conversation.
        settings_key: the settings that this masker was built from, for fingerprints.
        max_length: where the trainer truncated the rows.
    """

    finder: SpanFinder
    markers: Markers
    decider: RowDecider
    on_ambiguous: OnAmbiguous = "error"
    cutting: RowCutting | None = None
    settings_key: tuple[object, ...] = ()
    max_length: int | None = None

    @property
    def policy(self) -> Policy:
        """What is trained of the turns found."""
        return self.decider.policy

    @property
    def key(self) -> tuple[object, ...]:
        """Everything that decides a label, for fingerprints."""
        return (*self.settings_key, self.cutting)

    def for_rows_cut(self, cutting: RowCutting | None) -> Masker:
        """The same masker, with the same decider, for rows that the trainer cut.

        Raises:
            UnsupportedError: the policy asks for the last turn of a conversation, or for the mean over one, and the
                packing does not record where conversations end.
        """
        if cutting is not None and cutting.kind != "tail":
            self._refuse_unknown_ends(cutting)
        return replace(self, cutting=cutting)

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
                f"{strategy!r} does not record. Mask before the trainer is built (mask_dataset), or pack with "
                "'bfd'."
            )

    def mask(
        self,
        table: pa.Table,
        decode: Decoder,
        *,
        first_row: int = 0,
        adjacent: bool = False,
    ) -> MaskedBatch:
        """Labels of a batch.

        Args:
            table: columns ``input_ids``, optionally ``labels``, ``seq_lengths``, ``loss_weights``, the conversation.
            decode: reads one row of the conversation; see :class:`Decoder`.
            first_row: number of the batch's first row in its dataset, for messages.
            adjacent: whether the rows are in the order in which the trainer's packing made them.

        Raises:
            DataError: a row holds nulls or things that are not ids.
            AmbiguousRowError: a row cannot be decided and ``on_ambiguous`` is ``"error"``.
        """
        batch = _batch_of(table, first_row)
        existing = existing_labels(table, batch.offsets)
        decided = self._decide(table, decode, batch, adjacent=adjacent)
        weights = loss_weights(table, batch.offsets, first_row)
        return self.label(batch, decided, existing, weights, expansion_of(table), first_row)

    def label(
        self,
        batch: Batch,
        decided: Decided,
        existing: Labels | None = None,
        weights: Floats | None = None,
        expansion: Expansion | None = None,
        first_row: int = 0,
    ) -> MaskedBatch:
        """Labels of a batch whose turns are known.

        Args:
            batch: its ids.
            decided: what :meth:`decide` found.
            existing: ``(tokens,)`` labels that the rows have already.
            weights: ``(tokens,)`` weights that they have; ``None`` for none.
            expansion: how expanded rows belong to conversations.
            first_row: number of the batch's first row in its dataset, for messages.

        Raises:
            AmbiguousRowError: a row cannot be decided and ``on_ambiguous`` is ``"error"``.
        """
        ids, offsets = batch.ids, batch.offsets
        turns = self._chosen(decided.turns, expansion)
        labels = make_labels(ids, turns, existing)
        factor = self._region_weights(ids, turns) * (1.0 if weights is None else weights)
        counts_everywhere = bool(np.all(factor))
        if not counts_everywhere:
            labels[factor == 0] = IGNORE_INDEX
        reasons = self._apply_on_ambiguous(labels, batch, decided, first_row)
        if existing is None and counts_everywhere and not reasons:
            trained = Trained.of_turns(turns, offsets)
        else:
            trained = Trained.of_labels(labels, turns, offsets)
        report = count_batch(
            decided,
            turns,
            trained,
            batch,
            reasons,
            first_row=first_row,
            max_length=self.max_length if self.cutting is None else None,  # others lose nothing at a row's end
            expansion=expansion,
        )
        if weights is None and not self.carries_weights(()):
            return MaskedBatch(labels, offsets, trained.rows, reasons, report, decided)
        may_prompt = self._may_be_prompt(batch, existing) & np.repeat(trained.rows > 0, np.diff(offsets))
        factor = np.broadcast_to(factor, labels.shape)
        units = None if expansion is None else expansion.units
        if units is not None and self.policy.prompt_weight:
            may_prompt &= ~shared_beginnings(ids, offsets, units)
        unweighted = UnweightedBatch(ids, labels, decided.turns, turns, batch.documents, factor, may_prompt, units)
        weighted, prompt = weighted_labels(unweighted, self.policy)
        report = replace(report, prompt_trained_tokens=prompt)
        return MaskedBatch(weighted, offsets, trained.rows, reasons, report, decided)

    def decide(self, batch: Batch, decode: Decoder, *, by_markers: bool = True) -> Decided:
        """The turns of rows without a table; ``by_markers``: whether markers may decide any row."""
        turns = self._turns_by_markers(batch, joined=False) if by_markers else Turns.empty()
        return self.decider.decide(pa.table({}), decode, batch, turns)

    def _chosen(self, turns: Turns, expansion: Expansion | None) -> Turns:
        """The turns to train; of an expanded conversation the last one is in its last row."""
        if expansion is None:
            return self.policy.apply(turns)
        policy = replace(self.policy, turns="all") if self.policy.turns == "last" else self.policy
        return policy.apply(turns, expansion.is_last)

    def carries_weights(self, columns: Collection[str]) -> bool:
        """Whether labels of rows with these columns are int64 and carry weights."""
        return self.policy.is_weighted or self.policy.turns == "flagged" or LOSS_WEIGHTS in columns

    def _decide(self, table: pa.Table, decode: Decoder, batch: Batch, *, adjacent: bool) -> Decided:
        joined = adjacent and self.cutting is not None and self.cutting.kind == "wrapped"
        turns = self._turns_by_markers(batch, joined=joined)
        decided = self.decider.decide(table, decode, batch, turns)
        if self.cutting is not None and not joined:
            inside = batch.documents[:-1][self.finder.begin_inside_turn(batch.ids, batch.documents)]
            rows = np.unique(np.searchsorted(batch.offsets, inside, side="right") - 1)
            decided.mid_turn = int((~decided.exact & ~decided.checked)[rows].sum())
        return decided

    def _turns_by_markers(self, batch: Batch, *, joined: bool) -> Turns:
        """The turns by markers, with the assistant's weight; ``joined`` rows were cut from one text."""
        if joined and self.cutting is not None:
            whole = joined_offsets(batch.documents, self.cutting.length)
            turns = cut_at(self.finder.find(batch.ids, whole), batch.documents)
        else:
            turns = self.finder.find(batch.ids, batch.documents)
        weight = self.policy.role_weights["assistant"]
        return turns if weight == 1 else replace(turns, weight=np.full(len(turns), weight))

    def _region_weights(self, ids: Ids, turns: Turns) -> Floats:
        """The factor of each token's weight by regions; one value for all without any."""
        if not self.policy.regions:
            return np.ones(1)
        return in_regions(ids, turns, self.finder.vocabulary, self.policy.regions)

    def _may_be_prompt(self, batch: Batch, existing: Labels | None) -> Bools:
        """``(tokens,)`` tokens that are neither padding nor masked before."""
        ends = self.finder.content_ends(batch.ids, batch.documents)
        inside: Bools = np.arange(len(batch.ids)) < np.repeat(ends, np.diff(batch.documents))
        return inside if existing is None else inside & (existing != IGNORE_INDEX)

    def _apply_on_ambiguous(self, labels: Labels, batch: Batch, decided: Decided, first_row: int) -> dict[int, str]:
        """Raises for an undecided row, or masks such rows and gives the reason for dropping them."""
        for row, undecided in decided.ambiguous.items():
            if self.on_ambiguous == "error":
                raise self.decider.error(first_row + row, undecided)
            labels[batch.offsets[row] : batch.offsets[row + 1]] = IGNORE_INDEX
        reason = "ambiguous" if self.on_ambiguous == "drop" else "ambiguous, masked"
        return dict.fromkeys(decided.ambiguous, reason)


def _batch_of(table: pa.Table, first_row: int) -> Batch:
    ids, offsets = token_ids(table)
    return Batch(ids, offsets, documents_of(table, offsets, first_row))
