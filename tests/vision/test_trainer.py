"""Trainers on images: the one call, training, evaluation, prediction, streams and workers."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.vision_families import IMAGES
from support.vision_oracle import expected
from support.vision_rows import IMAGE, dataset, picture, rows, said
from support.vision_trainer import trainer_of
from trl import SFTTrainer

from sft_mask import Policy, ResponseOnlyCollator, train_on_responses_only
from sft_mask.errors import (
    AmbiguousRowError,
    DataError,
    LabelsChangedError,
    NothingToTrainError,
    SftMaskError,
    UnsupportedError,
)


def wanted(name: str, processor: Any, row: dict[str, Any]) -> list[int]:
    ids, trained = expected(name, processor, row["messages"], row["images"])
    return [token if kept else -100 for token, kept in zip(ids, trained, strict=True)]


def labels_of(batches: Any) -> list[list[int]]:
    """Labels of every row without padding."""
    pairs = (
        (batch["labels"][at], batch["attention_mask"][at]) for batch in batches for at in range(len(batch["labels"]))
    )
    return [labels[mask.bool()].tolist() for labels, mask in pairs]


def reference_loss(trainer: SFTTrainer, given: list[dict[str, Any]], name: str) -> float:
    """Mean cross-entropy in fp64 over the tokens that the oracle trains, row by row."""
    total, count = 0.0, 0
    trainer.model.eval()
    for row in given:
        labels = torch.tensor(wanted(name, trainer.processing_class, row))
        batch = dict(trainer.data_collator.inner([copy.deepcopy(row)]))
        del batch["labels"]
        with torch.no_grad():
            logits = trainer.model(**batch).logits[0].double()
        kept = labels[1:] != -100
        chosen = torch.log_softmax(logits[:-1], -1)[kept, labels[1:][kept]]
        total, count = total - float(chosen.sum()), count + int(kept.sum())
    return total / count


@pytest.mark.filterwarnings("ignore:.return_outputs=True.:FutureWarning")
@pytest.mark.parametrize("name", IMAGES)
def test_a_trainer_on_images_trains_evaluates_and_predicts_the_same_mask(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path, eval_dataset=dataset(rows()[:2]))
    processor = trainer.processing_class
    assert train_on_responses_only(trainer) is trainer
    want = [wanted(name, processor, row) for row in rows()]
    assert labels_of(trainer.get_eval_dataloader(trainer.train_dataset)) == want
    assert trainer.train().training_loss > 0
    raw = dataset(rows()[2:])
    assert trainer.evaluate(raw)["eval_loss"] == pytest.approx(reference_loss(trainer, rows()[2:], name), rel=1e-4)
    predicted = trainer.predict(raw).label_ids
    assert [[int(i) for i in row if i != -100] for row in predicted] == [
        [i for i in row if i != -100] for row in want[2:]
    ]
    report = trainer.mask_report
    assert report.splits["train"].rows >= 4
    assert report.splits["test"].rows == 2
    assert "collated" in str(report)


def test_before_training_the_report_counts_some_rows(tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path))
    report = trainer.mask_report
    assert (report.splits["train"].rows, report.splits["train"].images) == (4, 5)
    assert "images   5 of" in str(report)
    assert "a few rows" in str(report)
    assert report.warnings == ()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_label_and_count_alike(workers: int, tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path, dataloader_num_workers=workers))
    processor = trainer.processing_class
    batches = list(trainer.get_eval_dataloader(trainer.train_dataset))
    assert labels_of(batches) == [wanted("smolvlm", processor, row) for row in rows()]
    assert trainer.mask_report.splits["eval"].rows == 4


@pytest.mark.slow
def test_spawned_workers_label_and_count_alike(tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path))
    loader = torch.utils.data.DataLoader(
        rows(), batch_size=2, collate_fn=trainer.data_collator, num_workers=2, multiprocessing_context="spawn"
    )
    before = trainer.data_collator.counts.shared()
    assert labels_of(loader) == [wanted("smolvlm", trainer.processing_class, row) for row in rows()]
    assert int(before.sum()) > 0
    assert trainer.data_collator.counts.report().rows == 4


def test_streams_are_masked_while_they_are_read(tmp_path: Path) -> None:
    stream = dataset(rows()).to_iterable_dataset()
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path, stream))
    trainer.train()
    assert trainer.mask_report.splits["train"].rows == 4


@pytest.mark.newest
def test_weights_reach_the_loss(tmp_path: Path) -> None:
    plain, weighted = (trainer_of("smolvlm", tmp_path, eval_dataset=dataset(rows())) for _ in range(2))
    train_on_responses_only(plain)
    train_on_responses_only(weighted, reduction="sequence")
    by_row = [plain.evaluate(dataset([row]))["eval_loss"] for row in rows()]
    assert weighted.evaluate()["eval_loss"] == pytest.approx(sum(by_row) / 4, rel=1e-5)
    weighted.train()


def test_a_second_call_replaces_the_first(tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path))
    inner = trainer.data_collator.inner
    train_on_responses_only(trainer, policy=Policy(stop="never"))
    assert trainer.data_collator.inner is inner
    assert trainer.mask_report.splits["train"].stops_trained == 0


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    losses = []
    for batch, steps in ((4, 1), (1, 4)):
        trainer = trainer_of(
            "smolvlm",
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
        )
        train_on_responses_only(trainer)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# what is refused


def refused(trainer: SFTTrainer, kind: type[SftMaskError], match: str, **options: Any) -> None:
    before = (type(trainer), trainer.data_collator, trainer.train_dataset, dict(vars(trainer)))
    with pytest.raises(kind, match=match):
        train_on_responses_only(trainer, **options)
    after = (type(trainer), trainer.data_collator, trainer.train_dataset, dict(vars(trainer)))
    assert before == after


def row_of(*messages: Any, images: int = 1) -> dict[str, Any]:
    return {"images": [picture(at) for at in range(images)], "messages": list(messages)}


GOOD = row_of(said("user", IMAGE, "What?"), said("assistant", "A cat"))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "typed": (
        row_of(said("user", IMAGE, "What is <image> here?"), said("assistant", "A cat")),
        r"Row 1 of the train dataset.*message 0 \(user\) holds '<image>'.*Write it otherwise",
    ),
    "typed by the assistant": (
        row_of(said("user", IMAGE, "What?"), said("assistant", "An <image>")),
        r"Row 1 of the train dataset.*message 1 \(assistant\) holds '<image>'",
    ),
    "a tool's image": (
        row_of(said("user", "What?"), said("tool", IMAGE), said("assistant", "A cat")),
        r"Row 1 .*message 1 of messages is a tool's and has an image",
    ),
    "a null image": (
        row_of(said("user", {"type": "image", "image": None}, "What?"), said("assistant", "A cat")),
        r"Row 1 .*'image': None.*Leave the key 'image' out",
    ),
    "too many images": (
        row_of(said("user", IMAGE, "What?"), said("assistant", "A cat"), images=2),
        r"Row 1 .*2 images for 1 image parts",
    ),
    "no images": (
        {"images": None, "messages": [said("user", "What?"), said("assistant", "A cat")]},
        r"Row 1 .*column is null or missing.*empty list",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_before_the_first_step(kind: str, tmp_path: Path) -> None:
    row, match = BAD[kind]
    good = copy.deepcopy(GOOD)
    if kind == "a null image":  # Arrow gives every part this key
        good["messages"][0]["content"][0] = {"type": "image", "image": None}
        row, match = good, match.replace("Row 1", "Row 0")
    refused(trainer_of("smolvlm", tmp_path, dataset([good, row])), DataError, match)


def test_a_stream_names_a_bad_row_in_its_batch(tmp_path: Path) -> None:
    stream = dataset([GOOD, BAD["typed"][0]]).to_iterable_dataset()
    refused(trainer_of("smolvlm", tmp_path, stream), DataError, r"The train dataset: Row 1 of a batch.*holds '<image>'")


def test_max_length_inside_an_image_is_named(tmp_path: Path) -> None:
    refused(trainer_of("smolvlm", tmp_path, max_length=12), DataError, r"(?s)cannot collate.*max_length cuts an image")


def test_max_length_that_leaves_no_answer_is_named(tmp_path: Path) -> None:
    trainer = trainer_of("llava", tmp_path, dataset([GOOD] * 3), max_length=30)
    refused(trainer, NothingToTrainError, r"None of the 3 rows.*30 tokens long.*truncation removed the answers")


def test_a_collator_that_is_exchanged_is_named(tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path))
    trainer.data_collator = trainer.data_collator.inner
    for use in (trainer.train, lambda: trainer.evaluate(trainer.train_dataset)):
        with pytest.raises(LabelsChangedError, match="DataCollatorForVisionLanguageModeling now: it was exchanged"):
            use()


def test_a_processor_without_a_chat_template_is_named(tmp_path: Path) -> None:
    trainer = trainer_of("smolvlm", tmp_path)
    trainer.processing_class.chat_template = None
    refused(trainer, UnsupportedError, "SmolVLMProcessor has no chat template")


def test_a_tokenizer_in_place_of_the_processor_is_taken_for_its_processor(tmp_path: Path) -> None:
    trainer = trainer_of("smolvlm", tmp_path)
    train_on_responses_only(trainer, tokenizer=trainer.processing_class.tokenizer)
    assert isinstance(trainer.data_collator, ResponseOnlyCollator)


@pytest.mark.newest
def test_weights_with_label_smoothing_are_refused(tmp_path: Path) -> None:
    trainer = trainer_of("smolvlm", tmp_path, label_smoothing_factor=0.1)
    refused(trainer, UnsupportedError, "label_smoothing_factor", prompt_weight=0.1)


def test_conversations_are_named(tmp_path: Path) -> None:
    data = dataset([GOOD]).rename_column("messages", "conversations")
    refused(trainer_of("smolvlm", tmp_path, data), DataError, "does not convert.*rename_column")


def test_rows_of_another_template_are_refused_or_masked(tmp_path: Path) -> None:
    trainer = trainer_of("smolvlm", tmp_path)
    other = (
        "{% for m in messages %}[{{ m['role'] }}]{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>"
        "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    match = "(?s)not what the chat template renders.*on_ambiguous='mask'"
    refused(trainer, AmbiguousRowError, match, chat_template=other)
    with pytest.raises(NothingToTrainError, match="4 ambiguous, masked"):
        train_on_responses_only(trainer, chat_template=other, on_ambiguous="drop")


def test_answers_do_not_leak_through_a_random_batch_size(tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of("qwen2_5_vl", tmp_path))
    order = list(range(4))
    random.Random(3).shuffle(order)
    shuffled = [rows()[at] for at in order]
    assert labels_of([trainer.data_collator(copy.deepcopy(shuffled))]) == [
        wanted("qwen2_5_vl", trainer.processing_class, row) for row in shuffled
    ]
