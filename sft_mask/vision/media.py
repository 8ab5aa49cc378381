"""Which tokens belong to images and audio: their ids, whole expansions, and what the template writes around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.errors import DataError
from sft_mask.templates.tracing.traced_str import TEMPLATE

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered
    from sft_mask.vision.expansion import ExpandedText, Expansion

_KINDS = ("image", "video", "audio")
_BEFORE, _AFTER = "Left of it", "Right of it"


class MediaTokens:
    """The tokens of images, video and audio of one processor.

    Args:
        processor: names its placeholders and ids.
        template: writes the placeholders.
        vocabulary: of the tokenizer.
    """

    def __init__(self, processor: Any, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        self._template = template
        placeholders = {kind: getattr(processor, f"{kind}_token", None) for kind in _KINDS}
        self.placeholders = {kind: text for kind, text in placeholders.items() if isinstance(text, str) and text}
        ids = {vocabulary.special_contents.get(text) for text in self.placeholders.values()}
        for kind in _KINDS:
            ids.update(_ids_of(processor, kind))
        self.ids = np.array(sorted(each for each in ids if each is not None), np.int64)
        own = (vocabulary.text([token]) for token in self.ids.tolist())
        self.texts = tuple(dict.fromkeys((*self.placeholders.values(), *filter(None, own))))
        """Texts that only the template and the processor may write."""

    @cached_property
    def _frames(self) -> Mapping[str, tuple[str, str]]:
        return {kind: self._frame(kind, text) for kind, text in self.placeholders.items()}

    def _frame(self, kind: str, placeholder: str) -> tuple[str, str]:
        """What the template writes before and after a placeholder between two texts, such as ``<|vision_start|>``."""
        lead = [{"role": "user", "content": _BEFORE}]
        for role in ("assistant", "user"):
            parts = [{"type": "text", "text": _BEFORE}, {"type": kind, kind: "here"}, {"type": "text", "text": _AFTER}]
            try:
                said = {"role": role, "content": parts}
                text = self._template.render([said] if role == "user" else [*lead, said]).text
            except DataError:
                continue
            between = text[text.rfind(_BEFORE) + len(_BEFORE) : text.rfind(_AFTER)]
            if between.count(placeholder) == 1 and text.rfind(_BEFORE) < text.rfind(_AFTER):
                before, after = between.split(placeholder)
                return before, after
        return "", ""

    def frames(self, rendered: Rendered, expanded: ExpandedText) -> list[tuple[int, int]]:
        """How many characters the template itself writes around each placeholder, before and after it, as its frame."""
        return [self._frame_of(rendered, each) for each in expanded.expansions]

    def _frame_of(self, rendered: Rendered, placeholder: Expansion) -> tuple[int, int]:
        before, after = self._frames.get(placeholder.kind, ("", ""))
        start, end = placeholder.start, placeholder.end
        has_before = rendered.text.endswith(before, 0, start) and _is_templates(rendered, start - len(before), start)
        has_after = rendered.text.startswith(after, end) and _is_templates(rendered, end, end + len(after))
        return len(before) if has_before else 0, len(after) if has_after else 0

    def are(self, ids: Ids) -> Bools:
        """``(tokens,)`` whether each id is one of an image, a video or audio."""
        found = np.zeros(ids.shape, np.bool_)
        for token in self.ids.tolist():  # a few
            found |= ids == token
        return found

    def refuse_typed(self, rendered: Rendered) -> None:
        """Refuses a placeholder that a message's own text holds: the processor would put an image there.

        Raises:
            DataError: that, with the message.
        """
        for text in self.texts:
            at = rendered.text.find(text)
            while at >= 0:
                if not _is_templates(rendered, at, at + len(text)):
                    message = int(rendered.message_of()[at : at + len(text)].max())
                    raise DataError(
                        f"the text of message {message} holds {text!r}, which the processor takes for the place of an "
                        "image or a sound, so one can land where it was typed. Write it otherwise, or remove it."
                    )
                at = rendered.text.find(text, at + len(text))


def _is_templates(rendered: Rendered, low: int, high: int) -> bool:
    return bool(np.all(rendered.source[max(low, 0) : high] == TEMPLATE))


def _ids_of(processor: Any, kind: str) -> Iterator[int]:
    given = getattr(processor, f"{kind}_token_ids", None)
    many = given if isinstance(given, list | tuple) else [given, getattr(processor, f"{kind}_token_id", None)]
    yield from (int(each) for each in many if isinstance(each, int))


def overlaps(first: Ints, last: Ints, low: int, high: int) -> Bools:
    """``(tokens,)`` whether each token ``[first, last)`` holds a byte of ``[low, high)``."""
    inside: Bools = (first < high) & (last > low)
    return inside
