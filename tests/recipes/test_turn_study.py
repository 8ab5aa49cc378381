"""``recipes/turn_study.py``: its data, the rows of each arm, the play turn by turn, and two steps from end to end."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import turn_study
from support.recipe_runner import ROOT, Run, run_recipe
from support.tiny_chat import trl_templates
from support.tiny_families import save

from sft_mask import IGNORE_INDEX

PAGE = "Before.\n\n<!-- table -->\nold\n<!-- end of table -->\n\nAfter.\n"
STEPS, SIZE = 2, 3


def study(folder: Path, *more: object) -> Run:
    sizes = ("--start-steps", 1, "--steps", STEPS, "--conversations", SIZE, "--held-out", 3, "--seeds", 0, "--cpu")
    return run_recipe("turn_study.py", "--model", folder / "model", "--output", folder / "study", *sizes, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of every arm, and the page that it wrote."""
    folder = tmp_path_factory.mktemp("study")
    save("smollm2-135m", folder / "model")
    (folder / "page.md").write_text(PAGE)
    run = study(folder, "--page", folder / "page.md")
    assert run.code == 0, run.output[-3000:]
    return folder


def test_two_steps_of_every_arm_make_a_table_and_a_plot(folder: Path) -> None:
    runs = {run["arm"]: run for run in map(load, (folder / "study").glob("*.json"))}
    assert runs.keys() == {"start", *turn_study.ARMS}
    answers = sum(len(chat) // 2 for chat in turn_study.conversations(STEPS * SIZE, turn_study.TRAINING_NAMES, seed=0))
    assert {arm: run["rows"] for arm, run in runs.items()} == {
        "start": SIZE,
        "one_row": STEPS * SIZE,
        "last_turn": STEPS * SIZE,
        "keeps_reasoning": STEPS * SIZE,
        "expanded": answers,
    }
    for run in runs.values():
        assert 0 < run["trained"] < run["tokens"]
        for turns in run["played"].values():
            assert sorted(turn["turn"] for turn in turns) == [1, 1, 1, 2, 2, 2, 3, 3, 4]
    assert runs["expanded"]["trained"] == runs["keeps_reasoning"]["trained"]  # each answer once, with its reasoning
    page = (folder / "page.md").read_text(encoding="utf-8")
    assert page.startswith("Before.\n")
    assert page.endswith("\nAfter.\n")
    assert "old" not in page
    assert [page.count(f"| {shown} | 1 |") for shown in turn_study.PLAYED] == [1] * len(turn_study.PLAYED)
    assert ET.parse(folder / "images" / "turn_study.svg").getroot().tag.endswith("svg")


def test_a_second_call_makes_nothing_again_and_other_settings_are_refused(folder: Path) -> None:
    made = {path.name: path.stat().st_mtime_ns for path in (folder / "study").glob("*.json")}
    again = study(folder)
    assert again.code == 0, again.output
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "study").glob("*.json")} == made
    other = study(folder, "--learning-rate", 0.5)
    assert other.code == 1
    assert "give another --output, or delete it" in other.output
    assert "Traceback" not in other.output
    few = study(folder, "--held-out", 2)
    assert few.code == 2
    assert "--held-out 2: at least 3, one of each length" in few.output


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


# What each arm trains, written out by hand.

CHAT = [
    {"role": "user", "content": "Ann red, Bob blue. blue dog, red cat. Ann?", "reasoning_content": None},
    {"role": "assistant", "content": "cat", "reasoning_content": "Ann red, red cat"},
    {"role": "user", "content": "Bob?", "reasoning_content": None},
    {"role": "assistant", "content": "dog", "reasoning_content": "Bob blue, blue dog"},
]
FIRST = "<|im_start|>user\nAnn red, Bob blue. blue dog, red cat. Ann?<|im_end|>\n<|im_start|>assistant\n"
SECOND = "\n<|im_start|>user\nBob?<|im_end|>\n<|im_start|>assistant\n"
CAT, DOG = "cat<|im_end|>", "dog<|im_end|>"
THINKS_CAT = "<think>\nAnn red, red cat\n</think>\n\n" + CAT
THINKS_DOG = "<think>\nBob blue, blue dog\n</think>\n\n" + DOG
ROWS = {
    "one_row": [(FIRST + CAT + SECOND + THINKS_DOG, [CAT, THINKS_DOG])],
    "last_turn": [(FIRST + CAT + SECOND + THINKS_DOG, [THINKS_DOG])],
    "keeps_reasoning": [(FIRST + THINKS_CAT + SECOND + THINKS_DOG, [THINKS_CAT, THINKS_DOG])],
    "expanded": [(FIRST + THINKS_CAT, [THINKS_CAT]), (FIRST + CAT + SECOND + THINKS_DOG, [THINKS_DOG])],
}


