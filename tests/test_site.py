"""The site as its readers get it: built without a warning, loading nothing from elsewhere, asked in its own search."""

from __future__ import annotations

import functools
import html
import inspect
import json
import os
import re
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.api_page import documented
from support.browser import chromium_or_skip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUESTIONS = {
    "loss_is_zero": ["my loss is 0", "loss nan"],
    "never_stops": ["it never stops", "does not stop"],
    "echoes_me": ["it echoes me", "echoes the user"],
    "turns": ["it stopped thinking", "stop thinking"],
    "tool_calls": ["tool calls"],
    "packing": ["packing"],
    "vision": ["vision"],
    "own_template": ["my own template", "custom chat template"],
    "launch": ["several GPUs", "multi-GPU", "FSDP", "DeepSpeed"],
    "unsloth": ["with Unsloth", "unsloth"],
    "plain_trainer": ["with plain Trainer", "plain trainer"],
    "formats": ["my data is ShareGPT/Alpaca", "ShareGPT", "Alpaca"],
    "dpo_grpo": ["DPO and GRPO", "DPO", "GRPO"],
    "logging": ["how do I log it", "wandb"],
    "serving": ["vLLM", "GGUF", "chat"],
    "doctor": ["something is wrong"],
    "weights": ["how much a token counts"],
    "api": ["train_on_responses_only", "mask_dataset"],
}
"""What people ask, and the page that must come first."""
ASK = """<!doctype html><meta charset="utf-8"><pre id="found"></pre><script>
async function ask(question) {
  const frame = document.createElement("iframe");
  frame.src = SEARCH + "?q=" + encodeURIComponent(question);
  document.body.append(frame);
  const within = (selector) => [...(frame.contentDocument?.querySelectorAll(selector) ?? [])];
  const said = () => within(".search-summary").map((found) => found.textContent).join();
  for (let i = 0; i < 400 && !/finished|did not match/.test(said()); i++) await new Promise((go) => setTimeout(go, 25));
  const pages = within("#search-results li a").map((found) => found.href);
  frame.remove();
  return pages;
}
(async () => {
  const found = {};
  for (const question of QUESTIONS) found[question] = await ask(question);
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script>"""


class Links(HTMLParser):
    """What a page loads, where it leads to, and the places in it that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places.add(given.get("id", ""))
        if "src" in given or tag == "link":
            self.loaded.append(given.get("src") or given.get("href", ""))
        elif tag == "a" and "href" in given:
            self.linked.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    command = next(line for line in (ROOT / "scripts" / "docs.sh").read_text().splitlines() if "-m sphinx" in line)
    arguments = command.partition("-m sphinx ")[2].replace('"$@"', "").removesuffix(" site/html").split()
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments, str(folder)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_the_site_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    assert len(pages) > 25
    assert {url for page in pages.values() for url in page.loaded if re.match(r"(https?:)?//", url)} == set()
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style) for style in styles)


def test_no_link_of_the_site_is_dead(pages: dict[Path, Links]) -> None:
    dead = []
    for path, page in pages.items():
        for url in page.linked + page.loaded:
            target, _, place = urllib.parse.unquote(url).partition("#")
            if re.match(r"\w+:|//", target):
                continue
            file = (path.parent / target.partition("?")[0]).resolve() if target else path
            if not file.exists() or (place and file in pages and place not in pages[file].places):
                dead.append((path.name, url))
    assert dead == []


@functools.cache
def ask(search: Path, questions: tuple[str, ...]) -> dict[str, list[str]]:
    """The pages that the search shows for each question, the first one first, in a browser without a server."""
    program = chromium_or_skip()
    driver = search.parent / "ask.html"
    driver.write_text(ASK.replace("SEARCH", json.dumps(search.as_uri())).replace("QUESTIONS", json.dumps(questions)))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files")
    shown = subprocess.run(
        [program, *flags, "--virtual-time-budget=600000", "--dump-dom", driver.as_uri()],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    driver.unlink()
    found = re.search(r'<pre id="found">(.+?)</pre>', shown.stdout, re.DOTALL)
    assert found, shown.stderr[-2000:]
    answer: dict[str, list[str]] = json.loads(html.unescape(found[1]))
    return answer


@pytest.mark.parametrize("page", QUESTIONS)
def test_the_search_answers_a_question_with_its_page_first(page: str, site: Path) -> None:
    found = ask(site / "search.html", tuple(question for asked in QUESTIONS.values() for question in asked))
    first = {question: next(iter(found[question]), "") for question in QUESTIONS[page]}
    stems = {question: Path(urllib.parse.urlparse(url).path).stem for question, url in first.items()}
    assert stems == dict.fromkeys(QUESTIONS[page], page)


def test_a_search_without_an_answer_shows_none(site: Path) -> None:
    assert ask(site / "search.html", ("qwertyuiop",)) == {"qwertyuiop": []}


def test_every_public_function_is_shown_with_all_of_its_arguments(site: Path) -> None:
    shown = (site / "docs" / "api.html").read_text(encoding="utf-8")
    signatures = dict(re.findall(r'<dt class="sig[^"]*" id="(sft_mask[\w.]+)">(.*?)</dt>', shown, re.DOTALL))
    assert documented().keys() <= signatures.keys()
    functions = {path: thing for path, thing in documented().items() if inspect.isfunction(thing)}
    assert len(functions) >= 18
    for path, function in functions.items():
        arguments = set(re.findall(r"\w+", re.sub(r"<[^>]+>", " ", signatures[path])))
        assert inspect.signature(function).parameters.keys() <= arguments, path
