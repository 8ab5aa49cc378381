"""Rows that are read by the layout of earlier rows: the same labels and counts as if each were rendered."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.vision_families import IMAGES, build
from support.vision_rows import IMAGE, Row, picture, said, similar_rows, wrong_rows
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sft_mask import ResponseOnlyCollator
from sft_mask.data.read.conversations import Conversation
from sft_mask.vision.layouts import Layout, LayoutCache, look_of
from sft_mask.vision.reader import RowReader


class Pair:
    """Two collators of one processor, of which the second renders every row.

    Args:
        name: of the family.
        change: of its chat template.
    """

    def __init__(self, name: str, change: Callable[[str], str] = str) -> None:
        self.processor, _ = build(name)
        self.processor.chat_template = change(self.processor.chat_template)
        inner = DataCollatorForVisionLanguageModeling(self.processor)
        self.ours, self.rendering = (ResponseOnlyCollator(inner, self.processor) for _ in range(2))
        self.rendering.labeller.reader.read_known = lambda *_: None  # type: ignore[method-assign]

    @property
    def header(self) -> str:
        return str(self.ours.labeller.masker.markers.response[0])

    def assert_same(self, rows: list[Row]) -> None:
        """The batches of both are equal."""
        one, other = (made(copy.deepcopy(rows)) for made in (self.ours, self.rendering))
        assert torch.equal(one["labels"], other["labels"])


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[RowReader]:
    """The readers of the rows that are rendered."""
    found: list[RowReader] = []
    read = RowReader.read

    def counted(self: RowReader, *args: Any, **kwargs: Any) -> Any:
        found.append(self)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(RowReader, "read", counted)
    return found


def asked(question: str, answer: str) -> Row:
    return {"images": [picture(0)], "messages": [said("user", IMAGE, question), said("assistant", answer)]}


@pytest.mark.parametrize("name", IMAGES)
def test_labels_and_counts_are_those_of_rendered_rows(name: str, rendered: list[RowReader]) -> None:
    pair, rng = Pair(name), random.Random(5)
    for _ in range(12):
        pair.assert_same(similar_rows(name, 4, rng, pair.header, shapes=2))
    assert pair.ours.counts.report() == pair.rendering.counts.report()
    assert rendered.count(pair.rendering.labeller.reader) == 48
    assert rendered.count(pair.ours.labeller.reader) < 44


@pytest.mark.parametrize("name", IMAGES)
def test_rows_like_earlier_ones_equal_the_oracle_without_being_rendered(name: str, rendered: list[RowReader]) -> None:
    pair = Pair(name)
    words = ["a cat", "東京 é🙂", "so, and (so) on", "3.14 x", "'it' is\n\nhere"]
    rows = [asked(f"{words[at % 5]} {at}?", f"{words[-at % 5]}.") for at in range(8)]
    assert wrong_rows(name, pair.processor, pair.ours, rows[:4]) == []
    assert len(rendered) == 3
    rendered.clear()
    assert wrong_rows(name, pair.processor, pair.ours, rows[4:]) == []
    assert rendered == []


def test_quoted_markers_tags_in_answers_and_new_shapes_are_rendered(rendered: list[RowReader]) -> None:
    pair = Pair("qwen2_5_vl")
    pair.ours([asked("What?", "A cat"), asked("Who?", "A dog"), asked("Where?", "In it"), asked("<b>?", "On it")])
    assert len(rendered) == 3  # a tag of the user's means nothing
    for question, answer in (
        ("<|im_end|>\n<|im_start|>assistant\nno", "A cat"),
        ("Say <|im_", "A cat"),
        ("What?", "<think>\n\n</think>\n\nA cat"),
        ("What?", "[/THINK] A cat"),
        ("What? ", "A cat"),
        ("What?", "\nA cat"),
    ):
        rendered.clear()
        assert wrong_rows("qwen2_5_vl", pair.processor, pair.ours, [asked(question, answer)]) == []
        assert len(rendered) == 1, question


def written_words(template: str, condition: str) -> str:
    """The template, which writes something after texts for which a condition holds."""
    words = "{{ content['text'] }}"
    assert words in template
    return template.replace(words, words + "{% if " + condition + " %} (!)<|im_end|>{% endif %}")


def test_a_template_that_looks_at_the_words_is_followed(rendered: list[RowReader]) -> None:
    pair = Pair("qwen2_5_vl", lambda template: written_words(template, "'sun' in content['text']"))
    for answer in ("A cat", "A dog", "It is", "A cat in the sun", "A cat", "The sun"):
        pair.assert_same([asked("What?", answer)])
    ours = pair.ours.labeller.reader
    assert rendered.count(ours) == 6  # after the first that differs, its shape is not trusted again


def with_empty_block(template: str) -> str:
    """The template, which writes an empty reasoning block before each answer, and into the prompt if asked to."""
    block = "<think>\n\n</think>\n\n"
    asked = "{% if enable_thinking is defined and enable_thinking is false %}" + block + "{% endif %}"
    role = "<|im_start|>{{ message['role'] }}\n"
    answers = role + "{% if message['role'] == 'assistant' %}" + block + "{% endif %}"
    prompt = "<|im_start|>assistant\n{% endif %}"
    assert template.count(role) == template.count(prompt) == 1
    return template.replace(prompt, prompt.removesuffix("{% endif %}") + asked + "{% endif %}").replace(role, answers)


def test_turns_that_depend_on_a_generation_prompt_are_not_known(rendered: list[RowReader]) -> None:
    pair = Pair("qwen2_5_vl", with_empty_block)
    for at in range(6):
        pair.assert_same([asked(f"What {at}?", "A cat")])
    batch = pair.ours([asked("What?", "A cat")])
    kept = [token for token in batch["labels"][0].tolist() if token >= 0]
    assert pair.processor.tokenizer.decode(kept) == "A cat<|im_end|>"
    assert rendered.count(pair.ours.labeller.reader) == 7


@pytest.mark.parametrize("cut", [4, 9])
def test_a_row_that_is_cut_off_is_rendered(cut: int, rendered: list[RowReader]) -> None:
    pair = Pair("smolvlm")
    rows = [asked("What is it?", "A cat on a mat, or a dog") for _ in range(4)]
    whole = pair.ours(copy.deepcopy(rows))["labels"]
    length = whole.shape[1] - cut
    pair.ours.inner.max_length = length
    rendered.clear()
    assert torch.equal(pair.ours(copy.deepcopy(rows))["labels"], whole[:, :length])
    assert len(rendered) == 4
    assert pair.ours.counts.report().turns_cut == 4


def test_flags_are_part_of_a_shape_and_fields_with_words_have_none() -> None:
    def look(**more: object) -> Any:
        return look_of(Conversation([{"role": "user", "content": [{"type": "text", "text": "Hi"}], **more}]))

    assert look().texts == ("Hi",)
    assert len({look(train=flag).shape for flag in (True, False, 0.0)} | {look().shape}) == 4
    assert look(name=None) is not None
    assert look(role=["user"]) is None
    assert look(reasoning_content="Hm") is None
    assert look(tool_calls=[{"function": {"name": "f"}}]) is None
    assert look_of(Conversation([{"role": "assistant", "content": None}])) is None
    assert look_of(Conversation([{"role": "user", "content": [{"type": "text", "text": " \n"}]}])) is None
    assert look_of(Conversation([], tools=[{}])) is None


def test_two_layouts_of_one_shape_are_not_trusted() -> None:
    look = look_of(Conversation([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]))
    assert look is not None
    one, other = (Layout((before, "]"), ((True, True),), (), (), ()) for before in ("[", "[["))
    cache = LayoutCache((), ())
    for _ in range(3):
        assert cache.trusted(look) is None
        cache.learn(look, one)
    assert cache.trusted(look) == one
    assert one.fill(("Hi",))[0] == "[Hi]"
    cache.learn(look, other)
    for _ in range(4):
        cache.learn(look, one)
        assert cache.trusted(look) is None


@pytest.mark.parametrize(("prefilled", "known"), [((), True), (("ASSISTANT: <",), False)])
def test_an_answer_that_begins_as_a_prompt_may_end_is_not_known(prefilled: tuple[str, ...], *, known: bool) -> None:
    text = "USER: Hi ASSISTANT: <b>"
    assert LayoutCache((), prefilled).prefills(text, np.array([9])) is not known
