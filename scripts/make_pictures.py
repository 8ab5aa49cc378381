"""Draws the pictures of the docs from the quickstart's data, masked by the library.

.venv/bin/python scripts/make_pictures.py    # docs/images/*.svg and *.png; those of the page only with Chromium

The gradients are measured on SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "tests")]

from datasets import Dataset  # noqa: E402  the folders of recipes and tests are not packages
from local_model import smollm2_folder  # noqa: E402
from mask_figures import draw_gradients, draw_shares, shortest_with_two_answers  # noqa: E402
from rich.cells import cell_len  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.terminal_theme import TerminalTheme  # noqa: E402
from support.browser import Browser  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from sft_mask.preview import PreviewRow, preview_rows, write_html  # noqa: E402
from sft_mask.preview.terminal import RowView  # noqa: E402

IMAGES = ROOT / "docs" / "images"
BACKGROUND, TEXT = (22, 24, 29), (222, 224, 228)
COLOURS = [
    BACKGROUND,
    (230, 100, 90),
    (76, 201, 122),
    (233, 174, 82),
    (110, 168, 255),
    (210, 110, 190),
    (95, 190, 205),
    TEXT,
]
FONT = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono,"


def masked_rows() -> list[PreviewRow]:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    lines = (ROOT / "recipes" / "data" / "house_style_train.jsonl").read_text(encoding="utf-8").splitlines()
    return list(preview_rows(Dataset.from_list([json.loads(line) for line in lines]), tokenizer))


def draw_terminal(row: PreviewRow, path: Path) -> None:
    console = Console(record=True, width=72, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(RowView(row))
    drawn = console.export_svg(title="what is trained", theme=TerminalTheme(BACKGROUND, TEXT, COLOURS))
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL).replace("Fira Code,", FONT)
    path.write_text(re.sub(r'textLength="([\d.]+)"([^>]*)>([^<]*)<', _wide, drawn), encoding="utf-8")


def _wide(found: re.Match[str]) -> str:
    """Rich counts characters; 東 is two cells wide."""
    text = html.unescape(found[3])
    length = float(found[1]) / max(1, len(text)) * cell_len(text)
    return f'textLength="{length:g}"{found[2]}>{found[3]}<'


def photograph(rows: list[PreviewRow]) -> list[str]:
    """The page: with a reason, in forced colours, on a phone. Returns the names of the pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return []
    names = ["preview.png", "preview_forced_colors.png", "preview_phone.png"]
    wide, forced, phone = (IMAGES / name for name in names)
    browser = Browser(chromium)
    with tempfile.TemporaryDirectory() as folder:
        page = write_html(rows, Path(folder) / "mask.html", title="What is trained")
        with browser.window(1200, 720):
            browser.open(page).mouse(".run.trained .cell.special")
            browser.screenshot(wide)
        with browser.media(forced_colors="active", prefers_color_scheme="dark"), browser.window(820, 600):
            browser.open(page, "#3").screenshot(forced)
        with browser.window(380, 600):
            browser.open(page, "#3").mouse(".run.trained .cell.special", click=True)
            browser.screenshot(phone)
    browser.close()
    return names


def draw_measured(rows: list[PreviewRow]) -> None:
    draw_shares(rows).savefig(IMAGES / "shares.png", dpi=120)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder())
    draw_gradients(shortest_with_two_answers(rows), model).savefig(IMAGES / "gradient.png", dpi=110)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=form).parse_args()
    rows = masked_rows()
    shown = min((row for row in rows[:40] if "🙂" in str(row.runs)), key=lambda row: len(row.input_ids))
    draw_terminal(shown, IMAGES / "terminal.svg")
    draw_measured(rows)
    drawn = photograph(rows[:40])
    print("docs/images:", ", ".join(["terminal.svg", "shares.png", "gradient.png", *drawn]))
    if not drawn:
        print("no Chromium here: the pictures of the page are left as they were")


if __name__ == "__main__":
    main()
