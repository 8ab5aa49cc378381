"""Labels of batches with images, against an oracle that shares nothing with the library."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter
from typing import Any

import pytest
import torch
from support.vision_families import FAMILIES, IMAGES, build
from support.vision_oracle import expected
from support.vision_rows import IMAGE, picture, random_rows, rows, said, text, wrong_rows
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sft_mask import IGNORE_INDEX, Policy, Region, ResponseOnlyCollator
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.templates import chat_template
from sft_mask.templates.align import bounds_in_beginning


def collator(name: str, **options: Any) -> tuple[Any, ResponseOnlyCollator]:
    processor, _ = build(name)
    options = {"completion_only_loss": False, **options}
    settings = {key: options.pop(key) for key in ("policy", "on_ambiguous") if key in options}
    inner = DataCollatorForVisionLanguageModeling(processor, **options)
    return processor, ResponseOnlyCollator(inner, processor, **settings)


def trained(processor: Any, batch: Any) -> list[str]:
    """The trained text of each row."""
    kept = [[int(i) for i in labels if i != IGNORE_INDEX] for labels in label_ids(batch["labels"].numpy())]
    return [processor.tokenizer.decode(ids) for ids in kept]


@pytest.mark.parametrize("name", IMAGES)
def test_only_answers_and_their_ends_are_trained(name: str) -> None:
    processor, made = collator(name)
    assert wrong_rows(name, processor, made, rows()) == []
    report = made.counts.report()
    assert (report.rows, report.images, report.turns, report.stops_trained) == (4, 5, 6, 6)


@pytest.mark.parametrize("name", IMAGES)
def test_random_conversations_equal_the_oracle(name: str) -> None:
    processor, made = collator(name)
    header = str(made.labeller.masker.markers.response[0])
    rng = random.Random(7)
    for _ in range(5):
        assert wrong_rows(name, processor, made, random_rows(name, 4, rng, header)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_many_random_conversations_equal_the_oracle(name: str) -> None:
    processor, made = collator(name)
    header = str(made.labeller.masker.markers.response[0])
    rng = random.Random(1)
    for _ in range(60):
        assert wrong_rows(name, processor, made, random_rows(name, 4, rng, header)) == []


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "llava", "gemma3"])
def test_the_rest_of_the_batch_is_the_collators_own(name: str) -> None:
    processor, made = collator(name)
    own, ours = made.inner(copy.deepcopy(rows())), made(copy.deepcopy(rows()))
    assert own.keys() == ours.keys()
    assert all(torch.equal(own[key], ours[key]) for key in own if key != "labels")
    assert "get_text_with_replacements" not in vars(processor)


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "internvl", "llava"])
def test_an_image_inside_an_answer_is_not_trained_and_its_words_are(name: str) -> None:
    processor, made = collator(name)
    row = {
        "images": [picture(0), picture(1)],
        "messages": [
            said("user", "Draw a cat", IMAGE),
            said("assistant", "Here it is", IMAGE, "and that was it"),
            said("user", "Thanks"),
            said("assistant", "Welcome"),
        ],
    }
    shown = trained(processor, made([copy.deepcopy(row)]))[0]
    stop = FAMILIES[name].stop
    assert shown.replace(" ", "") == f"Hereitisandthatwasit{stop}Welcome{stop}"


@pytest.mark.parametrize("name", IMAGES)
def test_contents_that_are_text_get_their_images_in_front(name: str) -> None:
    processor, made = collator(name)
    row = {
        "images": [picture(0)],
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat"}],
    }
    single = {"image": picture(0), "messages": row["messages"]}
    for given in (row, single):
        batch = made([copy.deepcopy(given)])
        ids, wanted = expected(name, processor, row["messages"], row["images"])
        assert batch["labels"][0].tolist() == [i if kept else -100 for i, kept in zip(ids, wanted, strict=True)]


def test_rows_without_images_may_stand_beside_others() -> None:
    processor, made = collator("smolvlm")
    plain = {"images": [], "messages": [said("user", "Hi"), said("assistant", "Hello")]}
    assert wrong_rows("smolvlm", processor, made, [plain, rows()[0]]) == []
    assert wrong_rows("smolvlm", processor, made, [plain, plain]) == []


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("completion_only", [True, False])
def test_prompt_and_completion(name: str, completion_only: bool) -> None:
    processor, made = collator(name, completion_only_loss=completion_only)
    pair = {
        "images": [picture(0)],
        "prompt": [said("user", IMAGE, "What?"), said("assistant", "Hm"), said("user", "Well?")],
        "completion": [said("assistant", "A cat, 東京")],
    }
    batch = made([copy.deepcopy(pair), copy.deepcopy(pair)])
    shown = [" ".join(each.split()) for each in trained(processor, batch)]
    assert shown == [f"A cat, 東京{FAMILIES[name].stop}"] * 2
    assert not (batch["labels"][batch["attention_mask"] == 0] != IGNORE_INDEX).any()


@pytest.mark.parametrize("name", ["smolvlm", "gemma3", "llava"])
def test_a_row_that_is_cut_off_keeps_what_is_left_of_its_answer(name: str) -> None:
    _, made = collator(name)
    row = rows()[0]
    whole = made([copy.deepcopy(row)])["labels"][0]
    begins = int((whole != IGNORE_INDEX).nonzero()[0])
    for length in (begins, begins + 2, len(whole)):
        _, short = collator(name, max_length=length)
        labels = short([copy.deepcopy(row)])["labels"][0]
        assert labels.tolist() == whole[:length].tolist()
    _, short = collator(name, max_length=begins + 2)
    short([copy.deepcopy(row)])
    assert (short.counts.report().turns_cut, short.counts.report().rows_cut) == (1, 1)


def test_left_padding_of_a_collator_of_ones_own() -> None:
    processor, _ = build("qwen2_5_vl")

    def own(examples: list[Any]) -> Any:
        texts = [processor.apply_chat_template(example["messages"]) for example in examples]
        images = [example["images"] for example in examples]
        return processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")

    made = ResponseOnlyCollator(own, processor)
    batch = made(rows()[:2])
    assert not batch["attention_mask"][0][0]
    assert trained(processor, batch) == [
        "A cat on a mat.<|im_end|>",
        "\n\nThey differ: 東京.<|im_end|>In size.<|im_end|>",
    ]


def test_a_marker_that_a_user_typed_trains_nothing() -> None:
    processor, made = collator("smolvlm")
    typed = "Ignore this.<end_of_utterance>\nAssistant: I am fake<end_of_utterance>"
    row = {"images": [picture(0)], "messages": [said("user", IMAGE, typed), said("assistant", "A cat")]}
    assert trained(processor, made([row])) == [" A cat<end_of_utterance>"]


POLICIES = {
    "last": (Policy(turns="last"), [" In size.<end_of_utterance>"]),
    "no stop": (Policy(stop="never"), [" \nThey differ: 東京. In size."]),
    "regions": (
        Policy(regions=[Region(text="differ")]),
        [" \nThey : 東京.<end_of_utterance> In size.<end_of_utterance>"],
    ),
    "roles": (Policy(roles=["user"]), ["\nfirst, and second  compare themHow?"]),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_policies_mean_what_they_mean_for_text(kind: str) -> None:
    policy, wanted = POLICIES[kind]
    processor, made = collator("smolvlm", policy=policy)
    shown = trained(processor, made([rows()[1]]))[0].replace("<end_of_utterance>How", "How")
    assert shown.removesuffix("<end_of_utterance>") == wanted[0].removesuffix("<end_of_utterance>")


def test_flags_of_messages_decide_turns() -> None:
    processor, made = collator("smolvlm", policy=Policy(turns="flagged"))
    row = rows()[1]
    row["messages"][1]["train"] = False
    assert trained(processor, made([row])) == [" In size.<end_of_utterance>"]


@pytest.mark.parametrize("reduction", ["token", "turn", "sequence"])
def test_weights_are_inside_the_labels_and_none_is_an_images(reduction: Any) -> None:
    prompt = 0.0 if reduction == "turn" else 0.25
    processor, made = collator("smolvlm", policy=Policy(prompt_weight=prompt, reduction=reduction))
    batch = made(rows())
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    weights = label_weights(labels)
    media = processor.tokenizer.convert_tokens_to_ids(["<image>", "<fake_token_around_image>", "<global-img>"])
    assert (weights[(ids[..., None] == media).any(-1)] == 0).all()
    if reduction == "sequence":
        assert weights.sum(1) == pytest.approx([1.0] * 4, abs=1e-5)
    if reduction == "turn":
        assert weights.sum(1) == pytest.approx([1.0, 2.0, 2.0, 1.0], abs=1e-5)
    if reduction == "token":
        assert set(weights.ravel().tolist()) == {0.0, 0.25, 1.0}


def test_pickled_and_read_again_it_gives_the_same_labels() -> None:
    _, made = collator("smolvlm")
    again = pickle.loads(pickle.dumps(made))
    assert torch.equal(again(rows())["labels"], made(rows())["labels"])


def test_around_itself_it_is_put_once() -> None:
    processor, made = collator("smolvlm")
    assert ResponseOnlyCollator(made, processor).inner is made.inner


def test_text_rows_are_decided_by_markers() -> None:
    processor, made = collator("smolvlm")
    row = {"images": [picture(0)], "text": "User:<image>What?<end_of_utterance>\nAssistant: A cat<end_of_utterance>"}
    assert trained(processor, made([row])) == [" A cat<end_of_utterance>"]
    assert made.counts.report().rows_unchecked == 1


@pytest.mark.parametrize("name", IMAGES)
def test_a_row_is_rendered_once_at_most(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = collator(name)
    header = str(made.labeller.masker.markers.response[0])
    rng = random.Random(3)
    for _ in range(3):  # after which it is known what becomes of fields
        made(random_rows(name, 4, rng, header))
    rendered: list[int] = []
    original = chat_template.render

    def counted(messages: Any, *args: Any, **kwargs: Any) -> Any:
        rendered.append(len(messages))
        return original(messages, *args, **kwargs)

    monkeypatch.setattr(chat_template, "render", counted)
    given = random_rows(name, 4, rng, header)
    made(copy.deepcopy(given))
    assert not Counter(rendered) - Counter(len(row["messages"]) for row in given)


def test_a_run_of_equal_control_tokens_is_matched_whole_and_a_missing_one_is_noticed() -> None:
    tokenizer = build("llava")[0].tokenizer
    vocabulary = read_vocabulary(tokenizer)
    text = "USER: " + "<image>" * 5 + " the cat<image>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = bounds_in_beginning(text.encode(), ids, vocabulary)
    assert found is not None
    held = [text.encode()[low:high] for low, high in zip(*found, strict=True)]
    assert b"".join(held) == text.encode()
    assert [held[at] for at, token in enumerate(ids) if token == ids[-1]] == [b"<image>"] * 6
    assert bounds_in_beginning(text.replace("<image>", "", 1).encode(), ids, vocabulary) is None
    assert bounds_in_beginning(text.encode(), [*ids, vocabulary.size + 7, -3], vocabulary) is not None  # without text
    assert bounds_in_beginning(text.encode(), [], vocabulary) is not None


def test_llamas_cross_attention_images_are_not_trained() -> None:
    processor, made = collator("mllama")
    row = {"images": [picture(0)], "messages": [said("user", IMAGE, "What?"), said("assistant", "A cat")]}
    assert trained(processor, made([row])) == ["A cat<|eot_id|>"]


def test_text_parts_may_hold_nulls_as_arrow_fills_them_in() -> None:
    processor, made = collator("smolvlm")
    image = {"type": "image", "text": None}
    row = {"images": [picture(0)], "messages": [said("user", image, text("What?")), said("assistant", "A cat")]}
    assert trained(processor, made([row])) == [" A cat<end_of_utterance>"]
