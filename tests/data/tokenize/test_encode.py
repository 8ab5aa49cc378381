"""Texts that are cut at control tokens and encoded in batches have the ids of each text alone."""

from __future__ import annotations

import random
import re

import pytest
from support import tiny, tiny_tokenizers
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_mask.data.tokenize import encode
from sft_mask.data.tokenize.encode import TextEncoder

ODD = [
    "",
    " ",
    " \x1c\u3000",
    "\n",
    "\n\n",
    "e\u0301",
    "\u0301",
    "\u212b",
    "\U0001f642",
    "\u6771",
    "\u2581",
    "<|",
    "|>",
    "im_end",
    "red",
    " stone",
]


def texts(tokenizer: PreTrainedTokenizerFast, seed: int, count: int = 300) -> list[str]:
    """Texts that join control tokens, parts of them, and letters that normalizers change."""
    rng = random.Random(seed)
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    pieces = [*ODD, *added, *added, *(text[:-1] for text in added), *(text[1:] for text in added)]
    return ["".join(rng.choices(pieces, k=rng.randint(0, 9))) for _ in range(count)]


def with_nfc() -> PreTrainedTokenizerFast:
    made = tiny_tokenizers.byte_level()
    made.backend_tokenizer.normalizer = normalizers.NFC()
    return made


def with_prefix_space() -> PreTrainedTokenizerFast:
    made = tiny_tokenizers.byte_level()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


def with_overlapping_tokens() -> PreTrainedTokenizerFast:
    made = tiny_tokenizers.byte_level()
    made.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|a|><", "|>re"]})
    made.add_tokens([AddedToken("red", normalized=False), AddedToken("\n\n", normalized=True)])
    return made


def with_stripping_token(*others: str, lstrip: bool = False) -> PreTrainedTokenizerFast:
    made = tiny_tokenizers.byte_level()
    token = AddedToken("<|s|>", rstrip=not lstrip, lstrip=lstrip, special=True)
    made.add_special_tokens({"additional_special_tokens": [token, *others]})
    return made


TOKENIZERS = {
    "ChatML": (tiny.tokenizer, True),
    "byte level": (tiny_tokenizers.byte_level, True),
    "NFC": (with_nfc, True),
    "prefix space": (with_prefix_space, True),
    "overlapping tokens": (with_overlapping_tokens, True),
    "a token that strips": (with_stripping_token, True),
    "tokens that strip": (tiny_tokenizers.swallowing, True),
    "a token that strips to the left": (lambda: with_stripping_token(lstrip=True), False),
    "a token that ends with one that strips": (lambda: with_stripping_token("x<|s|>"), False),
    "whitespace that another token strips": (lambda: with_stripping_token("\n"), False),
    "SentencePiece": (tiny_tokenizers.sentencepiece, True),
    "words": (tiny_tokenizers.word_level, False),
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_WORTH_CUTTING", 0)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("batch", [1, 13])
def test_ids_in_a_batch_are_those_of_the_text_alone(name: str, batch: int) -> None:
    make, cuts = TOKENIZERS[name]
    tokenizer = make()
    given = texts(tokenizer, seed=batch)
    encoder = TextEncoder(tokenizer)
    for added in (False, True):
        wanted = [tokenizer(text, add_special_tokens=added)["input_ids"] for text in given]
        found = [
            ids.tolist()
            for at in range(0, len(given), batch)
            for ids in encoder(given[at : at + batch], add_special_tokens=added)
        ]
        assert found == wanted
    assert (encoder._cuts is not None) == cuts, "the way that was meant was tested"


def test_what_is_remembered_is_bounded_and_changes_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_REMEMBERED", 200)
    monkeypatch.setattr(encode, "_LONGEST", 20)
    tokenizer = tiny.tokenizer()
    encoder = TextEncoder(tokenizer)
    for at in range(40):
        given = texts(tokenizer, seed=at, count=5)
        assert [ids.tolist() for ids in encoder(given)] == [tokenizer(text)["input_ids"] for text in given]
        assert encoder._size <= 200
        assert max(map(len, encoder._known.keys() - encoder._control.keys()), default=0) <= 20


def test_the_longest_control_token_wins() -> None:
    tokens = ["<|a|>", "<|a|><", "<|ab|>", "a", "<"]
    pattern = re.compile(encode._longest_of(tokens))
    assert pattern.findall("<|a|><|ab|>a<|a") == ["<|a|><", "a", "a", "<", "a"]
