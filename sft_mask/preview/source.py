"""From a dataset or a trainer to rows that can be shown, with the reason why each token is trained or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

from sft_mask.core.policy import Policy
from sft_mask.data.as_trained import RowShape, prepared
from sft_mask.data.formats.detect import Columns
from sft_mask.data.formats.read import Roles, read_chats
from sft_mask.data.read.formats import named_splits
from sft_mask.data.setup import MaskSettings, read_tokenizer
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.explanations.reasons import RowExplainer
from sft_mask.explanations.rows import inspect_rows, never_raising
from sft_mask.preview.collated import CollatedSource
from sft_mask.preview.notebook import rows_html
from sft_mask.preview.rows import Note, PreviewRow, build_row
from sft_mask.report.counts import counted
from sft_mask.vision.collator import ResponseOnlyCollator

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_mask.data.masker import Masker

_MOST_ROWS = 1000
"""Rows that are read of a stream."""


class TokenizedSource:
    """Rows of a tokenized dataset, as a masker labels them."""

    def __init__(self, dataset: Dataset, tokenizer: object, masker: Masker, name: str) -> None:
        self._dataset, self._tokenizer, self._masker, self.name = dataset, tokenizer, masker, name
        self._explainer = RowExplainer(masker)

    def rows(self, numbers: Sequence[int]) -> Iterator[PreviewRow]:
        """The rows at these positions."""
        for row in inspect_rows(self._dataset, self._masker, numbers, self.name):
            yield build_row(
                self._tokenizer,
                row.ids.tolist(),
                row.labels.tolist(),
                weights=row.weights.tolist(),
                spans=[
                    Note(part.start, part.end, part.role, part.reason, part.turn) for part in self._explainer.parts(row)
                ],
                documents=row.documents.tolist(),
                status=row.status,
                name=f"{self.name} {row.number}",
                lost=map(str, row.account.losses),
            )


class PreviewRows(Sequence[PreviewRow]):
    """Rows of a dataset, each made when it is asked for: ``rows[3]``, ``rows[:20]``, ``for row in rows``."""

    def __init__(self, source: TokenizedSource | CollatedSource, numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> PreviewRow: ...
    @overload
    def __getitem__(self, index: slice) -> PreviewRows: ...
    def __getitem__(self, index: int | slice) -> PreviewRow | PreviewRows:
        if isinstance(index, slice):
            return PreviewRows(self._source, self._numbers[index])
        return next(self._source.rows([self._numbers[index]]))

    def __iter__(self) -> Iterator[PreviewRow]:
        return self._source.rows(self._numbers)

    def __repr__(self) -> str:
        return f"<PreviewRows {self._source.name}: {counted(len(self), 'row')}>"

    def _repr_html_(self) -> str:
        return rows_html(self, self._source.name)

    def pick(self, numbers: Sequence[int]) -> PreviewRows:
        """The rows at these positions, in that order."""
        return PreviewRows(self._source, [self._numbers[number] for number in numbers])


def preview_rows(
    data: object,
    tokenizer: object = None,
    instruction_part: object = None,
    response_part: object = None,
    *,
    split: str | None = None,
    policy: Policy | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    expand: bool = False,
    columns: Columns | None = None,
    roles: Roles | None = None,
) -> PreviewRows:
    """Returns the rows of a dataset or of a trainer as they are masked, ready to be shown or explained.

    No row is left out: the status is ``dropped`` for rows that training drops, ``cut`` for rows that end inside an
    answer, ``ambiguous`` for rows that neither markers nor messages decide (nothing is raised for them here), and
    ``lost`` for rows that do not hold all that their messages say; ``row.lost`` lists it. Each row is made when it is
    asked for.

    Args:
        data: a ``Dataset``, a ``DatasetDict``, an ``IterableDataset`` (its first 1,000 rows), a list of rows (each a
            dict), or a trainer that :func:`~sft_mask.train_on_responses_only` was called on.
        tokenizer: a fast tokenizer, or a processor that has one; for rows with images a ``ResponseOnlyCollator``, which
            knows the other arguments already; not for a trainer.
        instruction_part: as in :func:`~sft_mask.train_on_responses_only`, like ``response_part``, ``policy`` and
            ``chat_template``; not for a trainer.
        split: which split of a ``DatasetDict`` or a trainer (``"train"``, ``"eval"``, ``"eval:NAME"``); by default
            ``"train"``, or the first one.
        max_length: where the trainer will truncate the rows; not for a trainer.
        expand: as in :func:`~sft_mask.mask_dataset`; not for a trainer.
        columns: as in :func:`~sft_mask.mask_dataset`, like ``roles``; not for a trainer.
        roles: see ``columns``.

    Raises:
        DataError: there is no such split, nothing to tokenize, or a malformed row.
        UnsupportedError: no tokenizer, a trainer that was not masked, or an argument beside a trainer or a collator.
        MarkerError: as in :func:`~sft_mask.train_on_responses_only`.
    """
    if hasattr(data, "train_dataset"):
        given_too = (tokenizer, instruction_part, response_part, policy, chat_template, columns, roles, max_length)
        if expand or any(value is not None for value in given_too):
            raise UnsupportedError(
                "A trainer is shown as it was masked, so a tokenizer, markers, a policy, a chat template, a "
                "length or expand cannot be given with it. Leave them out, or give the dataset instead of the trainer."
            )
        return _of_trainer(data, split)
    if tokenizer is None:
        raise UnsupportedError("A dataset needs its tokenizer: preview_rows(dataset, tokenizer).")
    name, dataset = _chosen_split(data, split)
    if isinstance(tokenizer, ResponseOnlyCollator):
        _refuse_beside_collator(
            instruction_part=instruction_part,
            response_part=response_part,
            policy=policy,
            chat_template=chat_template,
            max_length=max_length,
            expand=expand or None,
            columns=columns,
            roles=roles,
        )
        rows = _finite(dataset)
        return PreviewRows(CollatedSource(rows, tokenizer, name), range(len(rows)))
    info = read_tokenizer(tokenizer, chat_template)
    rows, _ = read_chats(_finite(dataset), name, info.template, columns, roles)
    settings = MaskSettings(instruction_part, response_part, policy or Policy(), "drop")
    shape = RowShape(max_length, expand=expand)
    ready, masker = prepared(rows, info, settings, name, chat_template, shape)
    return PreviewRows(TokenizedSource(ready, info.tokenizer, masker, name), range(len(ready)))


_OWN_BY_COLLATOR = {
    "policy": "ResponseOnlyCollator(collator, processor, policy=...)",
    "chat_template": "ResponseOnlyCollator(collator, processor, chat_template=...)",
    "max_length": "the collator inside it, as DataCollatorForVisionLanguageModeling(processor, max_length=...)",
}
"""Arguments of ``preview_rows`` that a collator was given before, and where."""


def _refuse_beside_collator(**given: object) -> None:
    """Refuses arguments that rows which are collated as they are would ignore.

    Raises:
        UnsupportedError: that, with where each belongs.
    """
    for name in (name for name, value in given.items() if value is not None):
        if name in _OWN_BY_COLLATOR:
            way = f"Give it to {_OWN_BY_COLLATOR[name]}."
        elif name in ("columns", "roles"):
            way = (
                "The collator reads messages of role and content: rename columns and roles in the dataset, with "
                "rename_column and map."
            )
        elif name == "expand":
            way = "Rows with images cannot be expanded: leave it out."
        else:
            way = "The collator reads the markers from its chat template: leave it out."
        raise UnsupportedError(f"Rows are shown as the collator makes them, so {name} would be ignored. {way}")


def _of_trainer(trainer: Any, split: str | None) -> PreviewRows:
    state = getattr(trainer, "_sft_mask", None)
    if state is None:
        raise UnsupportedError(
            "This trainer was not masked, so it trains on every label as it is. Call train_on_responses_only(trainer) "
            "first."
        )
    name, masked = _chosen_split(named_splits(trainer), split)
    dataset = _finite(state.original(masked))
    if isinstance(trainer.data_collator, ResponseOnlyCollator):
        return PreviewRows(CollatedSource(dataset, trainer.data_collator, name), range(len(dataset)))
    source = TokenizedSource(dataset, state.tokenizer, never_raising(state.masker), name)
    return PreviewRows(source, range(len(dataset)))


def _chosen_split(data: Any, split: str | None) -> tuple[str, object]:
    if not isinstance(data, Mapping):
        if split is not None:
            raise DataError(f"split={split!r} was given, but the data has no splits. Leave it out.")
        return "train", data
    if not data or (split is not None and split not in data):
        raise DataError(f"There is no split {split!r}: there are {', '.join(map(repr, data)) or 'none'}.")
    name = split or ("train" if "train" in data else next(iter(data)))
    return name, data[name]


def _finite(data: object) -> Dataset:
    """The rows as a ``Dataset``; of a stream or a list the first ones."""
    from datasets import Dataset

    if isinstance(data, Dataset):
        return data
    if isinstance(data, Mapping | str) or not hasattr(data, "__iter__"):
        raise DataError(
            f"{type(data).__name__} is not a dataset. Give a Dataset, a DatasetDict, or a list of rows such as "
            '[{"messages": [...]}].'
        )
    rows = list(islice(data, _MOST_ROWS))
    if not all(isinstance(row, Mapping) for row in rows):
        raise DataError('The rows of a list must be dicts, such as {"messages": [...]} or {"input_ids": [...]}.')
    return Dataset.from_list([dict(row) for row in rows])
