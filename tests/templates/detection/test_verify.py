from __future__ import annotations

from dataclasses import replace

import pytest
from support.tiny_chat import CHATML, chat, prepared

from sft_mask.core.markers import Markers
from sft_mask.errors import DetectionError
from sft_mask.templates.detection.detect import candidate_markers
from sft_mask.templates.detection.verify import prove


def test_markers_that_could_not_be_told_apart_are_refused_as_detected_ones() -> None:
    tokenizer, vocabulary, template = prepared(CHATML)
    with pytest.raises(DetectionError, match="cannot be used: The marker"):
        prove(Markers(("<|im_start|>",), ("<|im_start|>",)), template, vocabulary, tokenizer)


def test_markers_that_lose_words_are_not_proven() -> None:
    tokenizer, vocabulary, template = prepared(CHATML)
    wrong = replace(candidate_markers(template)[0], response=("<|im_start|>assistant\nIt",))
    with pytest.raises(DetectionError, match=r"of the assistant's words .* would not be trained"):
        prove(wrong, template, vocabulary, tokenizer)


def test_markers_that_train_a_users_words_are_not_proven() -> None:
    tokenizer, vocabulary, template = prepared(CHATML)
    wrong = Markers(("<|im_start|>assistant\n",), ("<|im_start|>nobody\n",), eots=(), complete=True)
    with pytest.raises(DetectionError, match=r"of another role's words .* would be trained"):
        prove(wrong, template, vocabulary, tokenizer)


def test_markers_that_fail_only_with_tools_are_not_complete() -> None:
    source = CHATML.replace("message['role'] }}", "'assistant' if message['role'] == 'tool' else message['role'] }}")
    tokenizer, vocabulary, template = prepared(source)
    unaware = replace(candidate_markers(template)[0], like_assistant=())
    assert not prove(unaware, template, vocabulary, tokenizer).complete
    assert prove(candidate_markers(chat("chatml")[2])[0], chat("chatml")[2], *chat("chatml")[1::-1]).complete
