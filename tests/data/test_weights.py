"""What a policy makes of a dataset: a weight for every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from support.tiny import STOP, chats, expected, messages_dataset, tokenized, tokenizer

from sft_mask import IGNORE_INDEX, Policy, Region, mask_dataset
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.errors import DataError, NothingToTrainError

CHATS = chats(12)


def weights_of(row: Any) -> list[float]:
    labels = np.array(row["labels"])
    ids = label_ids(labels)
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(row["input_ids"], ids.tolist(), strict=True))
    return [float(weight) for weight in label_weights(labels)]


def masked(policy: Policy, data: Dataset | None = None, **options: Any) -> Any:
    return mask_dataset(messages_dataset(12) if data is None else data, tokenizer(), policy=policy, **options)


def test_the_prompt_is_everything_that_is_no_answer() -> None:
    for row, messages in zip(masked(Policy(prompt_weight=0.25)), CHATS, strict=True):
        assert weights_of(row) == [0.25 if label == -100 else 1.0 for label in expected(messages)]


def test_the_prompt_is_counted_by_itself() -> None:
    _, report = masked(Policy(prompt_weight=0.25), return_report=True)
    plain = [label for messages in CHATS for label in expected(messages)]
    split = report.splits["train"]
    assert split.trained_tokens == sum(label != -100 for label in plain)
    assert split.prompt_trained_tokens == sum(label == -100 for label in plain)
    assert "of its tokens are trained too" in str(report)
    assert not report.warnings


def test_answers_that_are_not_trained_are_no_prompt() -> None:
    for row, messages in zip(masked(Policy(turns="last", prompt_weight=0.5)), CHATS, strict=True):
        last = expected(messages, only={len(messages) - 1})
        every = expected(messages)
        wanted = [
            1.0 if label != -100 else 0.0 if any_ != -100 else 0.5 for label, any_ in zip(last, every, strict=True)
        ]
        assert weights_of(row) == wanted


def test_a_prompt_that_was_masked_before_stays_masked() -> None:
    data = Dataset.from_list([{"input_ids": tokenized(m), "labels": expected(m)} for m in CHATS])
    for row, messages in zip(masked(Policy(prompt_weight=0.5), data), CHATS, strict=True):
        assert weights_of(row) == [float(label != -100) for label in expected(messages)]


def test_a_role_can_count_less() -> None:
    for row, messages in zip(masked(Policy(roles={"assistant": 0.5})), CHATS, strict=True):
        assert weights_of(row) == [0.5 * (label != -100) for label in expected(messages)]


def test_every_turn_and_every_conversation_sums_to_one() -> None:
    by_turn, by_conversation = masked(Policy(reduction="turn")), masked(Policy(reduction="sequence"))
    for turn_row, row, messages in zip(by_turn, by_conversation, CHATS, strict=True):
        answers = sum(message["role"] == "assistant" for message in messages)
        assert sum(weights_of(turn_row)) == pytest.approx(answers, rel=1e-6)
        assert sum(weights_of(row)) == pytest.approx(1, rel=1e-6)
        assert [weight > 0 for weight in weights_of(row)] == [label != -100 for label in expected(messages)]


def test_regions_count_less_and_a_text_reaches_the_stop() -> None:
    chat = [{"role": "user", "content": "(a) red"}, {"role": "assistant", "content": "(a) red (b) blue"}]
    data = Dataset.from_list([{"messages": chat}])
    (row,) = masked(Policy(regions=[Region("(", ")", weight=0.5), Region(text=STOP, weight=2)]), data)
    pieces = [tokenizer().decode([token]) for token in row["input_ids"]]
    graded = [(piece, weight) for piece, weight in zip(pieces, weights_of(row), strict=True) if weight]
    assert "".join(piece for piece, weight in graded if weight == 0.5) == "(a)(b)"
    assert [piece for piece, weight in graded if weight == 2] == [STOP]
    assert "".join(piece for piece, _ in graded) == "(a) red (b) blue" + STOP


def test_a_column_of_weights_is_multiplied_in() -> None:
    rows = [
        {"input_ids": tokenized(m), "loss_weights": [0.5 * (at % 3) for at in range(len(tokenized(m)))]} for m in CHATS
    ]
    for row, messages in zip(masked(Policy(), Dataset.from_list(rows)), CHATS, strict=True):
        wanted = [0.5 * (at % 3) * (label != -100) for at, label in enumerate(expected(messages))]
        assert weights_of(row) == wanted


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([1.0, -2.0], r"has the loss weight -2.0: a weight must be finite and not negative"),
        ([1.0, float("nan")], "has the loss weight nan"),
        ([1.0], r"loss_weights for \d+ input_ids. Give one weight for each id"),
    ],
)
def test_bad_weights_are_refused_with_their_row(weights: list[float], match: str) -> None:
    ids = [tokenized(m) for m in CHATS]
    rows = [{"input_ids": row, "loss_weights": [1.0] * len(row)} for row in ids]
    rows[3]["loss_weights"] = weights if len(weights) == 1 else weights + [1.0] * (len(ids[3]) - 2)
    with pytest.raises(DataError, match=match) as caught:
        masked(Policy(), Dataset.from_list(rows))
    assert "row 3" in str(caught.value).lower()


def test_masking_with_weights_says_what_must_follow(caplog: pytest.LogCaptureFixture) -> None:
    masked(Policy())
    assert not caplog.records
    masked(Policy(prompt_weight=0.5))
    assert "Call train_on_responses_only(trainer)" in caplog.text


def test_weights_that_are_all_zero_train_nothing() -> None:
    rows = [{"input_ids": tokenized(m), "loss_weights": [0.0] * len(tokenized(m))} for m in CHATS]
    with pytest.raises(NothingToTrainError):
        masked(Policy(), Dataset.from_list(rows))


def test_labels_that_carry_weights_are_not_masked_again() -> None:
    done = masked(Policy(prompt_weight=0.5))
    with pytest.raises(DataError, match="Do not mask these rows a second time"):
        mask_dataset(Dataset.from_list(list(done.select_columns(["input_ids", "labels"]))), tokenizer())
