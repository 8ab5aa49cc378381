"""``ResponseOnlyCollator`` in a loop of one's own, around a collator for audio: TRL has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.vision_families import build
from support.vision_rows import said

from sft_mask import ResponseOnlyCollator
from sft_mask.errors import DataError, LabelsChangedError, UnsupportedError

SOUND = {"type": "audio"}


class AudioCollator:
    """Renders, reads the sounds, pads; it makes no labels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        texts = [self.processor.apply_chat_template(example["messages"]) for example in examples]
        sounds = [sound for example in examples for sound in example["sounds"]]
        return self.processor(text=texts, audio=sounds, sampling_rate=16_000, padding=True, return_tensors="pt")


def example(question: str, answer: str, sounds: int = 1) -> dict[str, Any]:
    waves = [np.sin(np.arange(1600 * (at + 1)) / 20).astype(np.float32) for at in range(sounds)]
    return {"sounds": waves, "messages": [said("user", *[SOUND] * sounds, question), said("assistant", answer)]}


def trained(processor: Any, batch: Any) -> list[str]:
    return [processor.tokenizer.decode([int(i) for i in row if i != -100]) for row in batch["labels"]]


def test_only_what_the_assistant_says_of_a_sound_is_trained() -> None:
    processor, _ = build("qwen2_audio")
    collator = ResponseOnlyCollator(AudioCollator(processor), processor)
    batch = collator([example("What is it?", "A bell."), example("And these two?", "Bells, 東京.", sounds=2)])
    assert trained(processor, batch) == ["A bell.<|im_end|>", "Bells, 東京.<|im_end|>"]
    assert collator.counts.report().images == 3
    wrong = (batch["labels"] != -100) & (batch["labels"] != batch["input_ids"])
    assert not wrong.any()
    assert batch["labels"].dtype == torch.int64


def test_a_typed_placeholder_is_named() -> None:
    processor, _ = build("qwen2_audio")
    collator = ResponseOnlyCollator(AudioCollator(processor), processor)
    with pytest.raises(DataError, match=r"Row 0 of a batch: the text of message 0 \(user\) holds '<\|AUDIO\|>'"):
        collator([example("What is <|AUDIO|>?", "A bell.")])


def test_a_collator_that_shifts_labels_is_named() -> None:
    processor, _ = build("qwen2_audio")
    inner = AudioCollator(processor)

    def shifting(examples: list[dict[str, Any]]) -> Any:
        batch = inner(examples)
        batch["labels"] = batch["input_ids"].roll(-1, 1)
        return batch

    with pytest.raises(LabelsChangedError, match="must not be shifted"):
        ResponseOnlyCollator(shifting, processor)([example("What is it?", "A bell.")])


def test_what_is_no_processor_or_no_collator_is_named() -> None:
    processor, _ = build("qwen2_audio")
    with pytest.raises(UnsupportedError, match="is not a processor"):
        ResponseOnlyCollator(AudioCollator(processor), processor.tokenizer)
    with pytest.raises(UnsupportedError, match="is not a collator"):
        ResponseOnlyCollator(None, processor)  # type: ignore[arg-type]
