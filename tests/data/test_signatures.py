"""One row, one test: every shape of dataset behind a built trainer, with weights on its tokens.

What reaches the loss is read from the batches of the train dataloader, document by document, with a decoder of its own;
what it should be is counted from character offsets. The loss of one step over all rows is then compared with a plain
float64 loop.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from support.tiny import ASSISTANT, STOP, USER, arms, build, chats, expected, model, rendered, tokenized, tokenizer
from trl import SFTTrainer

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.errors import DataError

CHATS = chats(8, seed=4)
PROMPT = 0.1
Document = tuple[tuple[int, float], ...]
"""Ids with their weights; 0 where a token is not trained."""


pytestmark = pytest.mark.usefixtures("in_tmp_path")


# what should be there


def given_weights(size: int) -> list[float]:
    """A ``loss_weights`` column: every fourth token is left out."""
    return [(0.5, 1.0, 2.0, 0.0)[at % 4] for at in range(size)]


def document(labels: list[int], ids: list[int], arm: str, visible_from: int = 0) -> Document:
    """What a row should train: its mask, with weights; tokens before ``visible_from`` are masked by somebody else."""
    weights = [float(label != -100) for label in labels]
    if arm == "prompt":
        weights = [weight or PROMPT for weight in weights]
    if arm == "column":
        weights = [weight * factor for weight, factor in zip(weights, given_weights(len(ids)), strict=True)]
    weights = [weight if at >= visible_from else 0.0 for at, weight in enumerate(weights)]
    return tuple(zip(ids, weights, strict=True))


@cache
def whole(arm: str) -> list[Document]:
    """Every answer of every conversation."""
    return [document(expected(chat), tokenized(chat), arm) for chat in CHATS]


def completions(arm: str) -> list[Document]:
    """Only the last answer, and what follows it, was left unmasked by the prompt's own mask."""
    made = []
    for chat in CHATS:
        ids = tokenized(chat)
        start = len(tokenizer()(rendered(chat[:-1]) + ASSISTANT)["input_ids"])
        made.append(document(expected(chat, only={len(chat) - 1}), ids, arm, start))
    return made


def texts(arm: str) -> list[Document]:
    """Rows that end with the stop token."""
    sizes = [1 + max(at for at, (_, weight) in enumerate(row) if weight) for row in whole("mask")]
    return [row[:size] for row, size in zip(whole(arm), sizes, strict=True)]


# what is there


def decoded(labels: list[int]) -> list[tuple[int, float]]:
    """Ids and weights of labels, read bit by bit."""
    made = []
    for label in labels:
        (weight,) = struct.unpack("<f", struct.pack("<I", (label >> 32) ^ 0x3F800000)) if label != -100 else (0.0,)
        made.append((-100 if label == -100 else label % (1 << 24), weight))
    return made


def documents_of(batch: dict[str, Any]) -> list[Document]:
    """The documents of a batch, without padding; positions tell them apart where they are packed."""
    made = []
    for row in range(len(batch["input_ids"])):
        size = batch["input_ids"].shape[1]
        bounds = [0, int(batch["attention_mask"][row].sum())] if "attention_mask" in batch else [0, size]
        if "position_ids" in batch:
            bounds = [*torch.nonzero(batch["position_ids"][row] == 0).flatten().tolist(), size]
        ids, labels = batch["input_ids"][row].tolist(), decoded(batch["labels"][row].tolist())
        assert all(label in (-100, token) for token, (label, _) in zip(ids, labels, strict=True))
        weighted = [(token, weight) for token, (_, weight) in zip(ids, labels, strict=True)]
        made += [tuple(weighted[low:high]) for low, high in pairwise(bounds)]
    return made


def predicted(documents: list[Document]) -> list[Document]:
    """Documents without the weight of their first token, which nothing predicts; sorted."""
    return sorted(((row[0][0], 0.0), *row[1:]) for row in documents)


def rounded(documents: list[Document]) -> list[Document]:
    return [
        tuple((token, struct.unpack("<f", struct.pack("<f", weight))[0]) for token, weight in row) for row in documents
    ]


def plain_loss(documents: list[Document]) -> float:
    alone, total, weight = copy.deepcopy(model()).double(), 0.0, 0.0
    with torch.no_grad():
        for row in documents:
            ids = torch.tensor([[token for token, _ in row]])
            counts = torch.tensor([w for _, w in row], dtype=torch.float64)[1:]
            nll = F.cross_entropy(alone(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:], reduction="none")
            total, weight = total + float((counts * nll).sum()), weight + float(counts.sum())
    return total / weight


