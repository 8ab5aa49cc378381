from __future__ import annotations

import time

import numpy as np
import pytest
from datasets import Dataset
from support.tiny_chat import CHATML, chat, conversation, ids_of, prepared, tokenizer_for, trl_templates
from support.trained_texts import trained_texts

from sft_mask import mask_dataset
from sft_mask.errors import DetectionError
from sft_mask.templates.chat_template import ChatTemplate
from sft_mask.templates.detection.detect import detect_markers, proven_markers
from sft_mask.templates.probes import probes
from sft_mask.templates.resolve import resolve

EXPECTED = {
    "chatml": ("<|im_start|>user\n", "<|im_start|>assistant\n", ("<|im_end|>",)),
    "cohere": (
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", ("<|END_OF_TURN_TOKEN|>",)
    ),
    "deepseekv3": ("<｜User｜>", "<｜Assistant｜>", ("<｜end▁of▁sentence｜>",)),
    "gemma": ("<start_of_turn>user\n", "<start_of_turn>model\n", ("<end_of_turn>",)),
    "glm4moe": ("<|user|>\n", "<|assistant|>", ("<|user|>", "<|observation|>")),
    "gptoss": ("<|start|>user<|message|>", "<|start|>assistant", ("<|end|>", "<|return|>", "<|call|>")),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|eot_id|>",),
    ),
    "phi3": ("<|user|>\n", "<|assistant|>\n", ("<|end|>",)),
    "qwen3": ("<|im_start|>user\n", "<|im_start|>assistant\n", ("<|im_end|>",)),
}  # fmt: skip

