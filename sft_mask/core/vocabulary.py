"""The exact bytes of each token id.

A marker such as ``"### Response:\\n"`` is cut into other tokens inside a row than alone, so it is searched for in the
bytes of a row and not in its ids. That needs the bytes of every id:

* byte-level BPE (GPT-2, Llama 3, Qwen, tekken, ...): GPT-2's printable alphabet is mapped back to bytes;
* SentencePiece in its Hugging Face form (Llama 2, Gemma, Mistral v1-v7, Phi-3): ``▁`` is a space, ``<0x0A>`` a byte;
* added tokens: their own text.

A *special* token (``AddedToken.special``) is never text: ``<|im_start|>`` typed as six ordinary tokens is not the
control token, and a search must not confuse the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from sft_mask.core.arrays import Ints

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

SENTENCEPIECE_SPACE: Final = "\u2581"
NO_BYTE: Final = 256
_COMPARED = 64
"""Spellings that are compared with those that the tokenizer gives one by one."""
_PROBE = "Hello, world!\n\n  x = 1\t東京 🙂 é"


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
    """An added token: the tokenizer matches it as a unit before anything else."""

    token_id: int
    content: str
    special: bool
    lstrip: bool
    rstrip: bool


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of every id of one tokenizer.

    Attributes:
        size: number of ids; ids outside ``[0, size)`` have no text.
        tokens: the tokenizer's own spelling of each id, ``None`` where the vocabulary has a hole.
        kind: ``"opaque"`` where ids cannot be mapped to exact bytes.
        added: added tokens by id; each of these ids is below ``size``.
        name: of the tokenizer, for errors.
    """

    size: int
    tokens: Sequence[str | None]
    kind: Literal["byte-level", "sentencepiece", "opaque"]
    added: dict[int, AddedTokenInfo]
    name: str = "tokenizer"
    _known: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return gpt2_byte_alphabet()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id; ``b""`` if it has no text."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._read_bytes(token_id)
        return known

    def each_bytes(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id."""
        try:
            return [self._known[token_id] for token_id in token_ids]
        except KeyError:
            return list(map(self.token_bytes, token_ids))

    def _read_bytes(self, token_id: int) -> bytes:
        added = self.added.get(token_id)
        if added is not None:
            is_text = self.kind == "sentencepiece" and not added.special
            return (added.content.replace(SENTENCEPIECE_SPACE, " ") if is_text else added.content).encode()
        token = self.tokens[token_id] if 0 <= token_id < self.size else None
        if token is None:
            return b""
        if self.kind == "byte-level":
            if all(character in self._alphabet for character in token):
                return bytes(self._alphabet[character] for character in token)
            return token.encode()
        if self.kind == "sentencepiece" and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(SENTENCEPIECE_SPACE, " ").encode()

    def bytes_of(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of consecutive ids."""
        return b"".join(map(self.token_bytes, token_ids))

    def text(self, token_ids: Iterable[int]) -> str:
        """The ids as text, for people to read; bytes that are not UTF-8 become replacement characters."""
        return self.bytes_of(map(int, token_ids)).decode(errors="replace")

    @cached_property
    def digest(self) -> str:
        """A digest of all spellings and added tokens, for fingerprints."""
        tokens = self.tokens
        text = tokens.text if isinstance(tokens, _Spellings) else "\0".join([token or "" for token in tokens])
        added = sorted((piece.token_id, piece.content, piece.special) for piece in self.added.values())
        made = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16)
        made.update(repr((self.size, added)).encode())
        return made.hexdigest()

    @cached_property
    def first_bytes(self) -> Ints:
        """``(size + 1,)`` the byte that each id begins with, ``NO_BYTE`` for ids without text."""
        flat, token = self._all_bytes
        first = np.full(self.size + 1, NO_BYTE, np.int64)
        begins = np.flatnonzero(np.append(True, token[1:] != token[:-1])[: len(token)])
        first[token[begins]] = flat[begins]
        return first

    def ids_holding(self, values: Collection[int]) -> list[int]:
        """Ids whose text holds any of the bytes."""
        flat, token = self._all_bytes
        wanted = np.zeros(NO_BYTE, np.bool_)
        wanted[list(values)] = True
        held: list[int] = np.unique(token[wanted[flat]]).tolist()
        return held

    @cached_property
    def _all_bytes(self) -> tuple[NDArray[np.uint8], Ints]:
        """The bytes of all ids, one after the other, and the id of each."""
        if self.kind != "byte-level":
            return self._spelled_bytes(np.arange(self.size))
        tokens = [token or "" for token in self.tokens]
        characters = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
        owner = np.repeat(np.arange(self.size), np.fromiter(map(len, tokens), np.int64))
        alphabet = np.array([*map(ord, self._alphabet)])
        byte_of = np.full(alphabet.max() + 2, -1, np.int64)
        byte_of[alphabet] = list(self._alphabet.values())
        flat = byte_of[np.minimum(characters, len(byte_of) - 1)]
        # Few tokens are spelled otherwise; these are read one by one.
        others = np.union1d(owner[flat < 0], [*self.added])
        regular = np.isin(owner, others, invert=True)
        other_bytes, other_owner = self._spelled_bytes(others.astype(np.int64))
        owner = np.append(owner[regular], other_owner)
        order = np.argsort(owner, kind="stable")
        return np.append(flat[regular].astype(np.uint8), other_bytes)[order], owner[order]

    def _spelled_bytes(self, token_ids: Ints) -> tuple[NDArray[np.uint8], Ints]:
        spelled = list(map(self.token_bytes, token_ids.tolist()))
        lengths = np.fromiter(map(len, spelled), np.int64)
        return np.frombuffer(b"".join(spelled), np.uint8), np.repeat(token_ids, lengths)

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, never ordinary text."""
        added = self.added.get(token_id)
        return added is not None and added.special

    @cached_property
    def special_contents(self) -> dict[str, int]:
        """Ids of special tokens by their text."""
        return {token.content: token_id for token_id, token in self.added.items() if token.special}


def tokenizer_and_processor(given: Any) -> tuple[Any, Any]:
    """The tokenizer of a processor, and the processor; a bare tokenizer, and ``None``."""
    inner = getattr(given, "tokenizer", None)
    if inner is None or getattr(given, "backend_tokenizer", None) is not None:
        return given, None
    return inner, given


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Reads the vocabulary of a fast tokenizer.

    A tokenizer whose ids cannot be spelled as exact bytes (WordPiece, word-level, lossy normalizers) gets
    ``kind="opaque"``: its markers are matched as the ids that the tokenizer gives for them.
    """
    added = _added_tokens(tokenizer)
    tokens = _spellings(tokenizer.backend_tokenizer)
    size = len(tokens)
    name = str(tokenizer.name_or_path or type(tokenizer).__name__)
    vocabulary = Vocabulary(size, tokens, _kind_of(tokenizer.backend_tokenizer), added, name)
    if vocabulary.kind != "opaque" and not _spells_probe(vocabulary, tokenizer):
        return Vocabulary(size, tokens, "opaque", added, name)
    return vocabulary


