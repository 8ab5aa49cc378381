"""The shapes of rows that the documentation of other trainers shows, in words of our own, and how each is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from datasets import Features, Json, List, Value

Row = dict[str, Any]


def said(*texts: str, system: str = "") -> list[Row]:
    """The messages that a shape is read as."""
    start = [{"role": "system", "content": system}] if system else []
    return start + [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


@dataclass(frozen=True)
class Shape:
    """One row in a documented shape.

    Attributes:
        by: whose documentation shows it.
        spelled: how it looks, for the table in docs/formats.md.
        row: the row.
        messages: what the chat template is given.
        answers: the texts that are trained, by default those of the assistant's messages.
        columns: an argument that the shape needs.
        template: one of TRL's templates, for tool calls; ChatML otherwise.
        json: columns of messages whose fields differ.
        read_as: what the report says.
    """

    by: str
    spelled: str
    row: Row
    messages: list[Row]
    read_as: str = ""
    answers: list[str] = field(default_factory=list)
    columns: dict[str, str | None] | None = None
    template: str = ""
    json: tuple[str, ...] = ()

    def features(self) -> Features | None:
        """The types of the row's columns; ``None`` where Arrow finds them out."""
        if not self.json:
            return None
        kinds = {name: List(Json()) if name in self.json else Value("string") for name in self.row}
        return Features(kinds)


