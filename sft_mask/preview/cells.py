"""From ids to text that is safe to show: which tokens hold which characters, with control characters made visible."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sft_mask.core.arrays import common_prefix_length
from sft_mask.core.vocabulary import Vocabulary, read_vocabulary

_UNSEEN = (
    *range(0x80, 0xA0),  # C1 controls: 0x9B alone starts a terminal sequence
    *(0x061C, 0x200B, 0x2028, 0x2029, 0x2060, 0xFEFF),  # zero width, or an unusual line break
    *range(0x202A, 0x202F),  # these and the next reorder the text around them
    *range(0x2066, 0x206A),
    *range(0xE0000, 0xE0080),  # tags: invisible text
)
_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(0x20)},  # Unicode's control pictures: ESC is ␛, NUL is ␀
    **{code: f"⟨U+{code:04X}⟩" for code in _UNSEEN},
    ord("\t"): "⇥\t",
    ord("\n"): "↵\n",
    0x7F: "␡",
}


def visible(text: str) -> str:
    r"""Text in which every control character is replaced by a sign; newline and tab are kept after theirs.

    >>> visible("a\nb\x1b[31m")
    'a↵\nb␛[31m'
    >>> visible("\u202eevil")
    '⟨U+202E⟩evil'
    """
    return text.translate(_SIGNS)


@dataclass(frozen=True, slots=True)
class Cell:
    """The fewest tokens ``[start, end)`` that hold whole characters: mostly one token, two to four inside 🙂."""

    start: int
    end: int
    text: str
    """Decoded and not made visible; bytes that are not UTF-8 are U+FFFD."""
    special: bool = False
    """A control token, not the same text typed in a message."""


def read_cells(tokenizer: object, ids: Sequence[int]) -> tuple[tuple[bytes, ...], tuple[Cell, ...]]:
    """Returns the bytes of each token, and the cells they form.

    Exact where the bytes of each id are known. Where they are not (WordPiece, word level), a token's bytes are what it
    adds to the decoded text of the tokens before it.
    """
    vocabulary = vocabulary_of(tokenizer)
    if vocabulary.kind == "opaque":
        token_bytes = tuple(text.encode() for text in _decoded_tokens(tokenizer, ids))
    else:
        token_bytes = tuple(vocabulary.token_bytes(token) for token in ids)
    return token_bytes, tuple(cells_of(token_bytes, [vocabulary.is_special(token) for token in ids]))


_VOCABULARIES: WeakKeyDictionary[object, tuple[int, Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The tokenizer's vocabulary, read again only after tokens were added."""
    size, vocabulary = _VOCABULARIES.get(tokenizer, (-1, None))
    if vocabulary is None or size != len(tokenizer):
        vocabulary = read_vocabulary(tokenizer)
        _VOCABULARIES[tokenizer] = (len(tokenizer), vocabulary)
    return vocabulary


def cells_of(token_bytes: Sequence[bytes], special: Sequence[bool]) -> Iterator[Cell]:
    """Yields the cells in order; every token is in exactly one.

    >>> [cell.text for cell in cells_of([b"a", b"\\xe6", b"\\x9d\\xb1", b"\\xe6", b"<s>"], [False] * 4 + [True])]
    ['a', '東', '\\ufffd', '<s>']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start, text = 0, ""  # a character that is not complete yet begins in token start; text is what came before it
    for at, given in enumerate(token_bytes):
        if at > start and not _continues(given):
            yield Cell(start, at, text + decoder.decode(b"", final=True))
            start, text = at, ""
        text += decoder.decode(given)
        if not decoder.getstate()[0]:
            yield Cell(start, at + 1, text, special[at])
            start, text = at + 1, ""
    if start < len(token_bytes):
        yield Cell(start, len(token_bytes), text + decoder.decode(b"", final=True))


def _continues(token_bytes: bytes) -> bool:
    """Whether a token begins inside a character."""
    return b"\x80" <= token_bytes[:1] < b"\xc0"


def _decoded_tokens(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    def decode(end: int) -> str:
        return str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    whole, at = decode(len(ids)), 0
    for end in range(1, len(ids) + 1):
        until = max(at, common_prefix_length(decode(end), whole)) if end < len(ids) else len(whole)
        yield whole[at:until]
        at = until
