"""The page as a file: it shows a dataset without trusting it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.example_page import EVIL, example_row, example_rows
from support.shown_rows import BYTES, word_tokenizer

from sft_mask.preview import build_row
from sft_mask.preview.cells import visible
from sft_mask.preview.html import embed, write_html

FOLDER = Path(__file__).parents[2] / "sft_mask/preview/page"


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
    attributes = Blocks(text).attributes
    assert {name for _, name, _ in attributes if not name.startswith("aria-")} <= {
        *("lang", "charset", "http-equiv", "content", "name", "id", "class", "title", "type", "role", "dir", "hidden"),
        *("tabindex", "href", "scope", "placeholder", "autocomplete", "spellcheck", "inputmode", "value", "checked"),
    }
    assert [value for _, name, value in attributes if name == "href"] == ["#row"]


def test_the_script_makes_no_html_out_of_text():
    script = "".join(path.read_text("utf-8") for path in FOLDER.glob("*.js"))
    assert "textContent" in script
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


def test_what_a_row_lost_is_written_with_it(tmp_path):
    rows = [example_row(0), example_row(1, status="lost: a call", lost=["message 1: a", EVIL])]
    written, _ = data_of(write_html(rows, tmp_path / "page.html"))
    assert [row["lost"] for row in written] == [[], ["message 1: a", visible(EVIL)]]


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
    files = {"page.html", "page.css", "data.js", "row.js", "rows.js", "page.js"}
    assert {file.name for file in FOLDER.iterdir()} == files
