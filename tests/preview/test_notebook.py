"""What a notebook shows: short in text, bounded in HTML, inert whatever the data say, and light or dark as its host."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from support.browser import chromium_or_skip
from support.shown_rows import BYTES, SPECIALS, masked_until
from support.tiny import messages_dataset, tokenizer

from sft_mask import Policy, compare_masks, preview_rows
from sft_mask.doctor import Diagnosis, Finding
from sft_mask.preview import Note, PreviewRow, build_row
from sft_mask.preview.diff import MaskDiff, diff_rows
from sft_mask.preview.rows import Picture
from sft_mask.preview.snapshot import check_snapshot, write_snapshot
from sft_mask.report import MarkerSummary, MaskReport, SplitReport

EVIL = "</style></title><script>window.hacked=1</script><img src=x onerror=window.hacked=2>\" ' &lt; \u202e\x1b[31m"
TAGS = {"div", "style", "span", "i", "b", "mark", "details", "summary", "img"}
ATTRIBUTES = {"class", "style", "title", "dir", "aria-hidden", "open", "alt", "src"}


class Parsed(HTMLParser):
    """Tags, attributes and the text outside of the style of a piece of HTML; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self.path = "", list[str]()
        self.feed(text)
        self.close()
        assert self.path == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "img":
            self.path.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self.path[-1] == "style" else data


def row_of(prompt: str, answer: str, **details: Any) -> PreviewRow:
    ids = BYTES(f"<|start|>user {prompt}<|end|><|start|>{answer}<|end|>")["input_ids"]
    start = len(ids) - len(BYTES(f"{answer}<|end|>")["input_ids"])
    notes = [
        Note(0, start, "user", f"masked: a prompt {prompt[:99]}"),
        Note(start, len(ids), "assistant", "trained: the answer"),
    ]
    return build_row(BYTES, ids, **{"labels": masked_until(ids, start), "spans": notes, "name": "train 0", **details})


def marked(shown: str) -> str:
    """Text of everything that is marked as trained, the legend aside."""
    body = re.sub(r'<div class="legend">.*?</div>', "", shown)
    return html.unescape(re.sub("<[^>]+>", "", "".join(re.findall(r"<mark.*?</mark>", body, re.DOTALL))))


def hostile() -> Iterator[Any]:
    row = row_of(EVIL, EVIL, name=EVIL, status=EVIL, lost=[EVIL])
    other = row_of(EVIL, EVIL, labels=[-100] * len(row.input_ids), name=EVIL)
    diff = MaskDiff()
    diff.add(diff_rows(row, other))
    yield from (row, diff_rows(row, other), diff)
    split = SplitReport(rows=1, tokens=10, trained_tokens=4, dropped_reasons={EVIL: 2}, rows_dropped=2)
    yield MaskReport({EVIL: split}, MarkerSummary(EVIL, EVIL, (EVIL,)), (EVIL,), notes=(EVIL,), read_as={EVIL: EVIL})
    yield Diagnosis((Finding(EVIL, EVIL, EVIL, EVIL, EVIL, (EVIL,)),), {EVIL: {EVIL: 1.0}}, EVIL)
    yield Diagnosis((), {EVIL: {EVIL: 1.0}}, EVIL)
    messages = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]
    yield preview_rows([{"messages": messages}], tokenizer())


# ---- as text ---------------------------------------------------------------------------------------------------------


def test_no_short_form_is_long_whatever_it_stands_for() -> None:
    row = row_of("x" * 20_000, "y" * 20_000, name="n" * 5_000)
    many = MaskReport({f"eval:{number}": SplitReport(rows=1) for number in range(500)})
    for shown in (row, diff_rows(row, row), many, preview_rows(messages_dataset(30), tokenizer())):
        assert len(repr(shown)) < 400
        assert "\n" not in repr(shown)


def test_short_forms_word_for_word() -> None:
    row = row_of("Hi", "Yo\nBye", status="cut")
    assert repr(row) == "<PreviewRow train 0 · 17 tokens, 7 trained (41.2 %) · cut: 'Yo↵Bye<|end|>'>"
    assert repr(row_of("Hi", "Yo", labels=[-100] * 13)) == "<PreviewRow train 0 · 13 tokens, 0 trained (0.0 %)>"
    assert repr(diff_rows(row, row)) == "<RowDiff train 0: 0 changes>"
    assert repr(MaskDiff(60, 12, 345)) == "<MaskDiff 12 of 60 rows differ, in 345 tokens>"
    rows = preview_rows(messages_dataset(30), tokenizer())
    assert (repr(rows), repr(rows[:1])) == ("<PreviewRows train: 30 rows>", "<PreviewRows train: 1 row>")
    split = SplitReport(rows=2, documents=2, tokens=100, trained_tokens=30, rows_checked=2)
    assert repr(MaskReport({"train": split}, warnings=("w",))) == (
        "<MaskReport train: 2 rows · 100 tokens, 30 trained (30.0 %); 1 warning>"
    )
    assert repr(MaskReport()) == "<MaskReport no splits>"
    assert repr(MaskReport({str(n): SplitReport() for n in range(6)})).endswith("; 2 more splits>")
    assert repr(Diagnosis(())) == "<Diagnosis healthy>"
    found = Finding("the loss is 0 or NaN", "Why.", "Cure.", also=("the model never stops",))
    assert repr(Diagnosis((found,))) == "<Diagnosis the loss is 0 or NaN; the model never stops (train)>"