class _Spellings(Sequence[str | None]):
    """The spelling of each id of a tokenizer, read when it is asked for.

    Reading 150,000 strings takes longer than everything else that is done before the first row; masks by control tokens
    need a few of them. All together are read at once, as the text that the model writes for all ids.

    Args:
        backend: the tokenizer of ``tokenizers``.
        text: the spellings of the model's own ids, one after the other, with a space between two.
        size: number of ids, with those of added tokens.
    """

    def __init__(self, backend: Any, text: str, size: int) -> None:
        self.text = text
        self._backend, self._size = backend, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        return self._backend.id_to_token(index)

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._all)

    @cached_property
    def _all(self) -> list[str | None]:
        tokens: list[str | None] = [*self.text.split(" ")]
        sample = range(0, len(tokens), max(1, len(tokens) // _COMPARED))
        if any(tokens[token_id] != self._backend.model.id_to_token(token_id) for token_id in sample):
            tokens.clear()  # a spelling holds a space, and another id has none
        tokens += map(self._backend.id_to_token, range(len(tokens), self._size))
        return tokens


def _spellings(backend: Any) -> Sequence[str | None]:
    """The tokenizer's own spelling of each id."""
    size, text = backend.get_vocab_size(with_added_tokens=True), _text_of_all(backend)
    if text is not None and backend.id_to_token(size) is None:
        return _Spellings(backend, text, size)
    greatest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)  # there may be more ids than tokens
    return list(map(backend.id_to_token, range(greatest + 1)))


def _text_of_all(backend: Any) -> str | None:
    """The spellings of the model's own ids with a space between two; ``None`` if they cannot be told apart."""
    from tokenizers import Tokenizer

    bare = Tokenizer(backend.model)  # without a decoder, which would join the spellings
    own = bare.get_vocab_size()
    text: str = bare.decode(list(range(own)))
    # Otherwise an id has no token, or a space is in one.
    return text if text.count(" ") == own - 1 else None


def _added_tokens(tokenizer: Any) -> dict[int, AddedTokenInfo]:
    """Added tokens by id, without runs of whitespace: these are ordinary text that is merely matched early."""
    return {
        int(token_id): AddedTokenInfo(int(token_id), token.content, token.special, token.lstrip, token.rstrip)
        for token_id, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
        if token.content.strip() or token.special
    }


def _kind_of(backend: Any) -> Literal["byte-level", "sentencepiece", "opaque"]:
    types = _component_types(backend.decoder) | _component_types(backend.pre_tokenizer)
    if "ByteLevel" in types:
        return "byte-level"
    return "sentencepiece" if types & {"Metaspace", "ByteFallback"} else "opaque"


def _component_types(component: Any) -> set[str]:
    """Every ``type`` in the JSON of a tokenizers component."""
    found: set[str] = set()
    if component is not None:
        json.loads(component.__getstate__(), object_hook=lambda node: found.add(str(node.get("type"))))
    return found


def _spells_probe(vocabulary: Vocabulary, tokenizer: Any) -> bool:
    """Whether the bytes of the ids of a text are the text, as ``kind`` supposes."""
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return vocabulary.bytes_of(ids).removeprefix(b" ") == _PROBE.encode()
