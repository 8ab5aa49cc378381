from __future__ import annotations

from typing import Any

import numpy as np
from support.tiny_chat import chat, ids_of

from sft_mask.core.markers import Markers
from sft_mask.templates.detection.endings import learn_endings


def rows_of(texts: list[str]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [np.array(ids_of(chat("chatml")[0], text), np.int64) for text in texts]


def learnt(texts: list[str]) -> Markers:
    tokenizer, vocabulary, _ = chat("chatml")
    return learn_endings(Markers(("### Bot:",), ("### User:",)), rows_of(texts), vocabulary, tokenizer)


def test_the_control_token_before_a_header_is_an_eot() -> None:
    tokenizer = chat("chatml")[0]
    stop = (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    markers = learnt(["### User: a\n### Bot: b<|im_end|>\n### User: c\n### Bot: d<|im_end|>"] * 3)
    assert markers.eots == (stop, (tokenizer.eos_token_id,))


def test_the_eos_always_is_an_eot() -> None:
    assert learnt(["### User: a\n### Bot: b"]).eots == ((chat("chatml")[0].eos_token_id,),)


def test_whitespace_that_all_answers_have_before_the_next_header_is_the_separator() -> None:
    markers = learnt(["### User: a\n### Bot: b\n\n### User: c\n### Bot: d \n\n### User: e\n### Bot: f"])
    assert markers.separator == "\n\n"


def test_a_token_that_opens_every_header_is_not_an_eot() -> None:
    tokenizer, vocabulary, _ = chat("chatml")
    markers = Markers(("<|im_start|>bot:",), ("<|im_start|>user:",))
    rows = rows_of(["<|im_start|>user: a<|im_start|>bot: b<|im_start|>user: c<|im_start|>bot: d"])
    opener = (tokenizer.convert_tokens_to_ids("<|im_start|>"),)
    found = learn_endings(markers, rows, vocabulary, tokenizer)
    assert opener not in found.eots
    assert opener in found.others


def test_a_header_of_two_control_tokens_without_an_eot_stays_whole() -> None:
    tokenizer, vocabulary, _ = chat("cohere")
    turn = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
    row = np.array(ids_of(tokenizer, turn.format("USER") + turn.format("CHATBOT")), np.int64)
    markers = Markers(("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",), ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",))
    found = learn_endings(markers, [row], vocabulary, tokenizer)
    assert (found.response, found.instruction) == (markers.response, markers.instruction)
