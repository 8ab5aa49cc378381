"""What is wrong with a row of images, as far as its messages and columns show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_mask.vision.conversations import VisionRow, parts_of


def typed_placeholder(row: VisionRow, texts: Sequence[str]) -> str | None:
    """The placeholder that a message's text holds, as a sentence; ``None`` for none."""
    messages = row.conversation.messages if row.conversation is not None else ()
    for at, message in enumerate(messages):
        for words in _texts(message):
            held = next((text for text in texts if text in words), None)
            if held is not None:
                return (
                    f"the text of message {at} ({message.get('role')}) holds {held!r}, which the processor takes for "
                    "the place of an image or a sound: one could land where it was typed. Write it otherwise "
                    f"({held[0]} {held[1:]}), or remove it."
                )
    return None


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    """Every text of a message, whatever its field."""
    yield from (str(part["text"]) for part in parts_of(message) if part.get("text"))
    waiting: list[object] = [value for key, value in message.items() if key not in ("role", "content")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)


def fault_of(example: Mapping[str, Any], images: int | None) -> str | None:
    """What is wrong with an example of an image dataset, and what to do; ``None`` if nothing is.

    Args:
        example: its messages, or its prompt and completion; the images need not be decoded.
        images: how many images it brings; ``None`` if the row has no such column, or it is null.
    """
    columns = [name for name in ("messages", "prompt", "completion") if isinstance(example.get(name), list)]
    if images is None:
        return (
            "it has no images: its column is null or missing. A row without images needs an empty list: "
            'dataset.map(lambda row: {"images": row["images"] or []}).'
        )
    open_places, in_text = 0, False
    for name in columns:
        for at, message in enumerate(example[name]):
            if not isinstance(message, Mapping):
                return f"message {at} of {name} is {message!r:.80}, not a mapping with a role and a content. Repair it."
            fault = _part_fault(message, f"message {at} of {name}")
            if fault is not None:
                return fault
            in_text |= name != "completion" and message.get("role") == "user" and isinstance(message["content"], str)
            open_places += 0 if name == "completion" else _open_places(message)
    if "completion" in columns and any(_open_places(message) for message in example["completion"]):
        return "its completion has an image, which TRL never fills. Give messages instead of prompt and completion."
    if columns and open_places != images and not (in_text and not open_places):
        return (
            f"it has {images} images for {open_places} image parts. Give each image one part "
            '{"type": "image"}, or contents that are text: then the images come before the first.'
        )
    return None


def _part_fault(message: Mapping[str, Any], name: str) -> str | None:
    for part in parts_of(message) if not isinstance(message.get("content"), str) else ():
        if part.get("type") != "image":
            continue
        if message.get("role") == "tool":
            return f"{name} is a tool's and has an image, which TRL never fills. Move it into a message of the user."
        if "image" in part and part["image"] is None:
            return (
                f"{name} has a part {{'type': 'image', 'image': None}}, which TRL takes for an image that is there; "
                "datasets fills in such keys where other parts have them. Leave the key 'image' out of all parts."
            )
    return None


def _open_places(message: Mapping[str, Any]) -> int:
    if isinstance(message.get("content"), str):
        return 0
    return sum(part.get("type") == "image" and "image" not in part for part in parts_of(message))
