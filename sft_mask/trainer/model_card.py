"""The part of a model card that says what was trained."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_mask.core.policy import Policy
from sft_mask.data.prelabelled import masked_by
from sft_mask.errors import SftMaskError
from sft_mask.report import MaskReport, SplitReport
from sft_mask.report.counts import counted, percent, spelled_reasons
from sft_mask.trainer.inference import prompt_arguments
from sft_mask.trainer.summary import is_masked_before

logger = logging.getLogger(__name__)

_BEGIN, _END = "<!-- sft_mask: what was trained -->", "<!-- sft_mask: end -->"
_USUAL = "every answer, each token with the same weight"
_SECTION = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)
_BEFORE = re.compile(r"^#+ Framework versions", re.MULTILINE)


def add_to_model_card(trainer: Any) -> None:
    """Writes what was trained into the model card that a trainer has made; without a card, nothing happens.

    The card stays as it was made, with a warning, if it cannot be read or something about the mask is not known.
    """
    path = Path(trainer.args.output_dir) / "README.md"
    if not trainer.is_world_process_zero() or not path.is_file():
        return
    try:
        _write_section(trainer, path)
    except (SftMaskError, OSError, UnicodeError) as error:
        logger.warning("The model card %s does not say what was trained: %s", path, error)


def _write_section(trainer: Any, path: Path) -> None:
    card = _SECTION.sub("", path.read_text(encoding="utf-8"))
    section = f"{_BEGIN}\n{card_section(trainer)}\n{_END}\n\n"
    found = _BEFORE.search(card)
    before, after = (f"{card.rstrip()}\n\n", "") if found is None else (card[: found.start()], card[found.start() :])
    path.write_text(before + section + after, encoding="utf-8")


def card_section(trainer: Any) -> str:
    """The section, in Markdown: share, markers, end-of-turn tokens, policy and generation prompt, as far as known."""
    lines = "\n".join(f"- {line}" for line in _lines(trainer))
    return (
        "### What was trained\n\nA token was trained if and only if the model has to sample it at inference; the mask "
        f"was made with `sft_mask`.\n\n{lines}"
    )


def _lines(trainer: Any) -> Iterator[str]:
    report, masker = trainer.mask_report, trainer._sft_mask.masker
    train = report.splits.get("train", SplitReport())
    share = f"{train.trained_tokens:,} of {train.tokens:,} tokens ({percent(train.share)})"
    yield f"trained: {share} in {counted(train.rows, 'row')}"
    if train.rows_dropped:
        yield f"left out: {counted(train.rows_dropped, 'row')} ({spelled_reasons(train.dropped_reasons)})"
    yield from _markers(report, train)
    if is_masked_before(trainer):
        policy = masked_by(trainer.train_dataset)
    else:
        policy = "" if masker is None else repr(masker.policy)
    if policy:
        yield f"policy: {_USUAL if policy == repr(Policy()) else code(policy)}"
    arguments = {"add_generation_prompt": True, **prompt_arguments(trainer)}
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    yield f"generation prompt: {code(f'apply_chat_template(messages, {given})')}"


def _markers(report: MaskReport, train: SplitReport) -> Iterator[str]:
    if report.markers is None:
        return
    markers = report.markers
    origin = "read from the chat template" if markers.detected else "given"
    yield f"markers: {code(repr(markers.instruction))} → {code(repr(markers.response))} ({origin})"
    stops = " or ".join(map(code, markers.stops)) or "none"
    many = f", {train.stops_trained:,} of {train.turns_with_stop:,} trained" if train.turns_with_stop else ""
    yield f"end-of-turn tokens: {stops}{many}"


def code(text: str) -> str:
    """Text as a code span of Markdown, on one line, whatever it holds.

    >>> code("<|end|>"), code("a`b")
    ('`<|end|>`', '`` a`b ``')
    """
    text = text.replace("\n", "\\n")
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    return f"{ticks} {text} {ticks}" if longest else f"`{text}`"
