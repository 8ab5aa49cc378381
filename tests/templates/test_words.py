"""Rows in a format of the caller's own: their messages decide by their words."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from support.tiny_chat import CHATML, Messages, conversation, tokenizer_for
from support.tiny_tokenizers import sentencepiece
from support.trained_texts import trained_texts

from sft_mask import mask_dataset
from sft_mask.core.policy import Policy
from sft_mask.errors import AmbiguousRowError

PARTS = ("### Question:\n", "### Answer:\n")
HEADS = {"user": PARTS[0], "assistant": PARTS[1], "system": "", "tool": "### Result:\n"}


def written(messages: Messages, separator: str = "\n\n") -> str:
    """The messages in a format that no chat template knows."""
    return separator.join(HEADS[message["role"]] + (message["content"] or "") for message in messages)


def tokenizer() -> Any:
    made = tokenizer_for(CHATML)
    made.chat_template = None
    return made


def masked(rows: list[tuple[str, Messages]], made: Any = None, **how: Any) -> tuple[list[list[str]], Any]:
    made = made or tokenizer()
    records = [{"input_ids": made(text)["input_ids"], "messages": messages} for text, messages in rows]
    dataset, report = mask_dataset(Dataset.from_list(records), made, *PARTS, return_report=True, **how)
    return trained_texts(dataset, made), report.splits["train"]


def both(messages: Messages, end: str = "</s>") -> tuple[str, Messages]:
    return written(messages) + end, messages


PLAIN = both(conversation("hi", "one", "ho", "dos"))
QUOTING = [
    both(conversation("hi\n\n### Answer:\nevil\n\n### Question:\nso", "one", "ho", "dos")),
    both(conversation("hi", "one", "ho", "### Question:\ndos\n\n### Answer:\n!")),
    both([{"role": "system", "content": "Never write\n### Answer:\nthat"}, *conversation("hi", "one")]),
    both(conversation("### Answer:\n", "one")),
]


def test_a_marker_that_a_message_quotes_opens_and_closes_nothing() -> None:
    found, split = masked([PLAIN, *QUOTING])
    assert found == [
        ["one", "dos</s>"],
        ["one", "dos</s>"],
        ["one", "### Question:\ndos\n\n### Answer:\n!</s>"],
        ["one</s>"],
        ["one</s>"],
    ]
    assert (split.rows_exact, split.rows_unchecked) == (5, 0)


def test_the_chat_template_of_another_format_does_not_matter() -> None:
    assert masked([PLAIN, *QUOTING], tokenizer_for(CHATML))[0] == masked([PLAIN, *QUOTING])[0]


def test_a_shape_that_its_words_have_proven_is_left_to_markers() -> None:
    found, split = masked([both(conversation(f"hi {at}", f"one {at}")) for at in range(9)])
    assert found == [[f"one {at}</s>"] for at in range(9)]
    assert (split.rows_exact, split.rows_checked) == (3, 6)


def test_words_are_placed_where_the_tokenizer_adds_spaces_too() -> None:
    made = sentencepiece()
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    assert masked([PLAIN, *QUOTING], made)[0] == masked([PLAIN, *QUOTING])[0]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_row_that_was_cut_off_trains_what_is_left_of_its_answers(cut: int) -> None:
    text, messages = both(conversation("### Answer:\nno", "one", "hello", "dos"), "")
    (found,), _ = masked([(text[:-cut], messages), both(conversation("hi", "yes"))], on_ambiguous="error")[0][:1], None
    left = text[:-cut].removeprefix("### Question:\n### Answer:\nno\n\n### Answer:\n")
    first, _, rest = left.partition("\n\n### Q")
    second = rest.partition("### Answer:\n")[2]
    expected = ("one"[: len(first.strip())], second)
    assert [run.strip() for run in found if run.strip()] == [run for run in expected if run]


def test_an_answer_that_the_messages_lack_is_refused() -> None:
    text, messages = both(conversation("hi ### Answer:\n", "one", "ho", "dos"))
    with pytest.raises(
        AmbiguousRowError, match="Row 1 cannot be decided: The row holds more answers than its messages"
    ):
        masked([PLAIN, (text, messages[:2])])
    with pytest.raises(AmbiguousRowError, match="an answer before message 2 that is not in its messages"):
        masked([PLAIN, (text.replace("### Answer:\none", "### Answer:\none\n\n### Answer:\nmore"), messages)])


def test_messages_of_other_words_are_refused_where_they_quote_a_marker() -> None:
    text, _ = PLAIN
    with pytest.raises(AmbiguousRowError, match=r"words of message 0 \(user\), 'who: ### Answer:', do not follow"):
        masked([PLAIN, (text, conversation("who: ### Answer:\n", "never"))])
    found, split = masked([PLAIN, (text, conversation("who: ### Answer:\n", "never"))], on_ambiguous="drop")
    assert found == [["one", "dos</s>"]]
    assert split.rows_ambiguous == 1


def test_messages_of_other_words_are_a_warning_where_nothing_speaks_against_the_markers() -> None:
    found, split = masked([PLAIN, (PLAIN[0], conversation("who", "never", "where", "not"))])
    assert found == [["one", "dos</s>"]] * 2
    assert split.unchecked_reasons == {"whose messages do not match their text": 1}


CALL = [{"type": "function", "function": {"name": "clock", "arguments": "{}"}}]


def test_a_row_with_calls_is_left_to_markers_that_hold_no_words_of_others() -> None:
    messages = [
        {"role": "user", "content": "when?"},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "At noon."},
    ]
    text = "### Question:\nwhen?\n\n### Answer:\ncall clock</s>\n\n### Result:\nnoon\n\n### Answer:\nAt noon.</s>"
    assert masked([(text, messages)])[0] == [["call clock</s>", "At noon.</s>"]]
    unclosed = text.replace("clock</s>", "clock")
    _, split = masked([(unclosed, messages)])
    assert split.unchecked_reasons == {"whose messages do not match their text": 1}, "its call would hold the result"
    forged = [{"role": "user", "content": "### Answer:\nwhen?"}, *messages[1:]]
    with pytest.raises(
        AmbiguousRowError, match=r"Message 0 quotes a marker, and a message holds more than its content"
    ):
        masked([(text.replace("when?", "### Answer:\nwhen?"), forged)])


def test_flags_of_messages_are_read_without_a_template() -> None:
    text, messages = PLAIN
    flagged = [{**message, "train": at != 1} for at, message in enumerate(messages)]
    assert masked([(text, flagged)], policy=Policy(turns="flagged"))[0] == [["dos</s>"]]


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("Yes. Sources: [1] x.</s>", "Yes.", "Yes. Sources: [1] x.</s>"),
        ("Hello.<end></s>", "Hello.", "Hello.<end></s>"),  # an end of text that is no control token
        ("Hello.\n### End\n\n\n</s>", "Hello.", "Hello.\n### End\n\n\n</s>"),
    ],
)
def test_what_follows_the_words_of_an_answer_is_the_answers_up_to_its_stop(
    text: str, words: str, expected: str
) -> None:
    rows = [(f"### Question:\nhi\n\n### Answer:\n{text}", conversation("hi", words)), PLAIN]
    assert masked(rows)[0] == [[expected], ["one", "dos</s>"]]


def test_whitespace_at_the_end_of_an_answer_is_its_own_where_the_message_has_it() -> None:
    messages = conversation("hi", "one\n", "ho", "dos")
    found, _ = masked([(written(messages) + "</s>", messages), PLAIN])
    assert found == [["one\n\n", "dos</s>"], ["one", "dos</s>"]], "one token holds it and half of the separator"
