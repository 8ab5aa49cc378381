"""Labels of a vision row counted without the library: from ``transformers``' own offsets and the words' own places."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.vision_families import FAMILIES
from trl.data_utils import prepare_multimodal_messages

Messages = list[dict[str, Any]]


def expected(name: str, processor: Any, messages: Messages, images: list[Any]) -> tuple[list[int], list[bool]]:
    """Ids of a row alone, unpadded and uncut, and whether each token is trained."""
    ready = prepare_multimodal_messages(messages, images=images)
    text = processor.apply_chat_template(ready, tokenize=False)
    out = processor(
        text=[text],
        images=[images] if images else None,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_text_replacement_offsets=True,
    )
    return _counted(name, processor, out, spoken(name, processor, ready, text))


def spoken(name: str, processor: Any, ready: Messages, text: str) -> list[tuple[int, int]]:
    """Where the answers are in a rendered text, from the end of each generation prompt to the stop after the words."""
    spans = []
    for at, message in enumerate(ready):
        if message["role"] != "assistant":
            continue
        prompt = processor.apply_chat_template(ready[:at], tokenize=False, add_generation_prompt=True)
        shared = _shared(prompt, text)
        if shared < len(prompt):  # the prompt prefills what a finished answer shows otherwise
            shared = _shared(prompt.rstrip(), text)
        begin, said = None, shared
        for part in message["content"]:
            words = part.get("text", "").strip() if part["type"] == "text" else ""
            if words:
                found = text.index(words, said)
                begin, said = found if begin is None else begin, found + len(words)
        between = text[shared : said if begin is None else begin]
        # blanks are the answer's own; anything else is what the template puts between its header and the words
        start = shared if not between.strip() or begin is None else begin
        stop = FAMILIES[name].stop
        spans.append((start, text.index(stop, said) + len(stop)))
    return spans


def _counted(name: str, processor: Any, out: Any, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    offsets = np.asarray(out["offset_mapping"][0])
    replaced = (out.get("text_replacement_offsets") or [[]])[0]

    def moved(place: int) -> int:
        gains = [each["new_span"][1] - each["span"][1] for each in replaced if each["span"][1] <= place]
        return place + (gains[-1] if gains else 0)

    ids = np.asarray(out["input_ids"][0])
    trained = np.zeros(len(ids), bool)
    for start, end in spans:
        trained |= (offsets[:, 0] < moved(end)) & (offsets[:, 1] > moved(start))
    for each in replaced:
        low, high = each["new_span"]
        trained &= ~((offsets[:, 0] < high) & (offsets[:, 1] > low))
    media = processor.tokenizer.convert_tokens_to_ids(list(FAMILIES[name].media))
    trained &= ~np.isin(ids, media)
    return ids.tolist(), trained.tolist()


def _shared(left: str, right: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
