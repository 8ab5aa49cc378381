"""Texts that are cut into words, each of which is encoded once, have the ids that the tokenizer gives them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support import tiny_tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_mask.data.tokenize import encode, words
from sft_mask.data.tokenize.encode import TextEncoder
from sft_mask.data.tokenize.words import PatternWords, words_of

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+")
WORDS = ("Ġthe", "Ġcat", "Ġ'", "ĠĠ", "ĊĊ", "Ġ19", "19", "90", "don", "'t", "ll", "é", "âĢ", "Ġ(", ".Ċ", "ĠĠĠ")
PIECES = [*" \n\r\t'\u00a0\u2019\u201c\u3000\u0301\u00e9\u01c5\u02b0\u2163\u0660\u4e00\u00bd\u017f\u212a\U0001f642"]
PIECES += [
    "the",
    "THE",
    "cat",
    "Don",
    "'t",
    "'LL",
    "1990",
    "19",
    "...",
    "(x)",
    "  ",
    "\n\n",
    "\r\n",
    "</",
    "<|",
    "_",
    "\u2581",
]


def text_of(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(0, 14)))


def by_patterns(*steps: Any, normalizer: Any = None, control: str = "<|end|>") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with pre-tokenizers."""
    tokenizer = tiny_tokenizers.byte_level(specials=[control], normalizer=normalizer)
    alphabet = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    spelled = sorted(alphabet, key=alphabet.__getitem__)
    backend = Tokenizer(models.BPE(*tiny_tokenizers._with_words(spelled, WORDS)))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(control, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def split(pattern: str, how: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(pattern), how)


def byte_level(*, use_regex: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def sentencepiece(found: tuple[str, ...] = (), *, legacy: bool = True) -> PreTrainedTokenizerFast:
    return tiny_tokenizers.sentencepiece(("▁the", "▁cat", "▁▁", "▁▁▁", "the", *found), ("<s>", "</s>"), legacy=legacy)


def with_split_at_spaces() -> PreTrainedTokenizerFast:
    """Gemma in small: spaces are cut that its normalizer has rewritten, and a token reaches over a space."""
    tokenizer = sentencepiece(("</", "▁</", ">▁</"))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def with_metaspace_always() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece(legacy=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return tokenizer


def with_normalized_token() -> PreTrainedTokenizerFast:
    """DeepSeek in small: tokens that are matched after the others."""
    tokenizer = by_patterns(byte_level(use_regex=True))
    tokenizer.add_tokens([AddedToken("cat", normalized=True), AddedToken("the", normalized=True)])
    return tokenizer


def with_bos() -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    tokenizer = by_patterns(byte_level(use_regex=True))
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A <|end|>:0", special_tokens=[("<|end|>", end)]
    )
    return tokenizer


def without_unknown() -> PreTrainedTokenizerFast:
    """It drops what it does not know, so that the neighbours of that are joined."""
    backend = Tokenizer(models.BPE({"t": 0, "h": 1, "th": 2}, [("t", "h")]))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


CUT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "GPT-2": lambda: by_patterns(byte_level(use_regex=True)),
    "SmolLM2": lambda: by_patterns(pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)),
    "digits together": lambda: by_patterns(pre_tokenizers.Digits(individual_digits=False), byte_level(use_regex=True)),
    "Llama 3": lambda: by_patterns(split(LLAMA_3), byte_level()),
    "Qwen": lambda: by_patterns(split(LLAMA_3), byte_level(), normalizer=normalizers.NFC()),
    "o200k": lambda: by_patterns(split(O200K), byte_level()),
    "DeepSeek": lambda: by_patterns(*map(split, DEEPSEEK), pre_tokenizers.Digits(True), byte_level()),
    "a normalized token": with_normalized_token,
    "bos and eos": with_bos,
    "Llama 2": sentencepiece,
    "Mistral": lambda: sentencepiece(legacy=False),
    "Metaspace always": with_metaspace_always,
    "Gemma": with_split_at_spaces,
    "lines joined": lambda: sentencepiece(("\n",)),
}
WHOLE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "matches are removed": lambda: by_patterns(split(r"\s", "removed"), byte_level()),
    "a word boundary": lambda: by_patterns(split(r"\b"), byte_level()),
    "a POSIX class": lambda: by_patterns(split(r"[[:alpha:]]+"), byte_level()),
    "an intersection": lambda: by_patterns(split(r"[\p{L}&&[^a]]+"), byte_level()),
    "a group": lambda: by_patterns(split(r"(a|b)+"), byte_level()),
    "a line's end": lambda: by_patterns(split(r"a$"), byte_level()),
    "a lookbehind of any width": lambda: by_patterns(split(r"(?<=a|the)\s|\w+"), byte_level()),
    "repeated twice": lambda: by_patterns(split(r"a{2}{3}|\s+"), byte_level()),
    "a number that may be left out": lambda: by_patterns(split(r"\-[\s\S]{2}?"), byte_level()),
    "an escaped backslash": lambda: by_patterns(split(r"\\p{2}$|\s+"), byte_level()),
    "bytes of bytes": lambda: by_patterns(byte_level(use_regex=True), byte_level()),
    "without an unknown token": without_unknown,
    "merges of bytes": lambda: sentencepiece(("a<0x0A>",)),
    "a prefix space": lambda: by_patterns(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "lower case": lambda: by_patterns(byte_level(use_regex=True), normalizer=normalizers.Lowercase()),
    "words": tiny_tokenizers.word_level,
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_WORTH_CUTTING", 0)
    monkeypatch.setattr(words, "_WORTH_LEARNING", 0)


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
def test_ids_are_those_of_the_text_alone(name: str) -> None:
    tokenizer = {**CUT, **WHOLE}[name]()
    rng = random.Random(len(name))
    controls = [token.content for token in tokenizer.added_tokens_decoder.values()] or [""]
    texts = ["".join(rng.choice(["", *controls]) + text_of(rng) for _ in range(3)) for _ in range(400)]
    encoder = TextEncoder(tokenizer)
    for added in (False, True):
        found = [
            ids.tolist() for at in range(0, 400, 9) for ids in encoder(texts[at : at + 9], add_special_tokens=added)
        ]
        assert found == tokenizer(texts, add_special_tokens=added)["input_ids"]
    assert (words_of(tokenizer.backend_tokenizer) is not None) == (name in CUT), "the way that was meant was tested"
    if name in CUT:
        assert len(encoder._known_words) > 100
    if isinstance(cut := encoder._words, PatternWords):
        assert cut._cuts is not None
        assert {0x00, 0x20, 0x21, 0x1F6} <= cut._blocks


def test_what_is_cut_otherwise_than_the_tokenizer_cuts_it_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    known = words.members_of
    monkeypatch.setattr(words, "members_of", lambda name, of: [c for c in known(name, of) if c != "\u00e9"])
    assert words_of(by_patterns(split(LLAMA_3), byte_level()).backend_tokenizer) is None
    monkeypatch.setattr(words, "members_of", lambda name, of: [c for c in known(name, of) if c != "\u0439"])
    tokenizer = by_patterns(split(LLAMA_3), byte_level())
    encoder = TextEncoder(tokenizer)
    for text in ("caf\u00e9 au lait", "\u043c\u043e\u0439 \u043a\u043e\u0442", "the cat"):
        assert [ids.tolist() for ids in encoder([text])] == [tokenizer(text)["input_ids"]]
    assert isinstance(encoder._words, PatternWords)
    assert encoder._words._cuts is None


def test_characters_are_learnt_when_enough_texts_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_WORTH_LEARNING", 100)
    cut = words_of(by_patterns(split(LLAMA_3), byte_level()).backend_tokenizer)
    text = "the cat\u2019s whiskers " * 3  # 54 characters
    assert cut is not None
    assert cut("the cat") == ["the", " cat"]
    assert cut(text) is None
    assert cut(text) == ["the", " cat", "\u2019s", " whiskers"] + [" the", " cat", "\u2019s", " whiskers"] * 2 + [" "]


def test_half_of_a_surrogate_pair_is_left_to_the_tokenizer() -> None:
    cut = words_of(by_patterns(split(LLAMA_3), byte_level()).backend_tokenizer)
    assert cut is not None
    assert cut("a\ud83d") is None
    assert cut("a b") == ["a", " b"]


def test_texts_are_not_cut_where_hardly_any_word_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_WORTH_JUDGING", 1000)
    tokenizer = by_patterns(byte_level(use_regex=True))
    rng = random.Random(4)
    alike, unlike = TextEncoder(tokenizer), TextEncoder(tokenizer)
    for at in range(60):
        same = ["the cat " * 10 + str(at)]
        new = ["".join(rng.choices("abcdefgh", k=60))]
        assert [ids.tolist() for ids in alike(same)] == tokenizer(same)["input_ids"]
        assert [ids.tolist() for ids in unlike(new)] == tokenizer(new)["input_ids"]
        assert alike.cuts_words
        assert unlike.cuts_words == ((at + 1) * 60 <= 1000)


@pytest.mark.parametrize("name", CUT)
def test_ids_stay_the_same_when_texts_are_no_longer_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_WORTH_JUDGING", 100)
    monkeypatch.setattr(encode, "_MOST_NEW", 0.0)
    tokenizer = CUT[name]()
    encoder, rng = TextEncoder(tokenizer), random.Random(6)
    controls = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for _ in range(30):
        texts = ["".join(rng.choice(["", *controls]) + text_of(rng) for _ in range(3)) for _ in range(5)]
        found = [ids.tolist() for ids in encoder(texts, add_special_tokens=False)]
        assert found == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert encoder._words is None


def test_a_text_with_an_empty_match_is_not_cut() -> None:
    tokenizer = by_patterns(split(r"(?=qz)|[\s\S]{1,2}"), byte_level())
    cut = words_of(tokenizer.backend_tokenizer)
    assert cut is not None
    assert cut("qz aqz qqz") is None
    texts = ["qz aqz qqz", "the cat", ""]
    assert [ids.tolist() for ids in TextEncoder(tokenizer)(texts)] == tokenizer(texts)["input_ids"]


def test_text_that_is_written_without_spaces_is_left_to_the_tokenizer() -> None:
    cut = words_of(by_patterns(split(LLAMA_3), byte_level()).backend_tokenizer)
    assert cut is not None
    assert cut("a \u6771\u4eac b") is None
    assert cut("a \u043c b") == ["a", " \u043c", " b"]


def test_words_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_WORDS", 20)
    tokenizer = by_patterns(byte_level(use_regex=True))
    encoder = TextEncoder(tokenizer)
    rng = random.Random(3)
    for _ in range(60):
        texts = [text_of(rng) for _ in range(3)]
        assert [ids.tolist() for ids in encoder(texts)] == tokenizer(texts)["input_ids"]
        assert len(encoder._known_words) <= 20
