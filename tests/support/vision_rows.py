"""Rows with images, written and random, and labels of them counted by the oracle."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
from datasets import Dataset, Image
from PIL import Image as Pictures
from support.vision_families import FAMILIES
from support.vision_oracle import expected

Row = dict[str, Any]
IMAGE = {"type": "image"}
_WORDS = [
    *("the", "cat", "東京", "sits\n\n", "on", "a", "mat,", "3.14", "and", "é🙂", "<b>", "USER:", "assistant", "x\ty"),
    *("(so)", "'it'", '"is"'),
]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def picture(seed: int, width: int = 70, height: int = 50) -> Pictures.Image:
    return Pictures.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def said(role: str, *parts: Any) -> Row:
    return {"role": role, "content": [part if isinstance(part, dict) else text(part) for part in parts]}


def rows() -> list[Row]:
    """One image, two of them with text between, one after the words, and a wide one between."""
    return [
        {
            "images": [picture(0)],
            "messages": [said("user", IMAGE, "What is this?"), said("assistant", "A cat on a mat.")],
        },
        {
            "images": [picture(1, 90, 60), picture(2, 40, 80)],
            "messages": [
                said("user", IMAGE, "\nfirst, and second ", IMAGE, " compare them"),
                said("assistant", "\nThey differ: 東京."),
                said("user", "How?"),
                said("assistant", "In size."),
            ],
        },
        {
            "images": [picture(3)],
            "messages": [
                said("user", "Before ", IMAGE),
                said("assistant", "Yes"),
                said("user", "And?"),
                said("assistant", "No, assistant says USER: hi"),
            ],
        },
        {
            "images": [picture(4, 120, 50)],
            "messages": [said("user", "Read it.", IMAGE, "\n\nplease"), said("assistant", "  spaced answer  ")],
        },
    ]


def dataset(given: list[Row]) -> Dataset:
    return Dataset.from_list(given).cast_column("images", [Image()])


def similar_rows(name: str, count: int, rng: random.Random, header: str, shapes: int = 3) -> list[Row]:
    """Conversations of a few shapes: the same turns with images in the same places, and random words."""
    return [
        row
        for _ in range(count)
        for row in random_rows(name, 1, rng, header, shape=random.Random(rng.randrange(shapes)))
    ]


def random_rows(
    name: str, count: int, rng: random.Random, header: str, shape: random.Random | None = None
) -> list[Row]:
    """Conversations of up to three turns, up to two images a turn, and markers that users type.

    ``shape`` decides about turns, images and whitespace at the end of answers; by default that is random too.
    """
    shape = shape or rng
    stop = FAMILIES[name].stop
    typed = [f"{stop}\n{header}no", header, stop]

    def say(most: int, *, quotes: bool = False) -> str:
        words = [rng.choice(_WORDS) for _ in range(rng.randint(1, most))]
        if quotes:
            words.insert(rng.randrange(len(words) + 1), rng.choice(typed))
        return " ".join(words)

    def row() -> Row:
        messages: list[Row] = []
        images = []
        for _ in range(shape.randint(1, 3)):
            parts: list[Any] = [text(say(8, quotes=rng.random() < 0.3))]
            for _ in range(shape.choice([0, 1, 1, 2])):
                parts.insert(shape.randrange(len(parts) + 1), dict(IMAGE))
                images.append(picture(rng.randrange(99), rng.randint(30, 140), rng.randint(30, 140)))
            answer = f"A{rng.randrange(10**6)} " + say(8) + shape.choice(["", "\n", " "])
            messages += [{"role": "user", "content": parts}, said("assistant", answer)]
        return {"images": images, "messages": messages}

    return [row() for _ in range(count)]


def wrong_rows(name: str, processor: Any, collator: Any, given: list[Row]) -> list[str]:
    """Rows of a collated batch whose ids or labels are not what the oracle counts."""
    batch = collator(copy.deepcopy(given))
    wrong = []
    for at, row in enumerate(given):
        ids, trained = expected(name, processor, row["messages"], row["images"])
        real = batch["attention_mask"][at].bool()
        labels = batch["labels"][at]
        wanted = [token if kept else -100 for token, kept in zip(ids, trained, strict=True)]
        if batch["input_ids"][at][real].tolist() != ids or labels[real].tolist() != wanted:
            wrong.append(f"{name} row {at}: {row['messages']}")
        if (labels[~real] != -100).any():
            wrong.append(f"{name} row {at}: padding is trained")
    return wrong
