"""The page for everybody: axe-core finds nothing serious, and trained text is marked by more than its colour."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import Browser, wait_until
from support.example_page import example_row, example_rows
from support.shown_rows import BYTES, masked_until
from support.tiny import messages_dataset, tokenizer

from sft_mask import Policy, compare_masks, preview_rows
from sft_mask.preview import PreviewRow, build_row, write_html
from sft_mask.preview.pictures import thumbnail
from sft_mask.preview.rows import Picture

CSS = (Path(__file__).parents[2] / "sft_mask/preview/page/page.css").read_text("utf-8")


# ---- axe-core --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe() -> str:
    found = distribution("axe-playwright-python").locate_file("axe_playwright_python/axe.min.js")
    return Path(str(found)).read_text("utf-8")


def findings(browser: Browser, axe: str) -> tuple[list[str], set[str]]:
    """What axe-core finds on the page as it is now, and the rules that it found kept."""
    browser(f"{axe};0")
    result = browser(
        "axe.run().then(({ violations, passes }) => ({ passes: passes.map((rule) => rule.id), violations: "
        "violations.map(({ id, impact, nodes }) => [impact, id, nodes.map((node) => node.html)]) }))"
    )
    return [f"{impact} {rule}: {nodes}" for impact, rule, nodes in result["violations"]], set(result["passes"])


def lost_rows() -> list[PreviewRow]:
    return [
        example_row(0),
        example_row(1, status=["lost: 2 tool calls not rendered", "cut"], lost=["message 1: a", "message 2: b"]),
    ]


def differing_rows() -> list[PreviewRow]:
    data = messages_dataset(12, seed=3)
    diff = compare_masks(preview_rows(data, tokenizer()), preview_rows(data, tokenizer(), policy=Policy(turns="last")))
    return [side for row in diff.shown for side in (row.left, row.right)]


def rows_with_pictures() -> list[PreviewRow]:
    ids = BYTES("<|start|>" + "i" * 20 + "What is it?<|end|>A cat.<|end|>")["input_ids"]
    small = thumbnail(Image.new("RGB", (64, 48), "navy"))
    pictures = [Picture(1, 11, "image", small), Picture(11, 21, "sound")]
    return [build_row(BYTES, ids, masked_until(ids, 33), pictures=pictures, name="train 0")]


def packed_rows() -> list[PreviewRow]:
    ids = BYTES("ab cd\n\tef")["input_ids"]
    return [build_row(BYTES, ids, ids, weights=[1, 1, 0.5, 0.5, 0.25, 0, 0, 1, 2], documents=[4, 5])]


PAGES = {
    "rows": lambda: list(example_rows()),
    "lost": lost_rows,
    "diff": differing_rows,
    "vision": rows_with_pictures,
    "packed": packed_rows,
    "nothing": list,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: write_html(rows(), folder / f"{name}.html") for name, rows in PAGES.items()}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(chromium: Browser, axe: str, pages: dict[str, Path], name: str, theme: str) -> None:
    with chromium.media(prefers_color_scheme=theme):
        chromium.open(pages[name])
        if name == "lost":
            chromium.mouse("#filters button:nth-child(5)", click=True)
            assert chromium.texts("#lost li") == ["message 1: a", "message 2: b"]
        found, passed = findings(chromium, axe)
        assert found == []
        assert {"color-contrast", "label", "aria-valid-attr-value", "page-has-heading-one"} <= passed
        assert chromium.problems() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_while_a_reason_and_the_keys_are_shown(browser: Browser, axe: str, theme: str) -> None:
    with browser.media(prefers_color_scheme=theme):
        browser.key("r", "ArrowDown", "b")
        browser.mouse("#help summary", click=True)
        assert findings(browser, axe)[0] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_on_a_phone_with_all_rows_open(
    chromium: Browser, axe: str, pages: dict[str, Path], theme: str
) -> None:
    with chromium.window(380, 760), chromium.media(prefers_color_scheme=theme):
        chromium.open(pages["rows"])
        chromium.mouse(".run.trained .cell", click=True)
        assert findings(chromium, axe)[0] == []
        chromium.mouse("#open", click=True)
        assert findings(chromium, axe)[0] == []


@pytest.mark.parametrize("harm", ["byId('query').removeAttribute('aria-label')", "byId('totals').style.color = '#888'"])
def test_axe_finds_what_is_wrong(browser: Browser, axe: str, harm: str) -> None:
    browser(f"(byId => {harm})(id => document.getElementById(id))")
    if "query" in harm:
        browser("document.getElementById('query').removeAttribute('placeholder')")
    found, _ = findings(browser, axe)
    assert len(found) == 1
    assert found[0].startswith(("serious ", "critical "))


def test_a_picture_says_what_it_is(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["vision"])
    assert chromium("[...document.images].map((image) => [image.alt, image.naturalWidth])") == [["picture 1 of 2", 64]]
    assert chromium.texts(".cell.special")[1:3] == ["⟨image × 10⟩", "⟨sound × 10⟩"]


# ---- colours ---------------------------------------------------------------------------------------------------------


def luminance(colour: list[float]) -> float:
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: list[float], other: list[float]) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def mixed(one: list[float], other: list[float], part: float) -> list[float]:
    return [part * left + (1 - part) * right for left, right in zip(one, other, strict=True)]


def palette(theme: str) -> dict[str, list[float]]:
    """The custom properties of the page, and the backgrounds that it mixes from them."""
    pairs = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\);", CSS)
    found = {
        name: [int((light, dark)[theme == "dark"][at : at + 2], 16) / 255 for at in (0, 2, 4)]
        for name, light, dark in pairs
    }
    for shade in (0.25, 0.5, 1.0):
        found[f"shade-{shade}"] = mixed(found["trained"], found["paper"], 0.34 * shade)
    found["hovered"] = mixed(found["line"], found["paper"], 0.45)
    found["here"] = mixed(found["focus"], found["raised"], 0.2)
    return found


SHADES = ("shade-0.25", "shade-0.5", "shade-1.0")
TEXT = {
    "ink": ("paper", "raised", "hovered"),
    "faint": ("paper", "raised", "hovered"),
    "masked": ("paper",),
    "trained-ink": SHADES,
    "special": ("paper",),
    "warn": ("paper", "raised", "hovered"),
}
MARKS = {
    "mark": ("paper", "raised", "line", "here", *SHADES),
    "warn": ("raised",),
    "focus": ("paper", "raised", *SHADES),
    "faint": ("raised",),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("least", "pairs"), [(4.5, TEXT), (3.0, MARKS)], ids=["text", "marks"])
def test_the_contrast_of_text_and_of_what_tells_trained_from_masked(
    theme: str, least: float, pairs: dict[str, tuple[str, ...]]
) -> None:
    colours = palette(theme)
    seen = {(one, on): contrast(colours[one], colours[on]) for one, others in pairs.items() for on in others}
    assert {pair: round(value, 2) for pair, value in seen.items() if value < least} == {}


def test_the_page_has_the_mixtures_that_are_computed_here() -> None:
    for mixture in ("trained) calc(var(--shade, 1) * 34%)", "line) 45%", "focus) 20%"):
        assert f"color-mix(in srgb, var(--{mixture}, transparent)" in CSS


def marks(browser: Browser, selector: str) -> Any:
    style = f"getComputedStyle(document.querySelector({json.dumps(selector)}))"
    return browser(f"[{style}.borderBottomStyle, parseFloat({style}.borderBottomWidth), {style}.fontWeight]")


@pytest.mark.parametrize(
    ("medium", "features", "weight"),
    [("screen", {}, "400"), ("screen", {"forced_colors": "active"}, "700"), ("print", {}, "700")],
)
def test_trained_text_is_underlined_and_masked_text_is_not(
    browser: Browser, medium: str, features: dict[str, str], weight: str
) -> None:
    with browser.media(medium, **features):
        for trained, masked in ((".run.trained", ".run:not(.trained)"), (".key.trained", ".key:not(.trained)")):
            style, width, bold = marks(browser, trained)
            assert (style, bold) == ("solid", weight)
            assert width >= 2
            assert marks(browser, masked) == ["none", 0, "400"]


def test_a_greater_weight_has_a_thicker_mark(chromium: Browser, pages: dict[str, Path]) -> None:
    with chromium.window(1280, 860):
        chromium.open(pages["packed"])
        widths = chromium(
            "[...document.querySelectorAll('.key.trained')]"
            ".map((key) => parseFloat(getComputedStyle(key).borderBottomWidth))"
        )
    assert len(widths) == 4
    assert sorted(widths, reverse=True) == widths
    assert widths[0] > widths[-1] > 0


@pytest.fixture
def printed(browser: Browser) -> Iterator[Browser]:
    with browser.media("print", prefers_color_scheme="dark"):
        yield browser


def test_paper_shows_the_row_and_no_controls(printed: Browser) -> None:
    shown = "(id) => document.getElementById(id).checkVisibility()"
    ids = ["row", "heading", "legend", "panel", "theme", "help", "copy", "previous"]
    assert printed(f"{json.dumps(ids)}.map({shown})") == [True] * 3 + [False] * 5
    assert printed("getComputedStyle(document.querySelector('.turn')).contentVisibility") == "visible"
    assert printed("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"


# ---- narrow screens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 380, 600])
def test_a_phone_shows_the_row_first_and_all_rows_on_demand(
    chromium: Browser, pages: dict[str, Path], width: int
) -> None:
    with chromium.window(width, 760):
        browser = chromium.open(pages["rows"])
        assert browser("document.documentElement.scrollWidth") == width
        assert browser("document.getElementById('row').getBoundingClientRect().top") < 260
        assert not browser("document.getElementById('list').checkVisibility()")
        browser.mouse("#open", click=True)
        assert browser("document.documentElement.scrollWidth") == width
        assert browser("document.getElementById('open').getAttribute('aria-expanded')") == "true"
        browser.mouse(".item[data-position='3']", click=True)
        assert browser.text("#heading").startswith("train 3 ")
        assert not browser("document.getElementById('list').checkVisibility()")
        browser.mouse(".run.trained .cell", click=True)
        card = browser(
            "(({ left, right, bottom }) => [left, right, bottom])"
            "(document.getElementById('card').getBoundingClientRect())"
        )
        assert card == [0, width, 760]


def test_the_card_of_a_phone_does_not_cover_its_token(chromium: Browser, pages: dict[str, Path]) -> None:
    with chromium.window(380, 480):
        browser = chromium.open(pages["rows"])
        browser.mouse(".run.trained .cell", click=True)
        for _ in range(2):
            place = "document.querySelector('.cell[tabindex]').getBoundingClientRect().bottom"
            wait_until(browser, f"{place} <= document.getElementById('card').getBoundingClientRect().top")
            browser.key("ArrowDown")


def test_a_wide_screen_shows_rows_and_row(browser: Browser) -> None:
    with browser.window(601, 760):
        assert browser("['list', 'row', 'strip'].every((id) => document.getElementById(id).checkVisibility())")
        assert browser("document.documentElement.scrollWidth") == 601
