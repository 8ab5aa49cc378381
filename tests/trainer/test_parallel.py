"""Rows that several ranks share: what is counted, what is checked, and what is said at the call."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import build, chats, expected, tokenized

from sft_mask import IGNORE_INDEX, train_on_responses_only
from sft_mask.errors import LabelsChangedError
from sft_mask.trainer.checks import check_labels
from sft_mask.trainer.hook import without_repeats
from sft_mask.trainer.metrics import Meter
from sft_mask.trainer.parallel import predicted_labels, what_depends_on_the_ranks

CHAT = max(chats(8, seed=4), key=lambda messages: len(tokenized(messages)))
TRAINED = sum(label != IGNORE_INDEX for label in expected(CHAT)[1:])


def parts(count: int, *, keep_labels: bool) -> list[dict[str, torch.Tensor]]:
    """A row as context (with its labels) and sequence parallelism (without) cut it: shifted first, then cut."""
    ids, labels = tokenized(CHAT), expected(CHAT)
    missing = -len(ids) % count
    row = {
        "input_ids": torch.tensor([ids + [0] * missing]),
        "labels": torch.tensor([labels + [IGNORE_INDEX] * missing]),
        "shift_labels": torch.tensor([labels[1:] + [IGNORE_INDEX] * (missing + 1)]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * missing]),
    }
    names = [name for name in row if keep_labels or name != "labels"]
    width = (len(ids) + missing) // count
    return [{name: row[name][:, at * width : (at + 1) * width] for name in names} for at in range(count)]


class Ranks:
    """An accelerator that sums the counts of all ranks."""

    def __init__(self, others: list[Meter]) -> None:
        self.others = others

    def reduce(self, own: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        tokens = torch.stack([meter.tokens for meter in self.others if meter.tokens is not None]).sum(0)
        return torch.cat([tokens, own[len(tokens) :]])


@pytest.mark.parametrize("keep_labels", [True, False], ids=["context", "sequence"])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_token_is_lost_where_a_row_is_cut(count: int, keep_labels: bool) -> None:
    cut = parts(count, keep_labels=keep_labels)
    starts = [at * cut[0]["input_ids"].shape[1] for at in range(1, count)]
    assert count == 2 or any(expected(CHAT)[at] != IGNORE_INDEX for at in starts), "a part starts with a trained token"
    meters = [Meter() for _ in cut]
    for meter, part in zip(meters, cut, strict=True):
        meter.count(part)
    assert meters[0].read(Ranks(meters))["supervised_tokens"] == TRAINED
    meters[0].count(cut[0])
    assert meters[0].read(Ranks(meters))["supervised_share"] == pytest.approx(TRAINED / len(tokenized(CHAT)))


def test_a_whole_row_predicts_all_but_its_first_token() -> None:
    row = {"labels": torch.tensor([expected(CHAT)])}
    assert predicted_labels(row).tolist() == [expected(CHAT)[1:]]


def test_ranks_with_the_same_row_count_it_once() -> None:
    meters = [Meter(), Meter()]
    for meter in meters:
        meter.count({"labels": torch.tensor([expected(CHAT)])})
    read = meters[0].read(Ranks(meters), copies=2)
    assert read["supervised_tokens"] == TRAINED
    assert read["supervised_share"] == pytest.approx(TRAINED / len(tokenized(CHAT)))


@pytest.mark.parametrize("rank", [0, 1])
def test_tensor_parallel_ranks_evaluate_the_same_rows(rank: int) -> None:
    progress = SimpleNamespace(end_of_dataloader=True, remainder=2)
    sizes = SimpleNamespace(tp_size=2, cp_size=1)
    ranks = SimpleNamespace(num_processes=2, process_index=rank, gradient_state=progress, parallelism_config=sizes)
    inputs = {"labels": torch.full((2, 4), 5), "attention_mask": torch.ones(2, 4)}
    assert (without_repeats(inputs, ranks)["labels"] == 5).all()


def test_shifted_labels_are_checked_against_the_next_token() -> None:
    for part in parts(2, keep_labels=False):
        check_labels(part)
        unshifted = {**part, "shift_labels": part["input_ids"]}
        with pytest.raises(LabelsChangedError, match="the labels are not aligned with input_ids"):
            check_labels(unshifted)


def ranks_of(world_size: int, averaged: bool, sequence: bool = False) -> Any:
    args = SimpleNamespace(world_size=world_size, average_tokens_across_devices=averaged)
    return SimpleNamespace(
        args=args, accelerator=SimpleNamespace(parallelism_config=SimpleNamespace(sp_enabled=sequence))
    )


def test_what_depends_on_the_number_of_ranks_is_said() -> None:
    assert what_depends_on_the_ranks(ranks_of(2, averaged=True)) == []
    assert what_depends_on_the_ranks(ranks_of(1, averaged=False)) == []
    (said,) = what_depends_on_the_ranks(ranks_of(2, averaged=False))
    assert said.startswith("average_tokens_across_devices=False: each rank divides its loss by")
    (said,) = what_depends_on_the_ranks(ranks_of(2, averaged=True, sequence=True))
    assert "Leave gradient_accumulation_steps at 1" in said


def test_it_is_said_at_the_call(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    trainer = build(tmp_path, average_tokens_across_devices=False)
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda _: 2))
    with caplog.at_level("WARNING", logger="sft_mask"):
        train_on_responses_only(trainer)
    assert "average_tokens_across_devices=False" in caplog.text
