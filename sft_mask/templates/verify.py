"""Proof of markers: in rendered and tokenized conversations they find every word of the model's and nobody else's.

The judge is the owner of each character (:mod:`sft_mask.templates.render`), not the code that finds turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.core.markers import Markers, MarkerText
from sft_mask.core.patterns import Kind, compile_patterns
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.errors import DetectionError, MarkerError
from sft_mask.templates.align import token_bounds
from sft_mask.templates.probes import Probe, probes, try_render

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ints
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered


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
    prover = _Prover(str(markers.response[0]), finder, template, tokenizer)
    complete = True
    for probe in probes():
        if any(message["role"] in markers.like_assistant for message in probe.messages):
            continue  # no marker can be right about them, and rows with messages know better
        fault = prover.fault(probe)
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


@dataclass(frozen=True, slots=True)
class _Seen:
    """What markers find in a rendered probe.

    Attributes:
        rendered: the probe.
        turns: in its tokens.
        first: ``(tokens,)`` first byte of each token.
        last: ``(tokens,)`` one past its last byte.
    """

    rendered: Rendered
    turns: Turns
    first: Ints
    last: Ints

    def trained(self, low: int, high: int) -> Bools:
        """``(bytes,)`` bytes of trained tokens that lie between two characters of the text, and in no other."""
        text = self.rendered.text
        start, stop = len(text[:low].encode()), len(text[:high].encode())
        held = np.zeros(len(text.encode()) + 1, np.bool_)
        for begin, end in zip(self.turns.start.tolist(), self.turns.end.tolist(), strict=True):
            inside = (self.first[begin:end] >= start) & (self.last[begin:end] <= stop)
            for at in np.flatnonzero(inside).tolist():
                held[self.first[begin + at] : self.last[begin + at]] = True
        return held[:-1]


@dataclass(frozen=True, slots=True)
class _Prover:
    """Judges markers in probes.

    Attributes:
        core: the response header.
        finder: the search for the markers.
        template: that writes the probes.
        tokenizer: that cuts them.
    """

    core: str
    finder: SpanFinder
    template: ChatTemplate
    tokenizer: Any

    def fault(self, probe: Probe) -> str | None:
        """What is wrong in one probe, ``None`` where nothing is or the template refuses it."""
        rendered = try_render(self.template, probe.messages)
        if rendered is None:
            return None
        seen = self._see(rendered)
        wrong = _wrong_words(seen)
        if wrong is not None or probe.optional:
            return wrong
        answers = sum(message["role"] in ASSISTANT_ROLES for message in probe.messages)
        if len(seen.turns) != answers:
            return f"{len(seen.turns)} turns were found for {answers} answers."
        header = self._trained_header(probe, seen) if probe.plain else None
        return header or self._untrained_stop(seen)

    def _see(self, rendered: Rendered) -> _Seen:
        ids = np.asarray(self.tokenizer(rendered.text, add_special_tokens=False)["input_ids"], np.int64)
        turns = self.finder.find(ids, np.array([0, len(ids)], np.int64))
        return _Seen(
            rendered, turns, *token_bounds(rendered.text, ids.tolist(), self.finder.vocabulary, self.tokenizer)
        )

    def _trained_header(self, probe: Probe, seen: _Seen) -> str | None:
        """What is wrong where words of the template before an answer would be trained although the prompt holds them.

        A template without a generation prompt leaves nothing of them to the model; one that always writes the response
        header has one even where it is not asked for it.
        """
        message, raw = seen.rendered.message_of(), seen.rendered.text.encode()
        for index, role in enumerate(seen.rendered.roles):
            own, before = np.flatnonzero(message == index), np.flatnonzero(message == index - 1)
            if role not in ASSISTANT_ROLES or not index or not len(own) or not len(before):
                continue
            said = int(before[-1]) + 1
            ends = self._prompt_end(probe, index, seen.rendered.text, said, int(own[0]))
            for run in _runs(raw, seen.trained(said, ends)):
                if run.strip():
                    return f"{_shown(run)}, which the template writes before an answer, would be trained."
        return None

    def _prompt_end(self, probe: Probe, index: int, text: str, said: int, words: int) -> int:
        """Where the generation prompt of a message ends in the text; where its words begin, if there is no prompt."""
        given = probe.messages[:index]
        asked, silent = (try_render(self.template, given, add_generation_prompt=prompt) for prompt in (True, False))
        if asked is None:
            return said
        if silent is not None and silent.text == asked.text and self.core not in asked.text[said:]:
            return words
        return min(words, len(asked.text)) if text.startswith(asked.text) else said

    def _untrained_stop(self, seen: _Seen) -> str | None:
        """What is wrong where the control token right after the last answer opens no turn and would not be trained."""
        text = seen.rendered.text
        said = int(np.flatnonzero(seen.rendered.message_of() >= 0).max(initial=-1)) + 1
        found = self.template.first_special(text[said:]) if said else None
        if found is None or text[said : said + found[0]].strip():
            return None
        patterns = self.finder.trie.patterns
        if any(_opens(pattern.text, found[1]) for pattern in patterns if pattern.kind is not Kind.EOT):
            return None
        at = len(text[: said + found[0]].encode())
        trained = seen.trained(0, len(text))[at]
        return None if trained else f"{found[1]!r} ends the last answer and would not be trained."


def _wrong_words(seen: _Seen) -> str | None:
    """What is wrong where words of the model would not be trained, or words of others would."""
    raw = seen.rendered.text.encode()
    model, others = _owned_bytes(seen.rendered)
    held = seen.trained(0, len(seen.rendered.text))
    trained = _runs(raw, model & held)
    for run in _runs(raw, model & ~held):
        if not any(run in other for other in trained):  # a tool's result may be headed by the name from the call
            return f"of the model's words {_shown(run)} would not be trained."
    for run in _runs(raw, others & held):
        return f"of other people's words {_shown(run)} would be trained."
    return None


def _opens(header: MarkerText, token: str) -> bool:
    return isinstance(header, str) and header.lstrip().startswith(token)


def _owned_bytes(rendered: Rendered) -> tuple[Bools, Bools]:
    """Which bytes are visible words of the model, and which are words of anybody else."""
    is_model = np.array([role in ASSISTANT_ROLES for role in rendered.roles] + [False, False])
    message = rendered.message_of()
    visible = np.array([not letter.isspace() for letter in rendered.text], np.bool_)
    model = is_model[message] & visible
    others = ~is_model[message] & (message != -1)
    sizes = [len(letter.encode()) for letter in rendered.text]
    return np.repeat(model, sizes), np.repeat(others, sizes)


def _runs(raw: bytes, flags: Bools) -> list[bytes]:
    """The pieces of text that are flagged without a gap."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))).tolist()
    return [raw[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _shown(run: bytes) -> str:
    return repr(run.decode(errors="replace")[:60])
