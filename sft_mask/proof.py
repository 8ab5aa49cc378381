"""Proof of markers: in rendered and tokenized conversations they find every word of the model's and nobody else's.

The judge is the owner of each character (:mod:`sft_mask.tracing`), not the code that finds turns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.alignment import token_bounds
from sft_mask.constants import MODEL_ROLES
from sft_mask.errors import DetectionError, MarkerError
from sft_mask.markers import Kind, Markers, MarkerText, compile_patterns
from sft_mask.probing import Probe, probes, try_render
from sft_mask.spans import SpanFinder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.template import ChatTemplate
    from sft_mask.tokens import Vocabulary
    from sft_mask.tracing import Rendered


def prove(markers: Markers, template: ChatTemplate, vocabulary: Vocabulary, tokenizer: Any) -> Markers:
    """The markers, if they hold in every probe that the template renders.

    Where only a conversation with tools fails, ``complete`` is taken back: not all headers and stops are known, and
    such rows need their messages.

    Raises:
        DetectionError: they fail in a plain conversation.
    """
    try:
        trie = compile_patterns(markers, vocabulary, tokenizer)
    except MarkerError as error:
        raise DetectionError(f"The markers read from the chat template cannot be used: {error}") from error
    finder = SpanFinder(trie, complete=True, open_end=markers.open_end)
    complete = True
    for probe in probes():
        if any(message["role"] in markers.like_the_model for message in probe.messages):
            continue  # no marker can be right about them, and rows with messages know better
        fault = _fault(probe, str(markers.response[0]), finder, template, vocabulary, tokenizer)
        if fault is None:
            continue
        if not probe.optional:
            raise DetectionError(
                f"The markers read from the chat template (response {markers.response[0]!r}, instruction "
                f"{markers.instruction[0]!r}) do not hold in a rendered conversation with {probe.name}: {fault} "
                "Give both instruction_part and response_part."
            )
        complete = False
    return replace(markers, complete=complete)


def _fault(
    probe: Probe,
    core: str,
    finder: SpanFinder,
    template: ChatTemplate,
    vocabulary: Vocabulary,
    tokenizer: Any,
) -> str | None:
    """What is wrong in one probe, ``None`` where nothing is or the template refuses it."""
    rendered = try_render(template, probe.messages)
    if rendered is None:
        return None
    ids = np.asarray(tokenizer(rendered.text, add_special_tokens=False)["input_ids"], np.int64)
    turns = finder.find(ids, np.array([0, len(ids)], np.int64))
    first, last = token_bounds(rendered.text, ids.tolist(), vocabulary, tokenizer)
    held = np.zeros(len(rendered.text.encode()) + 1, np.bool_)
    for start, stop in zip(turns.start.tolist(), turns.stop.tolist(), strict=True):
        held[first[start] : last[stop - 1]] = True
    model, others = _owned_bytes(rendered)
    raw = rendered.text.encode()
    trained = _runs(raw, model & held[:-1])
    for run in _runs(raw, model & ~held[:-1]):
        if not any(run in other for other in trained):  # a tool's result may be headed by the name from the call
            return f"of the model's words {_shown(run)} would not be trained."
    for run in _runs(raw, others & held[:-1]):
        return f"of other people's words {_shown(run)} would be trained."
    answers = sum(message["role"] in MODEL_ROLES for message in probe.messages)
    if not probe.optional and len(turns) != answers:
        return f"{len(turns)} turns were found for {answers} answers."
    if probe.optional or not len(turns):
        return None
    return _trained_header(probe, core, template, rendered, held) or _untrained_stop(rendered, template, finder, held)


def _trained_header(
    probe: Probe, core: str, template: ChatTemplate, rendered: Rendered, held: NDArray[np.bool_]
) -> str | None:
    """What is wrong where words of the template before an answer would be trained although the prompt holds them.

    A template without a generation prompt leaves nothing of them to the model; one that always writes the response
    header (``core``) has one even where it is not asked for it.
    """
    message = rendered.message_of()
    for index, role in enumerate(rendered.roles):
        own, before = np.flatnonzero(message == index), np.flatnonzero(message == index - 1)
        if role not in MODEL_ROLES or not index or not len(own) or not len(before):
            continue
        said, ends = int(before[-1]) + 1, int(own[0])
        asked, silent = (
            try_render(template, probe.messages[:index], add_generation_prompt=prompt) for prompt in (True, False)
        )
        has_prompt = asked is not None and (silent is None or silent.text != asked.text or core in asked.text[said:])
        if asked is None or has_prompt:
            ends = min(ends, len(asked.text)) if asked is not None and rendered.text.startswith(asked.text) else said
        low, high = (len(rendered.text[:at].encode()) for at in (said, ends))
        for run in _runs(rendered.text.encode()[low:high], held[low:high]):
            if run.strip():
                return f"{_shown(run)}, which the template writes before an answer, would be trained."
    return None


def _untrained_stop(
    rendered: Rendered, template: ChatTemplate, finder: SpanFinder, held: NDArray[np.bool_]
) -> str | None:
    """What is wrong where the control token right after the last answer opens no turn and would not be trained."""
    said = int(np.flatnonzero(rendered.message_of() >= 0).max(initial=-1)) + 1
    found = template.first_special(rendered.text[said:]) if said else None
    if found is None or rendered.text[said : said + found[0]].strip():
        return None
    if any(_opens(pattern.text, found[1]) for pattern in finder.trie.patterns if pattern.kind is not Kind.STOP):
        return None
    at = len(rendered.text[: said + found[0]].encode())
    return None if held[at] else f"{found[1]!r} ends the last answer and would not be trained."


def _opens(header: MarkerText, token: str) -> bool:
    return isinstance(header, str) and header.lstrip().startswith(token)


def _owned_bytes(rendered: Rendered) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which bytes are visible words of the model, and which are words of anybody else."""
    is_model = np.array([role in MODEL_ROLES for role in rendered.roles] + [False, False])
    message = rendered.message_of()
    visible = np.array([not letter.isspace() for letter in rendered.text], np.bool_)
    model = is_model[message] & visible
    others = ~is_model[message] & (message != -1)
    sizes = [len(letter.encode()) for letter in rendered.text]
    return np.repeat(model, sizes), np.repeat(others, sizes)


def _runs(raw: bytes, flags: NDArray[np.bool_]) -> list[bytes]:
    """The pieces of text that are flagged without a gap."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))).tolist()
    return [raw[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _shown(run: bytes) -> str:
    return repr(run.decode(errors="replace")[:60])
