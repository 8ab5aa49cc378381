"""The page shows a dataset without trusting it: read as a file first, then opened in a real browser.

Without Chromium the browser tests are skipped with a reason on a person's machine, and fail in CI.
"""

import base64
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.shown_rows import BYTES, SPECIALS, TEXT, masked_until, word_tokenizer
from support.tiny import tokenized, tokenizer

from sft_mask.preview import Note, build_row, preview_rows
from sft_mask.preview.cells import visible
from sft_mask.preview.html import embed, write_html

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>&amp;\u2028\x1b[31m<!--\\u003c"
ROWS = 40


def example_row(number, text=TEXT, **details):
    ids = BYTES(f"<|start|>user {text}<|end|><|start|>{text}<|end|>")["input_ids"]
    answer = ids.index(BYTES.convert_tokens_to_ids(SPECIALS[1])) + 2
    notes = [
        Note(0, answer, "user", "masked: <b>prompt</b>"),
        Note(answer, len(ids), "assistant", "trained: the answer"),
    ]
    details = {"labels": masked_until(ids, answer), "spans": notes, "name": f"train {number}", **details}
    return build_row(BYTES, ids, **details)


def example_rows():
    for number in range(ROWS):
        flags = {3: "cut", 5: "dropped: no answer", 7: ("ambiguous", "cut")}.get(number, ())
        yield example_row(number, EVIL if number == 2 else TEXT, status=flags)


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    return write_html(example_rows(), tmp_path_factory.mktemp("page") / "page.html", title=f"Rows {EVIL}")


class Blocks(HTMLParser):
    """The elements of a page, and the text of its script and style blocks."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.blocks, self.attributes, self.inside = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in {"script", "style"}:
            self.blocks.append((tag, dict(attrs), ""))
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            tag, attributes, text = self.blocks[-1]
            self.blocks[-1] = (tag, attributes, text + data)


def data_of(path):
    found = {attributes.get("id"): text for _, attributes, text in Blocks(path.read_text("utf-8")).blocks}
    return [json.loads(line) for line in found["rows"].split("\n")], json.loads(found["tables"])


# ---- as a file -------------------------------------------------------------------------------------------------------


def test_nothing_of_the_dataset_becomes_an_element(page):
    harmless = write_html([example_row(0)], page.with_name("harmless.html"), title="Rows")
    assert Blocks(page.read_text("utf-8")).tags == Blocks(harmless.read_text("utf-8")).tags


def test_data_blocks_hold_no_sign_that_html_knows(page):
    data = [text for _, attributes, text in Blocks(page.read_text("utf-8")).blocks if "id" in attributes]
    assert len(data) == 2
    assert not set("".join(data)) & set("<>&")
    assert "".join(data).isascii()


@pytest.mark.parametrize("text", [EVIL, "]]>", "\ud800", "\u2029", "\\", '"', "\\u003c", "<", "\n"])
def test_embedding_is_json_that_reads_back(text):
    assert json.loads(embed([text])) == [text]
    assert "\n" not in embed([text])


def test_the_policy_names_the_hash_of_each_block_that_may_run_and_allows_no_loading(page):
    parsed = Blocks(page.read_text("utf-8"))
    policy = next(value for tag, name, value in parsed.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    running = [text for tag, attributes, text in parsed.blocks if tag == "style" or "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(hashes) == 2


def test_the_page_names_no_other_place(page):
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert {name for _, name, _ in Blocks(text).attributes} <= {
        *("lang", "charset", "http-equiv", "content", "name", "id", "class", "title", "type", "role", "dir", "hidden"),
        *("aria-label", "aria-live", "aria-pressed", "tabindex"),
    }


def test_the_script_makes_no_html_out_of_text():
    script = (Path(__file__).parents[2] / "sft_mask/preview/page/page.js").read_text("utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|DOMParser|fetch|XMLHttp", script
    )


def test_the_page_holds_every_token_of_every_row(page):
    rows, tables = data_of(page)
    for number, (shown, row) in enumerate(zip(rows, example_rows(), strict=True)):
        assert shown["ids"] == list(row.input_ids)
        assert tables["overview"][number][:3] == [f"train {number}", len(row.input_ids), row.trained_tokens]
        assert [note[2] for note in shown["notes"]] == ["user", "assistant"]
    assert tables["overview"][7][3] == ["ambiguous", "cut"]
    assert tables["vocabulary"][str(ord("H"))] == ["H", "48", 0]
    assert tables["vocabulary"]["256"] == ["<|start|>", "3C 7C 73 74 61 72 74 7C 3E", 1]
    assert [3, "東"] in [[stop - start, text] for start, stop, text in rows[0]["cells"]]


def test_a_text_that_differs_from_the_vocabulary_is_written_with_its_row(tmp_path):
    tokenizer = word_tokenizer()
    ids = tokenizer("hello hello")["input_ids"]
    (row,), tables = data_of(write_html([build_row(tokenizer, ids, ids)], tmp_path / "page.html"))
    assert tables["vocabulary"] == {"0": ["hello", "68 65 6C 6C 6F", 0]}
    assert row["cells"] == [[1, 2, " hello"]]


def test_labels_that_are_another_token_are_written(tmp_path):
    (row,), _ = data_of(write_html([build_row(BYTES, [65, 66], [66, -100])], tmp_path / "page.html"))
    assert row["labels"] == [[0, 66]]


def test_a_page_is_replaced_only_when_all_rows_are_written(tmp_path):
    path = write_html([example_row(0)], tmp_path / "page.html")
    before = path.read_bytes()

    def broken():
        yield example_row(1)
        raise RuntimeError("the dataset broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_html(broken(), path)
    assert path.read_bytes() == before


def test_the_template_files_are_part_of_the_package():
    folder = Path(__file__).parents[2] / "sft_mask/preview/page"
    assert {file.name for file in folder.iterdir()} == {"page.html", "page.css", "page.js"}


# ---- in a browser ----------------------------------------------------------------------------------------------------

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--remote-debugging-pipe", "--window-size=1280,860"),
)


class Browser:
    """Chromium through its own pipe protocol: real mouse, real keys, every request and error seen."""

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs_in, out), (back, theirs_out) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (theirs_in, theirs_out)]

        def three_and_four():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=three_and_four,  # noqa: PLW1509 - no threads here, and Chromium wants exactly these numbers
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (*high, theirs_in, theirs_out):
            os.close(fd)
        self.out, self.back = os.fdopen(out, "wb", buffering=0), os.fdopen(back, "rb", buffering=0)
        self.numbers, self.buffer, self.events, self.session = itertools.count(1), b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def read(self):
        while b"\0" not in self.buffer:
            chunk = self.back.read(1 << 20)
            assert chunk, "Chromium closed its pipe: it did not start, or it crashed"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, anchor="", ready="document.getElementById('heading')?.textContent"):
        self.events.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{path.as_uri()}{anchor}")
        for _ in range(600):
            if self("document.readyState") == "complete" and self(ready):
                return self
            time.sleep(0.05)
        raise AssertionError(f"the page was not ready: {self.problems()}")

    def __call__(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, selector, *, click=False):
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self(f"(() => {{ const b = {box}; return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if click else "none", clickCount=1)

    def key(self, key):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def texts(self, selector):
        return self(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.textContent)")

    def text(self, selector):
        (found,) = self.texts(selector)
        return found

    def problems(self):
        bad = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
        return [event for event in self.events if event.get("method") in bad]

    def requests(self):
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=20)
        self.out.close()
        self.back.close()
        self.profile.cleanup()


@pytest.fixture(scope="session")
def chromium():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium on PATH: apt-get install chromium")
    browser = Browser(program)
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, page):
    yield chromium.open(page)
    assert chromium.problems() == []


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
    browser.key("ArrowRight")
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
    assert browser.text("#heading").endswith("0.0 %)") or "dropped: no answer" in browser.text("#heading")


def test_the_bar_of_each_row_is_as_high_as_its_trained_share(chromium, tmp_path):
    rows = [build_row(BYTES, range(65, 75), masked_until(list(range(65, 75)), start)) for start in (0, 5, 10)]
    chromium.open(write_html(rows, tmp_path / "page.html"))
    shares = chromium("[...document.querySelectorAll('#strip i')].map((bar) => bar.style.getPropertyValue('--share'))")
    assert shares == ["100.0%", "50.0%", "0.0%"]
    assert chromium.problems() == []


def test_light_and_dark_can_be_told_apart_and_text_can_be_read_on_both(browser):
    papers = {}
    for theme in ("dark", "light"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        papers[theme] = browser("getComputedStyle(document.body).backgroundColor")
        for selector in (".run:not(.trained)", ".run.trained"):
            assert contrast(browser, selector) > 4.5, f"{selector} on {theme}"
    browser.call("Emulation.setEmulatedMedia", features=[])
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
    assert [row["lost"] for row in data_of(path)[0]] == [[], ["message 1: a", visible(EVIL)], []]
    chromium.open(path)
    assert chromium.texts("#lost li") == []
    assert chromium.texts("#filters button") == ["all rows 3", "ambiguous 0", "cut 0", "dropped 0", "lost 1"]
    chromium.mouse("#filters button:nth-child(5)", click=True)
    assert chromium.texts("#lost li") == ["message 1: a", visible(EVIL)]
    assert len(chromium.texts(".item")) == 1
    assert chromium.text("#heading").endswith("· lost: 2 tool calls not rendered")
    assert chromium.problems() == []


def test_a_page_without_rows_says_so(chromium, tmp_path):
    chromium.open(write_html([], tmp_path / "page.html"))
    assert chromium.text("#heading") == "This page has no rows."
    assert chromium.problems() == []


def test_an_empty_row_says_so(chromium, tmp_path):
    chromium.open(write_html([build_row(BYTES, [], [])], tmp_path / "page.html"))
    assert chromium.text("#row") == "This row is empty."
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
    for words in ("roleassistant", "turn2", "reasontrained: inside the answer, which starts at token"):
        assert words in card
    chromium.mouse("#filters button:nth-child(2)", click=True)
    assert "ambiguous: The row's ids are not what the chat template renders" in chromium.text("#heading")
    chromium.mouse("#filters button:nth-child(4)", click=True)
    assert len(chromium.texts(".item")) == 2
    assert chromium.problems() == []
