"""A vision-language trainer: its rows, counts and answers in the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.kept_tables import keep_tables
from support.vision_trainer import trainer_of

from sft_mask import LogMask, SampleAnswers, train_on_responses_only


def test_a_vision_model_answers_prompts_of_text_and_its_rows_are_shown(
    monkeypatch: pytest.MonkeyPatch, in_tmp_path: Path
) -> None:
    kept = keep_tables(monkeypatch)
    trainer = train_on_responses_only(trainer_of("smolvlm", in_tmp_path, max_steps=4))
    trainer.add_callback(LogMask(trainer, rows=1))
    trainer.add_callback(SampleAnswers(trainer, ["red"], every=4, max_new_tokens=2))
    trainer.train()
    ((_, (row,)),) = kept.tables("mask/rows")
    assert "⟨image × " in row["text"]
    assert "⟦" in row["text"]
    assert [step for step, _ in kept.tables("samples")] == [0, 4]
    before, after = kept.all_settings
    assert before["mask/train/rows"] < after["mask/train/rows"], "rows are counted while they are collated"
    assert "loss_words" in next(entry for entry in trainer.state.log_history if "loss" in entry)
