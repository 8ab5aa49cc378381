from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.tiny_chat import CHATML, STOPS, Messages, chat, conversation, ids_of, prepared

from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.errors import DetectionError, MarkerError
from sft_mask.templates.detection.detect import detect_markers
from sft_mask.templates.resolve import Given, Resolved, combine, resolve

TURN = "<|im_start|>{}\n{}<|im_end|>\n"


def rows_of(texts: list[str], name: str = "chatml") -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [np.array(ids_of(chat(name)[0], text), np.int64) for text in texts]


def resolved(
    instruction: object = None, response: object = None, texts: list[str] | None = None, **how: Any
) -> Resolved:
    tokenizer, vocabulary, template = chat("chatml")
    template = how.pop("template", template)
    rows = rows_of(texts or [])
    return resolve(vocabulary, tokenizer, template, instruction=instruction, response=response, rows=rows, **how)


def answers(found: Resolved, text: str, name: str = "chatml") -> list[str]:
    (row,) = rows_of([text], name)
    turns = found.finder.find(row, np.array([0, len(row)]))
    return [chat(name)[1].text(row[a:b].tolist()) for a, b in zip(turns.start, turns.end, strict=True)]


# --- markers that are given ---


@pytest.mark.parametrize(("instruction", "response", "missing"), [("a", None, "response"), (None, "b", "instruction")])
def test_one_marker_alone_is_refused(instruction: object, response: object, missing: str) -> None:
    with pytest.raises(MarkerError, match=f"{missing}_part is missing"):
        resolved(instruction, response)


def test_one_marker_for_both_roles_is_refused() -> None:
    with pytest.raises(MarkerError, match=r"'### Turn:' was given for both roles"):
        resolved("### Turn:", ["### Turn:", "### Bot:"])


@pytest.mark.parametrize("empty", ["", [], [""]])
def test_an_empty_marker_is_refused(empty: object) -> None:
    with pytest.raises(MarkerError, match="instruction_part is empty"):
        resolved(empty, "b")


def test_a_marker_cut_short_is_completed_from_the_template() -> None:
    found = resolved("<|im_start|>user", "<|im_start|>assistant")
    assert found.markers.response == ("<|im_start|>assistant\n",)
    assert found.markers.eots == ("<|im_end|>",)
    assert found.from_template
    assert not found.markers.detected


def test_a_marker_of_another_format_stands_alone() -> None:
    text = "### User:\nHi\n### Bot:\nYes</s>\n### User:\nSo\n### Bot:\nNo</s>"
    found = resolved("### User:\n", "### Bot:\n", [text])
    assert not found.from_template
    assert answers(found, text) == ["Yes</s>", "No</s>"]


def test_an_unknown_user_header_is_added_to_the_templates_own() -> None:
    detected = detect_markers(chat("chatml")[0])
    both = combine(Given(("<|im_start|>human\n",), ("<|im_start|>assistant\n",)), detected)
    assert both.instruction == ("<|im_start|>human\n", "<|im_start|>user\n")
    assert both.response == detected.response


@pytest.mark.parametrize("has_template", [True, False])
@pytest.mark.parametrize("as_ids", [True, False])
def test_an_eot_copied_into_a_header_is_trained_once(has_template: bool, as_ids: bool) -> None:
    instruction: Any = "<|im_end|>\n<|im_start|>user\n"
    response: Any = "<|im_end|>\n<|im_start|>assistant\n"
    if as_ids:
        instruction, response = (ids_of(chat("chatml")[0], text) for text in (instruction, response))
    text = "".join(TURN.format(role, "Hi") for role in ("system", "user", "assistant", "user", "assistant"))
    how = {} if has_template else {"template": None}
    assert answers(resolved(instruction, response, [text], **how), text) == ["Hi<|im_end|>"] * 2


def test_markers_that_are_given_as_ids_stand_alone() -> None:
    text = TURN.format("user", "Hi") + TURN.format("assistant", "Yes")
    tokenizer = chat("chatml")[0]
    found = resolved(ids_of(tokenizer, "<|im_start|>user\n"), ids_of(tokenizer, "<|im_start|>assistant\n"), [text])
    assert answers(found, text) == ["Yes<|im_end|>"]


