"""``LogMask``: what it logs and when, what it refuses, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from support.kept_tables import KeptTables, keep_tables
from support.plain_trainer import build_plain
from support.tiny import build, chats, expected, messages_dataset, model, tokenized
from trl import SFTTrainer

from sft_mask import LogMask, Policy, train_on_responses_only
from sft_mask.errors import DataError, UnsupportedError

CHATS = chats(8, seed=4)
END = tokenized([{"role": "user", "content": "a"}])[-2]

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptTables:
    return keep_tables(monkeypatch)


def masked(policy: Policy | None = None, **options: Any) -> SFTTrainer:
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    defaults = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    return train_on_responses_only(build("out", data, evals=data, **{**defaults, **options}), policy=policy)


def mean_losses(policy: str = "all") -> tuple[float, float]:
    """Of the end-of-turn tokens and of the other trained tokens, of an untrained model: a plain loop."""
    network, groups = model().eval(), ([], [])
    for chat in CHATS:
        last = max(at for at, message in enumerate(chat) if message["role"] == "assistant")
        labels = expected(chat, {last} if policy == "last" else None)
        with torch.no_grad():
            logits = network(torch.tensor([tokenized(chat)])).logits[0]
        losses = F.cross_entropy(logits[:-1], torch.tensor(tokenized(chat))[1:], reduction="none").tolist()
        for loss, label in zip(losses, labels[1:], strict=True):
            if label != -100:
                groups[label != END].append(loss)
    ends, words = groups
    return sum(ends) / len(ends), sum(words) / len(words)


@pytest.mark.newest
@pytest.mark.parametrize(
    "options", [{}, {"padding_free": True, "max_length": None}, {"eval_strategy": "steps", "eval_steps": 1}], ids=str
)
def test_losses_of_both_groups_are_those_of_a_plain_loop(options: dict[str, Any]) -> None:
    trainer = masked(**options)
    trainer.add_callback(LogMask(trainer))
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert (first["loss_end_of_turn"], first["loss_words"]) == pytest.approx(mean_losses(), rel=1e-5)
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert all(entry["eval_loss_end_of_turn"] < first["loss_end_of_turn"] for entry in evaluated)
    assert bool(evaluated) == ("eval_strategy" in options)


@pytest.mark.newest
def test_losses_are_those_of_trained_tokens_and_not_weighted() -> None:
    trainer = masked(Policy(turns="last", reduction="sequence"))
    trainer.add_callback(LogMask(trainer))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert (entry["loss_end_of_turn"], entry["loss_words"]) == pytest.approx(mean_losses("last"), rel=1e-5)


def test_training_is_the_same_and_nothing_stays_on_the_model(kept: KeptTables) -> None:
    found = []
    for logs in (False, True):
        trainer = masked(max_steps=2)
        if logs:
            trainer.add_callback(LogMask(trainer))
        trainer.train()
        found.append((trainer.model.state_dict(), [entry.get("loss") for entry in trainer.state.log_history]))
        assert not trainer.model._forward_hooks
    (plain, losses), (logged, same) = found
    assert losses == same
    assert all(torch.equal(plain[name], logged[name]) for name in plain)
    assert kept.tables("mask/rows")


def test_rows_and_settings_are_logged_once_at_the_first_step(kept: KeptTables) -> None:
    trainer = masked(Policy(turns="last"), max_steps=3)
    trainer.add_callback(LogMask(trainer, rows=2))
    trainer.train()
    ((step, rows),) = kept.tables("mask/rows")
    assert step == 0
    assert [row["row"].partition(" · ")[0] for row in rows] == ["train 0", "train 1"]
    assert all(f"⟦{chat[-1]['content']}<|im_end|>⟧" in row["text"] for chat, row in zip(CHATS, rows, strict=False))
    (settings,) = kept.all_settings
    assert settings["policy"]["turns"] == "last"
    assert settings["mask/train/share"] == trainer.mask_report.splits["train"].share


def test_rows_of_a_stream_are_counted_again_at_the_end(kept: KeptTables) -> None:
    trainer = build("out", messages_dataset(100).to_iterable_dataset(), max_steps=25)
    trainer = train_on_responses_only(trainer)
    trainer.add_callback(LogMask(trainer, rows=0))
    trainer.train()
    first, last = (settings["mask/train/rows"] for settings in kept.all_settings)
    assert first < last == 100
    assert not kept.tables("mask/rows")


def test_a_plain_trainer_logs_rows_too(kept: KeptTables) -> None:
    trainer = train_on_responses_only(build_plain())
    trainer.add_callback(LogMask(trainer))
    trainer.train()
    assert len(kept.tables("mask/rows")[0][1]) == 8
    assert all("loss_words" not in entry for entry in trainer.state.log_history)


def test_without_a_tracker_one_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    trainer = masked(max_steps=2)
    trainer.add_callback(LogMask(trainer))
    trainer.train()
    ours = [record.message for record in caplog.records if record.name.startswith("sft_mask.tracking")]
    assert len(ours) == 1
    assert ours[0].startswith("LogMask has nothing to log to")


def test_what_cannot_be_logged_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"not masked. Call train_on_responses_only\(trainer\) before"):
        LogMask(build("out"))
    with pytest.raises(UnsupportedError, match="needs the trainer itself, not list"):
        LogMask([])
    with pytest.raises(DataError, match=r"rows=-1\) is not a number of rows"):
        LogMask(masked(), rows=-1)
