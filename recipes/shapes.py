"""Pictures of shapes with questions about them, drawn by a seed: a data set small enough to see a model learn to look.

Every row has one picture and a conversation of two questions (which colour, which shape, how many) with short answers,
as ``messages`` whose contents are parts. What is asked cannot be answered without the picture.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from datasets import Dataset, Image
from PIL import Image as Pictures
from PIL import ImageDraw

COLOURS = {"red": (214, 40, 40), "green": (60, 160, 70), "blue": (40, 90, 200), "yellow": (235, 190, 30)}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("one", "two", "three")


def picture(shape: str, colour: str, number: int, rng: random.Random, side: int = 112) -> Pictures.Image:
    """Some shapes of one kind and colour beside each other, a little displaced."""
    made = Pictures.new("RGB", (side, side), (245, 245, 240))
    draw = ImageDraw.Draw(made)
    step, size = side // 3, side // 4
    for place in range(number):
        left = place * step + rng.randint(2, 6)
        top = rng.randint(side // 8, side - size - side // 8)
        box = (left, top, left + size, top + size)
        match shape:
            case "circle":
                draw.ellipse(box, COLOURS[colour])
            case "square":
                draw.rectangle(box, COLOURS[colour])
            case _:
                draw.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], COLOURS[colour])
    return made


def rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of ``images`` and ``messages``; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        shape, colour, number = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.randint(1, 3)
        questions = [
            ("Which colour do the shapes have?", colour),
            ("What shape is drawn?", shape),
            ("How many shapes are there?", NUMBERS[number - 1]),
        ]
        (first, one), (second, two) = rng.sample(questions, 2)
        yield {
            "images": [picture(shape, colour, number, rng)],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first}]},
                {"role": "assistant", "content": [{"type": "text", "text": one.capitalize() + "."}]},
                {"role": "user", "content": [{"type": "text", "text": second}]},
                {"role": "assistant", "content": [{"type": "text", "text": two.capitalize() + "."}]},
            ],
        }


def dataset(count: int, seed: int = 0) -> Dataset:
    """The rows as a dataset that holds its pictures as PNG."""
    return Dataset.from_list(list(rows(count, seed))).cast_column("images", [Image()])
