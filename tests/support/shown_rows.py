"""Tokenizers of three kinds, and a row to show."""

from __future__ import annotations

from collections.abc import Sequence

from support.tiny_tokenizers import byte_level, sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_mask import IGNORE_INDEX

SPECIALS = ("<|start|>", "<|end|>")
TEXT = "Hi 東京 🙂!\n"


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token (ids 0 to 255); two special tokens and an added one follow."""
    return byte_level(specials=SPECIALS, added=["<think>"])


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Its ids are words, not bytes: its decoder puts the spaces."""
    backend = Tokenizer(models.WordPiece({"hello": 0, "wor": 1, "##ld": 2, "[UNK]": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


BYTES = byte_level_tokenizer()
PIECES = sentencepiece(specials=SPECIALS)


def masked_until(ids: Sequence[int], start: int) -> list[int]:
    """Labels that train the tokens from ``start`` on."""
    return [IGNORE_INDEX] * start + list(ids[start:])