def test_given_markers_win_where_the_rows_were_not_rendered_by_the_template() -> None:
    source = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>")
    header = "{{ message['role'] }}\n"
    source = source.replace(header, header + "{{ '<think>' if message['role'] == 'assistant' }}")
    template = prepared(source)[2]
    text = TURN.format("user", "Hi") + TURN.format("assistant", "Yes")
    found = resolved("<|im_start|>user\n", "<|im_start|>assistant\n", [text], template=template)
    assert not found.from_template
    assert answers(found, text) == ["Yes<|im_end|>"]


# --- markers that are detected ---


@pytest.mark.parametrize("name", STOPS)
def test_detected_and_given_markers_find_the_same_turns(name: str) -> None:
    tokenizer, vocabulary, template = chat(name)
    messages: Messages = conversation("Hi", "Yes", "So", "No")
    text = template.render(messages).text
    detected = resolve(vocabulary, tokenizer, template)
    given = resolve(
        vocabulary,
        tokenizer,
        template,
        instruction=detected.markers.instruction,
        response=detected.markers.response,
        rows=rows_of([text], name),
    )
    assert answers(detected, text, name) == answers(given, text, name)
    assert [found.strip() for found in answers(detected, text, name)] == ["Yes" + STOPS[name], "No" + STOPS[name]]


def test_nothing_given_and_no_template_is_refused() -> None:
    with pytest.raises(DetectionError, match="no chat template"):
        resolved(template=None)


def test_rows_of_a_template_that_writes_tools_as_the_assistant_are_decided_by_messages() -> None:
    source = CHATML.replace("message['role'] }}", "'assistant' if message['role'] == 'tool' else message['role'] }}")
    tokenizer, vocabulary, template = prepared(source)
    found = resolve(vocabulary, tokenizer, template)
    assert found.from_template
    assert found.markers.like_assistant == ("tool",)


# --- markers that open nothing ---


def test_a_marker_that_never_occurs_is_refused_with_the_first_row() -> None:
    text = TURN.format("user", "Hi") + TURN.format("assistant", "Yes")
    with pytest.raises(MarkerError) as caught:
        resolved("<|im_start|>user\n", "### Bot:", [text])
    said = str(caught.value)
    assert "'### Bot:' opens an answer in none of the rows" in said
    assert repr(text)[1:20] in said
    assert str(rows_of([text])[0][:24].tolist()) in said


def test_a_marker_with_wrong_whitespace_is_named_without_it() -> None:
    with pytest.raises(MarkerError, match="'### Bot:', without the whitespace around it, does occur"):
        resolved("### User:", "\n\n### Bot: \n", ["### User: a ### Bot: b"])


def test_rows_that_truncation_left_without_an_answer_say_so() -> None:
    text = "### User: " + "a" * 30
    size = len(rows_of([text])[0])
    with pytest.raises(MarkerError, match=f"1 of 1 rows looked at are {size} tokens long"):
        resolved("### User:", "### Bot:", [text], max_length=size)


def test_a_tokenizer_of_words_is_detected_too() -> None:
    """Ids that cannot be spelled as bytes: markers are then matched as ids."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sft_mask.templates.probes import probes

    letters = {"[UNK]": 0}
    for probe in probes():
        for text in (str(probe.messages), "user assistant system tool a b"):
            for word in text.replace("\\n", " ").split():
                letters.setdefault(word.strip("'{}[],"), len(letters))
    backend = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.chat_template = CHATML
    assert read_vocabulary(tokenizer).kind == "opaque"
    assert detect_markers(tokenizer).response == ("<|im_start|>assistant\n",)


def test_headers_given_as_ids_are_the_template_s_too_and_messages_are_checked() -> None:
    tokenizer, vocabulary, template = prepared(CHATML)
    users, models = (ids_of(tokenizer, f"<|im_start|>{role}\n") for role in ("user", "assistant"))
    found = resolve(vocabulary, tokenizer, template, instruction=users, response=models)
    assert found.from_template
    assert found.markers.response == ("<|im_start|>assistant\n",)


def test_a_header_without_its_last_control_token_is_completed() -> None:
    made, vocabulary, template = chat("llama3")
    resolved = resolve(
        vocabulary,
        made,
        template,
        instruction="<|start_header_id|>user",
        response="<|start_header_id|>assistant",
    )
    assert resolved.markers.response == ("<|start_header_id|>assistant<|end_header_id|>\n\n",)
    assert resolved.from_template
