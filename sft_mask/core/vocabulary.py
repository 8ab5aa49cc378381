"""What text each token id stands for, as exact bytes.

A marker such as ``"### Response:\\n"`` is cut into different tokens inside a row than alone, so it is looked for in the
bytes of a row, never in its ids. That needs the bytes of every id:

* byte-level BPE (GPT-2, Llama 3, Qwen, tekken, ...): the printable alphabet of GPT-2 is mapped back to bytes;
* SentencePiece in its Hugging Face form (Llama 2, Gemma, Mistral v1-v7, Phi-3): ``▁`` is a space, ``<0x0A>`` a byte;
* added tokens: their own text.

A *special* token (``AddedToken.special``) is never text: ``<|im_start|>`` typed as six ordinary tokens is another thing
than the control token, and a search must never join the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from sft_mask.core.arrays import Ids, Ints

SENTENCEPIECE_SPACE = "\u2581"
NO_BYTE: Final = 256
_IN_CACHE: Final = 1 << 15
_PROBE = "Hello, world!\n\n  x = 1\t東京 🙂 é"


def cache_slices(count: int) -> Iterator[slice]:
    """Slices of so many tokens that fit the cache together with what is made of them.

    >>> [(part.start, part.stop) for part in cache_slices(40_000)]
    [(0, 32768), (32768, 65536)]
    """
    return (slice(first, first + _IN_CACHE) for first in range(0, count, _IN_CACHE))


def greatest(ids: Ids) -> int:
    """The greatest of some ids read as unsigned numbers, so that what is negative is greater than any id.

    >>> greatest(np.array([3, 7])), greatest(np.array([3, -1], np.int32)) == 2**32 - 1, greatest(np.array([], int))
    (7, True, -1)
    """
    return int(ids.view(f"u{ids.dtype.itemsize}").max()) if len(ids) else -1


def gpt2_byte_alphabet() -> dict[str, int]:
    """The printable character that GPT-2's byte-level BPE writes for each byte, as ``{character: byte}``.

    >>> gpt2_byte_alphabet()["Ġ"], gpt2_byte_alphabet()["Ċ"], gpt2_byte_alphabet()["A"]
    (32, 10, 65)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return alphabet


