"""Random conversations over several kinds of tokenizers, through the public call.

The oracle: the text of each row is put together by hand, so the characters of each answer and its stop are known; a
token is trained if and only if it holds one of their bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, pairwise
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.conformance.alignment import align, read_vocabulary
from support.tiny_chat import Messages, conversations
from support.tiny_tokenizers import byte_level, sentencepiece, swallowing
from tokenizers import AddedToken
from trl import pack_dataset

from sft_mask import mask_dataset

IGNORED = -100
PROPERTY = settings(max_examples=6, deadline=None)


@dataclass(frozen=True)
class Format:
    """A tokenizer, and what stands around the words of each role; the last text of the answer's is its stop."""

    tokenizer: Callable[[], Any]
    user: tuple[str, str]
    answer: tuple[str, str, str]

    def rows(self, rows: list[Messages]) -> tuple[list[list[int]], list[list[bool | None]]]:
        """Ids, and for each whether it must be trained; ``None`` for a token that holds no byte."""
        pairs = [self._row(messages) for messages in rows]
        return [ids for ids, _ in pairs], [flags for _, flags in pairs]

    def _row(self, messages: Messages) -> tuple[list[int], list[bool | None]]:
        text = b""
        trained: list[tuple[int, int]] = []
        for message in messages:
            before, after, stop = self.answer if message["role"] == "assistant" else (*self.user, "")
            text += before.encode()
            if message["role"] == "assistant":
                trained.append((len(text), len(text + (message["content"] + stop).encode())))
            text += (message["content"] + stop + after).encode()
        tokenizer = ready(self)
        ids = list(tokenizer(text.decode(), add_special_tokens=False)["input_ids"])
        held = align(text.decode(), ids, read_vocabulary(tokenizer))
        return ids, [any(a < high and low < b for low, high in trained) if a < b else None for a, b in held]

    @property
    def template(self) -> str:
        """The format as a chat template."""
        before, after, stop = self.answer
        return (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}"
            f"{{{{ {before!r} + m['content'] + {stop + after!r} }}}}{{% else %}}"
            f"{{{{ {self.user[0]!r} + m['content'] + {self.user[1]!r} }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {before!r} }}}}{{% endif %}}"
        )


CONTROL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
CHATML = (("<|im_start|>user\n", "<|im_end|>\n"), ("<|im_start|>assistant\n", "\n", "<|im_end|>"))
ALPACA = (("### Instruction:\n", "\n\n"), ("### Response:\n", "\n\n", "</s>"))
FORMATS = {
    "byte-level, control tokens": Format(lambda: byte_level([" the", "\n\n", "er", "東"], CONTROL), *CHATML),
    "byte-level, plain text": Format(lambda: byte_level([" the", ":\n", "\n\n", "\n\n#", "er"], CONTROL), *ALPACA),
    "sentencepiece with glue, control tokens": Format(lambda: sentencepiece(["▁the", "er"], CONTROL), *CHATML),
    "sentencepiece with glue, plain text": Format(lambda: sentencepiece(["▁the", "##", "er"], CONTROL), *ALPACA),
    "sentencepiece, plain text": Format(lambda: sentencepiece(["▁the", "##"], CONTROL, legacy=False), *ALPACA),
    "control tokens that swallow blanks": Format(
        swallowing, ("<|user|>\n", "<|end|>\n"), ("<|assistant|>\n", "\n", "<|end|>")
    ),
}
each_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
many_rows = st.lists(conversations(), min_size=1, max_size=5)


@cache
def ready(form: Format) -> Any:
    tokenizer = form.tokenizer()
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": AddedToken(form.answer[2], special=True, normalized=False)})
    tokenizer.chat_template = form.template
    return tokenizer


def masked(form: Format, ids: list[list[int]], markers: bool = False, **columns: Any) -> list[list[int]]:
    parts = (form.user[0], form.answer[0]) if markers else (None, None)
    return list(mask_dataset(Dataset.from_dict({"input_ids": ids, **columns}), ready(form), *parts)["labels"])


def differing(ids: list[int], expected: list[bool | None], labels: list[int]) -> Iterator[int]:
    """Tokens whose label is neither its id where it must be trained, nor ignored where it must not."""
    for index, (token, trained, label) in enumerate(zip(ids, expected, labels, strict=True)):
        if label not in (token, IGNORED) or (trained is not None and (label == token) is not trained):
            yield index


@each_format
@PROPERTY
@given(rows=many_rows)
def test_what_is_trained_is_the_answers_and_their_stops(form: Format, rows: list[Messages]) -> None:
    ids, expected = form.rows(rows)
    for columns in ({"messages": rows}, {}):
        for markers in (False, True):
            labels = masked(form, ids, markers, **columns)
            assert [list(differing(*row)) for row in zip(ids, expected, labels, strict=True)] == [[]] * len(rows)


@each_format
@PROPERTY
@given(rows=many_rows)
def test_masking_twice_is_masking_once(form: Format, rows: list[Messages]) -> None:
    ids, _ = form.rows(rows)
    once = masked(form, ids, messages=rows)
    assert masked(form, ids, messages=rows, labels=once) == once
    assert masked(form, ids, labels=once) == once


@each_format
@PROPERTY
@given(messages=conversations())
def test_truncation_never_moves_a_span(form: Format, messages: Messages) -> None:
    (ids,), _ = form.rows([messages])
    (labels,) = masked(form, [ids], messages=[messages])
    sizes = [size for size in range(1, len(ids), 3) if any(label != IGNORED for label in labels[:size])]
    assert masked(form, [ids[:size] for size in sizes], messages=[messages] * len(sizes)) == [
        labels[:size] for size in sizes
    ]
    assert masked(form, [*(ids[:size] for size in sizes), ids])[:-1] == [labels[:size] for size in sizes]
    sizes = [size for size in range(1, len(ids), 3) if any(label != IGNORED for label in labels[-size:])]
    assert masked(form, [ids[-size:] for size in sizes], messages=[messages] * len(sizes)) == [
        labels[-size:] for size in sizes
    ]


@each_format
@PROPERTY
@given(rows=many_rows)
def test_packing_commutes_with_masking(form: Format, rows: list[Messages]) -> None:
    ids, _ = form.rows(rows)
    labels = masked(form, ids)
    assert labels == masked(form, ids, messages=rows)

    lengths = [len(row) for row in ids]
    assert masked(form, [list(chain.from_iterable(ids))], seq_lengths=[lengths]) == [list(chain.from_iterable(labels))]

    first_masked = Dataset.from_dict({"input_ids": ids, "labels": labels})
    packed = pack_dataset(first_masked, seq_length=max(lengths) + 8, strategy="bfd")
    pieces = [
        (row["input_ids"][low:high], row["labels"][low:high])
        for row in packed
        for low, high in pairwise(accumulate(row["seq_lengths"], initial=0))
    ]
    assert sorted(pieces) == sorted(zip(ids, labels, strict=True))