def trains(trainer: SFTTrainer, wanted: list[Document]) -> None:
    """All rows in one batch: the batch holds the wanted documents, and the step's loss is that of a plain loop."""
    (batch,) = list(trainer.get_train_dataloader())
    assert predicted(documents_of(batch)) == predicted(rounded(wanted))
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(plain_loss(wanted), rel=2e-6)


# the shapes


def messages(columns: dict[str, Any]) -> Dataset:
    return Dataset.from_list(
        [{"messages": chat, **{k: v[at] for k, v in columns.items()}} for at, chat in enumerate(CHATS)]
    )


def ids_only(columns: dict[str, Any]) -> Dataset:
    return Dataset.from_dict({"input_ids": [tokenized(chat) for chat in CHATS], **columns})


def conversational_completion(columns: dict[str, Any]) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [chat[:-1] for chat in CHATS], "completion": [chat[-1:] for chat in CHATS], **columns}
    )


def plain_completion(columns: dict[str, Any]) -> Dataset:
    prompts = [rendered(chat[:-1]) + ASSISTANT for chat in CHATS]
    return Dataset.from_dict({"prompt": prompts, "completion": [chat[-1]["content"] for chat in CHATS], **columns})


def text(columns: dict[str, Any]) -> Dataset:
    return Dataset.from_dict({"text": [rendered(chat).rstrip("\n") for chat in CHATS], **columns})


def conversations(columns: dict[str, Any]) -> Dataset:
    rows = [[{"from": m["role"], "value": m["content"]} for m in chat] for chat in CHATS]
    return Dataset.from_dict({"conversations": rows, **columns})


def own_labels(columns: dict[str, Any]) -> Dataset:
    rows = [tokenized(chat) for chat in CHATS]
    return Dataset.from_dict({"input_ids": rows, "labels": [[-100] * 9 + row[9:] for row in rows], **columns})


def own_mask(arm: str) -> list[Document]:
    return [document(expected(chat), tokenized(chat), arm, 9) for chat in CHATS]


def ends_of_completions(arm: str) -> list[Document]:
    """A plain completion ends with the stop token, where the template would go on with a newline."""
    return [row[:-1] for row in completions(arm)]


@dataclass(frozen=True)
class Shape:
    """A shape of data, what of it should be trained, and the options that make a trainer take it."""

    data: Callable[[dict[str, Any]], Any]
    wanted: Callable[[str], list[Document]] = whole
    options: dict[str, Any] = field(default_factory=dict)


SKIP = {"dataset_kwargs": {"skip_prepare_dataset": True}}
SHAPES = {
    "messages": Shape(messages),
    "conversations": Shape(conversations),
    "text": Shape(text, texts),
    "prompt and completion": Shape(conversational_completion, completions),
    "prompt and completion, its own mask off": Shape(
        conversational_completion, options={"completion_only_loss": False}
    ),
    "plain prompt and completion": Shape(plain_completion, ends_of_completions),
    "ids": Shape(ids_only),
    "ids and labels": Shape(own_labels, own_mask),
    "unprepared": Shape(ids_only, options=SKIP),
    "numpy": Shape(lambda columns: ids_only(columns).with_format("numpy"), options=SKIP),
    "torch": Shape(lambda columns: ids_only(columns).with_format("torch"), options=SKIP),
    "extra columns": Shape(lambda columns: messages({**columns, "source": ["web"] * 8, "n": list(range(8))})),
    "all columns kept": Shape(messages, options={"remove_unused_columns": False}),
    "shuffled": Shape(lambda columns: messages(columns).shuffle(seed=3)),
    "stream": Shape(lambda columns: messages(columns).to_iterable_dataset()),
    "stream of ids": Shape(lambda columns: ids_only(columns).to_iterable_dataset(), options=SKIP),
    "padding-free": Shape(messages, options={"padding_free": True, "max_length": None}),
    "padded to a multiple": Shape(messages, options={"pad_to_multiple_of": 64}),
}
ARMS = {"mask": {}, "prompt": {"prompt_weight": PROMPT}, "column": {}}


def one_step(data: Any, **options: Any) -> SFTTrainer:
    return build("out", data, **{"max_steps": 1, "per_device_train_batch_size": 32, **options})


def columns_of(arm: str, shape: Shape) -> dict[str, Any]:
    return {"loss_weights": [given_weights(len(row)) for row in shape.wanted("mask")]} if arm == "column" else {}


