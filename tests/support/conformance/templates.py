"""What each chat template writes around an answer, by hand, for a person to check.

A test oracle may know names; the library may not. One row a template: the header of each role, the strings that end
an answer, and the added tokens without which the template makes no sense on a tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Final


@dataclass(frozen=True, slots=True)
class Format:
    """The strings of one template.

    ``assistant`` are headers after which the model writes; the first is what a person would pass as
    ``response_part``. ``stops`` end an answer and are written by the model. ``next_role_stops`` are headers of other
    roles that double as the stop. ``soft_ends`` end the model's text too, but whether it is asked to write them is
    open to interpretation. ``{eos}`` stands for the tokenizer's end-of-sequence token.
    """

    user: str
    assistant: tuple[str, ...]
    stops: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    next_role_stops: tuple[str, ...] = ()
    soft_ends: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    content_is_parts: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        return (*self.stops, *self.next_role_stops)

    @property
    def strings(self) -> tuple[str, ...]:
        return (self.user, *self.assistant, *self.others, *self.ends, *self.soft_ends)

    def with_eos(self, eos: str) -> Format:
        return replace(self, stops=tuple(stop.replace("{eos}", eos) for stop in self.stops))


CHATML: Final = Format(
    user="<|im_start|>user\n",
    assistant=("<|im_start|>assistant\n",),
    stops=("<|im_end|>",),
    others=("<|im_start|>system\n", "<|im_start|>tool\n"),
    needs=("<|im_start|>", "<|im_end|>"),
)
LLAMA3: Final = Format(
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n",),
    stops=("<|eot_id|>",),
    others=tuple(f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "tool", "ipython")),
    needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
LLAMA4: Final = Format(
    user="<|header_start|>user<|header_end|>\n\n",
    assistant=("<|header_start|>assistant<|header_end|>\n\n",),
    stops=("<|eot|>",),
    others=tuple(f"<|header_start|>{role}<|header_end|>\n\n" for role in ("system", "tool")),
    needs=("<|header_start|>", "<|header_end|>", "<|eot|>"),
)
GEMMA: Final = Format(
    user="<start_of_turn>user\n",
    assistant=("<start_of_turn>model\n",),
    stops=("<end_of_turn>",),
    needs=("<start_of_turn>", "<end_of_turn>"),
)
GEMMA4: Final = Format(
    user="<|turn>user\n",
    assistant=("<|turn>model\n", "<tool_response|>"),
    stops=("<turn|>",),
    others=("<|turn>system\n", "<|turn>tool\n"),
    soft_ends=("<|tool_response>",),
    needs=("<|turn>", "<turn|>", "<|tool_response>", "<tool_response|>"),
)
PHI3: Final = Format(
    user="<|user|>\n",
    assistant=("<|assistant|>\n",),
    stops=("<|end|>",),
    others=("<|system|>\n",),
    needs=("<|user|>", "<|assistant|>", "<|end|>"),
)
PHI4_MINI: Final = replace(PHI3, user="<|user|>", assistant=("<|assistant|>",), others=("<|system|>", "<|tool|>"))
PHI4: Final = Format(
    user="<|im_start|>user<|im_sep|>",
    assistant=("<|im_start|>assistant<|im_sep|>",),
    stops=("<|im_end|>",),
    others=("<|im_start|>system<|im_sep|>",),
    needs=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
)
COHERE: Final = Format(
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    assistant=("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",),
    stops=("<|END_OF_TURN_TOKEN|>",),
    others=("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",),
    needs=("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
)
COHERE2: Final = replace(
    COHERE,
    assistant=("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",),
    needs=(*COHERE.needs, "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
DEEPSEEK: Final = Format(
    user="<｜User｜>",
    assistant=("<｜Assistant｜>", "<｜tool▁output▁end｜>", "<｜tool▁outputs▁end｜>"),
    stops=("<｜end▁of▁sentence｜>",),
    others=("<｜tool▁outputs▁begin｜>", "<｜tool▁output▁begin｜>"),
    needs=("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
)
DEEPSEEK_CODER: Final = Format(
    user="### Instruction:\n", assistant=("### Response:\n",), stops=("<|EOT|>",), needs=("<|EOT|>",)
)
GLM: Final = Format(
    user="<|user|>",
    assistant=("<|assistant|>",),
    next_role_stops=("<|user|>", "<|observation|>"),
    others=("<|system|>",),
    soft_ends=("<|tool|>",),
    needs=("<|user|>", "<|assistant|>", "<|observation|>", "[gMASK]"),
)
GPT_OSS: Final = Format(
    user="<|start|>user<|message|>",
    assistant=("<|start|>assistant",),
    stops=("<|end|>", "<|return|>", "<|call|>"),
    others=("<|start|>system<|message|>", "<|start|>developer<|message|>", "<|start|>functions."),
    needs=("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"),
)
MUSE: Final = Format(
    user="<|start|>user<|message|>",
    assistant=("<|start|>assistant",),
    stops=("<|eot|>", "<|eom|>"),
    others=("<|start|>system<|message|>", "<|start|>tool "),
    needs=("<|start|>", "<|message|>", "<|eot|>", "<|eom|>"),
)
GRANITE: Final = Format(
    user="<|start_of_role|>user<|end_of_role|>",
    assistant=("<|start_of_role|>assistant<|end_of_role|>",),
    stops=("<|end_of_text|>",),
    others=("<|start_of_role|>system<|end_of_role|>", "<|start_of_role|>tool<|end_of_role|>"),
    needs=("<|start_of_role|>", "<|end_of_role|>"),
)
MISTRAL: Final = Format(
    user="[INST]",
    assistant=("[/INST]", "[/TOOL_RESULTS]"),
    stops=("</s>",),
    others=("[TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]"),
    needs=("</s>",),
)
LLAVA: Final = Format(
    user="[INST]", assistant=("[/INST]",), stops=("</s>",), others=("<<SYS>>",), needs=("</s>",), content_is_parts=True
)
MINITRON: Final = Format(user="<extra_id_1>User\n", assistant=("<extra_id_1>Assistant\n",))
UTTERANCE: Final = Format(
    user="User:",
    assistant=("Assistant:",),
    stops=("<end_of_utterance>",),
    others=("System:",),
    needs=("<end_of_utterance>",),
    content_is_parts=True,
)

SHIPPED: Final[dict[str, Format]] = {
    "cohere": COHERE,
    "cohere2": COHERE2,
    "deepseek_r1_distill": DEEPSEEK,
    "deepseekv3": DEEPSEEK,
    "diffusion_gemma": GEMMA4,
    "gemma": GEMMA,
    "gemma3": GEMMA,
    "gemma4": GEMMA4,
    "gemma4_v2": GEMMA4,
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": GEMMA4,
    "glm4moe": GLM,
    "gptoss": GPT_OSS,
    "idefics3": UTTERANCE,
    "lfm2": CHATML,
    "lfm2_2_5": CHATML,
    "lfm2_2_5_v2": CHATML,
    "lfm2_2_5_vl": CHATML,
    "lfm2_v2": CHATML,
    "llama3": LLAMA3,
    "llama3_1": LLAMA3,
    "llama3_2": LLAMA3,
    "llava_next": LLAVA,
    "muse_glimmer": MUSE,
    "nemotron_3_5_lightning": CHATML,
    "nemotron_3_nano": CHATML,
    "nemotron_3_super": CHATML,
    "nemotron_3_ultra": CHATML,
    "phi3": PHI3,
    "phi3_5": PHI3,
    "qwen2_5": CHATML,
    "qwen2_5_vl": CHATML,
    "qwen3": CHATML,
    "qwen3_5_nothink": CHATML,
    "qwen3_5_think": CHATML,
    "qwen3_6": CHATML,
    "qwen3_8": CHATML,
    "qwen3_instruct_2507": CHATML,
    "qwen3_vl": CHATML,
    "smolvlm": UTTERANCE,
}
"""Every original template of TRL (those without ``_training`` in their name)."""


def shipped_template(name: str) -> str:
    """The text of a template that TRL ships."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def shipped_names() -> list[str]:
    """Names of the original templates in the installed TRL."""
    paths = (path.name for path in (files("trl") / "chat_templates").iterdir())
    return sorted(name[:-6] for name in paths if name.endswith(".jinja") and "_training" not in name)


