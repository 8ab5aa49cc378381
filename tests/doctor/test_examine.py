"""Sick trainers, each with one known fault, and the doctor names exactly that; healthy ones get a clean bill."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from support.sick_trainers import (
    CHATS,
    PAD,
    RIGHT,
    SKIP,
    HidesStops,
    IgnoresLabels,
    MasksPads,
    Shifts,
    TrainsPads,
    after_masking,
    eval_unmasked,
    labelled,
    sick,
    stops_elsewhere,
    thinking,
)
from support.tiny import (
    ASSISTANT,
    STOP,
    USER,
    build,
    expected,
    messages_dataset,
    model,
    rendered,
    tokenized,
    tokenizer,
)
from transformers import DataCollatorForLanguageModeling
from trl import SFTConfig, SFTTrainer

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.doctor import diagnose, symptoms


def cut_answers() -> SFTTrainer:
    rows = [[{"role": "user", "content": "I"}, {"role": "assistant", "content": "the river of stone " * 8}]] * 8
    return build("out", Dataset.from_list([{"messages": m} for m in rows]), max_length=40)


CASES: dict[str, tuple[Callable[[], SFTTrainer], set[str], str]] = {
    "user turns": (lambda: sick(("user", "words")), {symptoms.ECHOES}, "tokens of the user are trained"),
    "system turns": (lambda: sick(("system", "words")), {symptoms.SYSTEM}, "of system prompts are trained"),
    "headers": (lambda: sick(("assistant", "header")), {symptoms.POOR}, "of headers"),
    "newlines": (lambda: sick(("assistant", "newline")), {symptoms.POOR}, "after an end-of-turn token"),
    "no stops": (lambda: sick(without=("assistant", "stop")), {symptoms.ENDLESS}, "end-of-turn tokens is trained"),
    "no answers": (
        lambda: build("out", labelled(("user", "words"), ("user", "stop")), **SKIP),
        {symptoms.ECHOES, symptoms.WRONG_WORDS, symptoms.ENDLESS},
        "tokens of the assistant's answers are trained",
    ),
    "nothing": (lambda: build("out", labelled(), **SKIP), {symptoms.NOTHING}, "none of"),
    "empty rows": (
        lambda: build("out", Dataset.from_list([*labelled(*RIGHT), *labelled(rows=CHATS[:4])]), **SKIP),
        {symptoms.NOTHING},
        "rows train nothing",
    ),
    "plain TRL": (
        lambda: build("out", messages_dataset(24)),
        {symptoms.ECHOES, symptoms.SYSTEM, symptoms.POOR},
        "tokens of the user are trained",
    ),
    "eval unmasked": (eval_unmasked, {symptoms.ECHOES, symptoms.POOR, symptoms.INCOMPARABLE}, "are trained, but"),
    "pad is eos": (
        lambda: build("out", labelled(*RIGHT), collator=MasksPads(pad_token_id=PAD), **SKIP),
        {symptoms.ENDLESS},
        "masks them as padding: both are the same token",
    ),
    "pads trained": (
        lambda: build("out", labelled(*RIGHT), collator=TrainsPads(pad_token_id=PAD), **SKIP),
        {symptoms.ENDLESS},
        "padding tokens are trained",
    ),
    "labels rebuilt": (
        lambda: build(
            "out",
            labelled(*RIGHT).remove_columns("messages"),
            collator=DataCollatorForLanguageModeling(tokenizer(), mlm=False),
            **SKIP,
        ),
        {symptoms.BROKEN},
        "",
    ),
    "labels shifted": (
        lambda: build("out", labelled(*RIGHT), collator=Shifts(pad_token_id=PAD), **SKIP),
        {symptoms.BROKEN},
        "labels must not be shifted",
    ),
    "labels ignored": (
        lambda: build("out", labelled(*RIGHT), kind=IgnoresLabels, **SKIP),
        {symptoms.BROKEN},
        "the loss does not change with a trained label",
    ),
    "stops elsewhere": (stops_elsewhere, {symptoms.ENDLESS}, "its generation config stops at"),
    "answers cut": (lambda: train_on_responses_only(cut_answers()), {symptoms.POOR}, "end in the middle of an answer"),
    "empty reasoning": (thinking, {symptoms.POOR}, "that the template prefills"),
}


CASES |= {
    "damaged after masking": (after_masking, {symptoms.ENDLESS}, "end-of-turn tokens is trained"),
    "hidden by attention": (
        lambda: build("out", labelled(*RIGHT), collator=HidesStops(pad_token_id=PAD), **SKIP),
        {symptoms.BROKEN},
        "its attention_mask hides tokens",
    ),
    "all ignored": (
        lambda: build("out", labelled(("none", "words")), max_length=256),
        {symptoms.NOTHING},
        "TRL drops rows",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_sickness_is_named(name: str) -> None:
    make, symptoms, words = CASES[name]
    found = diagnose(make())
    assert symptoms <= set(found.symptoms), str(found)
    if name not in ("labels rebuilt", "labels shifted"):  # these break more than one thing
        assert set(found.symptoms) == symptoms, str(found)
    assert any(words in finding.diagnosis for finding in found.findings)
    assert all(finding.cure for finding in found.findings)
    assert not found.healthy


HEALTHY: dict[str, Callable[[], Any]] = {
    "messages": lambda: train_on_responses_only(build("out", messages_dataset(24), messages_dataset(8, seed=3))),
    "text": lambda: train_on_responses_only(
        build("out", Dataset.from_list([{"text": rendered(m)} for m in CHATS])), USER, ASSISTANT
    ),
    "ids": lambda: train_on_responses_only(
        build("out", Dataset.from_list([{"input_ids": tokenized(m)} for m in CHATS]))
    ),
    "prompt and completion": lambda: train_on_responses_only(
        build("out", Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in CHATS]))
    ),
    "packed": lambda: train_on_responses_only(build("out", packing=True, max_length=200)),
    "wrapped": lambda: train_on_responses_only(build("out", packing=True, packing_strategy="wrapped", max_length=1000)),
    "padding-free": lambda: train_on_responses_only(build("out", padding_free=True, max_length=None)),
    "stream": lambda: train_on_responses_only(build("out", messages_dataset(24).to_iterable_dataset())),
    "masked before": lambda: train_on_responses_only(
        build("out", mask_dataset(messages_dataset(24), tokenizer()), packing=True, max_length=200)
    ),
    "masked before with weights": lambda: train_on_responses_only(
        build("out", mask_dataset(messages_dataset(24), tokenizer(), policy=Policy(prompt_weight=0.1)))
    ),
    "weighted": lambda: train_on_responses_only(build("out"), prompt_weight=0.1, reduction="sequence"),
    "last turn": lambda: train_on_responses_only(build("out"), policy=Policy(turns="last")),
    "no stops, as asked": lambda: train_on_responses_only(build("out"), policy=Policy(stop="never")),
    "right by itself": lambda: build("out", labelled(*RIGHT), **SKIP),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_trainer_gets_a_clean_bill(name: str) -> None:
    trainer = HEALTHY[name]()
    found = diagnose(trainer)
    assert found.healthy, str(found)
    assert found.measured["train"]["share trained"] > 0.05
    assert ("asks for" in str(found)) == (name in ("weighted", "last turn", "no stops, as asked"))


def test_the_trainer_is_left_as_it_was() -> None:
    trainer = train_on_responses_only(build("out", evals=messages_dataset(6)))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    train, evals, training = trainer.train_dataset, trainer.eval_dataset, trainer.model.training
    assert diagnose(trainer).healthy
    assert trainer.train_dataset is train
    assert trainer.eval_dataset is evals
    assert trainer.model.training == training
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())
    assert not trainer._metrics["eval"]
    trainer.train()
    trained = [entry["supervised_tokens"] for entry in trainer.state.log_history if "supervised_tokens" in entry]
    again = train_on_responses_only(build("out", evals=messages_dataset(6)))
    again.train()
    assert trained == [entry["supervised_tokens"] for entry in again.state.log_history if "supervised_tokens" in entry]


def test_what_is_measured_is_counted_by_hand() -> None:
    trainer = train_on_responses_only(build("out"))
    numbers = diagnose(trainer).measured["train"]
    labels = [expected(messages) for messages in CHATS]
    assert numbers["tokens"] == sum(map(len, labels))
    assert numbers["tokens in the loss"] == sum(label != -100 for row in labels for label in row[1:])
    assert (
        numbers["end-of-turn tokens"]
        == numbers["end-of-turn tokens trained"]
        == sum(m["role"] == "assistant" for c in CHATS for m in c)
    )


def test_it_prints_and_is_json() -> None:
    found = diagnose(sick(("user", "words")))
    console = Console(file=StringIO(), width=200, record=True)
    console.print(found)
    assert "✗ the model echoes the user (train)" in console.export_text()
    assert json.loads(json.dumps(found.to_dict()))["healthy"] is False
    assert "cure  Call train_on_responses_only" in str(found)


def test_it_takes_markers_where_there_is_no_template(tmp_path: Path) -> None:
    bare = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, eos_token=STOP, pad_token="<pad>")
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **SKIP)
    trainer = SFTTrainer(model(), args=args, train_dataset=labelled(*RIGHT, ("user", "words")), processing_class=bare)
    assert symptoms.ECHOES in diagnose(trainer, USER, ASSISTANT).symptoms
