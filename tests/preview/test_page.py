"""The page in a real browser, with a mouse."""

import json
import time

import pytest
from support.example_page import EVIL, example_row
from support.shown_rows import BYTES, masked_until
from support.tiny import tokenized, tokenizer

from sft_mask.preview import build_row, preview_rows
from sft_mask.preview.cells import visible
from sft_mask.preview.html import write_html


def test_the_page_opens_without_errors_and_makes_no_requests(browser, page):
    assert browser.text("#heading").startswith("train 0 · ")
    assert set(browser.requests()) <= {page.as_uri(), "about:blank"}
    assert browser.text("#totals").startswith("40 rows · ")


def test_markup_in_a_message_is_shown_and_not_run(browser, page):
    browser.open(page, "#2")
    assert "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>" in browser.text("#row")
    assert "␛[31m" in browser.text("#row")
    assert "⟨U+2028⟩" in browser.text("#row")
    assert browser("window.hacked === undefined && document.images.length === 0")
    assert "</script>" in browser.text("title")


def test_the_policy_keeps_a_script_from_running_even_if_one_got_in(chromium, page):
    chromium.open(page)
    chromium(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 3'}))"
    )
    chromium("document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'}))")
    assert chromium("window.hacked === undefined")
    blocked = [event["params"]["entry"]["text"] for event in chromium.problems()]
    assert len(blocked) == 2
    assert all("Content Security Policy" in text for text in blocked)


def test_the_trained_runs_of_the_page_are_those_of_the_row(browser):
    row = example_row(0)
    shown = browser(
        "[...document.querySelectorAll('.run')].map((r) => [r.textContent, r.classList.contains('trained')])"
    )
    trained = "".join(text for text, is_trained in shown if is_trained)
    assert trained == "Hi 東京 🙂!↵\n<|end|>"
    assert "".join(text for text, _ in shown) == row.text.replace("\n", "↵\n")
    assert browser.texts(".role") == ["user", "assistant"]


def test_a_hovered_token_shows_its_reason(browser):
    browser.mouse(".turn.some .run.trained .cell")
    answer = browser.text("#card")
    for words in ("trained", "id 72", "48", "assistant", "trained: the answer", "turn2"):
        assert words in answer
    assert browser("getComputedStyle(document.getElementById('card')).visibility") == "visible"
    browser.mouse("#heading")
    assert browser("document.getElementById('card').hidden")


def test_a_character_of_three_tokens_is_one_cell_that_names_all_three(browser):
    number = browser("[...document.querySelectorAll('.cell')].findIndex((cell) => cell.textContent === '東')")
    browser.mouse(f".cell[data-cell='{number}']")
    card = browser.text("#card")
    assert all(f"id {byte}" in card and f"{byte:02X}" in card for byte in "東".encode())
    assert "masked: <b>prompt</b>" in card


def test_a_clicked_token_stays_until_escape(browser):
    browser.mouse(".run.trained .cell", click=True)
    kept = browser.text("#card")
    browser.mouse(".run:not(.trained) .cell.special")
    assert browser.text("#card") == kept
    browser.mouse("#heading")
    assert not browser("document.getElementById('card').hidden")
    browser.key("Escape")
    assert browser("document.getElementById('card').hidden")


def test_the_card_of_a_token_leaves_with_its_row(browser):
    browser.mouse(".run.trained .cell", click=True)
    browser.key("j")
    browser.mouse("#heading")  # the new row may have a token under the resting pointer, with a card of its own
    assert browser("document.getElementById('card').hidden")


def test_rows_are_stepped_through_with_buttons_keys_and_bars(browser):
    browser.mouse("#next", click=True)
    assert browser.text("#heading").startswith("train 1 ")
    browser.key("ArrowRight")
    browser.key("j")
    assert browser.text("#heading").startswith("train 3 ")
    browser.key("End")
    assert browser.text("#heading").startswith("train 39 ")
    assert browser("document.getElementById('next').disabled")
    browser.mouse("#strip i:nth-child(11)", click=True)
    assert browser.text("#heading").startswith("train 10 ")
    browser.mouse(".item[data-position='12']", click=True)
    assert browser.text("#heading").startswith("train 12 ")
    assert browser("location.hash") == "#12"