def _turns(system: str, user: str, assistant: str, prompt: str, before: str = "") -> str:
    """A small jinja template out of one line a role; ``{}`` is the message's content."""

    def line(text: str) -> str:
        head, _, tail = text.partition("{}")
        return "+".join(filter(None, [_literal(head), "message['content']", _literal(tail)]))

    return (
        (f"{{{{ {_literal(before)} }}}}" if before else "")
        + "{% for message in messages %}"
        + f"{{% if message['role'] == 'system' %}}{{{{ {line(system)} }}}}"
        + f"{{% elif message['role'] == 'user' %}}{{{{ {line(user)} }}}}"
        + f"{{% elif message['role'] == 'assistant' %}}{{{{ {line(assistant)} }}}}{{% endif %}}{{% endfor %}}"
        + f"{{% if add_generation_prompt %}}{{{{ {_literal(prompt)} }}}}{{% endif %}}"
    )


def _literal(text: str) -> str:
    """``text`` as a jinja expression; ``{eos}`` and ``{bos}`` become the tokenizer's tokens."""
    pieces = []
    for piece in text.replace("{eos}", "\0eos_token\0").replace("{bos}", "\0bos_token\0").split("\0"):
        if piece in ("eos_token", "bos_token"):
            pieces.append(piece)
        elif piece:
            pieces.append("'" + piece.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'")
    return "+".join(pieces)


ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
VICUNA_PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
LLAMA2_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ (bos_token or '') + '[INST] <<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{% if not (loop.index0 == 1 and messages[0]['role'] == 'system') %}{{ (bos_token or '') + '[INST] ' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

PLAIN_TEXT: Final[dict[str, tuple[str, Format]]] = {
    "alpaca": (
        _turns(
            "{}\n\n",
            "### Instruction:\n{}\n\n",
            "### Response:\n{}{eos}\n\n",
            "### Response:\n",
            ALPACA_PREAMBLE,
        ),
        Format(user="### Instruction:\n", assistant=("### Response:\n",), stops=("{eos}",)),
    ),
    "alpaca-no-eos": (
        _turns("{}\n\n", "### Instruction:\n{}\n\n", "### Response:\n{}\n\n", "### Response:\n", ALPACA_PREAMBLE),
        Format(user="### Instruction:\n", assistant=("### Response:\n",)),
    ),
    "vicuna": (
        _turns("{} ", "USER: {} ", "ASSISTANT: {}{eos}", "ASSISTANT:", VICUNA_PREAMBLE),
        Format(user="USER:", assistant=("ASSISTANT:",), stops=("{eos}",)),
    ),
    "zephyr": (
        _turns("<|system|>\n{}{eos}\n", "<|user|>\n{}{eos}\n", "<|assistant|>\n{}{eos}\n", "<|assistant|>\n"),
        Format(user="<|user|>\n", assistant=("<|assistant|>\n",), stops=("{eos}",), others=("<|system|>\n",)),
    ),
    "openchat": (
        _turns(
            "{}<|end_of_turn|>",
            "GPT4 Correct User: {}<|end_of_turn|>",
            "GPT4 Correct Assistant: {}<|end_of_turn|>",
            "GPT4 Correct Assistant:",
        ),
        Format(user="GPT4 Correct User:", assistant=("GPT4 Correct Assistant:",), stops=("<|end_of_turn|>",)),
    ),
    "human-assistant": (
        _turns("{}", "\n\nHuman: {}", "\n\nAssistant: {}", "\n\nAssistant:"),
        Format(user="\n\nHuman:", assistant=("\n\nAssistant:",)),
    ),
    "guanaco": (
        _turns("{}\n", "### Human: {}\n", "### Assistant: {}\n", "### Assistant:"),
        Format(user="### Human:", assistant=("### Assistant:",)),
    ),
    "question-answer": (
        _turns("{}\n\n", "Q: {}\n", "A: {}{eos}\n\n", "A:"),
        Format(user="Q:", assistant=("A:",), stops=("{eos}",)),
    ),
    "llama2-chat": (
        LLAMA2_CHAT,
        Format(user="[INST]", assistant=("[/INST]",), stops=("{eos}",)),
    ),
    "chatml-text": (
        _turns(
            "<|im_start|>system\n{}<|im_end|>\n",
            "<|im_start|>user\n{}<|im_end|>\n",
            "<|im_start|>assistant\n{}<|im_end|>\n",
            "<|im_start|>assistant\n",
        ),
        replace(CHATML, needs=()),
    ),
}
"""Formats older than chat templates: plain text around the messages, on any tokenizer that has an end of sequence."""

OWN: Final = (
    CHATML, LLAMA3, LLAMA4, GEMMA, GEMMA4, PHI3, PHI4_MINI, PHI4, COHERE2, COHERE, DEEPSEEK, DEEPSEEK_CODER,
    GLM, GPT_OSS, MUSE, GRANITE, MISTRAL, MINITRON,
)  # fmt: skip
"""The formats among which the template that a tokenizer brings along is looked up, by its rendered text."""


def format_of(text: str, tokens: frozenset[str]) -> Format | None:
    """The row of the table that a rendered ``user, assistant, user, assistant`` conversation fits, if just one does.

    ``tokens`` are the tokenizer's added tokens.
    """
    fitting = [form for form in OWN if tokens.issuperset(form.needs) and _fits(form, text)]
    longest = max((len(form.assistant[0]) for form in fitting), default=0)
    best = [form for form in fitting if len(form.assistant[0]) == longest]
    return best[0] if len(best) == 1 else None


def _fits(form: Format, text: str) -> bool:
    has_end = not form.ends or any(_ends_answer(end, form, text) for end in form.ends)
    return has_end and form.user in text and form.assistant[0] in text


def _ends_answer(end: str, form: Format, text: str) -> bool:
    """Whether ``end`` stands in the text; behind nothing but the answer where it is the next role's header."""
    answer = text[text.find(form.assistant[0]) + len(form.assistant[0]) :]
    return end in text and (end not in form.next_role_stops or not any(c in "<[" for c in answer[: answer.find(end)]))
