"""Tokenizers of three kinds, and a row to show."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_mask.core.vocabulary import gpt2_byte_alphabet

SPECIALS = ["<|start|>", "<|end|>"]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token of its own (ids 0-255), then two special tokens and one added token."""
    alphabet = sorted(gpt2_byte_alphabet(), key=gpt2_byte_alphabet().get)
    backend = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 2 in small: byte pieces, letters, a space piece glued in front."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"Helo,wrd!x=1"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Its ids are words, not bytes: decode puts the spaces."""
    backend = Tokenizer(models.WordPiece({"hello": 0, "wor": 1, "##ld": 2, "[UNK]": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


BYTES = byte_level_tokenizer()


PIECES = sentencepiece_tokenizer()


TEXT = "Hi 東京 🙂!\n"


def masked_until(ids, start):
    return [-100] * start + ids[start:]
