"""The conversation of a row with images, as its template is given it: contents in parts, an image part for each image.

Like TRL's ``prepare_multimodal_messages``, without the images themselves: a template looks only at whether they are
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_mask.data.read.conversations import Conversation
from sft_mask.errors import DataError
from sft_mask.templates.chat_template import with_parts

_IMAGE = {"type": "image"}
HERE = "here"
_PAIR = ("prompt", "completion")
MEDIA = ("image", "image_url", "video", "audio")
"""Types of parts that are no text."""


@dataclass(frozen=True, slots=True)
class VisionRow:
    """One example: its conversation, or ``None`` for a row that is text; and the images that it brings."""

    conversation: Conversation | None
    images: Sequence[Any]

    @property
    def begins(self) -> str:
        """The first words, to find the row by."""
        messages = self.conversation.messages if self.conversation is not None else ()
        words = (part["text"] for message in messages for part in parts_of(message) if part.get("text"))
        return str(next(words, ""))[:60]


def read_row(example: Mapping[str, Any]) -> VisionRow:
    """The conversation and the images of an example, before a collator changes it.

    Raises:
        DataError: a message is malformed, or images and placeholders do not match.
    """
    images = images_of(example)
    if isinstance(example.get("messages"), Sequence) and not isinstance(example["messages"], str):
        return VisionRow(Conversation(_ready(example["messages"], len(images))), images)
    prompt, completion = (example.get(name) for name in _PAIR)
    if isinstance(prompt, Sequence) and isinstance(completion, Sequence) and not isinstance(prompt, str):
        given = _ready(prompt, len(images))
        return VisionRow(Conversation([*given, *_ready(completion, 0)], prompt=len(given)), images)
    return VisionRow(None, images)


def images_of(example: Mapping[str, Any]) -> Sequence[Any]:
    """The images of an example, from the column ``images`` or ``image``."""
    if example.get("images") is not None:
        return list(example["images"])
    return [example["image"]] if example.get("image") is not None else []


def parts_of(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The parts of a message's content; of text, one."""
    content = with_parts(message).get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, Sequence) else ()


def _ready(messages: Sequence[Any], images: int) -> list[Mapping[str, Any]]:
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"message {at} is {message!r:.80}, not a mapping with a role and a content. Repair it.")
    placed = _with_images_in_front(messages, images)
    left = iter(range(images))
    return [_with_media_there(message, left) for message in placed]


def _with_images_in_front(messages: Sequence[Mapping[str, Any]], images: int) -> list[Mapping[str, Any]]:
    """Messages in parts; where the first of the user's is text, the images come before it."""
    made: list[Mapping[str, Any]] = []
    placed = False
    for message in messages:
        ready = with_parts(message)
        if message.get("role") == "user" and isinstance(message.get("content"), str) and not placed:
            ready, placed = {**ready, "content": [*[dict(_IMAGE)] * images, *ready["content"]]}, True
        made.append(ready)
    return made


def _with_media_there(message: Mapping[str, Any], left: Iterator[int]) -> Mapping[str, Any]:
    """The message with every image part filled, images of a tool's message aside, which TRL does not fill."""
    content = message.get("content")
    if not isinstance(content, Sequence) or isinstance(content, str):
        return message
    return {**message, "content": [_with_medium_there(part, message.get("role"), left) for part in content]}


def _with_medium_there(part: Any, role: object, left: Iterator[int]) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if kind == "image_url":  # OpenAI's spelling, which transformers turns into its own
        return {"type": "image", "url": HERE}
    if kind == "image" and "image" not in part and role != "tool":
        return {**part, "image": HERE} if next(left, None) is not None else part
    return {key: HERE if key == kind and kind in MEDIA else value for key, value in part.items()}