@pytest.mark.parametrize("arm", turn_study.ARMS)
def test_rows_of_an_arm_are_those_written_by_hand(arm: str, smollm2: Any) -> None:
    def shown(row: dict[str, list[int]]) -> tuple[str, list[str]]:
        spans: list[list[int]] = []
        for before, label in zip([IGNORE_INDEX, *row["labels"]], row["labels"], strict=False):
            if label != IGNORE_INDEX:
                spans[-1].append(label) if before != IGNORE_INDEX else spans.append([label])
        return smollm2.decode(row["input_ids"]).removesuffix("\n"), [smollm2.decode(ids) for ids in spans]

    rows = turn_study.rows_of_step(arm, [CHAT], smollm2)
    assert sorted(map(shown, rows)) == sorted(ROWS[arm])


@pytest.mark.parametrize(
    ("name", "source"), [("qwen3", turn_study.TEMPLATE), ("qwen3_training", turn_study.KEEPS_REASONING)]
)
def test_the_templates_render_these_conversations_as_qwen3_and_its_training_template_do(
    name: str, source: str, smollm2: Any
) -> None:
    def rendered(template: str, messages: turn_study.Conversation) -> str:
        prompted = messages[-1]["role"] == "user"
        return smollm2.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=prompted, tokenize=False
        )

    theirs = trl_templates()[name]
    for chat in turn_study.conversations(6, turn_study.HELD_OUT_NAMES, seed=0):
        for end in range(1, len(chat) + 1):
            assert rendered(source, chat[:end]) == rendered(theirs, chat[:end])


# The data.


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_follows_from_the_tables_and_no_name_is_asked_twice(seed: int) -> None:
    for chat in turn_study.conversations(6, turn_study.TRAINING_NAMES, seed):
        table = dict(re.findall(r"(\w+) (\w+)[,.]", chat[0]["content"]))
        asked = [re.findall(r"(\w+)\?", message["content"]) for message in chat[::2]]
        names = [name for (name,) in asked]
        assert len(set(names)) == len(names)
        for name, answer in zip(names, chat[1::2], strict=True):
            assert answer["content"] == table[table[name]]
            assert answer["reasoning_content"] == f"{name} {table[name]}, {table[name]} {table[table[name]]}"