CHAT = said("Is rain wet?", "Yes, it is.")
FOUR = said("Is rain wet?", "Yes.", "And snow?", "Snow too.")
SHAREGPT = [{"from": "human", "value": "Is rain wet?"}, {"from": "gpt", "value": "Yes, it is."}]
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": SCHEMA}}
WITH_CALL = [
    {"role": "user", "content": "Rain in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "drizzle"},
    {"role": "assistant", "content": "A little."},
]
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TEXT_CALL = json.dumps(CALL)
ALPACA = said("Name the colour.\na banana", "Yellow.")


def _called(role: str, content: str, names: tuple[str, str, str, str]) -> list[Row]:
    texts = ("Rain in Oslo?", TEXT_CALL, "drizzle", "A little.")
    return [{role: name, content: text} for name, text in zip(names, texts, strict=True)]


SHAPES: dict[str, Shape] = {
    # TRL
    "trl messages": Shape("TRL", "`messages`: role, content", {"messages": CHAT}, CHAT),
    "trl prompt and completion": Shape(
        "TRL", "`prompt` and `completion` of messages", {"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT
    ),
    "trl conversations": Shape(
        "TRL",
        "`conversations`: from (user, assistant), value",
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in CHAT]},
        CHAT,
    ),
    "trl tools": Shape(
        "TRL",
        "`messages` with tool_calls, `tools`",
        {"messages": WITH_CALL, "tools": [TOOL]},
        WITH_CALL,
        answers=[CALLED, "A little."],
        template="qwen2_5",
        json=("messages", "tools"),
    ),
    "trl tools as text": Shape(
        "TRL",
        "`tools` as JSON text",
        {"messages": WITH_CALL, "tools": json.dumps([TOOL])},
        WITH_CALL,
        answers=[CALLED, "A little."],
        template="qwen2_5",
        json=("messages",),
    ),
    "trl unused columns": Shape(
        "TRL", "`messages` beside `prompt`, `id`, ...", {"messages": CHAT, "prompt": "Is rain wet?", "id": "7"}, CHAT
    ),
    # Axolotl
    "axolotl sharegpt": Shape(
        "Axolotl",
        "`conversations`: from (human, gpt), value",
        {"conversations": SHAREGPT},
        CHAT,
        "ShareGPT: human → user, gpt → assistant",
    ),
    "axolotl sharegpt with system": Shape(
        "Axolotl",
        "the same with from: system",
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]},
        said("Is rain wet?", "Yes, it is.", system="Be brief."),
        "ShareGPT: human → user, gpt → assistant",
    ),
    "axolotl sharegpt in messages": Shape(
        "Axolotl",
        "`messages`: from, value",
        {"messages": SHAREGPT},
        CHAT,
        "ShareGPT: human → user, gpt → assistant",
    ),
    "axolotl pygmalion": Shape(
        "Axolotl",
        "`conversations`: role, value",
        {"conversations": [{"role": "user", "value": "Is rain wet?"}, {"role": "bot", "value": "Yes, it is."}]},
        CHAT,
        "messages: bot → assistant",
    ),
    "axolotl alpaca": Shape(
        "Axolotl",
        "`instruction`, `input`, `output`",
        {"instruction": "Name the colour.", "input": "a banana", "output": "Yellow."},
        ALPACA,
        "Alpaca: instruction + input → user, output → assistant",
    ),
    "axolotl gpteacher": Shape(
        "Axolotl",
        "`instruction`, `input`, `response`",
        {"instruction": "Name the colour.", "input": "a banana", "response": "Yellow."},
        ALPACA,
        "Alpaca: instruction + input → user, response → assistant",
    ),
    "axolotl questions": Shape(
        "Axolotl",
        "`question`, `answer`",
        {"question": "Is rain wet?", "answer": "Yes, it is."},
        CHAT,
        "questions and answers: question → user, answer → assistant",
    ),
    "axolotl jeopardy": Shape(
        "Axolotl",
        "`question`, `answer`, `category`",
        {"question": "Is rain wet?", "answer": "Yes, it is.", "category": "weather"},
        CHAT,
        "questions and answers: question → user, answer → assistant",
    ),
    "axolotl open orca": Shape(
        "Axolotl",
        "`system_prompt`, `question`, `response`",
        {"id": "1", "system_prompt": "Be brief.", "question": "Is rain wet?", "response": "Yes, it is."},
        said("Is rain wet?", "Yes, it is.", system="Be brief."),
        "questions and answers: system_prompt → system message, question → user, response → assistant",
    ),
    "axolotl summarize": Shape(
        "Axolotl",
        "`article`, `summary`",
        {"article": "Is rain wet?", "summary": "Yes, it is."},
        CHAT,
        "questions and answers: article → user, summary → assistant",
        columns={"article": "prompt", "summary": "response"},
    ),
    "axolotl context": Shape(
        "Axolotl",
        "`question`, `context`, `answer`",
        {"question": "Wet or dry?", "context": "It rains.", "answer": "Wet."},
        said("Wet or dry?\nIt rains.", "Wet."),
        "questions and answers: question + context → user, answer → assistant",
        columns={"context": "input"},
    ),
    "axolotl own keys": Shape(
        "Axolotl",
        "`chat`: other keys and roles (`message_property_mappings`)",
        {"chat": [{"who": "user", "said": "Is rain wet?"}, {"who": "assistant", "said": "Yes, it is."}]},
        CHAT,
        "messages in the column chat",
        columns={"chat": "messages", "who": "role", "said": "content"},
    ),
    # LLaMA-Factory
    "llama-factory alpaca": Shape(
        "LLaMA-Factory",
        "`instruction`, `input`, `output`, `system`, `history`: pairs",
        {
            "instruction": "And snow?",
            "input": "",
            "output": "Snow too.",
            "system": "Be brief.",
            "history": [["Is rain wet?", "Yes."]],
        },
        [{"role": "system", "content": "Be brief."}, *FOUR],
        "Alpaca: system → system message, history → earlier turns, instruction + input → user, output → assistant",
    ),
    "llama-factory without history": Shape(
        "LLaMA-Factory",
        "the same, `history` empty",
        {"instruction": "Name the colour.", "input": "a banana", "output": "Yellow.", "history": []},
        ALPACA,
        "Alpaca: history → earlier turns, instruction + input → user, output → assistant",
    ),
    "llama-factory sharegpt tools": Shape(
        "LLaMA-Factory",
        "`conversations`: human, function_call, observation, gpt; `tools` as text",
        {
            "conversations": _called("from", "value", ("human", "function_call", "observation", "gpt")),
            "tools": json.dumps([TOOL]),
        },
        WITH_CALL,
        "ShareGPT: human → user, function_call → tool calls of the assistant, observation → tool, gpt → assistant",
        answers=[CALLED, "A little."],
        template="qwen2_5",
    ),
    "llama-factory sharegpt system": Shape(
        "LLaMA-Factory",
        "`conversations` and `system`",
        {"conversations": SHAREGPT, "system": "Be brief."},
        said("Is rain wet?", "Yes, it is.", system="Be brief."),
        "ShareGPT: human → user, gpt → assistant",
    ),
    "llama-factory openai": Shape(
        "LLaMA-Factory",
        "`messages`: role (system, user, assistant), content",
        {"messages": said("Is rain wet?", "Yes.", "And snow?", "Snow too.", system="Be brief.")},
        said("Is rain wet?", "Yes.", "And snow?", "Snow too.", system="Be brief."),
    ),
    # ms-swift
    "ms-swift messages": Shape("ms-swift", "`messages`: several turns", {"messages": FOUR}, FOUR),
    "ms-swift sharegpt": Shape(
        "ms-swift",
        "`system`, `conversation`: [{human, assistant}]",
        {
            "system": "Be brief.",
            "conversation": [
                {"human": "Is rain wet?", "assistant": "Yes."},
                {"human": "And snow?", "assistant": "Snow too."},
            ],
        },
        [{"role": "system", "content": "Be brief."}, *FOUR],
        "messages in the column conversation",
    ),
    "ms-swift query": Shape(
        "ms-swift",
        "`query`, `response`",
        {"query": "Is rain wet?", "response": "Yes, it is."},
        CHAT,
        "questions and answers: query → user, response → assistant",
    ),
    "ms-swift query with history": Shape(
        "ms-swift",
        "`system`, `query`, `response`, `history`: pairs",
        {
            "system": "Be brief.",
            "query": "And snow?",
            "response": "Snow too.",
            "history": [["Is rain wet?", "Yes."]],
        },
        [{"role": "system", "content": "Be brief."}, *FOUR],
        "questions and answers: system → system message, history → earlier turns, query → user, response → assistant",
    ),
    "ms-swift alpaca": Shape(
        "ms-swift",
        "`system`, `instruction`, `input`, `output`",
        {"system": "Be brief.", "instruction": "Name the colour.", "input": "a banana", "output": "Yellow."},
        [{"role": "system", "content": "Be brief."}, *ALPACA],
        "Alpaca: system → system message, instruction + input → user, output → assistant",
    ),
    "ms-swift tool call": Shape(
        "ms-swift",
        "`messages`: user, tool_call, tool_response, assistant; `tools` as text",
        {
            "messages": _called("role", "content", ("user", "tool_call", "tool_response", "assistant")),
            "tools": json.dumps([TOOL]),
        },
        WITH_CALL,
        "messages: tool_call → tool calls of the assistant, tool_response → tool",
        answers=[CALLED, "A little."],
        template="qwen2_5",
    ),
    "ms-swift tool": Shape(
        "ms-swift",
        "the same with role tool, `tools` as a list of texts",
        {
            "messages": _called("role", "content", ("user", "tool_call", "tool", "assistant")),
            "tools": [json.dumps(TOOL)],
        },
        WITH_CALL,
        "messages: tool_call → tool calls of the assistant",
        answers=[CALLED, "A little."],
        template="qwen2_5",
    ),
    # Unsloth
    "unsloth standardized": Shape(
        "Unsloth", "`conversations`: role, content (`standardize_sharegpt`)", {"conversations": CHAT}, CHAT
    ),
    "unsloth sharegpt": Shape(
        "Unsloth",
        "`conversations`: from (human, gpt), value, several turns",
        {
            "conversations": [
                {"from": ("human", "gpt")[at % 2], "value": message["content"]} for at, message in enumerate(FOUR)
            ]
        },
        FOUR,
        "ShareGPT: human → user, gpt → assistant",
    ),
    "unsloth instruction": Shape(
        "Unsloth",
        "`instruction`, `output`",
        {"instruction": "Is rain wet?", "output": "Yes, it is."},
        CHAT,
        "Alpaca: instruction → user, output → assistant",
    ),
    "unsloth problem": Shape(
        "Unsloth",
        "`problem`, `solution`",
        {"problem": "Is rain wet?", "solution": "Yes, it is."},
        CHAT,
        "questions and answers: problem → user, solution → assistant",
    ),
    # data sets that all of them read
    "dolly": Shape(
        "Dolly",
        "`instruction`, `context`, `response`",
        {"instruction": "Name the colour.", "context": "a banana", "response": "Yellow.", "category": "qa"},
        ALPACA,
        "Alpaca: instruction + context → user, response → assistant",
    ),
    "oasst": Shape(
        "OpenAssistant",
        "role (prompter, assistant), text",
        {"thread": [{"role": "prompter", "text": "Is rain wet?"}, {"role": "assistant", "text": "Yes, it is."}]},
        CHAT,
        "messages in the column thread: prompter → user",
    ),
    "raw sharegpt": Shape(
        "ShareGPT",
        "`items`: from (user, chatgpt), value",
        {"items": [{"from": "user", "value": "Is rain wet?"}, {"from": "chatgpt", "value": "Yes, it is."}]},
        CHAT,
        "ShareGPT in the column items: chatgpt → assistant",
    ),
    "openai developer": Shape(
        "OpenAI",
        "role developer, for a template that has no such role",
        {"messages": [{"role": "developer", "content": "Be brief."}, *CHAT]},
        said("Is rain wet?", "Yes, it is.", system="Be brief."),
        "messages: developer → system",
    ),
    "openai arguments as text": Shape(
        "OpenAI",
        "tool_calls whose arguments are JSON text",
        {
            "messages": [
                WITH_CALL[0],
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                        }
                    ],
                },
                *WITH_CALL[2:],
            ],
            "tools": json.dumps([TOOL]),
        },
        WITH_CALL,
        "messages: arguments of tool calls as an object",
        answers=[CALLED, "A little."],
        template="qwen2_5",
        json=("messages",),
    ),
    "openai function call": Shape(
        "OpenAI",
        "function_call in a message, role function",
        {
            "messages": [
                WITH_CALL[0],
                {"role": "assistant", "content": "", "function_call": {**CALL, "arguments": '{"city": "Oslo"}'}},
                {"role": "function", "content": "drizzle"},
                WITH_CALL[3],
            ],
            "tools": json.dumps([TOOL]),
        },
        WITH_CALL,
        "messages: function → tool, arguments of tool calls as an object",
        answers=[CALLED, "A little."],
        template="qwen2_5",
        json=("messages",),
    ),
    "openai parts": Shape(
        "OpenAI",
        "content as parts of text",
        {
            "messages": [
                {
                    "role": m["role"],
                    "content": [{"type": "text", "text": m["content"][:3]}, {"type": "text", "text": m["content"][3:]}],
                }
                for m in CHAT
            ]
        },
        CHAT,
        "messages: parts of text joined",
    ),
    "xtuner": Shape(
        "XTuner",
        "`conversation`: [{system, input, output}]",
        {
            "conversation": [
                {"system": "Be brief.", "input": "Is rain wet?", "output": "Yes."},
                {"system": "", "input": "And snow?", "output": "Snow too."},
            ]
        },
        [{"role": "system", "content": "Be brief."}, *FOUR],
        "messages in the column conversation",
    ),
    "gemini": Shape(
        "Gemini",
        "role model",
        {"messages": [CHAT[0], {"role": "model", "content": "Yes, it is."}]},
        CHAT,
        "messages: model → assistant",
    ),
    "langchain pairs": Shape(
        "LangChain",
        "`messages`: [[human, text], [ai, text]]",
        {"messages": [["human", "Is rain wet?"], ["ai", "Yes, it is."]]},
        CHAT,
        "messages: human → user, ai → assistant",
    ),
    "pairs of text": Shape(
        "ChatGLM",
        "`dialogue`: [[question, answer], ...]",
        {"dialogue": [["Is rain wet?", "Yes."], ["And snow?", "Snow too."]]},
        FOUR,
        "messages in the column dialogue",
    ),
    "prompt and response": Shape(
        "many",
        "`prompt`, `response`",
        {"prompt": "Is rain wet?", "response": "Yes, it is."},
        CHAT,
        "questions and answers: prompt → user, response → assistant",
    ),
    "capitals": Shape(
        "many",
        "`Question`, `Answer`",
        {"Question": "Is rain wet?", "Answer": "Yes, it is."},
        CHAT,
        "questions and answers: Question → user, Answer → assistant",
    ),
    "json text": Shape(
        "CSV files", "`messages` as JSON text", {"messages": json.dumps(CHAT)}, CHAT, "messages in JSON text"
    ),
    "json text of sharegpt": Shape(
        "CSV files",
        "`conversations` of from and value as JSON text",
        {"conversations": json.dumps(SHAREGPT)},
        CHAT,
        "ShareGPT in JSON text: human → user, gpt → assistant",
    ),
    "printed by python": Shape(
        "CSV files", "`messages` as Python prints them", {"messages": str(CHAT)}, CHAT, "messages in JSON text"
    ),
    "json text of each message": Shape(
        "CSV files", "`messages`: JSON text of each", {"messages": [json.dumps(m) for m in CHAT]}, CHAT, "messages"
    ),
}
