"""Every cure is followed as it is written: the Python in it is run, or the trainer is built again as it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
import transformers
from datasets import Dataset
from support.marks import slow_but
from support.plain_trainer import build_plain, token_rows
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
from support.tiny import build, messages_dataset, tokenizer
from transformers import DataCollatorForLanguageModeling, default_data_collator

from sft_mask import Policy, train_on_responses_only
from sft_mask.doctor import diagnose, symptoms

pytestmark = pytest.mark.usefixtures("in_tmp_path")

_LINE = re.compile(
    r"trainer\.[\w.]+(?:\['\w+'\])? = (?:(?!\. |\.$).)+"
    r"|del trainer\.\w+"
    r"|train_on_responses_only\((?:[^()]|\([^()]*\))*\)"
)


def follow(trainer: Any, cure: str) -> None:
    """Runs the lines of Python in a cure, in their order."""
    lines = _LINE.findall(cure)
    assert lines, f"nothing to run in: {cure}"
    names = {"trainer": trainer, "transformers": transformers, "Policy": Policy, "tokenizer": tokenizer()}
    for line in lines:
        exec(line, {**names, "train_on_responses_only": train_on_responses_only})


def stops_masked(rows: Dataset) -> Dataset:
    stop = tokenizer().eos_token_id
    return rows.map(lambda row: {"labels": [-100 if i == stop else i for i in row["input_ids"]]})


def answers_masked(rows: Dataset) -> Dataset:
    """All but the end-of-turn tokens."""
    stop = tokenizer().eos_token_id
    return rows.map(lambda row: {"labels": [i if i == stop else -100 for i in row["input_ids"]]})


def masked_before(damage: Callable[[Dataset], Dataset], split: str = "train") -> Any:
    """Labels that were masked before the call, and are kept by it."""
    trainer = build("out", messages_dataset(24), {"a": messages_dataset(8, seed=3), "b": messages_dataset(8, seed=5)})
    if split == "train":
        trainer.train_dataset = damage(trainer.train_dataset)
    else:
        trainer.eval_dataset[split] = damage(trainer.eval_dataset[split])
    return train_on_responses_only(trainer)


def mixed_lengths(**options: Any) -> Any:
    """Half of the rows end inside their answer at 40 tokens."""
    short = [{"role": "user", "content": "I"}, {"role": "assistant", "content": "the river"}]
    long = [{"role": "user", "content": "I"}, {"role": "assistant", "content": "the river of stone " * 8}]
    rows = Dataset.from_list([{"messages": messages} for messages in (short, long) * 6])
    return build("out", rows, **{"max_length": 40, **options})


def loss_on_the_trainer() -> Any:
    trainer = build("out", labelled(*RIGHT), **SKIP)
    trainer.compute_loss = lambda model, inputs, *_, **__: model(**inputs).loss * 2  # type: ignore[method-assign]
    return trainer


def of_model(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return 2 * F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def replaced_collator() -> Any:
    trainer = train_on_responses_only(build_plain(evals=token_rows()))
    trainer.data_collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    return trainer


def replaced_evals() -> Any:
    trainer = train_on_responses_only(build_plain(evals=token_rows()))
    trainer.eval_dataset = token_rows(labels=True)
    return trainer


LM = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
RUN: dict[str, tuple[Callable[[], Any], str]] = {
    "plain TRL": (lambda: build("out", messages_dataset(24), messages_dataset(8, seed=3)), symptoms.ECHOES),
    "user turns": (lambda: sick(("user", "words")), symptoms.ECHOES),
    "system turns": (lambda: sick(("system", "words")), symptoms.SYSTEM),
    "headers": (lambda: sick(("assistant", "header")), symptoms.POOR),
    "newlines": (lambda: sick(("assistant", "newline")), symptoms.POOR),
    "empty reasoning": (thinking, symptoms.POOR),
    "no stops": (lambda: sick(without=("assistant", "stop")), symptoms.ENDLESS),
    "no words": (lambda: sick(without=("assistant", "words")), symptoms.WRONG_WORDS),
    "users only": (lambda: build("out", labelled(("user", "words")), **SKIP), symptoms.WRONG_WORDS),
    "nothing": (lambda: build("out", labelled(), **SKIP), symptoms.NOTHING),
    "empty rows": (
        lambda: build("out", Dataset.from_list([*labelled(*RIGHT), *labelled(rows=CHATS[:4])]), **SKIP),
        symptoms.NOTHING,
    ),
    "stops masked before": (lambda: masked_before(stops_masked), symptoms.ENDLESS),
    "answers masked before": (lambda: masked_before(answers_masked), symptoms.WRONG_WORDS),
    "stops of an eval split masked before": (lambda: masked_before(stops_masked, "b"), symptoms.ENDLESS),
    "damaged after masking": (after_masking, symptoms.ENDLESS),
    "eval unmasked": (eval_unmasked, symptoms.INCOMPARABLE),
    "stops elsewhere": (stops_elsewhere, symptoms.ENDLESS),
    "answers cut": (lambda: train_on_responses_only(mixed_lengths()), symptoms.POOR),
    "a loss on the trainer": (loss_on_the_trainer, symptoms.BROKEN),
    "Trainer, labels are a copy": (lambda: build_plain(token_rows(labels=True)), symptoms.ECHOES),
    "Trainer, no labels": (build_plain, symptoms.BROKEN),
    "Trainer, its own collator": (lambda: build_plain(collator=None), symptoms.BROKEN),
    "Trainer, collator makes labels": (lambda: build_plain(evals=token_rows(), collator=LM), symptoms.ECHOES),
    "Trainer, collator replaced": (replaced_collator, symptoms.BROKEN),
    "Trainer, padded rows": (
        lambda: build_plain(token_rows(labels=True, pad_to=300), collator=default_data_collator),
        symptoms.ECHOES,
    ),
    "Trainer, eval replaced": (replaced_evals, symptoms.INCOMPARABLE),
    "Trainer, loss function": (
        lambda: train_on_responses_only(build_plain(compute_loss_func=of_model)),
        symptoms.BROKEN,
    ),
}


FAST = ("plain TRL", "nothing", "stops masked before", "eval unmasked", "Trainer, no labels", "Trainer, padded rows")


@pytest.mark.parametrize("name", slow_but(FAST, RUN))
def test_one_finding_and_running_its_cure_mends_it(name: str) -> None:
    make, symptom = RUN[name]
    trainer = make()
    (finding,) = diagnose(trainer).findings
    assert symptom in (finding.symptom, *finding.also)
    follow(trainer, finding.cure)
    assert diagnose(trainer).healthy, str(diagnose(trainer))


def with_collator(kind: Any, data: Dataset | None = None) -> Callable[..., Any]:
    def make(**collator: Any) -> Any:
        return build("out", labelled(*RIGHT) if data is None else data, **{**SKIP, **collator})

    return lambda *mended: make() if mended else make(collator=kind(pad_token_id=PAD))


def rebuilds(*mended: bool) -> Any:
    collator = None if mended else DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    return build("out", labelled(*RIGHT).remove_columns("messages"), collator=collator, **SKIP)


def unanswered(*mended: bool) -> Any:
    """Rows whose prompt alone fills ``max_length``, next to one that fits."""
    long = [{"role": "user", "content": "the river of stone " * 8}, {"role": "assistant", "content": "I"}]
    rows = [{"messages": long}] * 3 + [{"messages": CHATS[0][-2:]}] * 9
    ids = Dataset.from_list(rows)
    trainer = build("out", ids, max_length=400 if mended else 40)
    return train_on_responses_only(trainer) if mended else trainer


AGAIN: dict[str, tuple[Callable[..., Any], str]] = {
    "pad is eos": (with_collator(MasksPads), "Build the trainer without data_collator="),
    "pads trained": (with_collator(TrainsPads), "Build the trainer without data_collator="),
    "labels shifted": (with_collator(Shifts), "Build the trainer without data_collator="),
    "hidden by attention": (with_collator(HidesStops), "Build the trainer without data_collator="),
    "labels rebuilt": (rebuilds, "Build the trainer without data_collator="),
    "labels ignored": (
        lambda *mended: build("out", labelled(*RIGHT), kind=None if mended else IgnoresLabels, **SKIP),
        "compute_loss of IgnoresLabels .* or remove it",
    ),
    "another loss": (
        lambda *mended: build("out", labelled(*RIGHT), **SKIP, **({} if mended else {"loss_type": "dft"})),
        "Build the trainer without loss_type='dft'",
    ),
    "all ignored": (
        lambda *mended: (
            train_on_responses_only(build("out", labelled().remove_columns("labels")))
            if mended
            else build("out", labelled())
        ),
        "without the labels column if it masks them",
    ),
    "answers cut": (
        lambda *mended: train_on_responses_only(mixed_lengths(max_length=400 if mended else 40)),
        "Build the trainer with a larger max_length",
    ),
}


@pytest.mark.parametrize("name", slow_but(["pad is eos", "answers cut"], AGAIN))
def test_one_finding_and_building_the_trainer_as_its_cure_says_mends_it(name: str) -> None:
    make, cure = AGAIN[name]
    (finding,) = diagnose(make()).findings
    assert re.search(cure, finding.cure), finding.cure
    assert diagnose(make(True)).healthy, str(diagnose(make(True)))


def test_a_policy_says_that_masked_answers_were_meant() -> None:
    """The other way out of labels that were masked before."""
    trainer = build("out", messages_dataset(24))
    trainer.train_dataset = stops_masked(trainer.train_dataset)
    train_on_responses_only(trainer, policy=Policy(stop="never"))
    assert diagnose(trainer).healthy


def test_stops_are_counted_in_the_row_not_in_the_labels() -> None:
    found = diagnose(masked_before(stops_masked))
    numbers = found.measured["train"]
    answers = sum(message["role"] == "assistant" for talk in CHATS for message in talk)
    assert (numbers["end-of-turn tokens trained"], numbers["end-of-turn tokens"]) == (0, answers)
    assert f"none of the {answers} end-of-turn tokens is trained" in str(found)


@pytest.mark.parametrize("packing", ["", "bfd", "wrapped"])
def test_answers_in_a_prompt_are_not_missed(packing: str) -> None:
    """Only the completion is trained: that is no mask too much, also where packing has dropped the columns."""
    rows = [{"prompt": talk[:-1], "completion": talk[-1:]} for talk in CHATS]
    options = {"packing": True, "packing_strategy": packing} if packing else {}
    trainer = train_on_responses_only(build("out", Dataset.from_list(rows), max_length=800, **options))
    found = diagnose(trainer)
    assert not {symptoms.WRONG_WORDS, symptoms.ENDLESS, symptoms.NOTHING} & {*found.symptoms}, str(found)


def test_two_causes_are_two_findings() -> None:
    trainer = build("out", labelled(*RIGHT, ("user", "words")), **SKIP, loss_type="dft")
    assert [finding.symptom for finding in diagnose(trainer).findings] == [symptoms.ECHOES, symptoms.BROKEN]
