"""Malformed rows and roles that are nobody's: each ends in an error of the library, whose way out is then taken."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Json, List
from support import tiny
from support.trained_texts import trained_texts
from trl import SFTConfig

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.data.faults.wellformed import check_row
from sft_mask.errors import DataError, MarkerError, NothingToTrainError, SftMaskError, UnsupportedError
from sft_mask.preview import preview_rows

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
CHAT = [U, A]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
STRANGERS = [{"from": "alice", "value": "Hi"}, {"from": "bob", "value": "Yo"}]
EMPTY_FOR_STRANGERS = (
    "{% for message in messages %}{% if message['role'] in ('user', 'assistant') %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{{ raise_exception('Unknown role') if messages[0]['role'] != 'user' }}" + tiny.TEMPLATE


def with_template(source: str) -> Any:
    made = tiny.tokenizer.__wrapped__()
    made.chat_template = source
    return made


def message_of(dataset: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        mask_dataset(dataset, tiny.tokenizer(), **more)
    return str(caught.value)


def advised(message: str) -> str:
    """The code at the end of an error."""
    _, _, block = message.partition("\n\n")
    lines = block.splitlines() if block else ["    dataset = " + message.rpartition("dataset = ")[2]]
    assert all(line.startswith("    ") for line in lines), message
    return "\n".join(line[4:] for line in lines)


def followed(message: str, dataset: Any, tokenizer: Any = None) -> Any:
    namespace = {"dataset": dataset, "mask_dataset": mask_dataset, "tokenizer": tokenizer or tiny.tokenizer()}
    exec(advised(message), namespace)
    return namespace["dataset"]


# rows

REPAIRED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "messages null": ([{"messages": CHAT}, {"messages": None}], r"Row 1: messages is null"),
    "conversations null": ([{"conversations": None}, {"conversations": CHAT}], r"Row 0: conversations is null"),
    "both null": (
        [{"messages": CHAT, "text": None}, {"messages": None, "text": None}],
        r"Row 1: messages and text are null",
    ),
    "completion null": (
        [{"prompt": [U], "completion": [A]}, {"prompt": [U], "completion": None}],
        r"Row 1: completion is null",
    ),
    "prompt null": (
        [{"prompt": None, "completion": [A]}, {"prompt": [U], "completion": [A]}],
        r"Row 0: prompt is null",
    ),
    "no messages": ([{"messages": []}, {"messages": CHAT}], r"Row 0: messages is an empty list"),
    "a null among messages": ([{"messages": [*CHAT, None]}], r"Row 0: Message 2 of messages is null"),
    "lists in a list": ([{"messages": [CHAT]}], r"Row 0: Message 0 of messages is a list"),
    "one message": ([{"messages": A}], r"Row 0: messages is a mapping: one message"),
    "a list for each field": (
        [{"messages": {"role": ["user", "assistant"], "content": ["Hi", "Yo"]}}],
        r"Row 0: messages is a mapping: one list for each of role, content",
    ),
    "JSON text as text": ([{"text": json.dumps(CHAT)}], r"text holds messages as text, .* The text is JSON"),
    "JSON text as prompt and completion": (
        [{"prompt": json.dumps([U]), "completion": json.dumps([A])}],
        r"prompt and completion hold messages as text, .* The text is JSON",
    ),
    "a prompt of text": (
        [{"prompt": "Hi", "completion": [A]}],
        r"Row 0: prompt is text \('Hi'\) and completion is a list",
    ),
    "a completion of text": ([{"prompt": [U], "completion": "Yo"}], r"Row 0: completion is text \('Yo'\) and prompt"),
    "messages called text": ([{"text": CHAT}], r"Row 0: text is a list of 2 messages, not text"),
    "text in pieces": (
        [{"text": ["<|im_start|>assistant\n", "Yo<|im_end|>"]}],
        r"Row 0: text is .*, of type list, not text",
    ),
    "tools that are one mapping": (
        [{"messages": CHAT, "tools": {"name": "clock"}}],
        r"Row 0: tools is one mapping, not a list",
    ),
    "variables as JSON text": (
        [{"messages": CHAT, "chat_template_kwargs": '{"enable_thinking": true}'}],
        r"Row 0: The chat_template_kwargs column holds '\{\"enable_thinking\": true\}', of type str, not a mapping",
    ),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_a_malformed_row_is_named_and_the_way_out_works(case: str) -> None:
    rows, seen = REPAIRED[case]
    dataset = Dataset.from_list(rows)
    message = message_of(dataset)
    assert re.search(seen, message), message
    assert "chat template refuses" not in message
    fixed = followed(message, dataset)
    assert trained_texts(mask_dataset(fixed, tiny.tokenizer())) == [["Yo<|im_end|>"]] * len(fixed)


def test_numbers_become_text_in_the_way_that_is_shown() -> None:
    numbers = Dataset.from_list([{"messages": [{"role": "user", "content": 4}, {"role": "assistant", "content": 5}]}])
    message = message_of(numbers)
    assert "Row 0: Message 0 of messages has the content 4, of type int, not text" in message
    assert trained_texts(mask_dataset(followed(message, numbers), tiny.tokenizer())) == [["5<|im_end|>"]]
    numbers = Dataset.from_list([{"conversations": [{"from": "user", "value": 4}, {"from": "assistant", "value": 5}]}])
    message = message_of(numbers)
    assert "Row 0: Message 0 of conversations has the content 4, of type int" in message
    assert trained_texts(mask_dataset(followed(message, numbers), tiny.tokenizer())) == [["5<|im_end|>"]]
    texts = Dataset.from_list([{"text": 4}])
    message = message_of(texts)
    assert "Row 0: text is 4, of type int, not text" in message
    assert followed(message, texts)["text"] == ["4"]


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        ({"messages": 5}, "Row 1: messages is 5, of type int, not a list of messages"),
        ({"messages": "Hi there"}, "Row 1: messages is text, 'Hi there', not a list of messages"),
        ({"messages": ["oops"]}, "Row 1: Message 0 of messages is 'oops', of type str, not a mapping"),
        ({"messages": [7]}, "Row 1: Message 0 of messages is 7, of type int, not a mapping"),
        ({"messages": [U, {"content": "Yo"}]}, r"Row 1: Message 1 of messages has no role \(it has content\)"),
        ({"messages": [{**U, "role": None}]}, r"Row 1: Message 0 of messages has no role \(it has content\)"),
        ({"messages": [{**U, "role": 3}]}, "Row 1: The role of message 0 of messages is 3, of type int, not text"),
        (
            {"conversations": [{"from": None, "value": "a"}]},
            r"Row 1: Message 0 of conversations has no role \(it has value",
        ),
        ({"messages": [{**U, "content": True}]}, "Row 1: Message 0 of messages has the content True, of type bool"),
        (
            {"messages": [{**U, "content": [None]}]},
            "Row 1: Message 0 of messages has a content of parts, and part 0 is null",
        ),
        (
            {"messages": [{**U, "content": [{"type": "text", "text": 3}]}]},
            "Row 1: Message 0 of messages has a content of parts, and the text of part 0 is 3, of type int",
        ),
        (
            {"messages": [{**U, "content": [{"type": "text", "text": None}]}]},
            "Row 1: Message 0 of messages has a content of parts, and the text of part 0 is null",
        ),
        ({"prompt": "Hi", "completion": 4}, "Row 1: completion is 4, of type int, not text"),
        ({"prompt": 4, "completion": [A]}, "Row 1: prompt is 4, of type int, not a list of messages"),
        ({"messages": CHAT, "tools": 3}, "Row 1: The tools column holds 3, which is not a list of tool definitions"),
        (
            {"messages": CHAT, "tools": "3"},
            "Row 1: The tools column holds '3', which is not a list of tool definitions",
        ),
        ({"messages": CHAT, "tools": "clock"}, "Row 1: The tools column holds 'clock', which is not JSON"),
        ({"messages": CHAT, "tools": ["clock"]}, "Row 1: Tool 0 of tools is 'clock', of type str, not a mapping"),
        ({"messages": CHAT, "chat_template_kwargs": 3}, "Row 1: The chat_template_kwargs column holds 3, of type int"),
        (
            {"messages": CHAT, "chat_template_kwargs": {"tokenize": False}},
            "Row 1: chat_template_kwargs holds tokenize, which is not a variable of a chat template",
        ),
        ({"other": 1}, r"Row 1: It has none of messages, .* \(it has other\)"),
        ({"messages": [U], "prompt": "Hi", "completion": None}, "Row 1: completion is null"),
    ],
)
def test_a_row_of_a_stream_that_is_malformed_is_named_with_what_was_seen(row: dict[str, Any], seen: str) -> None:
    """Rows of a stream may be of any type, whatever came before them."""
    stream = IterableDataset.from_generator(lambda: iter([{"messages": CHAT}, row]))
    with pytest.raises(DataError, match=seen) as caught:
        list(mask_dataset(stream, tiny.tokenizer()))
    assert "chat template refuses" not in str(caught.value)


def test_json_text_of_a_stream_is_read() -> None:
    text = {"messages": json.dumps(CHAT)}
    for read in (
        IterableDataset.from_generator(lambda: iter([text])),
        Dataset.from_list([text]).to_iterable_dataset(),
    ):
        assert trained_texts(mask_dataset(read, tiny.tokenizer())) == [["Yo<|im_end|>"]]


def test_parts_that_are_lists_without_end_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DataError, match=r"Message 0 of messages has a content of parts, and part 0 is \[\["):
        check_row({"messages": [{**U, "content": deep}]})


@pytest.mark.parametrize("tools", ["", "  ", "[]", "null", None, []])
def test_no_tools_may_be_spelled_in_any_way(tools: Any) -> None:
    masked = mask_dataset(Dataset.from_list([{"messages": CHAT, "tools": tools}]), tiny.tokenizer())
    assert trained_texts(masked) == [["Yo<|im_end|>"]]
    ids = {"input_ids": masked["input_ids"][0], "messages": CHAT, "tools": tools}
    assert trained_texts(mask_dataset(Dataset.from_list([ids]), tiny.tokenizer())) == [["Yo<|im_end|>"]]


def test_messages_are_read_where_a_prompt_has_no_completion() -> None:
    """As in ``ultrachat_200k``, whose prompt repeats the first message."""
    rows = Dataset.from_list([{"prompt": "Hi", "prompt_id": "x", "messages": CHAT}])
    assert trained_texts(mask_dataset(rows, tiny.tokenizer())) == [["Yo<|im_end|>"]]


def test_text_is_read_where_messages_are_null() -> None:
    text = tiny.rendered(CHAT)
    rows = Dataset.from_list([{"messages": CHAT, "text": None}, {"messages": None, "text": text}])
    assert trained_texts(mask_dataset(rows, tiny.tokenizer())) == [["Yo<|im_end|>"]] * 2


def test_the_content_of_a_tool_may_be_any_json() -> None:
    chat = [U, {"role": "tool", "content": 4}, {"role": "tool", "content": {"a": [None, 1]}}, A]
    rows = Dataset.from_list([{"messages": chat}], features=Features({"messages": List(Json())}))
    assert trained_texts(mask_dataset(rows, tiny.tokenizer())) == [["Yo<|im_end|>"]]


def test_a_refusal_of_the_template_says_what_is_odd_about_the_messages() -> None:
    source = "{{ messages[0].content + 'x' }}" + tiny.TEMPLATE
    mapping = {"messages": [{**U, "content": {"a": 1}}, {**A, "content": {"a": 2}}]}
    message = message_of(Dataset.from_list([mapping]), chat_template=source)
    assert "The content of message 0 is a mapping, not text. The content of message 1 is" in message


def test_a_mistake_of_the_template_of_any_kind_is_an_error_of_ours() -> None:
    for source in ("{{ {}['a'].b }}", "{{ 1 // 0 }}", "{{ messages[9].content }}", "{{ 'a'.index('b') }}"):
        assert "Row 0: The chat template refuses" in message_of(
            Dataset.from_list([{"messages": CHAT}]), chat_template=source
        )


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow", "hidden"])
@pytest.mark.parametrize("row", [{"messages": CHAT}, {"conversations": CHAT}, {"prompt": [U], "completion": [A]}])
def test_rows_of_any_format_are_read_and_keep_it(row: dict[str, Any], kind: str) -> None:
    rows = Dataset.from_list([{**row, "n": 7}] * 2)
    shown = rows.with_format(None, ["n"]) if kind == "hidden" else rows.with_format(kind)
    masked = mask_dataset(shown, tiny.tokenizer())
    assert masked.format["type"] == shown.format["type"]
    assert set(masked.format["columns"]) >= {"n", "input_ids", "labels"}
    assert (set(row) <= set(masked.format["columns"])) == (kind != "hidden" and "conversations" not in row)
    assert trained_texts(masked.with_format(None)) == [["Yo<|im_end|>"]] * 2
    bad = Dataset.from_list([{"messages": None}, {"messages": CHAT}])
    assert "Row 0: messages is null" in message_of(bad if kind == "hidden" else bad.with_format(kind))


# rows that have their ids already


def prepared(messages: Any, **features: Any) -> Dataset:
    ids = [tiny.tokenized(CHAT)] * len(messages)
    made = Dataset.from_dict({"input_ids": ids, "conversations": messages})
    return made.cast_column("conversations", List(Json())) if features else made


@pytest.mark.parametrize("policy", [Policy(), Policy(roles=["assistant", "user"])])
def test_a_message_that_is_no_mapping_is_named_beside_ids(policy: Policy) -> None:
    rows = prepared([CHAT, [U, None]])
    message = message_of(rows, policy=policy)
    assert "row 1: message 1 of conversations is null, not a mapping" in message


def test_a_stream_with_ids_names_variables_that_are_no_mapping() -> None:
    row = {"input_ids": tiny.tokenized(CHAT), "messages": CHAT, "chat_template_kwargs": "thinking"}
    stream = IterableDataset.from_generator(lambda: iter([row]))
    with pytest.raises(DataError, match="row 0: The chat_template_kwargs column holds 'thinking', of type str"):
        mask_dataset(stream, tiny.tokenizer())


def test_an_undecidable_row_names_the_column_of_its_messages() -> None:
    other = Dataset.from_dict({"input_ids": [tiny.tokenized(CHAT)], "conversations": [[U, {**A, "content": "No"}]]})
    with pytest.raises(DataError, match=r"(?s)cannot be decided.*\(Its messages are in conversations\.\)"):
        mask_dataset(other, tiny.tokenizer(), policy=Policy(roles=["assistant", "user"]))


def test_a_policy_that_needs_messages_names_the_column_that_is_there() -> None:
    ids = tiny.tokenized(CHAT)
    packed = {"conversations": CHAT, "input_ids": ids * 2, "seq_lengths": [len(ids)] * 2}
    with pytest.raises(UnsupportedError, match=r"but the rows are packed\. Keep conversations, or mask before"):
        mask_dataset(Dataset.from_list([packed]), tiny.tokenizer(), policy=Policy(turns="flagged"))


# roles


TEMPLATES = pytest.mark.parametrize(
    "template", [tiny.TEMPLATE, EMPTY_FOR_STRANGERS, STRICT], ids=["any", "skips", "refuses"]
)


@TEMPLATES
@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize("chat", [SHAREGPT, [U, {**A, "role": "bot"}], [{**U, "role": "User"}, {**A, "role": "AI"}]])
def test_well_known_roles_are_read(name: str, chat: Any, template: str) -> None:
    tokenizer = with_template(template)
    assert (
        trained_texts(mask_dataset(Dataset.from_list([{name: chat}] * 2), tokenizer), tokenizer)
        == [["Yo<|im_end|>"]] * 2
    )


@TEMPLATES
@pytest.mark.parametrize(
    ("roles", "listed"),
    [
        (("alice", 'b"ob'), r"'alice' \(2 messages\), 'b\"ob' \(2 messages\);"),
        ((0, 1), r"0 \(2 messages\), 1 \(2 messages\);"),
    ],
)
def test_roles_that_are_nobodys_are_named_and_renamed_by_what_is_shown(roles: Any, listed: str, template: str) -> None:
    tokenizer = with_template(template)
    dataset = Dataset.from_list([{"messages": [{**U, "role": roles[0]}, {**A, "role": roles[1]}]}] * 2)
    seen = (
        rf"No message in the messages column of the train dataset is the assistant's.*of 2 conversations are {listed}"
    )
    with pytest.raises(NothingToTrainError, match=seen) as caught:
        mask_dataset(dataset, tokenizer)
    assert "marker" not in str(caught.value)
    assert "template" not in str(caught.value)
    masked = followed(str(caught.value), dataset, tokenizer)
    assert trained_texts(masked, tokenizer) == [["Yo<|im_end|>"]] * 2


@pytest.mark.parametrize("kind", ["json", "pair", "stream", "shuffled", "preview"])
def test_roles_are_read_from_rows_of_every_kind(kind: str) -> None:
    chat = [{**U, "role": "alice"}, {**A, "role": "bob"}]
    features = Features({"messages": List(Json())}) if kind == "json" else None
    rows = [{"prompt": chat[:1], "completion": chat[1:]}] if kind == "pair" else [{"messages": chat}]
    dataset: Any = Dataset.from_list(rows * 3, features=features)
    dataset = {"stream": dataset.to_iterable_dataset, "shuffled": lambda: dataset.shuffle(seed=0)}.get(
        kind, lambda: dataset
    )()
    with pytest.raises(NothingToTrainError, match=r"'alice' \(3 messages\), 'bob' \(3 messages\)") as caught:
        (preview_rows if kind == "preview" else mask_dataset)(dataset, tiny.tokenizer())
    assert ("completion column" in str(caught.value)) == (kind == "pair")
    assert trained_texts(followed(str(caught.value), dataset)) == [["Yo<|im_end|>"]] * 3


def test_conversations_of_users_alone_are_named_with_what_is_missing() -> None:
    message = message_of(Dataset.from_list([{"messages": [U, U]}]))
    assert "The roles of 1 conversation are 'user' (2 messages)" in message
    assert message.endswith('a message such as {"role": "assistant", "content": ...}, or leave this split out.')
    dataset = Dataset.from_list([{"messages": [U], "answer": "Yo"}])
    assert trained_texts(mask_dataset(followed(message_of(dataset), dataset), tiny.tokenizer())) == [["Yo<|im_end|>"]]


def test_rows_without_the_assistant_are_dropped_where_others_have_it() -> None:
    rows = [{"messages": [U]}, {"messages": CHAT}, {"messages": [{**U, "role": "critic"}]}]
    masked, report = mask_dataset(Dataset.from_list(rows), tiny.tokenizer(), return_report=True)
    assert trained_texts(masked) == [["Yo<|im_end|>"]]
    assert report.splits["train"].rows_dropped == 2


def test_a_split_without_the_assistant_is_named() -> None:
    both = DatasetDict(
        train=Dataset.from_list([{"conversations": CHAT}]), test=Dataset.from_list([{"conversations": STRANGERS}])
    )
    with pytest.raises(NothingToTrainError, match="No message in the conversations column of the test dataset"):
        mask_dataset(both, tiny.tokenizer())


def test_markers_that_are_wrong_themselves_are_named_first() -> None:
    dataset = Dataset.from_list([{"conversations": SHAREGPT}])
    with pytest.raises(MarkerError, match="opens a"):
        mask_dataset(dataset, tiny.tokenizer(), "<|im_start|>human\n", "### Answer:")
    with pytest.raises(MarkerError, match="both roles"):
        mask_dataset(dataset, tiny.tokenizer(), tiny.USER, tiny.USER)


def test_markers_of_the_callers_own_make_no_role_the_models() -> None:
    """Rows with messages are checked against them, and these say that nobody is the model."""
    dataset = Dataset.from_list([{"conversations": STRANGERS}])
    with pytest.raises(NothingToTrainError, match="No message in the conversations column") as caught:
        mask_dataset(dataset, tiny.tokenizer(), "<|im_start|>alice\n", "<|im_start|>bob\n")
    assert trained_texts(followed(str(caught.value), dataset)) == [["Yo<|im_end|>"]]


def test_a_batch_without_the_assistant_is_named() -> None:
    label = train_on_responses_only(tokenizer=tiny.tokenizer(), return_function=True)
    ids = tiny.tokenized(CHAT)
    labels = label({"input_ids": [ids], "conversations": [SHAREGPT]})["labels"]
    assert isinstance(labels, list)
    assert trained_texts([{"input_ids": ids, "labels": labels[0]}]) == [["Yo<|im_end|>"]]
    chat = [{**U, "role": "alice"}, {**A, "role": "bob"}]
    label = train_on_responses_only(tokenizer=tiny.tokenizer(), return_function=True)
    with pytest.raises(NothingToTrainError, match=r"messages column of the batch .*'alice' \(1 message\)"):
        label({"input_ids": [tiny.tokenized(chat)], "messages": [chat]})


# roles, in a trainer


def trainer_of(folder: Path, dataset: Any, tokenizer: Any, **options: Any) -> Any:
    from trl import SFTTrainer

    args = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], max_length=256, **options)
    return SFTTrainer(tiny.model(), args=args, train_dataset=dataset, processing_class=tokenizer)


@pytest.mark.parametrize("template", [tiny.TEMPLATE, EMPTY_FOR_STRANGERS], ids=["any", "skips"])
@pytest.mark.parametrize(
    "row",
    [
        {"conversations": SHAREGPT},
        {"messages": [{**U, "role": "human"}, {**A, "role": "gpt"}]},
        {"messages": [{**U, "role": 0}, {**A, "role": 1}]},
    ],
    ids=["sharegpt", "roles", "numbers"],
)
def test_a_trainer_of_roles_that_are_nobodys_says_so_and_how_to_rename_them(
    row: Any, template: str, tmp_path: Path
) -> None:
    """The template that skips such messages leaves rows without a token, which TRL takes out."""
    tokenizer = with_template(template)
    dataset = Dataset.from_list([row] * 2)
    trainer = trainer_of(tmp_path, dataset, tokenizer)
    with pytest.raises(
        NothingToTrainError, match=r"messages column of the train dataset.*of 2 conversations"
    ) as caught:
        train_on_responses_only(trainer)
    assert ("all 2 of them were removed" in str(caught.value)) == (template == EMPTY_FOR_STRANGERS)
    assert "marker" not in str(caught.value)
    again = trainer_of(tmp_path, followed(str(caught.value), dataset, tokenizer), tokenizer)
    assert trained_texts(train_on_responses_only(again).train_dataset, tokenizer) == [["Yo<|im_end|>"]] * 2


def test_a_trainer_whose_rows_truncation_emptied_says_so(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": [{**U, "content": "so " * 300}], "completion": [A]}])
    with pytest.raises(NothingToTrainError, match=r"all 1 of them were removed.*raise max_length"):
        train_on_responses_only(trainer_of(tmp_path, rows, tiny.tokenizer()))


VALUES = [None, "", "x", 3, True, [], [None], ["x"], [3], [[]], {}, {"a": 1}, [{}], [{"role": "assistant"}], CHAT]
ROWS = {
    "messages": lambda value: {"messages": value},
    "conversations": lambda value: {"conversations": value},
    "text": lambda value: {"text": value},
    "prompt and completion": lambda value: {"prompt": value, "completion": value},
    "prompt": lambda value: {"prompt": value, "completion": [A]},
    "completion": lambda value: {"prompt": [U], "completion": value},
    "tools": lambda value: {"messages": CHAT, "tools": value},
    "variables": lambda value: {"messages": CHAT, "chat_template_kwargs": value},
    "role": lambda value: {"messages": [{"role": value, "content": "x"}, A]},
    "content": lambda value: {"messages": [U, {"role": "assistant", "content": value}]},
}


@pytest.mark.parametrize("ids", [False, True], ids=["rendered here", "with ids"])
@pytest.mark.parametrize("kind", ["dataset", "stream"])
@pytest.mark.parametrize("row", ROWS)
def test_every_error_is_of_the_library(row: str, kind: str, ids: bool) -> None:
    """Any JSON in any column that is read is masked, or refused by an error of ours."""
    for value in VALUES:
        made = {**ROWS[row](value), **({"input_ids": tiny.tokenized(CHAT)} if ids else {})}
        stream = IterableDataset.from_generator(lambda made=made: iter([made, made]))
        with contextlib.suppress(SftMaskError):
            list(mask_dataset(stream if kind == "stream" else as_dataset(made), tiny.tokenizer()))


def as_dataset(row: dict[str, Any]) -> Dataset:
    """Two equal rows; messages that are no structs of one type are kept as JSON."""
    try:
        return Dataset.from_list([row, row])
    except pa.ArrowInvalid:
        kinds = {**Dataset.from_list([{**row, "messages": []}]).features, "messages": List(Json())}
        return Dataset.from_list([row, row], features=Features(kinds))