# ---- as HTML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", list(hostile()), ids=lambda shown: type(shown).__name__)
def test_nothing_of_the_data_becomes_an_element_or_leaves_its_attribute(shown: Any) -> None:
    parsed = Parsed(shown._repr_html_())
    assert set(parsed.tags) <= TAGS - {"img"}
    assert {name for name, _ in parsed.attributes} <= ATTRIBUTES
    assert parsed.tags.count("style") == 1
    assert "</style></title><script>window.hacked=1</script><img src=x onerror=window.hacked=2>" in parsed.text
    assert "\x1b" not in parsed.text or not isinstance(shown, PreviewRow)


def test_a_row_marks_what_is_trained_and_nothing_else() -> None:
    shown = row_of("What?", "Lima.\nYes")._repr_html_()
    assert marked(shown) == "Lima.↵\nYes<|end|>"
    parsed = Parsed(shown)
    assert "What?" in parsed.text
    titles = [value for name, value in parsed.attributes if name == "title"]
    assert {"masked: a prompt What?", "trained: the answer"} == set(titles)
    roles = re.findall(r'class="role">(\w+) <', shown)
    assert roles == ["user", "assistant"]


def test_weights_are_shades_named_in_the_legend() -> None:
    ids = BYTES("abc")["input_ids"]
    shown = build_row(BYTES, ids, ids, weights=[0.5, 0, 1], name="x")._repr_html_()
    assert marked(shown) == "ac"
    assert 'style="--shade:0.62">trained ×0.5</mark>' in shown
    assert 'title="(weight 0.5)"' in shown


def test_the_ends_of_a_long_text_are_shown_and_the_size_is_bounded() -> None:
    row = row_of(f"first {'middle ' * 5_000} last", f"ANSWER {'more ' * 5_000} END")
    shown = row._repr_html_()
    assert len(shown) < 12_000
    for seen in ("user first middle", " last", "ANSWER more", "more  END"):
        assert seen in shown
    assert "⋯ 34,216 characters ⋯" in shown


def test_a_row_whose_mask_changes_at_every_token_is_cut_with_a_count() -> None:
    ids = BYTES("ab" * 500)["input_ids"]
    labels = [token if at % 2 else -100 for at, token in enumerate(ids)]
    shown = build_row(BYTES, ids, labels)._repr_html_()
    assert len(marked(shown)) == 60
    assert "and 880 more tokens" in shown


def test_padding_takes_one_place_and_documents_are_told_apart() -> None:
    end = BYTES.convert_tokens_to_ids(SPECIALS[1])
    ids = [*BYTES("ab")["input_ids"], *[end] * 40]
    shown = build_row(BYTES, ids, ids, documents=[1, 41])._repr_html_()
    assert "&lt;|end|&gt;×40" in shown
    assert re.findall(r"document \d of 2 · \d+ tokens?", shown) == [
        "document 1 of 2 · 1 token",
        "document 2 of 2 · 41 tokens",
    ]


def test_a_picture_is_shown_only_if_it_is_a_jpeg_inside_the_page() -> None:
    ids = BYTES("abcd")["input_ids"]
    inside = Picture(1, 3, thumbnail="data:image/jpeg;base64,AAAA")
    elsewhere = Picture(1, 3, thumbnail="https://example.com/a.jpg")
    shown = build_row(BYTES, ids, ids, pictures=[inside])._repr_html_()
    assert '<img alt="" src="data:image/jpeg;base64,AAAA">' in shown
    assert "⟨image × 2⟩" in shown
    assert "<img" not in build_row(BYTES, ids, ids, pictures=[elsewhere])._repr_html_()


def test_of_several_rows_the_first_is_open_and_only_five_are_made() -> None:
    rows = preview_rows(messages_dataset(30), tokenizer())
    shown = rows._repr_html_()
    assert shown.count("<details") == 5
    assert shown.count("<details open>") == 1
    assert "train: 30 rows" in shown
    assert "and 25 more, such as rows[5]; write_html(rows, path) shows them all" in shown
    assert marked(rows[2]._repr_html_()) in marked(shown)
    assert "<details" not in rows[:0]._repr_html_()