@pytest.mark.parametrize("arm", arms(ARMS))
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_trains_its_tokens_with_their_weights(name: str, arm: str) -> None:
    shape = SHAPES[name]
    data = shape.data(columns_of(arm, shape))
    trainer = train_on_responses_only(one_step(data, **shape.options), **ARMS[arm])
    trains(trainer, shape.wanted(arm))
    if name == "extra columns":
        assert trainer.train_dataset["source"] == ["web"] * 8


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_a_formatting_func(arm: str) -> None:
    def line(row: dict[str, Any]) -> str:
        return f"{USER}{row['q']}{STOP}\n{ASSISTANT}{row['a']}"

    rows = [{"q": f"red {n}", "a": f"blue {n}"} for n in range(8)]
    said = [[{"role": "user", "content": r["q"]}, {"role": "assistant", "content": r["a"]}] for r in rows]
    wanted = [tuple(document(expected(chat), tokenized(chat), arm)[:-1]) for chat in said]
    trainer = one_step(Dataset.from_list(rows), formatting_func=line)
    trains(train_on_responses_only(trainer, **ARMS[arm]), wanted)


# packed


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_packed_by_trl_before_the_call(arm: str) -> None:
    trainer = one_step(messages({}), packing=True, max_length=150)
    assert len(trainer.train_dataset) < len(CHATS)
    trains(train_on_responses_only(trainer, **ARMS[arm]), whole(arm))


@pytest.mark.parametrize("arm", arms(ARMS))
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", pytest.param("wrapped", marks=pytest.mark.newest)])
def test_packed_by_trl_after_masking(strategy: str, arm: str) -> None:
    """Pieces of documents (of all documents in a row, for ``wrapped``), each with the weights it had in one piece.

    Where a row begins inside an answer (``wrapped``), transformers 5.0 divides by its first token too.
    """
    columns = columns_of(arm, SHAPES["messages"])
    masked = mask_dataset(messages(columns), tokenizer(), policy=policy(arm))
    size = 150 if strategy == "bfd" else 48
    trainer = one_step(masked, packing=True, packing_strategy=strategy, max_length=size, seed=1)
    train_on_responses_only(trainer)
    (batch,) = list(trainer.get_train_dataloader())
    pieces = documents_of(batch)
    sources = rounded(whole(arm))
    joined = [tuple(pair for row in sources for pair in row)]
    for piece in pieces:
        assert any(is_part(piece[1:], row) for row in (joined if strategy == "wrapped" else sources))
    assert sum(map(len, pieces)) == sum(map(len, sources)) if strategy != "wrapped" else len(pieces) > 3
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(plain_loss(pieces), rel=2e-6)


def policy(arm: str) -> Policy:
    return Policy(prompt_weight=PROMPT) if arm == "prompt" else Policy()


def is_part(piece: Document, row: Document) -> bool:
    return any(row[at : at + len(piece)] == piece for at in range(len(row) - len(piece) + 1))


# sets to evaluate


@pytest.mark.parametrize("kind", [dict, DatasetDict])
@pytest.mark.parametrize("arm", arms(ARMS))
def test_a_dict_of_sets_to_evaluate(arm: str, kind: type) -> None:
    columns = columns_of(arm, SHAPES["messages"])
    evals = kind(all=messages(columns), few=messages(columns).select(range(3)))
    trainer = train_on_responses_only(one_step(messages(columns), evals=evals), **ARMS[arm])
    metrics = trainer.evaluate()
    assert metrics["eval_all_loss"] == pytest.approx(plain_loss(whole(arm)), rel=1e-6)
    assert metrics["eval_few_loss"] == pytest.approx(plain_loss(whole(arm)[:3]), rel=1e-6)


# nothing there


@pytest.mark.parametrize("arm", arms(["mask", "prompt"]))
def test_an_empty_split_is_named(arm: str) -> None:
    trainer = one_step(messages({}), evals={"full": messages({}), "bare": messages({})})
    trainer.eval_dataset["bare"] = trainer.eval_dataset["bare"].select([])
    with pytest.raises(DataError, match="There are no rows in the eval:bare dataset"):
        train_on_responses_only(trainer, **ARMS[arm])
    trainer.train_dataset = trainer.train_dataset.select([])
    with pytest.raises(DataError, match="There are no rows in the train dataset"):
        train_on_responses_only(trainer, **ARMS[arm])
