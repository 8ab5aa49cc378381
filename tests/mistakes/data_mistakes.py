"""Mistakes in the data: their shape, their roles, single rows."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from datasets import Dataset, DatasetDict
from mistakes.mistake import Mistake
from support import tiny

from sft_mask import Policy, mask_dataset

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
CHAT = [U, A]
FLAGGED = Policy(turns="flagged")
SPANS = [{"begin_offset": 0, "end_offset": 1, "train": False}]
TALK = [{"who": "user", "said": "Hi"}, {"who": "assistant", "said": "Yo"}]


def mask(row: dict[str, Any], *more: dict[str, Any], **arguments: Any) -> object:
    return mask_dataset(Dataset.from_list([row, *more]), tiny.tokenizer(), **arguments)


def _mistake(
    row: dict[str, Any],
    seen: str,
    way_out: str,
    *more: dict[str, Any],
    follow: dict[str, Any] | None = None,
    **arguments: Any,
) -> Mistake:
    """``follow`` are the arguments of the way out."""
    made = partial(mask, row, *more, **arguments)
    return Mistake(made, seen, way_out, None if follow is None else partial(mask, row, *more, **follow))


def _content(content: object) -> dict[str, Any]:
    return {"messages": [U, {"role": "assistant", "content": content}]}


MISTAKES: dict[str, Mistake] = {
    # which data
    "columns with names of one's own": _mistake(
        {"src": "Hi", "tgt": "Yo"},
        "it has src, tgt",
        'columns={"src": "prompt", "tgt": "response"}',
        follow={"columns": {"src": "prompt", "tgt": "response"}},
    ),
    "a question without an answer": _mistake({"prompt": "Hi", "n": 1}, "Only prompt can be read by name", '"response"'),
    "two answers": _mistake(
        {"question": "Hi", "answer": "Yo", "response": "Hey"},
        "The columns response and answer of the train dataset could each be the answer",
        'columns={"question": "prompt", "answer": "response"}',
        follow={"columns": {"question": "prompt", "answer": "response"}},
    ),
    "two questions": _mistake(
        {"question": "Hi", "query": "Hello", "answer": "Yo"},
        "could each be what is asked",
        'columns={"query": "prompt"}',
        follow={"columns": {"query": "prompt"}},
    ),
    "two conversations": _mistake(
        {"messages": CHAT, "conversations": [U, {**A, "content": "Hey"}]},
        "The columns messages and conversations of the train dataset could each be the conversation",
        'columns={"messages": "messages"}',
        follow={"columns": {"messages": "messages"}},
    ),
    "a context without a place": _mistake(
        {"question": "Hi", "context": "It rains.", "answer": "Yo"},
        "The column context of the train dataset may be part of the conversation",
        'columns={"context": "input"}',
        follow={"columns": {"context": "input"}},
    ),
    "reasoning without a place": _mistake(
        {"question": "Hi", "answer": "Yo", "rationale": "Because."},
        "The column rationale",
        'columns={"rationale": None}',
        follow={"columns": {"rationale": None}},
    ),
    "preferences of text": _mistake(
        {"prompt": "Hi", "chosen": "Yo", "rejected": "No"},
        "has the columns chosen and rejected: preferences",
        'columns={"chosen": "response"}',
        follow={"columns": {"chosen": "response"}},
    ),
    "preferences of conversations": _mistake(
        {"chosen": CHAT, "rejected": [U, {**A, "content": "No"}]},
        "preferences",
        'columns={"chosen": "messages"}',
        follow={"columns": {"chosen": "messages"}},
    ),
    "a rejected response beside messages": _mistake(
        {"messages": CHAT, "rejected_response": "No"},
        "has the columns rejected_response",
        'columns={"rejected_response": None}',
        follow={"columns": {"rejected_response": None}},
    ),
    "good and bad answers": _mistake(
        {"prompt": "Hi", "completion": "Yo", "label": True},
        "label of the train dataset is false in some rows",
        'dataset.filter(lambda row: row["label"])',
        {"prompt": "Hi", "completion": "No", "label": False},
    ),
    "texts that do not say who speaks": _mistake(
        {"dialog": ["Hi", "Yo"]}, "The column dialog", "dataset = dataset.map(lambda row"
    ),
    "keys with names of one's own": _mistake(
        {"talk": TALK},
        "have the keys who, said",
        'columns={"who": "role", "said": "content"}',
        columns={"talk": "messages"},
        follow={"columns": {"talk": "messages", "who": "role", "said": "content"}},
    ),
    "a text called the conversation": _mistake(
        {"talk": "Hi"},
        "The column talk of the train dataset holds 'Hi': not a list of messages",
        'columns={"talk": "text"}',
        columns={"talk": "messages"},
    ),
    "no rows": Mistake(
        lambda: mask_dataset(Dataset.from_dict({"messages": []}), tiny.tokenizer()),
        "There are no rows in the train dataset",
        "leave this split out",
    ),
    "a list instead of a dataset": Mistake(
        lambda: mask_dataset([{"messages": CHAT}], tiny.tokenizer()),
        "The train dataset is a list",
        "Dataset.from_list(rows)",
    ),
    # the arguments that decide
    "columns the wrong way round": _mistake(
        {"src": "Hi", "tgt": "Yo"},
        "columns names 'prompt', which is not in the train dataset (it has src, tgt)",
        'columns={"src": "prompt"}',
        columns={"prompt": "src", "response": "tgt"},
    ),
    "a column that is not there": _mistake(
        {"src": "Hi", "tgt": "Yo"}, "columns names 'ask'", "Name what is there", columns={"ask": "prompt"}
    ),
    "a field that does not exist": _mistake(
        {"src": "Hi", "tgt": "Yo"},
        "the name 'question_text'",
        'columns={"src": "prompt"}',
        columns={"src": "question_text"},
    ),
    "one field twice": _mistake(
        {"src": "Hi", "tgt": "Yo"},
        "columns makes both 'src' and 'tgt' the prompt",
        'columns={"src": "prompt", "tgt": None}',
        columns={"src": "prompt", "tgt": "prompt"},
    ),
    "columns that are a list": _mistake(
        {"src": "Hi"}, "columns=['src'] is not a mapping", 'columns={"ask": "prompt"}', columns=["src"]
    ),
    "a misspelled role": _mistake(
        {"messages": CHAT}, "roles makes 'user' 'asistant'", "Did you mean 'assistant'?", roles={"user": "asistant"}
    ),
    "roles for text": _mistake(
        {"text": tiny.rendered([*CHAT])}, "has no messages (it has text)", "Leave roles out", roles={"bob": "assistant"}
    ),
    # roles
    "roles with names of one's own": _mistake(
        {"messages": [{**U, "role": "alice"}, {**A, "role": "bob"}]},
        "'alice' (1 message), 'bob' (1 message)",
        "roles={'alice': 'user', 'bob': 'assistant'}",
        follow={"roles": {"alice": "user", "bob": "assistant"}},
    ),
    "roles that are numbers": _mistake(
        {"messages": [{**U, "role": 0}, {**A, "role": 1}]},
        "0 (1 message), 1 (1 message)",
        "roles={0: 'user', 1: 'assistant'}",
        follow={"roles": {0: "user", 1: "assistant"}},
    ),
    "users alone": _mistake({"messages": [U]}, "'user' (1 message)", "Give each conversation its answer"),
    "a role to train that nobody has": _mistake(
        {"messages": CHAT},
        "no message of the train dataset has it: the roles there are 'user' (1 message), 'assistant' (1 message)",
        "Name one of these",
        policy=Policy(roles=["tool"]),
        follow={"policy": Policy(roles=["user"])},
    ),
    "a split without the assistant": Mistake(
        lambda: mask_dataset(
            DatasetDict(train=Dataset.from_list([{"messages": CHAT}]), test=Dataset.from_list([{"messages": [U]}])),
            tiny.tokenizer(),
        ),
        "the messages column of the test dataset",
        "leave this split out",
    ),
    # rows
    "null messages": _mistake({"messages": CHAT}, "Row 1: messages is null", "dataset.filter(", {"messages": None}),
    "a null answer": _mistake(
        {"question": "Hi", "answer": "Yo"},
        "Row 1: answer is null",
        "dataset.filter(",
        {"question": "Hi", "answer": None},
    ),
    "an answer that is a number": _mistake(
        {"question": "Hi", "answer": 4}, "Row 0: answer is 4, of type int, not text", "dataset.cast_column("
    ),
    "an empty list of messages": _mistake(
        {"messages": CHAT}, "Row 1: messages is an empty list", "dataset.filter(", {"messages": []}
    ),
    "null content": _mistake(
        _content(None), "Row 0: Message 1 of messages (assistant) has null content", "dataset.map("
    ),
    "content that is a number": _mistake(
        {"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": 4}]},
        "Row 0: Message 0 of messages has the content 3",
        "Make it text",
    ),
    "JSON that is cut off": _mistake(
        {"messages": json.dumps(CHAT)[:-9]}, "Row 0: messages is text that begins like JSON", "Repair the row"
    ),
    "text called messages": _mistake(
        {"messages": "Hi there"}, "Row 0: messages is text, 'Hi there'", 'rename_column("messages", "text")'
    ),
    "messages in text": _mistake(
        {"text": json.dumps(CHAT)},
        "text holds messages as text",
        "import json",
        follow={"columns": {"text": "messages"}},
    ),
    "a message without a role": _mistake(
        {"messages": [U, {"role": None, "content": "Yo"}]}, "Row 0: Message 1 of messages has no role", "Say who speaks"
    ),
    "a conversation in a list": _mistake(
        {"messages": [CHAT]}, "Row 0: Message 0 of messages is a list", "Give it its own list"
    ),
    "one message instead of a list": _mistake({"messages": A}, "messages is a mapping: one message", "Make it a list"),
    "a prompt of text, a completion of messages": _mistake(
        {"prompt": "Hi", "completion": [A]}, "Row 0: prompt is text ('Hi')", "Make both messages"
    ),
    "tools that are not JSON": _mistake(
        {"messages": CHAT, "tools": "clock"}, "The tools column holds 'clock', which is not JSON", "Give JSON or a list"
    ),
    "one tool instead of a list": _mistake(
        {"messages": CHAT, "tools": {"name": "clock"}}, "tools is one mapping", "Put it into a list"
    ),
    "template arguments as text": _mistake(
        {"messages": CHAT, "chat_template_kwargs": "thinking"}, "holds 'thinking', of type str", "Give a mapping"
    ),
    "ids that are not integers": _mistake({"input_ids": [0.5, 1.5]}, "The input_ids column", "token ids"),
    "labels of another length": _mistake(
        {"input_ids": tiny.tokenized([*CHAT]), "labels": [1]}, "1 labels for", "Give one label for each id"
    ),
    # flags
    "a flag that is neither true nor false": _mistake(
        {"messages": [U, {**A, "train": 3}]}, "train=3", "Set one of them, or leave it out", policy=FLAGGED
    ),
    "flags that contradict each other": _mistake(
        {"messages": [U, {**A, "train": True, "loss": False}]},
        "train=True, loss=False",
        "Keep one of them",
        policy=FLAGGED,
    ),
    "a negative weight": _mistake(
        {"messages": [U, {**A, "weight": -1.0}]}, "The weight of a message is -1.0", "Give 0", policy=FLAGGED
    ),
    "spans of characters": _mistake(
        {"messages": [U, {**A, "train_detail": SPANS}]},
        "A message has train_detail",
        "regions=[Region(text=...)]",
        policy=FLAGGED,
    ),
}
