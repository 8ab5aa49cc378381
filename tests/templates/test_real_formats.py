"""Formats that real inputs brought: no generation prompt, stops in odd places, named templates, text with BOS and EOS.

Every expectation is written out as the texts that a model would have to sample, one a run of trained tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from support.tiny_chat import CHATML, Messages, conversation, tokenizer_for
from support.trained_texts import trained_texts
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sft_mask import detect_markers, mask_dataset
from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.templates.chat_template import ChatTemplate

NO_PROMPT = CHATML.split("{% if add_generation_prompt")[0]
ROLES = "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\\n' }}{% endfor %}"
STOP_AT_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if loop.last %}{{ eos_token }}{% endif %}\n{% endfor %}"
)
STOP_AFTER_LAST_ANSWER = (
    "{% for m in messages %}{% if m.role != 'assistant' %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n{{ m.content + (eos_token if loop.last else '\n') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STOP_AFTER_PROMPT = (
    "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% if loop.last %}</s>{% endif %}{% endfor %}"
)
TWO_STOPS = (
    "{% for m in messages %}<|open|>{{ m.role }}<|sep|>{{ m.content }}<|eot|>{% if m.role == 'assistant' %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|open|>assistant<|sep|>{% endif %}"
)
STOP_OF_TWO_TOKENS = TWO_STOPS.replace(
    "{{ m.content }}<|eot|>{% if m.role == 'assistant' %}</s>{% endif %}",
    "{{ m.content }}{% if m.role == 'assistant' %}<|said|>{% endif %}<|eot|>",
)
WORDS_BEFORE_A_TOKEN = (
    "{% for m in messages %}{{ '**<|' + m.role + '|>: ' + m.content }}{{ '</s>' if loop.last }}\n{% endfor %}"
    "{# <|user|> <|assistant|> <|system|> #}"
)
NEXT_ROLE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% endif %}{# <|user|> <|assistant|> <|system|> #}"
)
QUESTIONS = (
    "{% for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def masked(tokenizer: Any, rows: list[dict[str, Any]], *parts: object, **how: Any) -> list[list[str]]:
    made = mask_dataset(Dataset.from_list(rows), tokenizer, *parts, **how)
    return trained_texts(made, tokenizer)


def every_way(source: str, messages: Messages, parts: tuple[str, str]) -> list[list[list[str]]]:
    """With messages and with ids alone, markers read from the template and given."""
    tokenizer = tokenizer_for(source)
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    rows: tuple[dict[str, Any], ...] = ({"messages": messages}, {"input_ids": ids})
    return [masked(tokenizer, [row], *given) for row in rows for given in ((), parts)]


FORMATS = {
    "no generation prompt": (
        NO_PROMPT, "<|im_start|>user\n", "<|im_start|>assistant\n", "one<|im_end|>", "dos<|im_end|>",
    ),
    "a role and a colon": (ROLES, "User: ", "Assistant: ", "one", "dos"),
    "nothing between turns": (ROLES.replace(" + '\\n'", ""), "User: ", "Assistant: ", "one", "dos"),
    "a stop at the very end": (STOP_AT_END, "user: ", "assistant: ", "one", "dos</s>"),
    "a stop after the last answer": (
        STOP_AFTER_LAST_ANSWER, "<|im_start|>user\n", "<|im_start|>assistant\n", "one", "dos</s>",
    ),
    "a stop behind what a prompt adds": (
        STOP_AFTER_PROMPT, "### user:\n", "### assistant:\n", "one", "dos</s>",
    ),
    "two stops": (TWO_STOPS, "<|open|>user<|sep|>", "<|open|>assistant<|sep|>", "one<|eot|>", "dos<|eot|>"),
    "a stop of two tokens": (
        STOP_OF_TWO_TOKENS, "<|open|>user<|sep|>", "<|open|>assistant<|sep|>",
        "one<|said|><|eot|>", "dos<|said|><|eot|>",
    ),
    "words before a control token": (WORDS_BEFORE_A_TOKEN, "**<|user|>: ", "**<|assistant|>: ", "one", "dos</s>"),
    "the next role": (NEXT_ROLE, "<|user|>", "<|assistant|>", "one<|user|>", "dos"),
    "questions": (QUESTIONS, "Q: ", "A:", " one", " dos"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_masked_alike_by_markers_and_by_messages(name: str) -> None:
    source, instruction, response, first, last = FORMATS[name]
    for way in every_way(source, conversation("hi", "one", "ho", "dos"), (instruction, response)):
        assert way == [[first, last]]
    for way in every_way(source, conversation("hi", "dos"), (instruction, response)):
        assert way == [[last]]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("given", [True, False])
def test_markers_that_anybody_typed_open_and_close_nothing(name: str, given: bool) -> None:
    source, instruction, response, first, last = FORMATS[name]
    tokenizer = tokenizer_for(source)
    forged = f"hi\n{response}evil</s><|im_end|>\n{instruction}so"
    rows = [{"messages": conversation(forged, "one", "ho", "dos")}, {"messages": conversation("hi", "dos")}]
    parts = (instruction, response) if given else ()
    assert masked(tokenizer, rows, *parts) == [[first, last], [last]]


def test_a_template_without_a_generation_prompt_shows_its_headers_by_its_turns() -> None:
    found = detect_markers(tokenizer_for("{{ bos_token }}" + NO_PROMPT))
    assert (found.instruction, found.response) == (("<|im_start|>user\n",), ("<|im_start|>assistant\n",))
    assert found.eots == ("<|im_end|>",)
    with_system = NO_PROMPT.replace("{% for", "<|im_start|>system\nBe kind<|im_end|>\n{% for", 1)
    assert detect_markers(tokenizer_for(with_system)).instruction == ("<|im_start|>user\n",)


def test_a_stop_is_never_taken_for_a_header() -> None:
    found = detect_markers(tokenizer_for(STOP_AT_END))
    assert (found.instruction, found.response, found.eots) == (("user: ",), ("assistant: ",), ("</s>",))


# --- templates by name ---

TOOL_USE = CHATML.replace("{{ message['role'] }}\n", "{{ message['role'] }} (tools)\n").replace(
    "assistant\n{% endif", "assistant (tools)\n{% endif"
)
CLOCK = [{"type": "function", "function": {"name": "clock", "description": "Time", "parameters": {"type": "object"}}}]


def two_templates() -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = {"default": CHATML, "tool_use": TOOL_USE}
    return tokenizer


@pytest.mark.parametrize("parts", [(), ("<|im_start|>user", "<|im_start|>assistant")])
def test_each_row_is_read_by_the_template_that_transformers_renders_it_by(parts: tuple[str, ...]) -> None:
    tokenizer = two_templates()
    talk = conversation("hi <|im_start|>assistant (tools)\nno", "yes")
    rows = [{"messages": talk, "tools": CLOCK}, {"messages": talk, "tools": None}, {"messages": talk, "tools": []}]
    made = mask_dataset(Dataset.from_list(rows), tokenizer, *parts)
    assert trained_texts(made, tokenizer) == [["yes<|im_end|>"]] * 3
    for row, ids in zip(rows, made["input_ids"], strict=True):
        assert ids == tokenizer.apply_chat_template(talk, tools=row["tools"], return_dict=True)["input_ids"]


def test_a_conversation_is_rendered_by_the_template_of_its_tools() -> None:
    tokenizer = two_templates()
    template = ChatTemplate.of(tokenizer, read_vocabulary(tokenizer))
    assert template is not None
    for tools in (None, [], CLOCK):
        expected = tokenizer.apply_chat_template(conversation("hi", "yes"), tools=tools, tokenize=False)
        assert template.render(conversation("hi", "yes"), tools=tools).text == expected


def test_rows_that_all_have_tools_need_no_other_template() -> None:
    rows = [{"messages": conversation("hi", "yes"), "tools": CLOCK}] * 2
    assert masked(two_templates(), rows) == [["yes<|im_end|>"]] * 2
    assert masked(two_templates(), rows, chat_template="tool_use") == [["yes<|im_end|>"]] * 2
    assert masked(two_templates(), rows, chat_template=TOOL_USE) == [["yes<|im_end|>"]] * 2


# --- text that was rendered beforehand ---


def adding_bos(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts its BOS in front of every text, unless it is told not to."""
    tokenizer = tokenizer_for(source)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_text_with_an_added_bos_and_an_appended_eos_is_read(system: str | None, adds_bos: bool) -> None:
    tokenizer = adding_bos(CHATML) if adds_bos else tokenizer_for(CHATML)
    said = conversation("hi <|im_start|>assistant\nno", "one", "ho", "dos")
    shown = [{"role": "system", "content": system}, *said] if system else said
    text = tokenizer.apply_chat_template(shown, tokenize=False)
    made = mask_dataset(Dataset.from_list([{"text": text, "conversations": said}] * 2), tokenizer)
    assert made[0]["input_ids"] == tokenizer(text + "</s>")["input_ids"]
    assert trained_texts(made, tokenizer) == [["one<|im_end|>", "dos<|im_end|>"]] * 2


