"""Rows one by one, with what masking knew about them: what previews, the doctor and snapshots look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.arrays import Bools, Ints, offsets_of
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.core.spans import Turns
from sft_mask.data.batches import READ, mask_rows
from sft_mask.data.masker import Masker
from sft_mask.data.outcome import MaskedBatch
from sft_mask.data.prelabelled import is_masked
from sft_mask.data.read.columns import list_values
from sft_mask.data.read.conversations import Conversation, Decoder
from sft_mask.explanations.losses import RowAccount, row_accounts
from sft_mask.vision.reader import MediaPiece

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from numpy.typing import NDArray


_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row and how it was masked.

    Attributes:
        number: the row's number in its dataset.
        ids: ``(tokens,)``.
        labels: ``(tokens,)`` the id itself, or ``IGNORE_INDEX``.
        weights: ``(tokens,)`` weight of each token in the loss; 0 where the label is ignored.
        existing: ``(tokens,)`` labels that the row had before, if any.
        documents: ``(documents,)`` lengths in tokens: one, unless the row is packed.
        turns: assistant turns in tokens of this row, before the policy chose among them.
        checked: whether markers decided them and the messages agree.
        undecided: why neither markers nor messages could decide the row, else ``""``.
        dropped: why the row trains nothing, else ``""``.
        conversation: the messages, if the row has them.
        sources: ``(tokens,)`` message whose words each token holds, or ``TEMPLATE``, where that is known already.
        media: ``(tokens,)`` whether each token belongs to an image, a video or a sound, where a row may have them.
        pieces: images in order, with their tokens.
        account: what became of them.
    """

    number: int
    ids: Ints
    labels: Ints
    weights: NDArray[np.float32]
    existing: Ints | None
    documents: Ints
    turns: Turns
    checked: bool
    undecided: str
    dropped: str
    conversation: Conversation | None
    sources: Ints | None = None
    media: Bools | None = None
    pieces: Sequence[MediaPiece] = ()
    account: RowAccount = field(default_factory=RowAccount)

    @property
    def status(self) -> tuple[str, ...]:
        """Flags to filter by: ``"cut"``, ``"ambiguous: why"``, ``"dropped: why"``, ``"lost: what"``."""
        cut = ("cut",) if bool(self.turns.cut.any()) else ()
        ambiguous = (f"ambiguous: {self.undecided}",) if self.undecided else ()
        dropped = (f"dropped: {self.dropped}",) if self.dropped else ()
        return (*dropped, *ambiguous, *cut, *self.account.status)


def never_raising(masker: Masker) -> Masker:
    """A copy of the masker that masks a row which it cannot decide, and says why, instead of raising."""
    return replace(masker, on_ambiguous="drop")


def inspect_rows(
    dataset: Dataset, masker: Masker, numbers: Sequence[int], name: str = "train"
) -> Iterator[InspectedRow]:
    """Masks the rows ``numbers`` of a tokenized dataset, batch by batch, and yields each with what masking knew.

    Raises:
        SftMaskError: what masking raises; see :func:`never_raising`.
    """
    arrow = dataset.with_format("arrow")
    decode = Decoder(dataset.features)
    for first in range(0, len(numbers), _ROWS_AT_ONCE):
        chosen = list(numbers[first : first + _ROWS_AT_ONCE])
        table = arrow[chosen]
        table = decode.prepared(table.select([column for column in READ if column in table.column_names]))
        masked = mask_rows(masker, table, decode, np.asarray(chosen, np.int64), f"the {name} dataset")
        if is_masked(dataset):
            masked = _with_existing_labels(masked, table)
        yield from _rows_of(masked, table, decode, chosen)


def _rows_of(masked: MaskedBatch, table: pa.Table, decode: Decoder, numbers: Sequence[int]) -> Iterator[InspectedRow]:
    ids = list_values(table["input_ids"])[0]
    existing = list_values(table["labels"])[0] if "labels" in table.column_names else None
    labels, weights = label_ids(masked.labels), label_weights(masked.labels)
    talks = decode.has_conversation(table)
    unknown = decode.unknown(table)
    known = [place for place in range(len(numbers)) if talks and not unknown[place]]
    conversations = {place: decode.row(table, place) for place in known}
    accounts = row_accounts(masked, conversations)
    for place, number in enumerate(numbers):
        undecided = masked.decided.ambiguous.get(place)
        low, high = masked.offsets[place : place + 2].tolist()
        yield InspectedRow(
            number=number,
            ids=ids[low:high].astype(np.int64),
            labels=labels[low:high].astype(np.int64),
            weights=weights[low:high],
            existing=None if existing is None else existing[low:high],
            documents=_documents(table, place, high - low),
            turns=turns_within(masked.decided.turns, low, high),
            checked=bool(masked.decided.checked[place]),
            undecided=undecided.why if undecided is not None else "",
            dropped="" if masked.trained[place] else masked.reasons.get(place, "no answer to train"),
            conversation=conversations.get(place),
            account=accounts.get(place, RowAccount()),
        )


def _with_existing_labels(masked: MaskedBatch, table: pa.Table) -> MaskedBatch:
    """The labels that ``mask_dataset`` wrote (and packing or truncation cut since); the turns only explain them."""
    labels, offsets = list_values(table["labels"])
    trained_before = offsets_of(label_weights(labels) > 0)
    return replace(masked, labels=labels, trained=np.diff(trained_before[offsets]), reasons={})


def _documents(table: pa.Table, place: int, tokens: int) -> Ints:
    lengths = table["seq_lengths"][place].as_py() if "seq_lengths" in table.column_names else [tokens]
    return np.asarray(lengths, np.int64)


def turns_within(turns: Turns, low: int, high: int) -> Turns:
    """The turns of one row, with tokens and documents counted from the row's first."""
    inside = turns.select((turns.start >= low) & (turns.start < high)).moved(-low)
    return replace(inside, document=inside.document - inside.document.min(initial=np.iinfo(np.int64).max))