def test_held_out_names_occur_in_no_training_row() -> None:
    train = turn_study.conversations(30, turn_study.TRAINING_NAMES, seed=0)
    said = " ".join(message["content"] for chat in train for message in chat)
    assert not [name for name in turn_study.HELD_OUT_NAMES if name in said]
    assert sorted(len(chat) // 2 for chat in train) == [2] * 10 + [3] * 10 + [4] * 10


def test_the_arms_do_not_differ_in_conversations_of_one_turn(smollm2: Any) -> None:
    """The model that all begin with is trained on these alone."""
    chats = turn_study.conversations(3, turn_study.TRAINING_NAMES, seed=0, turns=(1,))
    assert [len(chat) for chat in chats] == [2, 2, 2]
    start = turn_study.rows_of_step("start", chats, smollm2)
    assert all(turn_study.rows_of_step(arm, chats, smollm2) == start for arm in turn_study.ARMS)


# The play.


def test_a_prompt_holds_the_models_own_earlier_answers_without_their_reasoning(smollm2: Any) -> None:
    """The model answers the first turn wrong, after reasoning, and the second without reasoning and without end."""
    said = iter([[("<think>\nwhatever\n</think>\n\npig", True)], [("dog", False)]])
    prompts = []

    def answer(histories: list[turn_study.Conversation]) -> list[tuple[str, bool]]:
        prompts.append(
            smollm2.apply_chat_template(
                histories[0], chat_template=turn_study.TEMPLATE, add_generation_prompt=True, tokenize=False
            )
        )
        return next(said)

    turns = turn_study.play([CHAT], answer)
    assert prompts == [FIRST, FIRST + "pig<|im_end|>" + SECOND]
    assert [(turn["turn"], turn["reasons"], turn["exact"], turn["stopped"]) for turn in turns] == [
        (1, True, False, True),
        (2, False, False, False),  # the right word, but it did not end
    ]


def test_conversations_that_ended_are_asked_no_more_and_answers_stay_with_theirs() -> None:
    rng = random.Random(0)
    chats = [turn_study.conversation(rng, turn_study.HELD_OUT_NAMES, turns) for turns in (2, 4, 3)]

    def perfect(histories: list[turn_study.Conversation]) -> list[tuple[str, bool]]:
        right = {json.dumps(chat[:at]): chat[at] for chat in chats for at in range(1, len(chat), 2)}
        found = [right[json.dumps(history)] for history in histories]
        return [(f"<think>\n{each['reasoning_content']}\n</think>\n\n{each['content']}", True) for each in found]

    turns = turn_study.play(chats, perfect)
    assert sorted((turn["conversation"], turn["turn"]) for turn in turns) == [
        (number, turn) for number, count in enumerate((2, 4, 3)) for turn in range(1, count + 1)
    ]
    assert turn_study.measures(turns) == dict.fromkeys(turn_study.MEASURES, 1.0)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\na\n</think>\n\nb", "a", "b"),
        ("<think>\n\n</think>\n\nb", "", "b"),
        ("b", None, "b"),
        ("<think>\na b", None, "<think>\na b"),
        ("b</think>", None, "b</think>"),
    ],
)
def test_reasoning_is_what_opens_an_answer_and_is_closed(text: str, reasoning: str | None, content: str) -> None:
    assert turn_study.parsed(text) == {"role": "assistant", "content": content, "reasoning_content": reasoning}


def test_shares_are_taken_over_first_and_later_turns() -> None:
    turns = [
        {"turn": 1, "reasons": True, "exact": True, "stopped": True},
        {"turn": 1, "reasons": True, "exact": False, "stopped": True},
        {"turn": 2, "reasons": False, "exact": True, "stopped": True},
        {"turn": 2, "reasons": False, "exact": False, "stopped": False},
        {"turn": 3, "reasons": True, "exact": False, "stopped": True},
        {"turn": 4, "reasons": False, "exact": False, "stopped": True},
    ]
    assert turn_study.measures(turns) == {
        "reasons_first": 1.0,
        "reasons_later": 1 / 4,
        "exact_first": 1 / 2,
        "exact_later": 1 / 4,
        "stopped": 5 / 6,
    }
    assert turn_study.per_turn(turns, "reasons") == [1.0, 0.0, 1.0, 0.0]


def test_a_table_shows_the_mean_and_the_spread_of_the_seeds() -> None:
    def run(seed: int) -> dict[str, Any]:
        turns = [
            {"turn": turn, "reasons": at < seed, "exact": False, "stopped": True} for turn in (1, 2) for at in range(4)
        ]
        return {
            "seed": seed,
            "rows": 2,
            "tokens": 1000 * seed,
            "trained": 7,
            "seconds": 9.4,
            "played": {"one_row": turns},
        }

    line = turn_study.table([run(1), run(2), run(3)]).splitlines()[-1]
    spread = "50% (25% to 75%)"
    assert line == f"| one_row | 3 | {spread} | {spread} | 0% | 0% | 100% | 2 | 2,000 | 7 | 9 |"


def test_the_page_in_the_docs_holds_three_seeds_of_every_arm() -> None:
    page = (ROOT / "docs" / "turn_study.md").read_text(encoding="utf-8")
    table = page[page.index("<!-- table -->\n") : page.index("<!-- end of table -->")]
    for shown, (arm, _) in turn_study.PLAYED.items():
        assert table.count(f"| {shown} | {1 if arm == 'start' else 3} |") == 1