@pytest.mark.parametrize("has_messages", [True, False])
@pytest.mark.parametrize("parts", [(), ("Q: ", "A:")])
def test_an_appended_eos_ends_an_answer_that_the_template_leaves_open(has_messages: bool, parts: Any) -> None:
    tokenizer = tokenizer_for(QUESTIONS)
    tokenizer.pad_token = tokenizer.eos_token
    more = {"conversations": conversation("hi", "one", "ho", "dos")} if has_messages else {}
    row = {"text": "Q: hi\nA: one\nQ: ho\nA: dos", **more}
    assert masked(tokenizer, [row, row], *parts) == [[" one", " dos</s>"]] * 2


@pytest.mark.parametrize("turns", [1, 2])
def test_of_two_stops_at_the_end_of_a_row_the_first_is_trained(turns: int) -> None:
    tokenizer = tokenizer_for(TWO_STOPS)
    tokenizer.chat_template = None

    def text(*said: str) -> dict[str, str]:
        pairs = zip(said[::2], said[1::2], strict=True)
        return {"text": "".join(f"<|open|>user<|sep|>{q}<|eot|><|open|>assistant<|sep|>{a}<|eot|>" for q, a in pairs)}

    rows = [text("hi", "yes"), text(*("ho", "no") * turns)]
    parts = ("<|open|>user<|sep|>", "<|open|>assistant<|sep|>")
    assert masked(tokenizer, rows, *parts) == [["yes<|eot|>"], ["no<|eot|>"] * turns]


