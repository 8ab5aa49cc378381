"""What became of the fields of messages in rows with images: trained, masked, cut off, or not rendered."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.vision_families import build
from support.vision_rows import IMAGE, dataset, picture, rows, said
from support.vision_trainer import trainer_of
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sft_mask import ResponseOnlyCollator, preview_rows, train_on_responses_only

CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "left"}}}
SPOKEN = {
    "images": [picture(0)],
    "messages": [
        said("user", IMAGE, "What is this?"),
        {**said("assistant", "A cat"), "reasoning_content": "Whiskers, so a cat."},
        said("user", "And there?"),
        {**said("assistant", "A dog"), "tool_calls": [CALL, CALL]},
    ],
}


def collator(name: str, **options: Any) -> ResponseOnlyCollator:
    processor, _ = build(name)
    return ResponseOnlyCollator(DataCollatorForVisionLanguageModeling(processor, **options), processor)


@pytest.mark.parametrize("name", ["smolvlm", "gemma3", "llava"])
def test_what_the_template_does_not_write_is_counted(name: str) -> None:
    made = collator(name)
    made(copy.deepcopy([SPOKEN, SPOKEN]))
    made(copy.deepcopy([SPOKEN]))
    report = made.counts.report()
    assert report.fields == {"assistant contents": 6, "reasoning": 3, "tool calls": 6, "user contents": 6}
    assert report.not_rendered == {"reasoning": 3, "tool calls": 6}
    assert report.fields_trained == {"assistant contents": 6}
    assert report.fields_cut == {}


def test_what_the_template_writes_is_trained_or_masked_and_images_are_no_words() -> None:
    made = collator("smolvlm")
    made(rows())
    report = made.counts.report()
    answers = sum(message["role"] == "assistant" for row in rows() for message in row["messages"])
    assert report.fields == {"assistant contents": answers, "user contents": answers}
    assert report.fields_trained == {"assistant contents": answers}
    assert report.not_rendered == {}
    assert report.turns_compared == answers
    assert report.turns_in_other_form == report.turns_after_no_prompt == 0


@pytest.mark.parametrize("name", ["smolvlm", "gemma3", "llava"])
def test_answers_that_truncation_takes_whole_are_counted_with_their_tokens(name: str) -> None:
    row = rows()[1]
    whole = collator(name)([copy.deepcopy(row)])["labels"][0]
    trained = (whole != -100).nonzero().flatten()
    last = int(trained[torch.diff(trained).argmax() + 1])  # where the second answer begins
    for length, lost in ((len(whole), 0), (last + 2, 0), (last, 1), (int(trained[0]) + 3, 1)):
        made = collator(name, max_length=length)
        made([copy.deepcopy(row)])
        report = made.counts.report()
        assert report.answers_cut_off == lost, length
        assert report.tokens_cut_off == lost * int((trained >= last).sum())
        assert report.fields_cut.get("assistant contents", 0) == lost
        assert report.fields["assistant contents"] == 2
    assert report.fields_cut == {"assistant contents": 1, "user contents": 1}


def test_the_report_of_a_trainer_and_of_its_workers_says_it(tmp_path: Path) -> None:
    answer = {**said("assistant", "Hello"), "thinking": "A greeting."}
    plain = {"images": [], "messages": [said("user", "Hi"), answer]}
    data = dataset([plain, {"images": [picture(0)], "messages": [said("user", IMAGE), answer]}])
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path, data, dataloader_num_workers=1))
    expected = "not rendered: 2 of 2 reasoning, 0 of 2 assistant contents"
    assert expected in str(trainer.mask_report)
    list(trainer.get_eval_dataloader(trainer.train_dataset))
    report = trainer.mask_report
    assert report.splits["eval"].not_rendered == {"reasoning": 2}
    (warning,) = {each.partition(": ")[2] for each in report.warnings}
    assert warning.startswith("the chat template does not write 2 of 2 reasoning: the model learns to answer without")
    row = preview_rows(trainer)[1]
    assert any("lost: 1 reasoning not rendered" in status for status in row.status)
    assert "reasoning" in row.lost[0]
    assert "A greeting." in row.lost[0]
