"""Proof of markers: in rendered and tokenized probes they find all words of the assistant and none of other roles.

The judge is the source of each character (:mod:`sft_mask.templates.render`), not the code that finds turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.core.markers import Markers, MarkerText
from sft_mask.core.patterns import Kind, compile_patterns
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.errors import DetectionError, MarkerError
from sft_mask.templates.align import encode
from sft_mask.templates.probes import Probe, probes, try_render

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ints
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered


def prove(markers: Markers, template: ChatTemplate, vocabulary: Vocabulary, tokenizer: object) -> Markers:
    """The markers, if they hold in every probe that the template renders.

    Where only a conversation with tools fails, they are not ``complete``: not all headers and end-of-turn tokens are
    known, and such rows need their messages.

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
            continue  # no marker can be right about them; rows with messages are decided by these
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
class _Marked:
    """A rendered probe, with the turns that markers find in it.

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
        """``(bytes,)`` the bytes of the trained tokens that lie between two characters of the text."""
        text = self.rendered.text
        start, end = len(text[:low].encode()), len(text[:high].encode())
        flags = np.zeros(len(text.encode()), np.bool_)
        for first_token, after in zip(self.turns.start.tolist(), self.turns.end.tolist(), strict=True):
            for token in range(first_token, after):
                if self.first[token] >= start and self.last[token] <= end:
                    flags[self.first[token] : self.last[token]] = True
        return flags


@dataclass(frozen=True, slots=True)
class _Prover:
    """Judges markers in probes.

    Attributes:
        core: the response header.
        finder: the search for the markers.
        template: renders the probes.
        tokenizer: tokenizes them.
    """

    core: str
    finder: SpanFinder
    template: ChatTemplate
    tokenizer: object

    def fault(self, probe: Probe) -> str | None:
        """What is wrong in one probe; ``None`` where nothing is, or the template refuses it."""
        rendered = try_render(self.template, probe.messages)
        if rendered is None:
            return None
        ids, first, last = encode(rendered.text, self.finder.vocabulary, self.tokenizer)
        marked = _Marked(rendered, self.finder.find(ids, np.array([0, len(ids)], np.int64)), first, last)
        wrong = _wrong_words(marked)
        if wrong is not None or probe.optional:
            return wrong
        answers = sum(message["role"] in ASSISTANT_ROLES for message in probe.messages)
        if len(marked.turns) != answers:
            return f"{len(marked.turns)} turns were found for {answers} answers."
        header = self._trained_header(probe, marked) if probe.plain else None
        return header or self._untrained_eot(marked)

    def _trained_header(self, probe: Probe, marked: _Marked) -> str | None:
        """What is wrong where text of the template before an answer would be trained although the prompt holds it.

        A template without a generation prompt leaves none of it to the assistant; one that always writes the response
        header has one even where it is not asked for it.
        """
        rendered = marked.rendered
        message, raw = rendered.message_of(), rendered.text.encode()
        for index, role in enumerate(rendered.roles):
            own, before = np.flatnonzero(message == index), np.flatnonzero(message == index - 1)
            if role not in ASSISTANT_ROLES or not index or not len(own) or not len(before):
                continue
            words_end = int(before[-1]) + 1
            ends = self._prompt_end(probe, index, rendered.text, words_end, int(own[0]))
            for run in _runs(raw, marked.trained(words_end, ends)):
                if run.strip():
                    return f"{_shown(run)}, which the template writes before an answer, would be trained."
        return None

    def _prompt_end(self, probe: Probe, index: int, text: str, words_end: int, words: int) -> int:
        """Where the generation prompt of a message ends in the text; where its words begin, if there is no prompt."""
        given = probe.messages[:index]
        asked, silent = (try_render(self.template, given, add_generation_prompt=prompt) for prompt in (True, False))
        if asked is None:
            return words_end
        if silent is not None and silent.text == asked.text and self.core not in asked.text[words_end:]:
            return words
        return min(words, len(asked.text)) if text.startswith(asked.text) else words_end

    def _untrained_eot(self, marked: _Marked) -> str | None:
        """What is wrong where the control token right after the last answer opens no turn and would not be trained."""
        text = marked.rendered.text
        words_end = int(np.flatnonzero(marked.rendered.message_of() >= 0).max(initial=-1)) + 1
        found = self.template.first_special(text[words_end:]) if words_end else None
        if found is None or text[words_end : words_end + found[0]].strip():
            return None
        patterns = self.finder.trie.patterns
        if any(_opens(pattern.text, found[1]) for pattern in patterns if pattern.kind is not Kind.EOT):
            return None
        at = len(text[: words_end + found[0]].encode())
        is_trained = marked.trained(0, len(text))[at]
        return None if is_trained else f"{found[1]!r} ends the last answer and would not be trained."


def _opens(header: MarkerText, token: str) -> bool:
    return isinstance(header, str) and header.lstrip().startswith(token)


def _wrong_words(marked: _Marked) -> str | None:
    """What is wrong where words of the assistant would not be trained, or words of other roles would."""
    rendered = marked.rendered
    raw, message = rendered.text.encode(), rendered.message_of()
    is_visible = np.array([not letter.isspace() for letter in rendered.text], np.bool_)
    is_own = np.array([role in ASSISTANT_ROLES for role in rendered.roles] + [False, False])[message]
    sizes = [len(letter.encode()) for letter in rendered.text]
    own, others = np.repeat(is_own & is_visible, sizes), np.repeat(~is_own & (message != -1), sizes)
    held = marked.trained(0, len(rendered.text))
    trained = _runs(raw, own & held)
    for run in _runs(raw, own & ~held):
        if not any(run in other for other in trained):  # a tool's result may be headed by the name from the call
            return f"of the assistant's words {_shown(run)} would not be trained."
    for run in _runs(raw, others & held):
        return f"of another role's words {_shown(run)} would be trained."
    return None


def _runs(raw: bytes, flags: Bools) -> list[bytes]:
    """The stretches of text that are flagged without a gap."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))).tolist()
    return [raw[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _shown(run: bytes) -> str:
    return repr(run.decode(errors="replace")[:60])
