"""Markers as a caller gives them: the texts, or token ids, with which turns begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sft_mask.errors import MarkerError

MarkerText = str | tuple[int, ...]
"""A marker: text, or a sequence of token ids."""


@dataclass(frozen=True, slots=True)
class Markers:
    """Where turns begin and end.

    Attributes:
        response: headers of the assistant, as the generation prompt writes them. A longer one wins over its own
            beginning, so that a header with a prefilled tag can be given next to the plain one.
        instruction: headers of the user.
        others: headers of other roles (system, tool, observation), and tokens that begin a new document.
        eots: end-of-turn tokens of the assistant, usually one control token; trained, since the model must sample them.
        eot_headers: headers of other roles whose first token is itself the end-of-turn token (GLM).
        separator: whitespace between an answer without an end-of-turn token and the next header; never trained.
        open_end: whether the template leaves the last answer of a conversation without an end-of-turn token (GLM).
        complete: whether ``others`` and ``eots`` are known to be all that the chat template writes.
        detected: whether these were read from a chat template.
        like_assistant: roles that the chat template writes exactly as it writes the assistant; only messages can tell.
    """

    response: tuple[MarkerText, ...]
    instruction: tuple[MarkerText, ...]
    others: tuple[MarkerText, ...] = ()
    eots: tuple[MarkerText, ...] = ()
    eot_headers: tuple[MarkerText, ...] = ()
    separator: str = ""
    open_end: bool = False
    complete: bool = False
    detected: bool = False
    like_assistant: tuple[str, ...] = ()

    @property
    def headers(self) -> tuple[MarkerText, ...]:
        """Headers of all roles but the assistant."""
        return tuple(dict.fromkeys((*self.instruction, *self.others)))


def as_marker_texts(given: object, name: str) -> tuple[MarkerText, ...]:
    """The markers in what a caller passes: one string, several, or token-id sequences.

    Args:
        given: what was passed.
        name: of the argument, for errors.

    Raises:
        MarkerError: something else was passed, or an empty marker.

    >>> as_marker_texts("### Response:", "response_part")
    ('### Response:',)
    >>> as_marker_texts([1, 2, 3], "response_part")
    ((1, 2, 3),)
    >>> as_marker_texts(["USER:", [7, 8]], "instruction_part")
    ('USER:', (7, 8))
    """
    parts = _marker_parts(given)
    if parts is None:
        raise MarkerError(
            f"{name} is {given!r}, of type {type(given).__name__}. "
            "Give a string, a list of strings, or a list of token ids."
        )
    if not parts or not all(parts):
        raise MarkerError(
            f"{name} is empty ({given!r}): it would match everywhere. Give the text that the chat template writes "
            "before such a turn, or leave both markers out to have them read from the chat template."
        )
    return tuple(parts)


def _marker_parts(given: object) -> list[MarkerText] | None:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        return None
    ids = _as_ids(given)
    if ids:
        return [ids]
    parts = [item if isinstance(item, str) else _as_ids(item) for item in given]
    return None if None in parts else [part for part in parts if part is not None]


def _as_ids(given: object) -> tuple[int, ...] | None:
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        return None
    return tuple(map(int, given)) if all(isinstance(item, int | np.integer) for item in given) else None


def separated(headers: Sequence[MarkerText], separator: str) -> list[MarkerText]:
    """Headers of text after the separator that ends the answer before them; ids have none.

    >>> separated(["USER: ", (7, 8)], "\\n")
    ['\\nUSER: ']
    """
    return [separator + header for header in headers if isinstance(header, str)]