def test_filters_show_the_rows_of_a_status_only(browser):
    assert browser.texts("#filters button") == ["all rows 40", "ambiguous 1", "cut 2", "dropped 1", "lost 0"]
    browser.mouse("#filters button:nth-child(3)", click=True)
    assert browser.text("#heading").startswith("train 3 ")
    browser.key("ArrowRight")
    assert browser.text("#heading").startswith("train 7 ")
    assert browser.text("#heading").endswith("· ambiguous · cut")
    assert len(browser.texts(".item")) == len(browser.texts("#strip i")) == 2
    browser.mouse("#filters button:nth-child(4)", click=True)
    assert browser.text("#heading").endswith("· dropped")
    assert browser.texts("#flags li") == ["dropped: no answer"]


def test_the_bar_of_each_row_is_as_high_as_its_trained_share(chromium, tmp_path):
    rows = [build_row(BYTES, range(65, 75), masked_until(list(range(65, 75)), start)) for start in (0, 5, 10)]
    chromium.open(write_html(rows, tmp_path / "page.html"))
    shares = chromium("[...document.querySelectorAll('#strip i')].map((bar) => bar.style.getPropertyValue('--share'))")
    assert shares == ["100.0%", "50.0%", "0.0%"]
    assert chromium.problems() == []


def test_light_and_dark_can_be_told_apart_and_text_can_be_read_on_both(browser):
    papers = {}
    for theme in ("dark", "light"):
        with browser.media(prefers_color_scheme=theme):
            papers[theme] = browser("getComputedStyle(document.body).backgroundColor")
            for selector in (".run:not(.trained)", ".run.trained"):
                assert contrast(browser, selector) > 4.5, f"{selector} on {theme}"
    assert papers["dark"] != papers["light"]
    browser.mouse("#theme", click=True)
    assert browser("getComputedStyle(document.body).backgroundColor") == papers["dark"]
    browser.mouse("#theme", click=True)
    assert browser("getComputedStyle(document.body).backgroundColor") == papers["light"]


def contrast(browser, selector):
    """WCAG contrast of a run's text against its shade on the paper."""
    return browser(
        """(() => {
          const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const run = getComputedStyle(document.querySelector(SELECTOR));
          const mixed = (...colours) => {
            for (const colour of colours) { brush.fillStyle = colour; brush.fillRect(0, 0, 1, 1); }
            const [red, green, blue] = [...brush.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
              .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
          };
          const paper = getComputedStyle(document.body).backgroundColor;
          const [dark, bright] = [mixed(paper, run.backgroundColor), mixed(run.color)].sort((a, b) => a - b);
          return (bright + 0.05) / (dark + 0.05);
        })()""".replace("SELECTOR", json.dumps(selector))
    )


def test_weights_and_documents_of_a_packed_row(chromium, tmp_path):
    ids = BYTES("abcd")["input_ids"]
    row = build_row(BYTES, ids, ids, weights=[1, 0.5, 0.25, 1], documents=[2, 2])
    chromium.open(write_html([row], tmp_path / "page.html"))
    assert chromium.texts(".document") == [
        "document 1 of 2 · 2 tokens, 2 trained",
        "document 2 of 2 · 2 tokens, 2 trained",
    ]
    assert chromium.texts("#legend .key") == ["trained", "trained ×0.5", "trained ×0.25", "masked"]
    chromium.mouse(".cell[data-cell='1']")
    assert "weight 0.5" in chromium.text("#card")
    assert chromium.problems() == []


def test_a_character_that_a_boundary_splits_is_marked_and_each_token_tells_its_side(chromium, tmp_path):
    ids = BYTES("a東b")["input_ids"]
    chromium.open(write_html([build_row(BYTES, ids, masked_until(ids, 3))], tmp_path / "page.html"))
    assert chromium.texts(".cell.split") == ["東"]
    assert chromium.texts(".run.trained") == ["東b"]
    chromium.mouse(".cell.split")
    for side in ("id 230 · masked", "id 157 · masked", "id 177 · trained"):
        assert side in chromium.text("#card")
    assert chromium.problems() == []


def test_labels_that_are_another_token_are_told(chromium, tmp_path):
    chromium.open(write_html([build_row(BYTES, [65, 66], [66, -100])], tmp_path / "page.html"))
    chromium.mouse(".cell.wrong")
    assert "66, which is another token" in chromium.text("#card")
    assert chromium.problems() == []