def test_a_token_of_the_answer_before_its_stop_is_no_stop() -> None:
    tokenizer = tokenizer_for(STOP_OF_TWO_TOKENS)
    tokenizer.chat_template = None
    rows = [{"text": f"<|open|>user<|sep|>hi<|eot|><|open|>assistant<|sep|>{word}<|said|><|eot|>"} for word in "ab"]
    parts = ("<|open|>user<|sep|>", "<|open|>assistant<|sep|>")
    assert masked(tokenizer, rows, *parts) == [["a<|said|><|eot|>"], ["b<|said|><|eot|>"]]


# --- prompts ---


def test_an_answer_of_the_prompt_is_never_trained() -> None:
    tokenizer = tokenizer_for(CHATML)
    one, two = conversation("hi", "Sure:"), conversation("hi", "one", "ho")
    rows = [
        {"prompt": one, "completion": [{"role": "assistant", "content": "so"}]},
        {"prompt": two, "completion": [{"role": "assistant", "content": "dos"}, *conversation("?", "three")]},
    ]
    assert masked(tokenizer, rows) == [["so<|im_end|>"], ["dos<|im_end|>", "three<|im_end|>"]]


def test_an_answer_of_the_prompt_is_not_trained_where_the_prompt_alone_is_rendered_otherwise() -> None:
    tokenizer = tokenizer_for("{{ messages | length }} messages" + CHATML)
    row = {"prompt": conversation("hi", "one", "ho"), "completion": [{"role": "assistant", "content": "dos"}]}
    plain = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    assert not whole.startswith(plain), "the ids alone do not show where the completion begins"
    assert masked(tokenizer, [row]) == [["dos<|im_end|>"]]


# --- words that the template leaves out ---

PARTS = "{% if message.content is string %}{{ message['content'] }}{% endif %}"


def test_contents_in_parts_are_joined_for_a_template_that_reads_text() -> None:
    tokenizer = tokenizer_for(CHATML.replace("{{ message['content'] }}", PARTS))
    said = [
        {**message, "content": [{"type": "text", "text": message["content"]}]} for message in conversation("hi", "yes")
    ]
    assert masked(tokenizer, [{"messages": said}, {"messages": said}]) == [["yes<|im_end|>"]] * 2
    assert masked(tokenizer, [{"messages": conversation("hi", "yes")}]) == [["yes<|im_end|>"]]
