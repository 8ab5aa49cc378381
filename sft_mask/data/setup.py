"""What is read from a tokenizer and from a built trainer, once, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.core.markers import Markers, MarkerText
from sft_mask.core.policy import Policy
from sft_mask.core.vocabulary import Vocabulary, read_vocabulary
from sft_mask.data.masker import Masker, OnAmbiguous
from sft_mask.data.roles import without_answers
from sft_mask.data.wellformed import messages_as_text
from sft_mask.errors import DataError, MarkerError, UnsupportedError
from sft_mask.report import MarkerSummary
from sft_mask.templates.chat_template import ChatTemplate
from sft_mask.templates.resolve import Resolved, resolve
from sft_mask.templates.turns import ConversationAligner

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids

_SAMPLED_ROWS = 256
_SAMPLED_OF_STREAM = 32
_VERSION = "4"
"""Part of every fingerprint; changes when a mask can change."""


@dataclass(frozen=True)
class Toolkit:
    """A tokenizer with what was read from it."""

    tokenizer: Any
    vocabulary: Vocabulary
    template: ChatTemplate | None


def read_tokenizer(tokenizer: Any, chat_template: str | None = None) -> Toolkit:
    """Reads a tokenizer once.

    Raises:
        UnsupportedError: it is a processor with images, or a slow tokenizer without a tokenizers backend.
    """
    kind = type(tokenizer).__name__
    if hasattr(tokenizer, "image_processor") or hasattr(tokenizer, "feature_extractor"):
        raise UnsupportedError(
            f"{kind} is a processor for images or audio: its labels are made while collating, from what the processor "
            "renders, and are not masked here. For text-only data give the trainer processing_class="
            "processor.tokenizer; for images use TRL's assistant_only_loss."
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedError(
            f"{kind} is not a fast tokenizer: the text of its ids cannot be read exactly. Load the fast one with "
            "AutoTokenizer.from_pretrained(...), or pass it as tokenizer=."
        )
    vocabulary = read_vocabulary(tokenizer)
    return Toolkit(tokenizer, vocabulary, ChatTemplate.of(tokenizer, vocabulary, chat_template))


def build_masker(
    toolkit: Toolkit,
    rows: Sequence[Ids],
    *,
    instruction_part: object,
    response_part: object,
    policy: Policy,
    on_ambiguous: OnAmbiguous,
    max_length: int | None = None,
    prompt_answers: bool = False,
) -> tuple[Masker, tuple[object, ...]]:
    """The masker for some settings, and the key that stands for it in fingerprints."""
    if on_ambiguous not in ("error", "drop", "mask"):
        raise DataError(f"on_ambiguous={on_ambiguous!r} is unknown. Use 'error', 'drop' or 'mask'.")
    resolved = resolve(
        toolkit.vocabulary,
        toolkit.tokenizer,
        toolkit.template,
        instruction=instruction_part,
        response=response_part,
        rows=rows,
        max_length=max_length,
    )
    bos = getattr(toolkit.tokenizer, "bos_token_id", None)
    aligner = _aligner(toolkit, resolved)
    masker = Masker(
        resolved.finder,
        resolved.markers,
        policy,
        aligner,
        on_ambiguous,
        bos,
        from_template=resolved.from_template,
        prompt_answers=prompt_answers,
    )
    chat = toolkit.template
    template = (chat.source, chat.tool_source, dict(chat.variables)) if chat is not None else None
    key = (_VERSION, resolved.markers, policy, on_ambiguous, prompt_answers, template, _digest(toolkit))
    return masker, key


def masker_for(
    toolkit: Toolkit, rows: Sequence[Ids], source: Any, name: str, **settings: Any
) -> tuple[Masker, tuple[object, ...]]:
    """:func:`build_masker` for some rows of a dataset, with errors about the dataset where that is the fault.

    Args:
        toolkit: the tokenizer.
        rows: ids of some rows.
        source: the dataset, or the one that it was made from.
        name: what to call it (``"the train dataset"``).
        settings: see :func:`build_masker`.

    Raises:
        NothingToTrainError: nobody in the dataset speaks for the model, so that its marker is in no row.
        DataError: the text of the rows is messages as JSON.
    """
    try:
        return build_masker(toolkit, rows, **settings)
    except MarkerError as error:
        if not _are_the_templates(toolkit, settings):
            raise
        found = messages_as_text(next(iter(plain(source)), {})) or without_answers(source, name)
        if found is None:
            raise
        raise found from error


def _are_the_templates(toolkit: Toolkit, settings: Mapping[str, Any]) -> bool:
    """Whether markers are those of the chat template, so that they would be found if somebody spoke for the model."""
    try:
        return build_masker(toolkit, [], **settings)[0].from_template
    except MarkerError:
        return False


def _aligner(toolkit: Toolkit, resolved: Resolved) -> ConversationAligner | None:
    if toolkit.template is None:
        return None
    markers = resolved.markers
    if not resolved.from_template:
        markers = _spelled(markers, toolkit.vocabulary)
    return ConversationAligner(toolkit.template, markers, toolkit.vocabulary, toolkit.tokenizer)


def _spelled(markers: Markers, vocabulary: Vocabulary) -> Markers:
    """Markers with the text of those that were given as ids, or seen as ids in rows."""

    def spelled(texts: tuple[MarkerText, ...]) -> tuple[MarkerText, ...]:
        return tuple(text if isinstance(text, str) else vocabulary.text(text) for text in texts)

    return replace(
        markers,
        response=spelled(markers.response),
        instruction=spelled(markers.instruction),
        others=spelled(markers.others),
        eots=spelled(markers.eots),
    )


def _digest(toolkit: Toolkit) -> str:
    """Stands for the tokenizer in fingerprints: its vocabulary and its added tokens."""
    from datasets.fingerprint import Hasher

    vocabulary = toolkit.vocabulary
    added = sorted((piece.token_id, piece.content, piece.special) for piece in vocabulary.added.values())
    tokens = "\0".join([token or "" for token in vocabulary.tokens])
    return str(Hasher.hash((tokens, added, toolkit.tokenizer.pad_token_id)))


def marker_summary(masker: Masker) -> MarkerSummary:
    """The markers in use, as a report shows them."""
    text = masker.finder.vocabulary.text

    def spelled(marker: Any) -> str:
        return marker if isinstance(marker, str) else text(list(marker))

    markers = masker.markers
    return MarkerSummary(
        spelled(markers.instruction[0]),
        spelled(markers.response[0]),
        tuple(dict.fromkeys(spelled(stop) for stop in markers.eots)),
        markers.detected,
        markers.like_the_model,
    )


def sample_rows(dataset: Any, count: int = _SAMPLED_ROWS) -> list[Ids]:
    """Some rows of ids, spread over the dataset (the first ones of a stream)."""
    if hasattr(dataset, "__len__"):
        picked = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))
        column, used = dataset._data["input_ids"], dataset._indices
        places = picked if used is None else used.column(0).take(picked)
        rows = [_numbers(row) for row in (column[place] for place in np.asarray(places).tolist()) if row.is_valid]
    else:
        rows = [row.get("input_ids") for row in islice(dataset, min(count, _SAMPLED_OF_STREAM))]
    return readable(rows)


def _numbers(row: pa.Scalar) -> Any:
    """A row of a column; numbers in a list without a Python object for each."""
    kind = getattr(row.type, "value_type", None)
    return row.values.to_numpy(zero_copy_only=False) if kind is not None and pa.types.is_integer(kind) else row.as_py()


def readable(rows: Iterable[Any]) -> list[Ids]:
    """The rows that are ids; what the others are is said, with their numbers, where they are masked."""
    read: list[Ids] = []
    for row in rows:
        try:
            ids = np.asarray(row)
        except ValueError:  # lists of different lengths inside
            continue
        if ids.ndim == 1 and (ids.dtype.kind in "iu" or not len(ids)):
            read.append(ids.astype(np.int64))
    return read


def plain(dataset: Any) -> Any:
    """The dataset with rows of Python objects, whatever its format; rows that are made on the fly stay so."""
    kind = _format_of(dataset)
    return dataset if kind in (None, "custom") else dataset.with_format(None)


def _format_of(dataset: Any) -> str | None:
    """The name of a dataset's format (``"python"`` where some columns are hidden); ``None`` where there is none."""
    if not hasattr(dataset, "format"):
        return getattr(getattr(dataset, "_formatting", None), "format_type", None)
    shown = dataset.format
    kind: str | None = shown["type"]
    return "python" if kind is None and {*shown["columns"]} != {*dataset.column_names} else kind


def in_format_of(dataset: Any, made: Any) -> Any:
    """What was made of a plain dataset, in its format; columns that were added are shown."""
    kind = _format_of(dataset)
    if kind in (None, "custom"):
        return made
    if not hasattr(dataset, "format"):
        return made.with_format(kind)
    shown, before, now = dataset.format, dataset.column_names, made.column_names
    hidden = {*before} - {*shown["columns"]}
    columns = [name for name in now if name not in hidden] if hidden else None
    return made.with_format(shown["type"], columns, shown["output_all_columns"], **shown["format_kwargs"])


def column_names(dataset: Any) -> list[str]:
    """Columns of a dataset; of a stream that does not know them, those of its first row."""
    return list(dataset.column_names or next(iter(dataset), {}))
