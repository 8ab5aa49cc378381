"""What TRL's ``SFTTrainer`` makes of a row: the texts that are encoded, and where a completion begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.arrays import common_prefix_length
from sft_mask.data.faults.wellformed import PAIR, check_row, oddities
from sft_mask.data.read import Row
from sft_mask.data.read.conversations import as_chatml, read_tools, read_variables
from sft_mask.data.tokenize.encode import TextEncoder
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.templates.chat_template import with_parts

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids

_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What bugs in a template raise, in addition to the errors of Jinja."""

_CHARACTERS_AT_ONCE = 1 << 20
"""Characters that are encoded together, so that memory does not depend on the length of rows."""


class RefusedError(DataError):
    """The chat template refuses a conversation."""


@dataclass(frozen=True, slots=True)
class RowIds:
    """A tokenized row.

    Attributes:
        ids: ``(tokens,)`` int32.
        prompt: how many of them are the prompt's; ``None`` unless the row has prompt and completion.
    """

    ids: Ids
    prompt: int | None = None

    def labels(self) -> Ids:
        """The ids, with the prompt masked."""
        labels = self.ids.copy()
        labels[: self.prompt or 0] = IGNORE_INDEX
        return labels


@dataclass(frozen=True, slots=True)
class _Text:
    """A text that is to be encoded, with the tokens that a tokenizer adds to a text by default, or without."""

    text: str
    add_special_tokens: bool = False


_Part = _Text | list[int]
"""What a row is made of: texts, or the ids that a tokenizer with methods of its own made."""


