"""Which of the turns that were found are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sft_mask.errors import SftMaskError
from sft_mask.regions import Region
from sft_mask.spans import Turns

if TYPE_CHECKING:
    from numpy.typing import NDArray

WhichTurns = Literal["all", "last"]
WhichStops = Literal["always", "last", "never"]
CutAnswers = Literal["keep", "mask"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What is trained of the turns of the model.

    Attributes:
        turns: ``"all"`` answers, or the ``"last"`` of each conversation (of each document of a packed row).
        stop: the stop token is trained ``"always"`` (the model must learn to stop), on the ``"last"`` answer of each
            conversation only, or ``"never"``.
        cut_answers: an answer that runs into the end of its row is kept (``"keep"``: what is there was said) or left
            out (``"mask"``).
        regions: parts of an answer that are not trained, such as ``Region("<think>", "</think>")``.

    Raises:
        SftMaskError: a value that is none of these.
    """

    turns: WhichTurns = "all"
    stop: WhichStops = "always"
    cut_answers: CutAnswers = "keep"
    regions: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("turns", WhichTurns), ("stop", WhichStops), ("cut_answers", CutAnswers)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise SftMaskError(f"Policy({name}={value!r}) is unknown. Use one of {', '.join(get_args(allowed))}.")
        if not isinstance(self.regions, tuple) or not all(isinstance(region, Region) for region in self.regions):
            raise SftMaskError(
                f"Policy(regions={self.regions!r}) is no tuple of Region. Give (Region(start, end), ...)."
            )

    def apply(self, turns: Turns) -> Turns:
        """The turns to train, their stops taken off where the policy says so."""
        last = is_last_of_document(turns)
        keep = np.ones(len(turns), np.bool_) if self.turns == "all" else last
        if self.cut_answers == "mask":
            keep = keep & ~turns.cut
        without_stop = turns.has_stop & ~self._stops_trained(last)
        stop = np.where(without_stop, turns.stop_at, turns.stop)
        trained = Turns(
            turns.start,
            stop,
            turns.has_stop & ~without_stop,
            turns.cut,
            turns.document,
            turns.header,
            turns.stop_at,
            turns.message,
        )
        return trained.select(keep & (stop > turns.start))

    def _stops_trained(self, last: NDArray[np.bool_]) -> NDArray[np.bool_]:
        match self.stop:
            case "always":
                return np.ones(len(last), np.bool_)
            case "last":
                return last
            case "never":
                return np.zeros(len(last), np.bool_)


def is_last_of_document(turns: Turns) -> NDArray[np.bool_]:
    """Which turns are the last of their document.

    >>> turns = Turns.empty()
    >>> is_last_of_document(turns).tolist()
    []
    """
    if not len(turns):
        return np.zeros(0, np.bool_)
    return np.append(turns.document[1:] != turns.document[:-1], True)