def test_what_a_row_lost_is_written_beside_it_and_can_be_filtered(chromium, tmp_path):
    lost = example_row(1, status="lost: 2 tool calls not rendered", lost=["message 1: a", EVIL])
    path = write_html([example_row(0), lost, example_row(2)], tmp_path / "page.html")
    chromium.open(path)
    assert chromium.texts("#lost li") == []
    assert chromium.texts("#filters button") == ["all rows 3", "ambiguous 0", "cut 0", "dropped 0", "lost 1"]
    chromium.mouse("#filters button:nth-child(5)", click=True)
    assert chromium.texts("#lost li") == ["message 1: a", visible(EVIL)]
    assert len(chromium.texts(".item")) == 1
    assert chromium.text("#heading").endswith("· lost")
    assert chromium.texts("#flags li") == ["lost: 2 tool calls not rendered"]
    assert chromium.problems() == []


def test_a_page_without_rows_says_so(chromium, tmp_path):
    chromium.open(write_html([], tmp_path / "page.html"))
    assert chromium.text("#heading") == "This page has no rows."
    chromium.key("j", "r", "c", "ArrowRight", "/", "x", "Escape", "g", "3", "Enter")
    assert chromium.text("#heading") == "This page has no rows."
    assert chromium.problems() == []


def test_an_empty_row_says_so(chromium, tmp_path):
    chromium.open(write_html([build_row(BYTES, [], [])], tmp_path / "page.html"))
    assert chromium.text("#empty") == "This row is empty."
    assert chromium("document.getElementById('row').hidden")
    assert chromium.problems() == []


@pytest.mark.slow
def test_ten_thousand_rows_open_and_scroll_with_few_elements(chromium, tmp_path):
    rows = [example_row(number, "東京 is a city. " * 10) for number in range(20)]
    path = write_html((rows[number % 20] for number in range(10_000)), tmp_path / "page.html")
    began = time.monotonic()
    chromium.open(path)
    assert time.monotonic() - began < 15
    assert chromium.text("#totals").startswith("10,000 rows")
    assert chromium("document.querySelectorAll('*').length") < 3_000
    frames = chromium(
        """new Promise((done) => {
          const list = document.getElementById("list"), times = [];
          const frame = (now) => {
            times.push(now);
            list.scrollTop += 4000;
            if (times.length < 100) requestAnimationFrame(frame);
            else done(times.slice(1).map((time, at) => time - times[at]).sort((a, b) => a - b));
          };
          requestAnimationFrame(frame);
        })"""
    )
    assert frames[len(frames) // 2] < 50, "half of the frames take longer than 50 ms"
    position = chromium("document.getElementById('list').scrollTop")
    assert position > 100_000
    assert chromium.texts(".item")
    assert len(chromium.texts(".item")) < 40
    assert chromium.problems() == []


def test_the_filters_and_reasons_of_a_real_dataset(chromium, tmp_path):
    answered = [{"role": "user", "content": "quick?"}, {"role": "assistant", "content": "yes! 東京"}]
    edited = [*answered[:1], {"role": "assistant", "content": "another <b>answer</b>"}]
    whole = tokenized(answered)
    data = [
        {"messages": answered, "input_ids": whole},
        {"messages": answered[:1], "input_ids": tokenized(answered[:1])},
        {"messages": answered, "input_ids": whole[:-3]},
        {"messages": answered, "input_ids": tokenized(edited)},
    ]
    chromium.open(write_html(preview_rows(data, tokenizer()), tmp_path / "page.html"))
    assert chromium.texts("#filters button") == ["all rows 4", "ambiguous 1", "cut 1", "dropped 2", "lost 0"]
    chromium.mouse(".run.trained .cell")
    card = chromium.text("#card")
    assert card.startswith("trained: inside the answer, which starts at token")
    for words in ("roleassistant", "turn2"):
        assert words in card
    chromium.mouse("#filters button:nth-child(2)", click=True)
    assert "ambiguous: The row's ids are not what the chat template renders" in "".join(chromium.texts("#flags li"))
    chromium.mouse("#filters button:nth-child(4)", click=True)
    assert len(chromium.texts(".item")) == 2
    assert chromium.problems() == []
