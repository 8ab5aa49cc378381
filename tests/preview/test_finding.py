"""Rows of the page are searched, sorted, gone to by their number and copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.browser import Browser, wait_until
from support.example_page import example_row
from support.shown_rows import BYTES, masked_until
from support.tiny import messages_dataset, tokenizer

from sft_mask.cli.main import main
from sft_mask.preview import build_row, write_html
from sft_mask.preview.rows import Picture


def searched(browser: Browser, text: str) -> list[str]:
    """The rows that a search leaves."""
    browser.key("/")
    browser("document.getElementById('said').textContent = ''")
    browser.type(text)
    wait_until(browser, "/ of /.test(document.getElementById('said').textContent)")
    return browser.texts(".item b span:first-child")


def test_a_search_leaves_the_rows_with_the_text_and_marks_it(chromium: Browser, tmp_path: Path) -> None:
    texts = ["The quick brown fox", "a QUICK\nbrown dog", "東京 is a city", "nothing"]
    rows = [example_row(number, text) for number, text in enumerate(texts)]
    chromium.open(write_html(rows, tmp_path / "page.html"))
    assert searched(chromium, "Quick brown") == ["train 0", "train 1"]
    assert chromium.text("#said") == "2 of 4 rows"
    assert "".join(chromium.texts(".cell.found")) == "quick brown" * 2
    chromium.key("Enter")
    assert chromium("document.activeElement.classList.contains('found')")
    chromium.key("j")
    assert chromium.text("#heading").startswith("train 1 ")
    assert "".join(chromium.texts(".cell.found")) == "QUICK↵\nbrown" * 2
    assert searched(chromium, "東") == ["train 2"]
    assert chromium.texts(".cell.found") == ["東", "東"]
    assert searched(chromium, "in no row") == []
    assert chromium.text("#heading") == "No row matches."
    assert chromium("document.getElementById('copy').disabled && document.getElementById('list').hidden")
    chromium.key("j", "r", "c")
    chromium(
        "(query => { query.value = ''; query.dispatchEvent(new Event('input')); })(document.getElementById('query'))"
    )
    assert len(chromium.texts(".item")) == 4
    assert chromium.texts(".cell.found") == []
    assert chromium.problems() == []


def test_a_search_goes_with_a_filter(browser: Browser) -> None:
    browser.mouse("#filters button:nth-child(3)", click=True)
    assert searched(browser, "train 7") == ["train 7"]
    assert searched(browser, "train 5") == []


def test_rows_are_sorted_by_share_and_by_length(chromium: Browser, tmp_path: Path) -> None:
    sizes = [(10, 5), (30, 30), (20, 1), (20, 0)]
    made = [(list(range(65, 65 + tokens)), tokens - trained) for tokens, trained in sizes]
    rows = [build_row(BYTES, ids, masked_until(ids, start), name=f"train {at}") for at, (ids, start) in enumerate(made)]
    chromium.open(write_html(rows, tmp_path / "page.html"))
    orders = {"most": [1, 0, 2, 3], "least": [3, 2, 0, 1], "longest": [1, 2, 3, 0], "shortest": [0, 2, 3, 1]}
    for order, expected in {**orders, "data": [0, 1, 2, 3]}.items():
        select = "document.getElementById('order')"
        chromium(f"{select}.value = {order!r}; {select}.dispatchEvent(new Event('change'))")
        assert chromium.texts(".item b span:first-child") == [f"train {at}" for at in expected], order
        assert chromium.text("#heading").startswith(f"train {expected[0]} ")
    assert chromium.problems() == []


@pytest.mark.parametrize("leave", ["", "#filters button:nth-child(3)"])
def test_a_row_is_gone_to_by_its_number(browser: Browser, leave: str) -> None:
    if leave:
        browser.mouse(leave, click=True)
    browser.key("g")
    browser.type("31")
    browser.key("Enter")
    assert browser.text("#heading").startswith("train 31 ")
    assert len(browser.texts("#strip i")) == 40
    assert browser("document.activeElement.closest('#row') !== null")
    browser.key("g")
    browser.type("400")
    browser.key("Enter")
    assert browser.text("#said") == "There is no row 400: the page has train 0 to train 39."
    assert browser.text("#heading").startswith("train 31 ")


def test_a_number_is_that_of_the_name_where_the_page_begins_later(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(write_html([example_row(number) for number in (17, 18)], tmp_path / "page.html"))
    chromium.key("g")
    chromium.type("18")
    chromium.key("Enter")
    assert chromium.text("#heading").startswith("train 18 ")
    assert chromium("location.hash") == "#1"


def test_a_search_that_was_cleared_while_it_ran_leaves_all_rows(browser: Browser) -> None:
    browser("performance.now = ((time) => () => (time += 15))(0)")  # every slice reads one row
    browser.key("/")
    browser.type("train 1")
    assert browser.text("#said") == "Searching …"
    browser.key("Escape")
    wait_until(browser, "/ of /.test(document.getElementById('said').textContent)")
    browser("new Promise((done) => setTimeout(done, 400))")
    assert len(browser.texts("#strip i")) == 40


def test_a_copied_picture_is_named(chromium: Browser, tmp_path: Path) -> None:
    ids = BYTES("<|start|>iiiiab")["input_ids"]
    row = build_row(BYTES, ids, masked_until(ids, 6), pictures=[Picture(1, 5)])
    chromium.open(write_html([row], tmp_path / "page.html"))
    assert copied(chromium)["runs"] == [
        {"start": 0, "end": 6, "weight": 0, "text": "<|start|>⟨image × 4⟩a"},
        {"start": 6, "end": 7, "weight": 1, "text": "b"},
    ]


def copied(browser: Browser, *, with_button: bool = False) -> Any:
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    browser("window.kept ??= navigator.clipboard; kept.writeText('')")
    if with_button:
        browser.mouse("#copy", click=True)
    else:
        browser.key("c")
    wait_until(browser, "document.getElementById('said').textContent === 'The row was copied as JSON.'")
    return json.loads(browser("kept.readText()"))


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_a_copied_row_is_what_the_command_prints_as_json(
    chromium: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str], has_clipboard: bool
) -> None:
    tokenizer().save_pretrained(tmp_path / "model")
    messages_dataset(3).to_json(tmp_path / "chats.jsonl")
    chosen = [str(tmp_path / "model"), str(tmp_path / "chats.jsonl"), "--row", "2"]
    assert main(["preview", *chosen, "--html", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    assert main(["preview", *chosen, "--json"]) == 0
    (expected,) = json.loads(capsys.readouterr().out)
    chromium.open(tmp_path / "page.html")
    if not has_clipboard:
        chromium("window.kept = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', {})")
    assert copied(chromium, with_button=not has_clipboard) == expected
    assert expected["runs"]
    assert chromium.problems() == []
