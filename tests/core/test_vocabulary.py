"""Every id has the bytes that it stands for, or none, or the tokenizer is said to be opaque."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_tokenizers import SPECIALS, byte_level, encode, sentencepiece, swallowing, word_level
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sft_mask.core.vocabulary import Vocabulary, gpt2_byte_alphabet, read_vocabulary, tokenizer_and_processor

TEXT = "Hi  東京 🙂!\r\n\tx=1 é"


def spelled(tokenizer: Any, text: str) -> bytes:
    vocabulary = read_vocabulary(tokenizer)
    return b"".join(vocabulary.token_bytes(token) for token in encode(tokenizer, text))


def test_the_alphabet_has_one_printable_character_for_every_byte():
    alphabet = gpt2_byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert all(character.isprintable() and not character.isspace() for character in alphabet)


def test_the_alphabet_is_the_one_that_tokenizers_write() -> None:
    alphabet, text = gpt2_byte_alphabet(), "".join(map(chr, [*range(0xD800), 0x10000, 0x10FFFF]))
    ((written, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert bytes(map(alphabet.__getitem__, written)) == text.encode()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())


def test_byte_level_ids_spell_the_text_exactly():
    tokenizer = byte_level(["Hi ", "東京", "\r\n"])
    assert read_vocabulary(tokenizer).kind == "byte-level"
    assert spelled(tokenizer, TEXT) == TEXT.encode()


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_ids_spell_the_text_with_one_blank_in_front(legacy: bool):
    tokenizer = sentencepiece(["▁Hi"], legacy=legacy)
    assert read_vocabulary(tokenizer).kind == "sentencepiece"
    assert spelled(tokenizer, TEXT) == b" " + TEXT.encode()


def test_a_byte_piece_is_a_byte_only_where_the_tokenizer_falls_back_to_bytes():
    assert read_vocabulary(sentencepiece()).token_bytes(0x0A) == b"\n"
    added = byte_level(added=["<0x0A>"])
    assert spelled(added, "<0x0A>") == b"<0x0A>"


def test_one_character_in_several_byte_tokens_has_one_byte_in_each():
    vocabulary = read_vocabulary(byte_level())
    assert [vocabulary.token_bytes(token) for token in "東".encode()] == [b"\xe6", b"\x9d", b"\xb1"]


def test_words_without_bytes_make_an_opaque_vocabulary():
    assert read_vocabulary(word_level()).kind == "opaque"


def test_a_normalizer_that_loses_text_makes_an_opaque_vocabulary():
    assert read_vocabulary(byte_level(normalizer=normalizers.Lowercase())).kind == "opaque"
    assert read_vocabulary(byte_level(normalizer=normalizers.NFC())).kind == "byte-level"


def test_a_vocabulary_whose_bytes_are_not_those_of_a_text_is_opaque_and_else_the_same() -> None:
    exact, lossy = byte_level(added=["<think>"]), byte_level(added=["<think>"], normalizer=normalizers.Lowercase())
    found, wanted = read_vocabulary(lossy), read_vocabulary(exact)
    assert replace(found, tokens=list(found.tokens)) == replace(wanted, tokens=list(wanted.tokens), kind="opaque")


def test_the_pre_tokenizer_alone_shows_how_ids_are_spelled() -> None:
    bytes_only, spaces_only = byte_level(), sentencepiece(legacy=False)
    for tokenizer in (bytes_only, spaces_only):
        tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    assert [read_vocabulary(tokenizer).kind for tokenizer in (bytes_only, spaces_only)] == [
        "byte-level",
        "sentencepiece",
    ]


def test_a_word_level_tokenizer_that_cannot_read_every_text_is_opaque() -> None:
    backend = Tokenizer(models.WordLevel({"user": 0, "[UNK]": 1}, unk_token="[OTHER]"))
    assert read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend)).kind == "opaque"


@pytest.mark.parametrize(("make", "kind"), [(byte_level, "byte-level"), (sentencepiece, "sentencepiece")])
def test_a_token_that_the_tokenizer_adds_before_a_text_does_not_make_it_opaque(make: Any, kind: str) -> None:
    tokenizer = make(specials=("<bos>",))
    bos = ("<bos>", tokenizer.convert_tokens_to_ids("<bos>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[bos])
    assert tokenizer("x")["input_ids"][0] == bos[1]
    assert read_vocabulary(tokenizer).kind == kind


def test_a_word_piece_vocabulary_is_opaque():
    backend = Tokenizer(models.WordPiece({"hello": 0, "##o": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    assert read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend)).kind == "opaque"


def test_only_special_added_tokens_are_control_tokens():
    tokenizer = byte_level(added=["<think>"])
    vocabulary = read_vocabulary(tokenizer)
    assert [vocabulary.is_special(encode(tokenizer, text)[0]) for text in (*SPECIALS, "<think>", "a")] == [
        *[True] * 3,
        False,
        False,
    ]
    assert vocabulary.special_contents == {text: encode(tokenizer, text)[0] for text in SPECIALS}


def test_an_added_token_keeps_its_own_text_and_how_it_eats_blanks():
    tokenizer = swallowing()
    piece = read_vocabulary(tokenizer).added[tokenizer.convert_tokens_to_ids("<|user|>")]
    assert (piece.content, piece.special, piece.lstrip, piece.rstrip) == ("<|user|>", True, False, True)


def test_an_added_run_of_blanks_is_ordinary_text():
    tokenizer = byte_level(added=["    "])
    vocabulary = read_vocabulary(tokenizer)
    (token,) = encode(tokenizer, "    ")
    assert (vocabulary.token_bytes(token), token in vocabulary.added) == (b"    ", False)


def test_a_blank_written_as_a_bar_in_an_added_token_is_a_blank_for_sentencepiece():
    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("▁▁x", normalized=False)])
    vocabulary = read_vocabulary(tokenizer)
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("▁▁x")) == b"  x"


@pytest.mark.parametrize("token", [-1, -100, 10**6])
def test_an_id_outside_the_vocabulary_has_no_bytes_and_is_no_control_token(token: int):
    vocabulary = read_vocabulary(byte_level())
    assert (vocabulary.token_bytes(token), vocabulary.is_special(token)) == (b"", False)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_all_ids_at_once_have_the_bytes_that_each_has_by_itself(make):
    tokenizer = make(["user", "hello"])
    tokenizer.add_tokens(["né", "Ġx"])  # the bytes of their own text, not those that the alphabet writes so
    vocabulary = read_vocabulary(tokenizer)
    pieces = [vocabulary.token_bytes(token) for token in range(vocabulary.size)]
    assert vocabulary.first_bytes.tolist() == [piece[0] if piece else 256 for piece in pieces] + [256]
    for byte in {value for piece in pieces for value in piece}:
        assert vocabulary.ids_holding([byte]) == [token for token, piece in enumerate(pieces) if byte in piece]


def test_spellings_are_those_of_the_vocabulary_with_and_without_holes():
    tokenizer = word_level()
    vocab = tokenizer.get_vocab()
    assert {token: at for at, token in enumerate(read_vocabulary(tokenizer).tokens)} == vocab
    model = models.WordLevel({"a": 0, "b": 5, "[UNK]": 2}, unk_token="[UNK]")
    holed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="[UNK]")
    assert read_vocabulary(holed).tokens == ["a", None, "[UNK]", None, None, "b"]


@pytest.mark.parametrize(
    ("vocab", "special", "expected"),
    [
        ({"a b": 0, "[UNK]": 1}, ["</s>"], ["a b", "[UNK]", "</s>"]),
        ({"a b": 0, "[UNK]": 2}, [], ["a b", None, "[UNK]"]),  # as many spaces as between two words
        ({"a b": 0, "[UNK]": 2}, ["[UNK]"], ["a b", None, "[UNK]"]),
    ],
)
def test_a_word_with_a_space_is_one_id(vocab: dict[str, int], special: list[str], expected: list[str | None]) -> None:
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.add_special_tokens(special)
    assert list(read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend)).tokens) == expected


def test_a_tokenizer_without_tokens_has_no_ids() -> None:
    vocabulary = read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))
    assert (vocabulary.size, list(vocabulary.tokens)) == (0, [])


def test_ids_after_a_piece_that_the_vocabulary_holds_twice_are_in_it() -> None:
    backend = Tokenizer(models.Unigram([("▁", 0.0), ("a", 0.0), ("b", 0.0), ("a", -1.0)], unk_id=0))
    backend.add_special_tokens(["</s>"])
    vocabulary = read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert list(vocabulary.tokens) == ["▁", "a", "b", "a", "</s>"]
    assert (vocabulary.size, vocabulary.special_contents) == (5, {"</s>": 4})


def test_a_hole_in_the_vocabulary_has_no_bytes():
    vocabulary = Vocabulary(2, ["a", None], "byte-level", {})
    assert [vocabulary.token_bytes(token) for token in (0, 1, 2)] == [b"a", b"", b""]


@pytest.mark.parametrize("word", ["▁hello", "<0x0A0>", "<0x0A.", "a0x0A>"])
def test_only_a_byte_in_angle_brackets_is_a_byte(word: str) -> None:
    vocabulary = Vocabulary(1, [word], "sentencepiece", {})
    assert vocabulary.token_bytes(0) == word.replace("▁", " ").encode()


def test_text_shows_broken_characters_as_such():
    vocabulary = read_vocabulary(byte_level())
    assert vocabulary.text(list("é東".encode())) == "é東"
    assert vocabulary.text([*"東".encode()[:2], ord("x")]) == "\ufffdx"


def test_the_size_counts_added_tokens_and_the_name_is_for_messages():
    vocabulary = read_vocabulary(byte_level())
    assert vocabulary.size == 256 + len(SPECIALS)
    assert vocabulary.name == type(byte_level()).__name__
    named = byte_level()
    named.name_or_path = "me/model"
    assert read_vocabulary(named).name == "me/model"


def test_a_bar_in_the_name_of_a_control_token_is_not_a_space() -> None:
    made = sentencepiece(specials=("<s>", "<end▁of▁answer>"))
    assert read_vocabulary(made).text(encode(made, "<end▁of▁answer>")) == "<end▁of▁answer>"


def test_a_processor_has_a_tokenizer_and_a_tokenizer_is_its_own() -> None:
    bare = byte_level()
    processor = SimpleNamespace(tokenizer=bare)
    assert tokenizer_and_processor(bare) == (bare, None)
    assert tokenizer_and_processor(processor) == (bare, processor)
    wrapping = SimpleNamespace(tokenizer=object(), backend_tokenizer=bare.backend_tokenizer)
    assert tokenizer_and_processor(wrapping) == (wrapping, None)
