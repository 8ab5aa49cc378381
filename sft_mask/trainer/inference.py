"""What the trained model needs at inference: the tokens that end an answer, and the generation prompt of its rows.

A template may write several end-of-turn tokens, of which some occur inside of an answer: gpt-oss writes ``<|end|>``
between the reasoning and what follows it. Generation must not stop there, so the labels of some rows are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import label_ids
from sft_mask.core.markers import MarkerText
from sft_mask.data.batches import READ, mask_rows
from sft_mask.data.masker import Masker
from sft_mask.data.read.conversations import Decoder, read_variables
from sft_mask.data.setup import read_tokenizer
from sft_mask.errors import DataError
from sft_mask.report import SplitReport
from sft_mask.templates.chat_template import ChatTemplate

_ROWS_LOOKED_AT = 200


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer.

    Attributes:
        ids: end-of-turn tokens.
        texts: ends of turns that are texts of several tokens.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...] = ()


def stops_of(trainer: Any) -> Stops:
    """What ends an answer of a masked trainer's model; its own EOS where the mask knows of no end-of-turn token."""
    known = known_stops(trainer)
    ids = trained_stops(_labels(trainer.train_dataset), set(known.ids)) or list(known.ids)
    released = _released(trainer)
    ids = [token for token in ids if token in released] or ids
    return Stops(tuple(ids or (() if known.texts else released)), known.texts)


def known_stops(trainer: Any) -> Stops:
    """Every end-of-turn token that the mask of a trainer knows of."""
    state = trainer._sft_mask
    eots: tuple[MarkerText, ...] = state.masker.markers.eots if state.masker is not None else ()
    ids, texts = [], []
    for eot in eots:
        tokens = state.tokenizer(eot, add_special_tokens=False)["input_ids"] if isinstance(eot, str) else list(eot)
        if len(tokens) == 1:
            ids.append(int(tokens[0]))
        else:
            texts.append(eot if isinstance(eot, str) else str(state.tokenizer.decode(tokens)))
    return Stops(tuple(dict.fromkeys(ids)), tuple(dict.fromkeys(texts)))


def trained_stops(rows: Iterable[Sequence[int]], known: set[int]) -> list[int]:
    """The end-of-turn tokens that end a trained answer and after which no answer goes on, the most frequent first.

    Args:
        rows: labels, without weights.
        known: the end-of-turn tokens of the template.

    >>> trained_stops([[-100, 5, 7, -100, -100, 5, 8, 5, 7]], {7, 8, 9})
    [7]
    """
    ends: Counter[int] = Counter()
    inside: set[int] = set()
    for row in rows:
        for label, following in zip(row, [*row[1:], IGNORE_INDEX], strict=True):
            if label in known and following == IGNORE_INDEX:
                ends[label] += 1
            elif label in known:
                inside.add(label)
    return [stop for stop, _ in ends.most_common() if stop not in inside]


def _labels(dataset: Any) -> list[list[int]]:
    """Labels of the first rows of a dataset, without their weights; none of a stream, or of rows with images."""
    if not hasattr(dataset, "__len__") or "labels" not in (getattr(dataset, "column_names", None) or ()):
        return []
    rows = dataset[:_ROWS_LOOKED_AT]["labels"]
    return [label_ids(np.asarray(row, np.int64)).tolist() for row in rows]


def _released(trainer: Any) -> tuple[int, ...]:
    """The tokens that ended an answer of the model before it was trained."""
    eos = getattr(getattr(trainer.model, "generation_config", None), "eos_token_id", None)
    eos = trainer._sft_mask.tokenizer.eos_token_id if eos is None else eos
    return tuple(eos) if isinstance(eos, Sequence) else () if eos is None else (int(eos),)


def prompt_arguments(trainer: Any) -> dict[str, object]:
    """Template arguments of the generation prompt that most trained answers come after, and those of all rows."""
    train = trainer.mask_report.splits.get("train", SplitReport())
    if train.rows_masked_before:
        train = _report_of_first_rows(trainer)
    return {**train.prompt_arguments, **_common_arguments(trainer)}


def _report_of_first_rows(trainer: Any) -> SplitReport:
    """Of rows that ``mask_dataset`` labelled, which are not read again at the call: the first ones, labelled anew."""
    dataset, masker = trainer.train_dataset, trainer._sft_mask.masker
    decode = Decoder(dataset.features)
    names = [name for name in READ if name in dataset.column_names and name != "labels"]
    table = dataset.with_format("arrow")[:_ROWS_LOOKED_AT].select(names)
    if masker is None or not decode.has_conversation(table):
        return SplitReport()
    numbers = np.arange(len(table), dtype=np.int64)
    return mask_rows(replace(masker, on_ambiguous="drop"), table, decode, numbers, "the train dataset").report


def _common_arguments(trainer: Any) -> dict[str, object]:
    """The ``chat_template_kwargs`` that the first rows have in common."""
    dataset = trainer._sft_mask.original(trainer.train_dataset)
    if not hasattr(dataset, "__len__") or "chat_template_kwargs" not in (dataset.column_names or ()):
        return {}
    rows: list[Mapping[str, object]] = [
        read_variables(row) or {} for row in dataset[:_ROWS_LOOKED_AT]["chat_template_kwargs"]
    ]
    first = rows[0] if rows else {}
    return {
        name: value
        for name, value in first.items()
        if value is not None and all(row.get(name) == value for row in rows)
    }


def rendering_template(trainer: Any) -> ChatTemplate | None:
    """The chat template that rendered the rows; ``None`` where they are text in a format of their own."""
    masker: Masker | None = trainer._sft_mask.masker
    if masker is None:
        return read_tokenizer(trainer.processing_class or trainer._sft_mask.tokenizer).template
    aligner = masker.decider.aligner
    return aligner.template if aligner is not None and masker.decider.from_template else None


def prompt_text(
    template: ChatTemplate, messages: Sequence[Mapping[str, object]], arguments: Mapping[str, object]
) -> str:
    """The text that inference shows the model: the messages and the generation prompt.

    Raises:
        DataError: the chat template refuses the messages.
    """
    text = template.render(messages, add_generation_prompt=True, variables=arguments).text
    if not text:
        raise DataError("the chat template renders nothing for these messages")
    return text