@dataclass(frozen=True, slots=True)
class AddedTokenInfo:
    """An added token: matched as a unit by the tokenizer before anything else."""

    token_id: int
    content: str
    special: bool
    lstrip: bool
    rstrip: bool


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of every id of one tokenizer.

    Attributes:
        size: number of ids; ids outside ``[0, size)`` stand for no text.
        tokens: the tokenizer's own spelling of each id, ``None`` where the vocabulary has a hole.
        kind: ``"byte-level"``, ``"sentencepiece"``, or ``"opaque"`` where ids cannot be mapped to exact bytes.
        added: added tokens by id.
    """

    size: int
    tokens: Sequence[str | None]
    kind: str
    added: dict[int, AddedTokenInfo]
    name: str = "tokenizer"
    _pieces: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return gpt2_byte_alphabet()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that ``token_id`` stands for; ``b""`` for ids that stand for none."""
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._piece(token_id)
        return known

    def _piece(self, token_id: int) -> bytes:
        added = self.added.get(token_id)
        if added is not None:
            blank = " " if self.kind == "sentencepiece" and not added.special else SENTENCEPIECE_SPACE
            return added.content.replace(SENTENCEPIECE_SPACE, blank).encode()
        token = self.tokens[token_id] if 0 <= token_id < self.size else None
        if token is None:
            return b""
        if self.kind == "byte-level":
            alphabet = self._alphabet
            if all(character in alphabet for character in token):
                return bytes(alphabet[character] for character in token)
            return token.encode()
        if self.kind == "sentencepiece" and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(SENTENCEPIECE_SPACE, " ").encode()

    @cached_property
    def first_bytes(self) -> Ints:
        """``(size + 1,)`` the byte that each id begins with, ``NO_BYTE`` for ids without text."""
        flat, owners = self._all_bytes
        first = np.full(self.size + 1, NO_BYTE, np.int64)
        begins = np.flatnonzero(np.append(True, owners[1:] != owners[:-1])[: len(owners)])
        first[owners[begins]] = flat[begins]
        return first

    @cached_property
    def _all_bytes(self) -> tuple[NDArray[np.uint8], Ints]:
        """The bytes of all ids in a row, and whose they are."""
        if self.kind != "byte-level":
            return self._bytes_of(np.arange(self.size))
        tokens = [token or "" for token in self.tokens]
        characters = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
        owners = np.repeat(np.arange(self.size), np.fromiter(map(len, tokens), np.int64, self.size))
        alphabet = np.array([*map(ord, self._alphabet)])
        byte_of = np.full(alphabet.max() + 2, -1, np.int64)
        byte_of[alphabet] = list(self._alphabet.values())
        flat = byte_of[np.minimum(characters, len(byte_of) - 1)]
        others = np.union1d(owners[flat < 0], [token_id for token_id in self.added if token_id < self.size])
        spelled = np.isin(owners, others, invert=True)
        read, whose = self._bytes_of(others.astype(np.int64))
        whose = np.append(owners[spelled], whose)
        order = np.argsort(whose, kind="stable")
        return np.append(flat[spelled].astype(np.uint8), read)[order], whose[order]

    def _bytes_of(self, token_ids: Ints) -> tuple[NDArray[np.uint8], Ints]:
        """The bytes of some ids, read one by one."""
        pieces = list(map(self.token_bytes, token_ids.tolist()))
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        return np.frombuffer(b"".join(pieces), np.uint8), np.repeat(token_ids, lengths)

    def ids_holding(self, values: Collection[int]) -> list[int]:
        """Ids whose text holds any of the bytes."""
        flat, owners = self._all_bytes
        wanted = np.zeros(NO_BYTE, np.bool_)
        wanted[list(values)] = True
        held: list[int] = np.unique(owners[wanted[flat]]).tolist()
        return held

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, never ordinary text."""
        added = self.added.get(token_id)
        return added is not None and added.special

    def text(self, token_ids: Sequence[int]) -> str:
        """The ids as text, for messages to a person; bytes that are no UTF-8 become replacement characters."""
        return b"".join(self.token_bytes(int(token_id)) for token_id in token_ids).decode(errors="replace")

    @cached_property
    def special_contents(self) -> dict[str, int]:
        """Special tokens by their text."""
        return {piece.content: token_id for token_id, piece in self.added.items() if piece.special}


def _component_types(component: Any) -> list[str]:
    """Every ``type`` in the JSON of a tokenizers component, depth first."""
    if component is None:
        return []
    found: list[str] = []
    stack = [json.loads(component.__getstate__())]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(node.get("type"), str):
                found.append(node["type"])
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return found


def _kind_of(backend: Any) -> str:
    types = _component_types(backend.decoder) + _component_types(backend.pre_tokenizer)
    if "ByteLevel" in types:
        return "byte-level"
    if "Metaspace" in types or "ByteFallback" in types:
        return "sentencepiece"
    return "opaque"


def _added_pieces(tokenizer: Any) -> dict[int, AddedTokenInfo]:
    pieces = {}
    for token_id, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items():
        if token.content.strip() or token.special:  # runs of blanks are ordinary text that is merely matched early
            pieces[int(token_id)] = AddedTokenInfo(
                int(token_id), token.content, bool(token.special), bool(token.lstrip), bool(token.rstrip)
            )
    return pieces


def _spells_probe(vocabulary: Vocabulary, tokenizer: Any) -> bool:
    """Whether the bytes of the ids of a probe text are the probe text: the proof behind ``kind``."""
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    spelled = b"".join(vocabulary.token_bytes(token_id) for token_id in ids)
    return spelled.removeprefix(b" ") == _PROBE.encode()


def _spellings(tokenizer: Any) -> list[str | None]:
    """The tokenizer's own spelling of each id."""
    backend = tokenizer.backend_tokenizer
    tokens: list[str | None] = list(map(backend.id_to_token, range(backend.get_vocab_size(with_added_tokens=True))))
    if None not in tokens:  # as many ids as tokens: none is larger
        return tokens
    vocab = tokenizer.get_vocab()
    tokens = [None] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        tokens[token_id] = token
    return tokens


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Reads the vocabulary of a fast tokenizer.

    A tokenizer whose ids cannot be spelled as exact bytes (WordPiece, word-level, lossy normalizers) gets
    ``kind="opaque"``: its markers are matched as the ids that the tokenizer gives for them.
    """
    tokens = _spellings(tokenizer)
    size = len(tokens)
    added = _added_pieces(tokenizer)
    for token_id, piece in added.items():
        if token_id < size:
            tokens[token_id] = piece.content
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    vocabulary = Vocabulary(size, tokens, _kind_of(tokenizer.backend_tokenizer), added, name)
    if vocabulary.kind != "opaque" and not _spells_probe(vocabulary, tokenizer):
        return Vocabulary(size, tokens, "opaque", added, name)
    return vocabulary