@dataclass(frozen=True)
class RowTokenizer:
    """Tokenizes rows as TRL's ``SFTTrainer`` does, many at once; no row's ids depend on the others.

    Attributes:
        tokenizer: a fast tokenizer.
        chat_template: in place of the tokenizer's own.
        processor: that the tokenizer belongs to, if any: it renders and tokenizes conversations, one by one.
    """

    tokenizer: Any
    chat_template: str | None = None
    processor: Any = None

    def __call__(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[RowIds]:
        """The ids of some rows.

        Args:
            rows: with ``messages`` (also ``conversations``, ``prompt`` and ``completion``), or ``text``.
            numbers: of the rows in their dataset, for errors.

        Raises:
            DataError: a row is malformed, or the chat template refuses it; with the number of the first such row.
        """
        return self.encode([self.parts(row, number) for row, number in zip(rows, numbers, strict=True)], numbers)

    def parts(self, row: Row, number: int) -> tuple[_Part, ...]:
        """The texts of a row: one, or those of its prompt and of the whole row.

        Raises:
            DataError: the row is malformed, or the chat template refuses it; with its number.
        """
        try:
            check_row(row)
            return self._parts(row)
        except DataError as error:
            raise type(error)(f"Row {number}: {error}") from error

    def encode(self, rows: Sequence[tuple[_Part, ...]], numbers: Sequence[int]) -> list[RowIds]:
        """The ids of rows of which :meth:`parts` made the texts.

        Raises:
            DataError: the tokenizer refuses the text of a row; with its number.
        """
        encoded: list[RowIds] = []
        first = 0
        while first < len(rows):
            last, size = first, 0
            while last < len(rows) and (last == first or size < _CHARACTERS_AT_ONCE):
                size += sum(len(part.text) for part in rows[last] if isinstance(part, _Text))
                last += 1
            encoded.extend(self._encoded(rows[first:last], numbers[first:last]))
            first = last
        return encoded

    def _encoded(self, rows: Sequence[tuple[_Part, ...]], numbers: Sequence[int]) -> list[RowIds]:
        try:
            ids = self._ids([part for row in rows for part in row])
        except _TEMPLATE_FAULTS as error:
            if len(rows) > 1:
                return [found for row, at in zip(rows, numbers, strict=True) for found in self._encoded([row], [at])]
            raise DataError(
                f"Row {numbers[0]}: The tokenizer refuses its text: {type(error).__name__}: {error}. Repair or remove "
                "the row."
            ) from error
        made, at = [], 0
        for row in rows:
            whole = ids[at + len(row) - 1]
            prompt = common_prefix_length(ids[at].tolist(), whole.tolist()) if len(row) > 1 else None
            made.append(RowIds(whole, prompt))
            at += len(row)
        return made

    def _ids(self, parts: Sequence[_Part]) -> list[Ids]:
        made: list[Ids] = [np.array(part, np.int32) if isinstance(part, list) else _NOTHING for part in parts]
        for added in (False, True):
            chosen = {
                at: part.text
                for at, part in enumerate(parts)
                if isinstance(part, _Text) and part.add_special_tokens is added
            }
            encoded = self._encoder(list(chosen.values()), add_special_tokens=added) if chosen else []
            for at, ids in zip(chosen, encoded, strict=True):
                made[at] = ids
        return made

    @property
    def cuts_words(self) -> bool:
        """Whether texts are cut into words by now."""
        return self._encoder.cuts_words

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer)

    @property
    def speaker(self) -> Any:
        """What renders conversations: the processor, or the tokenizer where there is none."""
        return self.tokenizer if self.processor is None else self.processor

    @cached_property
    def _has_own_methods(self) -> bool:
        """Whether the tokenizer's class replaces what ``transformers`` does between a conversation and its ids."""
        kind, base = type(self.tokenizer), _base_class()
        names = ("apply_chat_template", "__call__", "_encode_plus", "_batch_encode_plus")
        return any(getattr(kind, name, None) is not getattr(base, name, None) for name in names)

    # one row

    def _parts(self, row: Row) -> tuple[_Part, ...]:
        if reads_text(row):
            return (self._plain(self._with_eos(row["text"])),)
        example = as_chatml(row)
        if not example.keys() >= {*PAIR}:
            return (self._rendered(example, example["messages"]),)
        prompt: Any = example["prompt"]
        completion: Any = example["completion"]
        if isinstance(prompt, str):
            return self._plain(prompt), self._plain(prompt + self._with_eos(completion))
        before = self._rendered(example, prompt, add_generation_prompt=True)
        return before, self._rendered(example, prompt + completion)

    def _plain(self, text: str) -> _Part:
        return list(self.tokenizer(text)["input_ids"]) if self._has_own_methods else _Text(text, True)

    def _with_eos(self, text: str) -> str:
        eos = self.tokenizer.eos_token or ""
        return text if text.endswith(eos) else text + eos

    def _rendered(self, example: Row, conversation: Any, *, add_generation_prompt: bool = False) -> _Part:
        from jinja2.exceptions import TemplateError

        if not (self.chat_template or self.speaker.chat_template):
            raise UnsupportedError(
                f"{type(self.speaker).__name__} has no chat template, so messages cannot be rendered. Give the one "
                "that the model speaks as chat_template=, or a dataset with text and both markers."
            )
        tools, variables = read_tools(example.get("tools")), read_variables(example.get("chat_template_kwargs"))
        render: Callable[..., Any] = self.speaker.apply_chat_template
        makes_ids = self.processor is not None or self._has_own_methods
        try:
            made = render(
                conversation if self.processor is None else [with_parts(message) for message in conversation],
                tools=tools,
                tokenize=makes_ids,
                return_dict=makes_ids,
                chat_template=self.chat_template,
                add_generation_prompt=add_generation_prompt,
                **(variables or {}),
            )
        except (TemplateError, *_TEMPLATE_FAULTS) as error:
            roles = ", ".join(str(message.get("role")) for message in conversation[:12])
            odd = oddities(conversation, with_processor=self.processor is not None)
            why = ". ".join(part for part in (str(error).rstrip("."), odd.rstrip(".")) if part)
            raise RefusedError(
                f"The chat template refuses a conversation of {len(conversation)} messages ({roles}): {why}. Repair or "
                "remove it, or give another chat_template."
            ) from error
        if not makes_ids:
            return _Text(made)
        return list(made["input_ids"] if self.processor is None else made["input_ids"][0])


_NOTHING: Ids = np.zeros(0, np.int32)


def _base_class() -> type:
    """The class of ``transformers`` for tokenizers with a backend of ``tokenizers``."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def reads_text(row: Mapping[str, Any]) -> bool:
    """Whether TRL tokenizes the text of a row: unless there are ``conversations`` of ``from`` and ``value``.

    >>> reads_text({"text": "Q: Hi", "conversations": [{"role": "user", "content": "Hi"}]})
    True
    >>> reads_text({"text": "Q: Hi", "conversations": [{"from": "user", "value": "Hi"}]})
    False
    """
    if row.get("text") is None or row.get("messages") is not None or row.keys() >= {*PAIR}:
        return False
    first = next(iter(row.get("conversations") or ()), None)
    return not (isinstance(first, Mapping) and "from" in first)
