"""The page with a keyboard alone: real keys, and what a screen reader is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import SHIFT, Browser
from support.shown_rows import BYTES
from support.tiny import messages_dataset, tokenizer

from sft_mask.preview import build_row, preview_rows, write_html

FOCUSED = "document.activeElement"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = preview_rows(messages_dataset(12, seed=3), tokenizer())
    return write_html(rows, tmp_path_factory.mktemp("chats") / "page.html")


def heard(browser: Browser) -> dict[str, Any]:
    """Role, name and description of what has the focus, as Chromium tells a screen reader."""
    handle = browser.call("Runtime.evaluate", expression=FOCUSED)["result"]["objectId"]
    (node, *_) = browser.call("Accessibility.getPartialAXTree", objectId=handle, fetchRelatives=False)["nodes"]
    return {part: node.get(part, {}).get("value", "") for part in ("role", "name", "description")}


def focused_id(browser: Browser) -> str:
    return str(browser(f"{FOCUSED}.id || {FOCUSED}.className || {FOCUSED}.tagName"))


def test_tab_goes_through_everything_and_shows_where_it_is(browser: Browser) -> None:
    seen = []
    for _ in range(20):
        browser.key("Tab")
        seen.append(focused_id(browser))
        outline = browser(
            f"(({{ outlineStyle, outlineWidth }}) => [outlineStyle, outlineWidth])(getComputedStyle({FOCUSED}))"
        )
        assert outline[0] != "none", seen[-1]
        assert outline[1] in {"2px", "3px"}, seen[-1]
        if seen[-1].startswith("cell"):
            break
    assert [name or "filter" for name in seen[:8]] == [
        "skip",
        "edges",
        "theme",
        "SUMMARY",
        "strip",
        "query",
        "order",
        "number",
    ]
    assert seen[-4:-1] == ["list", "next", "copy"]
    assert seen[-1].startswith("cell")
    browser.key("Tab", modifiers=SHIFT)
    assert focused_id(browser) == "copy"


def test_the_first_key_skips_to_the_tokens(browser: Browser) -> None:
    browser.key("Tab")
    assert browser.text(".skip") == "Skip to the tokens of the row"
    assert browser("document.querySelector('.skip').getBoundingClientRect().top") > 0
    browser.key("Enter")
    assert heard(browser)["role"] == "option"
    assert browser("location.hash") == "#0"


def test_a_keyboard_alone_reaches_every_reason_of_a_row(chromium: Browser, chats: Path) -> None:
    row = max(preview_rows(messages_dataset(12, seed=3), tokenizer()), key=lambda row: len(row.notes))
    chromium.open(chats, f"#{row.name.split()[-1]}")
    chromium.key("Tab", "Enter")
    read = []
    for _ in row.notes:
        told = heard(chromium)
        assert told["role"] == "option"
        assert chromium("document.getElementById('card').checkVisibility()")
        assert chromium.text("#reason") == told["description"]
        read.append(told["description"])
        chromium.key("ArrowDown")
    expected = [note.reason for note in row.notes if note.end > note.start]
    assert len(expected) > 6
    assert read == expected
    for _ in expected:
        chromium.key("ArrowUp")
    assert heard(chromium)["description"] == expected[0]
    assert chromium.problems() == []


def test_arrows_reach_every_token_and_its_reason(chromium: Browser, chats: Path) -> None:
    row = preview_rows(messages_dataset(12, seed=3), tokenizer())[0]
    chromium.open(chats)
    chromium.key("r")
    for number, cell in enumerate(row.cells):
        told = heard(chromium)
        assert chromium(f"{FOCUSED}.dataset.cell") == str(number)
        assert told["description"] == [note.reason for note in row.notes if note.start <= cell.start < note.end][-1]
        assert told["name"]
        chromium.key("ArrowRight")
    assert chromium(f"{FOCUSED}.dataset.cell") == str(len(row.cells) - 1), "the last token keeps the focus"
    chromium.key("Home")
    assert chromium(f"{FOCUSED}.dataset.cell") == "0"
    chromium.key("End", "ArrowLeft")
    assert chromium(f"{FOCUSED}.dataset.cell") == str(len(row.cells) - 2)
    assert chromium("document.querySelectorAll('.cell[tabindex]').length") == 1


def test_white_space_has_a_name(chromium: Browser, tmp_path: Path) -> None:
    ids = BYTES("a \n\t")["input_ids"]
    chromium.open(write_html([build_row(BYTES, ids, ids)], tmp_path / "page.html"))
    chromium.key("r", "ArrowRight")
    assert heard(chromium)["name"] == "1 space"
    names = []
    for _ in range(2):
        chromium.key("ArrowRight")
        names.append(heard(chromium)["name"].strip())
    assert names == ["↵", "⇥"]
    assert heard(chromium)["description"] == "trained", "without a reason it says what is so"


def test_a_turn_is_named_and_its_tokens_are_in_it(chromium: Browser, chats: Path) -> None:
    chromium.open(chats)
    named = chromium(
        "[...document.querySelectorAll('#row > [role=group]')].map((turn) => turn.getAttribute('aria-label'))"
    )
    assert named[-2:] == [f"user, turn {len(named) - 1}", f"assistant, turn {len(named)}"]
    assert chromium("[...document.querySelectorAll('.cell')].every((cell) => cell.closest('[role=group]'))")


def test_enter_keeps_a_reason_and_escape_hides_it(browser: Browser) -> None:
    browser.key("r", "Enter")
    browser.mouse(".run.trained .cell")
    assert browser.text("#reason") == "masked: <b>prompt</b>", "the token under the mouse does not take over"
    browser.key("Escape")
    assert browser("document.getElementById('card').hidden")
    browser.key("ArrowDown")
    assert browser.text("#reason") == "trained: the answer"
    assert not browser("document.getElementById('card').hidden")


def test_a_mouse_that_rests_does_not_take_over(chromium: Browser, chats: Path) -> None:
    chromium.open(chats)
    chromium.mouse(".cell[data-cell='1']")
    assert "token 1" in chromium.text("#facts")
    chromium.key("r", "j")  # the second token of the new row is now under the mouse
    chromium("new Promise((done) => setTimeout(done, 300))")
    chromium.mouse(".cell[data-cell='1']")
    assert "token 0" in chromium.text("#facts")
    chromium.mouse(".cell[data-cell='2']")
    assert "token 2" in chromium.text("#facts")


def test_rows_are_stepped_through_without_leaving_the_tokens(browser: Browser) -> None:
    browser.key("r", "ArrowRight", "j", "j", "k")
    assert browser.text("#heading").startswith("train 1 ")
    assert browser(f"{FOCUSED}.dataset.cell") == "0"
    assert browser.text("#said").startswith("train 1 ")


def test_the_list_is_walked_by_arrows_and_says_where_it_is(browser: Browser) -> None:
    browser("document.getElementById('list').focus()")
    browser.key("ArrowDown", "ArrowDown", "ArrowDown")
    here = browser(
        "document.getElementById(document.getElementById('list').getAttribute('aria-activedescendant'))?.ariaLabel"
    )
    assert here == browser.text("#heading")
    assert here.startswith("train 3 ")
    assert here.endswith("· cut")
    browser.key("End", "ArrowUp")
    assert browser.text("#heading").startswith("train 38 ")
    browser.key("PageUp")
    assert int(browser.text("#heading").split()[1]) < 30
    browser.key("Home", "Enter")
    assert heard(browser)["role"] == "option"
    assert browser.text("#heading").startswith("train 0 ")


def test_the_strip_is_a_slider_over_the_rows(browser: Browser) -> None:
    browser("document.getElementById('strip').focus()")
    browser.key("ArrowRight", "ArrowUp", "ArrowRight")
    strip = "document.getElementById('strip')"
    values = browser(f"['now', 'min', 'max', 'text'].map((name) => {strip}.getAttribute(`aria-value${{name}}`))")
    assert values == ["4", "1", "40", browser.text("#heading")]
    assert heard(browser)["role"] == "slider"


def test_letters_are_keys_only_outside_of_fields_and_can_be_switched_off(browser: Browser) -> None:
    browser.key("/", "j", "t")
    assert browser("document.getElementById('query').value") == "jt"
    browser.key("Escape")
    assert browser("document.getElementById('query').value") == ""
    browser.mouse("#help summary", click=True)
    browser.mouse("#letters", click=True)
    browser.key("j", "ArrowRight")
    assert browser.text("#heading").startswith("train 1 "), "j did nothing, the arrow stepped"
    browser.key("Escape")
    assert not browser("document.getElementById('help').open")
