from __future__ import annotations

import pytest
from support.tiny_chat import CHATML, conversation, prepared, tokenizer_for

from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.errors import MarkerError
from sft_mask.templates.chat_template import EMPTY_BLOCK, ChatTemplate, common_prefix, common_suffix


def test_a_tokenizer_without_a_template_has_none() -> None:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = None
    assert ChatTemplate.of(tokenizer, read_vocabulary(tokenizer)) is None


def test_of_several_named_templates_the_default_is_read() -> None:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = {"tool_use": "t", "default": "d"}
    template = ChatTemplate.of(tokenizer, read_vocabulary(tokenizer))
    assert template is not None
    assert template.source == "d"


def test_several_named_templates_without_a_default_are_named() -> None:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = {"tool_use": "t", "rag": "r"}
    with pytest.raises(MarkerError, match="rag, tool_use"):
        ChatTemplate.of(tokenizer, read_vocabulary(tokenizer))


def test_a_template_given_wins_over_the_tokenizers_own() -> None:
    tokenizer = tokenizer_for(CHATML)
    template = ChatTemplate.of(tokenizer, read_vocabulary(tokenizer), "{{ bos_token }}")
    assert template is not None
    assert template.render([]).text == "<s>"


def test_the_arguments_of_a_row_win_over_the_special_tokens() -> None:
    _, _, template = prepared("{{ bos_token }}")
    assert template.render([], variables={"bos_token": "B"}).text == "B"


def test_the_first_special_is_the_longest_at_the_earliest_place() -> None:
    template = ChatTemplate("", specials=("<|end|>", "<|end", "<s>"))
    assert template.first_special("a<|end|><s>") == (1, "<|end|>")
    assert template.first_special("a<|end<s>") == (1, "<|end")
    assert template.first_special("plain") is None


def test_a_header_is_led_by_a_control_token_only_after_whitespace() -> None:
    template = ChatTemplate("", specials=("<s>",))
    assert template.lead("\n<s>user") == "<s>"
    assert template.lead("user<s>") is None


def test_a_common_beginning_never_cuts_a_control_token() -> None:
    template = ChatTemplate("", specials=("<|end|>", "<|eot|>"))
    assert template.whole_tokens_prefix("ab<|end|>", "ab<|eot|>") == "ab"
    assert template.whole_tokens_prefix("ab<|end|>x", "ab<|end|>y") == "ab<|end|>"


def test_a_common_beginning_never_cuts_a_tag() -> None:
    template = ChatTemplate("", specials=("<|im_start|>",))
    assert template.whole_tokens_prefix("<|im_start|>a\n<think>", "<|im_start|>a\n</think>") == "<|im_start|>a\n"
    assert template.whole_tokens_prefix("[INST]", "[/INST]") == ""


def test_a_common_beginning_of_overlapping_control_tokens_cuts_none() -> None:
    template = ChatTemplate("", specials=("<|a|>", "|><|"))
    assert template.whole_tokens_prefix("x<|a|><|", "x<|a|><|b") == "x<|a|><|"
    assert template.whole_tokens_prefix("x<|a|><|", "x<|a|>y") == "x"


@pytest.mark.parametrize(
    ("texts", "shared"),
    [([], ""), (["ab"], "ab"), (["ab", ""], ""), (["abc", "abd", "ab"], "ab"), (["x", "y"], "")],
)
def test_common_prefix(texts: list[str], shared: str) -> None:
    assert common_prefix(texts) == shared
    assert common_suffix([text[::-1] for text in texts]) == shared[::-1]


@pytest.mark.parametrize(
    "block", ["<think>\n\n</think>\n\n", "<think></think>", "[THINK][/THINK]", "<|channel>thought\n<channel|>"]
)
def test_an_empty_block_is_a_pair_of_tags(block: str) -> None:
    assert EMPTY_BLOCK.fullmatch(block)


@pytest.mark.parametrize("text", ["<think>hm</think>", "<think></thought>", "<b>", "\n\n"])
def test_words_and_single_tags_are_no_empty_block(text: str) -> None:
    assert not EMPTY_BLOCK.fullmatch(text)


def test_a_rendered_conversation_keeps_its_roles() -> None:
    _, _, template = prepared(CHATML)
    assert template.render(conversation("a", "b", system="s")).roles == ("system", "user", "assistant")


def test_a_common_end_never_begins_inside_a_control_token() -> None:
    template = ChatTemplate("", specials=("<|user_start|>", "<|assistant_end|>", "<|developer_end|>"))
    texts = ("<|developer_end|><|user_start|>", "<|assistant_end|><|user_start|>")
    assert template.whole_tokens_suffix(*texts) == "<|user_start|>"
    assert template.whole_tokens_suffix("ab", "b") == "b"


def test_a_common_beginning_that_ends_one_letter_before_a_control_token_does_is_cut() -> None:
    template = ChatTemplate("", {}, ("<|end|>",))
    assert template.whole_tokens_prefix("a<|end|>", "a<|end|x") == "a"
    assert template.whole_tokens_prefix("a<|end|>b", "a<|end|>c") == "a<|end|>"