def test_a_diff_shows_both_masks_and_outlines_what_differs() -> None:
    data = messages_dataset(8)
    diff = compare_masks(preview_rows(data, tokenizer()), preview_rows(data, tokenizer(), policy=Policy(turns="last")))
    first = diff.shown[0]
    shown = first._repr_html_()
    outlined = re.findall(r'<(mark|span) class="(?:special )?changed"[^>]*>(.*?)</', shown)
    tokens = {at for change in first.changes for at in range(change.left_start, change.left_end)}
    words = b"".join(first.left.token_bytes[at] for at in sorted(tokens)).decode()
    for tag in ("mark", "span"):  # trained on the left, masked on the right
        assert html.unescape("".join(text for kind, text in outlined if kind == tag)) == words
    assert html.escape(first.lines()[0]) in shown
    assert str(diff) in diff._repr_html_()
    assert diff._repr_html_().count("<details") == min(5, diff.different)


def test_a_snapshot_that_changed_is_shown_without_its_tokenizer(tmp_path: Path) -> None:
    data = messages_dataset(2)
    write_snapshot(tmp_path / "mask.jsonl", data, tokenizer())
    text = (tmp_path / "mask.jsonl").read_text("utf-8")
    (tmp_path / "mask.jsonl").write_text(text.replace("[[0, [", "[[1, [", 1), "utf-8")
    (changed,) = check_snapshot(tmp_path / "mask.jsonl", data, tokenizer()).diff.shown
    assert 'class="changed"' in changed._repr_html_()


def test_a_report_names_every_line_of_its_text() -> None:
    everything = {name: 7 for name in SplitReport.__slots__ if isinstance(getattr(SplitReport(), name), int)}
    lost = {"fields": {"tool calls": 9}, "not_rendered": {"tool calls": 2}, "first_not_rendered": {"tool calls": 1}}
    split = SplitReport(**everything, **lost, prompts={"enable_thinking=False": 7}, dropped_reasons={"cut": 7})
    report = MaskReport({"train": split}, MarkerSummary("a", "b"), notes=("a note",), read_as={"train": "ShareGPT: x"})
    words = re.sub(r"[\s:]", "", Parsed(report._repr_html_()).text)
    assert words == re.sub(r"[\s:]", "", str(report))
    assert 'style="width:100.0%"' in report._repr_html_()


def test_a_diagnosis_says_what_its_text_says() -> None:
    found = Finding("it echoes", "12 % of <b>", "Mask.", example="row 3", also=("it never stops",))
    for diagnosis in (Diagnosis((found,), {"train": {"rows": 4}}), Diagnosis((), {}, "Policy()")):
        words = sorted(re.sub(r"[✓✗]", "", Parsed(diagnosis._repr_html_()).text.replace(" ", "")))
        assert words == sorted(re.sub(r"[✓✗\s]", "", str(diagnosis)))


def test_half_a_character_is_replaced_so_that_a_notebook_can_be_saved() -> None:
    assert "a?b" in Diagnosis((Finding("a\ud800b", "", ""),))._repr_html_()


# ---- in a browser ----------------------------------------------------------------------------------------------------


def sheet(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text("utf-8")


def test_the_colours_are_those_of_the_page() -> None:
    pattern = re.compile(r"(--[\w-]+): (light-dark\(.+?\));")
    page = dict(pattern.findall(sheet("sft_mask.preview", "page/page.css")))
    here = dict(pattern.findall(sheet("sft_mask.report", "notebook.css")))
    assert len(here) > 8
    assert here == {name: page[name] for name in here}


HOSTS = {
    '<div data-jp-theme-light="true">': "light",
    '<div data-jp-theme-light="false">': "dark",
    '<div class="vscode-dark">': "dark",
    '<div class="vscode-light">': "light",
    '<div class="vscode-high-contrast">': "dark",
    '<div class="vscode-high-contrast vscode-high-contrast-light">': "light",
    '<div data-theme="dark">': "dark",
    '<div theme="light">': "light",
    "<div>": "as the system",
}
PAPER = {"light": "rgb(251, 250, 247)", "dark": "rgb(20, 22, 26)"}
READ = """
<script>
const seen = [...document.querySelectorAll('.sft-mask')].map((panel) => getComputedStyle(panel).backgroundColor);
document.body.replaceChildren(Object.assign(document.createElement('pre'), {
  id: 'seen', textContent: JSON.stringify({seen, hacked: window.hacked ?? null}),
}));
</script>
"""


@pytest.mark.parametrize("system", ["light", "dark"])
def test_it_is_light_or_dark_as_its_host_is_and_runs_nothing(system: str, tmp_path: Path) -> None:
    program = chromium_or_skip()
    shown = "".join(each._repr_html_() for each in hostile())
    once = MaskReport()._repr_html_()
    hosts = "".join(f"{host}{once}</div>" for host in HOSTS)
    (tmp_path / "host.html").write_text(f"<!doctype html><meta charset=utf-8><body>{hosts}{shown}{READ}", "utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    quiet += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={int(system == 'light')}",
    ]
    command = [program, *quiet, "--dump-dom", (tmp_path / "host.html").as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(html.unescape(dom.split('<pre id="seen">')[1].split("</pre>")[0]))
    wanted = [PAPER.get(theme, PAPER[system]) for theme in HOSTS.values()]
    assert found == {"seen": [*wanted, *[PAPER[system]] * len(list(hostile()))], "hacked": None}