PLAIN = {
    "{% for m in messages %}{{ ('### Assistant: ' if m.role == 'assistant' else '### Human: ') + m.content + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}### Assistant: {% endif %}": ("### Human: ", "### Assistant: ", ()),
    "{% for m in messages %}{{ ('USER: ' + m.content + ' ') if m.role != 'assistant' else ('ASSISTANT: ' + m.content + "
    "'</s>') }}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}": ("USER: ", "ASSISTANT: ", ("</s>",)),
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_markers_are_read_from_the_template(name: str, expected: tuple[str, str, tuple[str, ...]]) -> None:
    markers = detect_markers(chat(name)[0])
    assert (markers.instruction[0], markers.response[0], markers.eots) == expected
    assert markers.detected


@pytest.mark.parametrize("name", trl_templates())
def test_the_markers_of_every_template_are_proven(name: str) -> None:
    assert detect_markers(chat(name)[0]).response


def test_most_templates_are_proven_with_tools_too() -> None:
    incomplete = [name for name in trl_templates() if not detect_markers(chat(name)[0]).complete]
    assert incomplete == []


@pytest.mark.parametrize(("source", "expected"), PLAIN.items())
def test_markers_without_control_tokens_are_read(source: str, expected: tuple[str, str, tuple[str, ...]]) -> None:
    markers = detect_markers(tokenizer_for(CHATML), source)
    assert (markers.instruction[0], markers.response[0].strip(), markers.eots) == (
        expected[0], expected[1].strip(), expected[2]
    )  # fmt: skip


def test_an_unusual_template_is_read_by_nothing_but_its_own_words() -> None:
    source = (
        "{% for m in messages %}{{ '<|zig|>' + ('a' if m.role == 'assistant' else 'q') + '~' + m.content + '<|zag|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|zig|>a~{% endif %}"
    )
    markers = detect_markers(tokenizer_for(source))
    assert (markers.instruction, markers.response, markers.eots) == (("<|zig|>q~",), ("<|zig|>a~",), ("<|zag|>",))


def test_what_a_generation_prompt_prefills_is_part_of_the_header() -> None:
    assert detect_markers(chat("qwen3")[0]).response == (
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )


def test_every_way_of_prompting_is_a_header() -> None:
    prompt = "assistant\n{{ '<think>' if thinking else '</think>' }}{% endif %}"
    header = "<|im_start|>{{ message['role'] }}\n{{ '</think>' if message['role'] == 'assistant' }}"
    source = CHATML.replace("assistant\n{% endif %}", prompt).replace("<|im_start|>{{ message['role'] }}\n", header)
    assert detect_markers(tokenizer_for(source)).response == (
        "<|im_start|>assistant\n", "<|im_start|>assistant\n</think>", "<|im_start|>assistant\n<think>"
    )  # fmt: skip


def test_a_header_that_an_empty_answer_goes_without_is_read_both_ways() -> None:
    source = CHATML.replace("assistant\n{% endif %}", "assistant\n>>>{% endif %}")
    more = "{{ '>>>' if message['role'] == 'assistant' and message['content'] }}"
    source = source.replace("{{ message['role'] }}\n", "{{ message['role'] }}\n" + more)
    assert detect_markers(tokenizer_for(source)).response == ("<|im_start|>assistant\n>>>", "<|im_start|>assistant\n")


def test_an_open_header_that_every_rendering_ends_with_is_not_part_of_the_eot() -> None:
    source = (
        "{{ bos_token }}<|im_start|>system~Default.<|im_end|>{% for m in messages %}{{ '<|im_start|>' + m.role + '~' }}"
        "{{ '<|say|>' + m.content + '<|said|>' if m.role == 'assistant' else m.content }}<|im_end|>{% endfor %}"
        "<|im_start|>assistant~"
    )
    markers = detect_markers(tokenizer_for(source))
    assert (markers.instruction, markers.response) == (("<|im_start|>user~",), ("<|im_start|>assistant~",))
    assert markers.eots[0] == "<|said|><|im_end|>"


def test_headers_of_several_control_tokens_are_read_whole() -> None:
    source = (
        "{% for m in messages %}{{ '<|open|>' + m.role + '<|sep|>' }}"
        "{{ '<|open|>say<|sep|>' if m.role == 'assistant' }}{{ m.content + '<|close|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|open|>assistant<|sep|><|open|>"
        "{{ 'think' if enable_thinking is defined else 'say' }}<|sep|>{% endif %}"
    )
    markers = detect_markers(tokenizer_for(source))
    assert markers.response[0] == "<|open|>assistant<|sep|><|open|>"
    assert set(markers.response[1:]) == {f"{markers.response[0]}{name}<|sep|>" for name in ("say", "think")}


def test_an_instruction_before_the_generation_prompt_only_is_not_a_header() -> None:
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    source = CHATML[: CHATML.index("{% if add_generation_prompt")] + prompt
    assert detect_markers(tokenizer_for(source)).response == ("<|im_start|>assistant\n",)


def test_a_template_that_wants_tools_is_given_one() -> None:
    source = CHATML.replace(
        "{% for message", "{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}{% for message"
    )
    assert detect_markers(tokenizer_for(source)).response == ("<|im_start|>assistant\n",)


TOOL_ANSWER = (
    "{% for m in messages %}{% if m.role == 'tool' %}RESULT{% elif m.role == 'user' %}<|user|>"
    "{% elif loop.previtem.role != 'tool' %}<|assistant|>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.arguments | tojson }}</call>{% endfor %}"
    "{% if m.role == 'tool' %}BACK{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_tool_result_opens_with_the_first_control_token_after_the_call() -> None:
    source = TOOL_ANSWER.replace("RESULT", "<|observation|>\n<|result|>\n").replace("BACK", "<|back|>")
    markers = detect_markers(tokenizer_for(source))
    assert markers.eot_headers == ("<|user|>", "<|observation|>")
    assert markers.response == ("<|assistant|>", "<|back|>")


def test_a_bracket_after_a_result_is_not_a_header() -> None:
    source = TOOL_ANSWER.replace("RESULT", "<|observation|>[").replace("BACK", "]")
    assert detect_markers(tokenizer_for(source)).response == ("<|assistant|>",)


def test_no_template_is_refused_by_name() -> None:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = None
    with pytest.raises(DetectionError, match="has no chat template"):
        detect_markers(tokenizer)


REFUSED = {
    "{{ raise_exception('only on Sundays') }}": "only on Sundays",
    "{% for %}": "TemplateSyntaxError",
    "{{ messages[0].content }}": "drops the words of message 1",
    "{% for m in messages %}{{ m.content }}{% endfor %}": "nothing between a user's words and the assistant's",
    "{% for m in messages %}{{ '> ' + m.content + '\n' }}{% endfor %}": "the same as the response marker",
}

TWO_SPEAKERS = (
    "{% for m in messages %}{{ '<|im_start|>' + ('q' if m.role == 'user' else 'a') + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>a{% endif %}"
)


def test_a_template_that_writes_everyone_but_the_user_as_the_assistant_is_reported() -> None:
    tokenizer = tokenizer_for(TWO_SPEAKERS)
    markers = detect_markers(tokenizer)
    assert (markers.response, markers.instruction, markers.eots) == (
        ("<|im_start|>a",),
        ("<|im_start|>q",),
        ("<|im_end|>",),
    )
    assert markers.like_assistant == ("system", "tool")
    said = [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    masked = mask_dataset(Dataset.from_list([{"messages": said}]), tokenizer)
    assert trained_texts(masked, tokenizer) == [["Hello<|im_end|>"]]
    _, report = mask_dataset(masked.select_columns("input_ids"), tokenizer, return_report=True)
    assert any("writes system and tool messages exactly as it writes the assistant" in each for each in report.warnings)


@pytest.mark.parametrize(("source", "reason"), REFUSED.items())
def test_a_template_that_shows_nothing_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(DetectionError, match=reason):
        detect_markers(tokenizer_for(CHATML), source)


def test_the_probes_cover_what_templates_do_differently() -> None:
    names = {probe.name: probe for probe in probes()}
    assert len(names) == 7
    assert [name for name, probe in names.items() if probe.optional] == [
        "a tool call", "a tool call, arguments as JSON text"
    ]  # fmt: skip
    assert names["answers that begin with a newline"].messages[1]["content"].startswith("\n\n")


def test_a_template_is_read_once() -> None:
    tokenizer = tokenizer_for(CHATML)
    first = detect_markers(tokenizer)
    began = time.perf_counter()
    assert detect_markers(tokenizer) is first
    assert time.perf_counter() - began < 0.1


def test_another_template_of_the_same_tokenizer_is_read_anew() -> None:
    tokenizer = tokenizer_for(CHATML)
    first = detect_markers(tokenizer)
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|im_start|>end")
    assert detect_markers(tokenizer) != first


def test_an_answer_that_the_template_leaves_open_is_not_cut() -> None:
    made, vocabulary, template = chat("glm4moe")
    assert detect_markers(made).open_end
    row = np.array(ids_of(made, template.render(conversation("Hi", "Yes")).text))
    turns = resolve(vocabulary, made, template).finder.find(row, np.array([0, len(row)]))
    assert turns.cut.tolist() == [False]


def test_one_source_with_other_arguments_has_other_markers() -> None:
    source = CHATML.replace("assistant\n", "{{ name }}\n").replace(
        "{{ message['role'] }}", "{{ name if message['role'] == 'assistant' else message['role'] }}"
    )
    made, vocabulary, _ = prepared(CHATML)
    for name in ("one", "another"):
        template = ChatTemplate.of(made, vocabulary, source, name=name)
        assert proven_markers(template, vocabulary, made).response == (f"<|im_start|>{name}\n",)
