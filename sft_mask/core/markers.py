"""Markers as a caller gives them: the texts or token ids with which turns begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.errors import MarkerError

if TYPE_CHECKING:
    pass

MarkerText = str | tuple[int, ...]
"""A marker as a person gives it: text, or a sequence of token ids."""


@dataclass(frozen=True, slots=True)
class Markers:
    """Where turns begin and end, as text.

    Attributes:
        response: headers after which the model speaks, as the generation prompt leaves them; a longer one wins over its
            own beginning, so that a prefilled tag can stand beside the plain header.
        instruction: headers of the user.
        others: headers of everybody else (system, tool, observation) and tokens that begin a new document.
        eots: what ends an answer and must be sampled by the model: usually one control token.
        eot_headers: headers of other roles whose first token is itself the stop (GLM).
        separator: blank text between an answer that has no stop and the next header; never trained.
        open_end: whether the template leaves the last answer of a conversation without a stop (GLM).
        complete: whether ``others`` and ``eots`` are known to be all that the chat template writes.
        detected: whether these were read from a chat template.
        like_assistant: roles that the chat template writes just as it writes the model; only messages can tell.
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
        """Headers of everybody but the model."""
        return tuple(dict.fromkeys((*self.instruction, *self.others)))


def as_marker_texts(given: object, name: str) -> tuple[MarkerText, ...]:
    """Normalizes what a caller may pass for a marker: one string, several, or token-id sequences.

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
    if not parts or any(len(part) == 0 for part in parts):
        raise MarkerError(
            f"{name} is empty ({given!r}): it would match everywhere. Give the text that the chat template writes "
            "before such a turn, or leave both markers out to have them read from the chat template."
        )
    return tuple(parts)


def _marker_parts(given: object) -> list[MarkerText] | None:
    """The markers in what a caller gave; ``None`` where it is something else."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        return None
    if given and _are_ids(given):
        return [tuple(int(item) for item in given)]
    if all(isinstance(item, str) or _are_ids(item) for item in given):
        return [item if isinstance(item, str) else tuple(int(token) for token in item) for item in given]
    return None


def _are_ids(given: object) -> bool:
    return (
        isinstance(given, Sequence)
        and not isinstance(given, str | bytes)
        and all(isinstance(item, int | np.integer) for item in given)
    )


def separated(headers: Sequence[MarkerText], separator: str) -> list[MarkerText]:
    """Headers behind the separator that ends the answer before them; ids have none.

    >>> separated(["USER: ", (7, 8)], "\\n")
    ['\\nUSER: ']
    """
    return [separator + header for header in headers if isinstance(header, str)]
