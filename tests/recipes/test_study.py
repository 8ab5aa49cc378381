"""``recipes/mask_study.py`` on a tiny model: what it measures, what it makes again, and what it refuses."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import mask_study
import pytest
from support.recipe_runner import ROOT, Run, run_recipe
from support.tiny_families import save

PAGE = "Before.\n\n<!-- table -->\nold\n<!-- end of table -->\n\nAfter.\n"


def study(folder: Path, *more: object) -> Run:
    sizes = ("--rows", 4, "--steps", 2, "--batch-size", 2, "--held-out", 2, "--cpu")
    return run_recipe("mask_study.py", "--model", folder / "model", "--output", folder / "study", *sizes, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of every arm and shape, and the page that it wrote."""
    folder = tmp_path_factory.mktemp("study")
    save("smollm2-135m", folder / "model")
    (folder / "page.md").write_text(PAGE)
    run = study(folder, "--seeds", 0, "--page", folder / "page.md")
    assert run.code == 0, run.output[-3000:]
    return folder


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "study").glob("*.json"))]


@pytest.mark.slow
def test_every_arm_is_run_on_every_shape(folder: Path) -> None:
    arms = {(run["shape"], run["arm"]) for run in results(folder)}
    assert arms == {(shape, arm) for shape in mask_study.SHAPES for arm in ("before training", *mask_study.ARMS)}


@pytest.mark.slow
def test_the_measures_are_of_the_same_held_out_tokens(folder: Path) -> None:
    for run in results(folder):
        low, high = sorted((run["words_loss"], run["stop_loss"]))
        assert low <= run["response_loss"] <= high
        assert all(0 <= run[share] <= 1 for share in ("exact", "begins_right", "stopped", "echoed", "share"))
        assert run["exact"] <= run["begins_right"]
        assert len(run["answers"]) == 2
    for shape in mask_study.SHAPES:
        assert len({run["share"] for run in results(folder) if run["shape"] == shape}) == 1


@pytest.mark.slow
def test_the_arms_train_different_things(folder: Path) -> None:
    for shape in mask_study.SHAPES:
        losses = [run["response_loss"] for run in results(folder) if run["shape"] == shape]
        assert len(set(losses)) == len(losses) == 1 + len(mask_study.ARMS)


@pytest.mark.slow
def test_a_second_call_makes_nothing_again_and_other_settings_are_refused(folder: Path) -> None:
    made = {path.name: path.stat().st_mtime_ns for path in (folder / "study").glob("*.json")}
    again = study(folder, "--seeds", 0)
    assert again.code == 0, again.output
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "study").glob("*.json")} == made
    other = study(folder, "--seeds", 0, "--learning-rate", 0.5)
    assert other.code == 1
    assert "give another --output, or delete it" in other.output
    assert "Traceback" not in other.output


@pytest.mark.slow
def test_the_page_gets_the_table_and_the_plot(folder: Path) -> None:
    page = (folder / "page.md").read_text(encoding="utf-8")
    assert page.startswith("Before.\n")
    assert page.endswith("\nAfter.\n")
    assert "old" not in page
    for arm in mask_study.ARMS:
        assert page.count(f"| {arm} | 1 |") == len(mask_study.SHAPES)
    assert ET.parse(folder / "images" / "mask_study.svg").getroot().tag.endswith("svg")


def test_a_table_shows_the_mean_and_the_spread_of_the_seeds() -> None:
    runs = [
        {
            "shape": shape,
            "arm": "full loss",
            "seed": seed,
            "share": 0.25,
            **dict.fromkeys(mask_study.MEASURES, seed / 4),
        }
        for shape in list(mask_study.SHAPES)[:1]
        for seed in (0, 1, 2)
    ]
    line = mask_study.table(runs).splitlines()[-1]
    assert line.startswith("| full loss | 3 | 0.250 (0.000 to 0.500) |")
    assert "| 25% (0% to 50%) |" in line


@pytest.mark.parametrize("shape", mask_study.SHAPES)
def test_held_out_words_occur_in_no_training_row(shape: str) -> None:
    train = mask_study.conversations(shape, 50, mask_study.TRAINING_NOUNS, seed=1)
    held_out = mask_study.conversations(shape, 50, mask_study.HELD_OUT_NOUNS, seed=2)
    said = " ".join(message["content"] for row in train for message in row["messages"])
    assert not [noun for noun in mask_study.HELD_OUT_NOUNS if noun in said]
    assert all(any(noun in row["messages"][2]["content"] for noun in mask_study.HELD_OUT_NOUNS) for row in held_out)


def test_the_two_shapes_are_what_they_are_called() -> None:
    for shape, (prompt_is_longer, times) in {
        "long prompt, short answer": (True, 5),
        "short prompt, long answer": (False, 3),
    }.items():
        asked, answered = mask_study.SHAPES[shape](random.Random(0), mask_study.TRAINING_NOUNS)
        longer, shorter = (asked, answered) if prompt_is_longer else (answered, asked)
        assert len(longer) > times * len(shorter)


def test_no_right_answer_echoes_its_prompt() -> None:
    for shape in mask_study.SHAPES:
        for seed in range(50):
            asked, answered = mask_study.SHAPES[shape](random.Random(seed), mask_study.TRAINING_NOUNS)
            assert not mask_study.echoes(answered, asked)
            assert mask_study.echoes("It says: " + asked, asked)


def test_the_page_in_the_docs_has_a_place_for_the_table() -> None:
    page = (ROOT / "docs" / "mask_study.md").read_text(encoding="utf-8")
    assert page.index("<!-- table -->\n") < page.index("<!-- end of table -->")
    for arm in mask_study.ARMS:
        assert page.count(f"| {arm} | 3 |") == len(mask_study.SHAPES)
