"""A model that reads images, trained on text: its processor renders the messages, and that is what is masked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset, Features, Image, Value
from support.vision_families import IMAGES, build
from support.vision_oracle import expected
from support.vision_rows import IMAGE, dataset, picture, rows, said
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sft_mask import (
    Policy,
    ResponseOnlyCollator,
    detect_markers,
    mask_dataset,
    preview_rows,
    train_on_responses_only,
)
from sft_mask.cli.main import main
from sft_mask.errors import DataError, UnsupportedError

TEXT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

CHATS = [
    [{"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "An animal: 東京."}],
    [
        {"role": "user", "content": "Say USER: hi"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "Again,\n\nplease"},
        {"role": "assistant", "content": "\nhi again"},
    ],
]


def text_trainer(name: str, folder: Path, **options: Any) -> tuple[SFTTrainer, Any]:
    processor, model = build(name)
    args = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], max_steps=1, save_strategy="no", **options
    )
    data = Dataset.from_list([{"messages": messages} for messages in CHATS])
    return SFTTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=processor), processor


def wanted(name: str, processor: Any) -> list[list[int]]:
    counted = [expected(name, processor, messages, []) for messages in CHATS]
    return [[token if kept else -100 for token, kept in zip(*row, strict=True)] for row in counted]


def without_bos(rows: list[list[int]], processor: Any) -> list[list[int]]:
    """A tokenizer may add its BOS before a text that was rendered without one."""
    ids = [processor.tokenizer("x")["input_ids"], processor.tokenizer("x", add_special_tokens=False)["input_ids"]]
    added = len(ids[0]) - len(ids[1])
    return [row[added:] for row in rows]


@pytest.mark.parametrize("name", IMAGES)
def test_a_trainer_with_a_processor_is_masked_on_text(name: str, tmp_path: Path) -> None:
    trainer, processor = text_trainer(name, tmp_path)
    train_on_responses_only(trainer)
    assert list(trainer.train_dataset["labels"]) == wanted(name, processor)
    assert list(trainer.eval_dataset["labels"]) == wanted(name, processor)
    assert trainer.mask_report.splits["train"].rows_unchecked == 0


@pytest.mark.parametrize("name", IMAGES)
def test_mask_dataset_renders_as_the_trainer_does(name: str, tmp_path: Path) -> None:
    trainer, processor = text_trainer(name, tmp_path)
    data = Dataset.from_list([{"messages": messages} for messages in CHATS])
    masked = mask_dataset(data, processor)
    assert list(masked["input_ids"]) == list(trainer.train_dataset["input_ids"])
    assert list(masked["labels"]) == wanted(name, processor)


def test_prompt_and_completion_are_masked_too() -> None:
    processor, _ = build("smolvlm")
    pairs = Dataset.from_list([{"prompt": messages[:-1], "completion": messages[-1:]} for messages in CHATS])
    masked = mask_dataset(pairs, processor)
    shown = [processor.tokenizer.decode([t for t in row if t != -100]) for row in masked["labels"]]
    assert shown == [" An animal: 東京.<end_of_utterance>", " \nhi again<end_of_utterance>"]


def test_markers_and_previews_take_a_processor() -> None:
    processor, _ = build("smolvlm")
    assert detect_markers(processor).eots == ("<end_of_utterance>",)
    rows = preview_rows([{"messages": messages} for messages in CHATS], processor)
    assert [run.text for run in rows[0].runs if run.trained] == [" An animal: 東京.<end_of_utterance>"]


def test_the_command_line_loads_the_processor_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processor, _ = build("idefics3")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    code = main(["preview", str(tmp_path / "model"), str(tmp_path / "chats.jsonl"), "--json"])
    out = capsys.readouterr().out
    assert code == 0
    assert "An animal: 東京.<end_of_utterance>" in out


def no_torchvision(*_: object, **__: object) -> None:
    raise ImportError("SmolVLMVideoProcessor requires the Torchvision library")


@pytest.mark.parametrize("command", ["preview", "check"])
def test_the_command_line_says_why_it_uses_the_tokenizer(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, _ = build("idefics3")
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", no_torchvision)
    chats, images = tmp_path / "chats.jsonl", tmp_path / "images.jsonl"
    chats.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    images.write_text("".join(json.dumps({"messages": chat, "images": ["a.png"]}) + "\n" for chat in CHATS))
    template = tmp_path / "text.jinja"
    template.write_text(TEXT_TEMPLATE)
    run = [command, str(tmp_path / "model")]
    assert main([*run, str(chats), "--chat-template", str(template)]) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert "model has a processor that cannot be built here (ImportError: SmolVLMVideoProcessor requires" in warning
    assert "its tokenizer renders the messages" in warning
    assert main([*run, str(images), "--chat-template", str(template)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "ImportError" in error
    assert "the rows have the column 'images', which only a processor reads. Install" in error


PHOTOS = Features({"conversations": [{"from": Value("string"), "value": Value("string")}], "photo": Image()})


@pytest.mark.parametrize("read", [mask_dataset, preview_rows])
def test_columns_under_other_names_are_seen(read: Any) -> None:
    processor, _ = build("smolvlm")
    spoken = [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "A cat"}]
    data = Dataset.from_list([{"conversations": spoken, "photo": picture(0)}] * 2, features=PHOTOS)
    with pytest.raises(UnsupportedError, match=r"train dataset has the column 'photo'.*ResponseOnlyCollator"):
        read(data, processor)
    read(data.remove_columns("photo"), processor)


def test_an_image_part_without_a_column_is_named() -> None:
    processor, _ = build("smolvlm")
    data = Dataset.from_list([{"messages": [said("user", IMAGE, "What?"), said("assistant", "A cat")]}])
    with pytest.raises(DataError, match=r"Row 0: .*Message 0 holds an image, but the rows have no column images"):
        mask_dataset(data, processor)


BESIDE: dict[str, tuple[object, str]] = {
    "max_length": (64, r"Give it to the collator inside it.*max_length="),
    "expand": (True, "cannot be expanded: leave it out"),
    "columns": ({"a": "b"}, r"rename columns and roles in the dataset"),
    "roles": ({"a": "user"}, r"rename columns and roles in the dataset"),
    "policy": (Policy(turns="last"), r"Give it to ResponseOnlyCollator\(collator, processor, policy="),
    "chat_template": ("{{ messages }}", r"Give it to ResponseOnlyCollator\(.*chat_template="),
    "instruction_part": ("User:", "reads the markers from its chat template: leave it out"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_preview_of_collated_rows_refuses_what_it_would_ignore(name: str) -> None:
    processor, _ = build("smolvlm")
    made = ResponseOnlyCollator(DataCollatorForVisionLanguageModeling(processor), processor)
    value, way = BESIDE[name]
    with pytest.raises(UnsupportedError, match=f"so {name} would be ignored. .*{way}"):
        preview_rows(dataset(rows()), made, **{name: value})  # type: ignore[arg-type]


def test_mask_dataset_refuses_images_by_name() -> None:
    processor, _ = build("smolvlm")
    data = Dataset.from_list([{"messages": messages, "images": []} for messages in CHATS])
    with pytest.raises(UnsupportedError, match=r"column 'images'.*ResponseOnlyCollator"):
        mask_dataset(data, processor)


def test_a_processor_without_a_fast_tokenizer_is_refused() -> None:
    class Slow:
        pass

    class Processor:
        tokenizer = Slow()
        chat_template = "{{ messages }}"

    with pytest.raises(UnsupportedError, match=r"Slow, which Processor holds, is not a fast tokenizer"):
        mask_dataset(Dataset.from_list([{"messages": CHATS[0]}]), Processor())
