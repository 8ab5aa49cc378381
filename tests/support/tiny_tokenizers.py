"""Tokenizers of a few hundred ids, built in memory; every family that the library tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_mask.core.vocabulary import gpt2_byte_alphabet

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|pad|>")
_CHARACTER = {byte: character for character, byte in gpt2_byte_alphabet().items()}


def _with_words(alphabet: Sequence[str], words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A BPE vocabulary in which each word becomes one token, earlier words first."""
    vocabulary = {piece: index for index, piece in enumerate(alphabet)}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges[word[: end - 1], word[end - 1]] = None
    return vocabulary, list(merges)


def _special(text: str | AddedToken) -> AddedToken:
    return text if isinstance(text, AddedToken) else AddedToken(text, special=True, normalized=False)


def byte_level(
    words: Sequence[str] = (),
    specials: Sequence[str | AddedToken] = SPECIALS,
    added: Sequence[str] = (),
    normalizer: Any = None,
) -> PreTrainedTokenizerFast:
    """GPT-2 in small: ids 0 to 255 are the bytes, then the words; nothing keeps a word from spanning a newline."""
    alphabet = [_CHARACTER[byte] for byte in range(256)]
    spelled = ["".join(_CHARACTER[byte] for byte in word.encode()) for word in words]
    backend = Tokenizer(models.BPE(*_with_words(alphabet, spelled)))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_special(text) for text in specials])
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece(
    words: Sequence[str] = (), specials: Sequence[str | AddedToken] = ("<s>", "</s>"), *, legacy: bool = True
) -> PreTrainedTokenizerFast:
    """Llama 2 in small: ``▁`` for a blank, bytes for everything else; a blank glued before text.

    ``legacy`` glues it after control tokens too, as the old normalizer does; otherwise only at the row's beginning.
    """
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet += ["▁", *(chr(code) for code in range(0x21, 0x7F))]
    backend = Tokenizer(models.BPE(*_with_words(alphabet, words), byte_fallback=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([_special(text) for text in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def swallowing() -> PreTrainedTokenizerFast:
    """Phi-3 in small: control tokens that eat the blanks behind them."""
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    return sentencepiece(specials=[AddedToken(name, special=True, normalized=False, rstrip=True) for name in names])


def word_level(words: Sequence[str] = ("user", "assistant", ":", "hello", "[SEP]")) -> PreTrainedTokenizerFast:
    """Its ids are words; blanks are in no token, so that no id has bytes of its own."""
    vocabulary = {word: index for index, word in enumerate(("[UNK]", *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of a text, nothing added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
