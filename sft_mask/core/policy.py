"""Which of the turns that were found are trained, and how much each counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, FLAGS
from sft_mask.core.regions import Region
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError, SftMaskError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools

WhichTurns = Literal["all", "last", "flagged"]
WhichStops = Literal["always", "last", "never"]
CutAnswers = Literal["keep", "mask"]
Reduction = Literal["token", "turn", "sequence"]

_CHOICES: Mapping[str, Any] = {
    "turns": WhichTurns,
    "stop": WhichStops,
    "cut_answers": CutAnswers,
    "reduction": Reduction,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is trained of a conversation, and how much it counts.

    Attributes:
        turns: ``"all"`` answers; the ``"last"`` of each conversation (of each document of a packed row); or what the
            messages say of themselves (``"flagged"``): ``train: false`` or ``weight: 0`` leaves a message out,
            ``train: true`` or another ``weight`` trains it, also a user's; a message without either goes by its role.
        roles: roles that are trained, ``("assistant",)`` by default, or with a weight each: ``{"assistant": 1.0,
            "tool": 0.2}``. Of a role other than the model's the message's own words are trained and the stop that
            follows them; that needs the messages.
        tool_calls: whether the model's tool calls are trained. Without them an answer ends, unstopped, before its
            first call; that needs the messages.
        stop: the stop token is trained ``"always"`` (the model must learn to stop), on the ``"last"`` answer of each
            conversation only, or ``"never"``.
        cut_answers: an answer that runs into the end of its row is kept (``"keep"``: what is there was said) or left
            out (``"mask"``).
        regions: parts of an answer that are not trained, or count less: ``Region("<think>", "</think>", weight=0.3)``.
        prompt_weight: weight of every token outside of the model's turns; 0 leaves them out.
        reduction: what counts the same in the loss: every ``"token"``, every ``"turn"`` (the mean over its tokens), or
            every ``"sequence"`` (conversation, document). The loss is ``sum(w * nll) / sum(w)`` over all tokens of the
            optimizer step with ``w`` divided by the sum of ``w`` over the token's own turn or sequence.

    Raises:
        SftMaskError: a value that is none of these, a negative weight, or ``prompt_weight`` with
            ``reduction="turn"`` (the prompt is no turn).

    >>> Policy(roles=["assistant", "tool"]).roles
    {'assistant': 1.0, 'tool': 1.0}
    """

    turns: WhichTurns = "all"
    roles: Sequence[str] | Mapping[str, float] = ("assistant",)
    tool_calls: bool = True
    stop: WhichStops = "always"
    cut_answers: CutAnswers = "keep"
    regions: Sequence[Region] = ()
    prompt_weight: float = 0.0
    reduction: Reduction = "token"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise SftMaskError(f"Policy({name}={value!r}) is unknown. Use one of {', '.join(get_args(allowed))}.")
        if not isinstance(self.tool_calls, bool):
            raise SftMaskError(f"Policy(tool_calls={self.tool_calls!r}) is neither True nor False.")
        set_field = object.__setattr__
        set_field(self, "regions", _regions(self.regions))
        set_field(self, "roles", _roles(self.roles))
        set_field(self, "prompt_weight", _weight(self.prompt_weight, "Policy(prompt_weight=...)"))
        if self.prompt_weight and self.reduction == "turn":
            raise SftMaskError(
                "Policy(prompt_weight=..., reduction='turn') has no meaning: the prompt belongs to no turn of the "
                "model, so nothing says how much it counts. Use reduction='token' or 'sequence'."
            )

    @property
    def role_weights(self) -> Mapping[str, float]:
        """Weight of every role that is trained; ``model`` is the assistant's other name."""
        weights = dict(self.roles) if isinstance(self.roles, Mapping) else dict.fromkeys(self.roles, 1.0)
        own = weights.pop("model", weights.get("assistant", 0.0))
        return {**weights, **dict.fromkeys(ASSISTANT_ROLES, weights.get("assistant", own))}

    @property
    def needs_messages(self) -> bool:
        """Whether every row must be decided by its messages."""
        others = (weight for role, weight in self.role_weights.items() if role not in ASSISTANT_ROLES)
        return not self.tool_calls or any(others)

    @property
    def is_weighted(self) -> bool:
        """Whether labels carry more than yes and no."""
        return (
            bool(self.prompt_weight)
            or self.reduction != "token"
            or any(region.weight for region in self.regions)
            or any(weight not in (0.0, 1.0) for weight in self.role_weights.values())
        )

    @property
    def every_turn_stops(self) -> bool:
        """Whether every turn that is trained should end with a trained stop."""
        return self.stop == "always" and self.turns != "flagged" and not self.needs_messages

    def message_weights(self, messages: Sequence[Mapping[str, Any]]) -> list[float]:
        """How much each message counts; 0 for those that are not trained.

        Raises:
            DataError: a flag that is none.
        """
        by_role = self.role_weights
        weights = [by_role.get(str(message.get("role")), 0.0) for message in messages]
        if self.turns != "flagged":
            return weights
        return [_flagged(message, weight) for message, weight in zip(messages, weights, strict=True)]

    def apply(self, turns: Turns) -> Turns:
        """The turns to train, their stops taken off where the policy says so."""
        turns = turns.select(turns.weight > 0)
        last = is_last_of_document(turns)
        keep = last if self.turns == "last" else np.ones(len(turns), np.bool_)
        if self.cut_answers == "mask":
            keep = keep & ~turns.cut
        without_stop = turns.has_eot & ~self._stops_trained(last)
        end = np.where(without_stop, turns.eot_start, turns.end)
        trained = replace(turns, end=end, has_eot=turns.has_eot & ~without_stop)
        return trained.select(keep & (end > turns.start))

    def _stops_trained(self, last: Bools) -> Bools:
        match self.stop:
            case "always":
                return np.ones(len(last), np.bool_)
            case "last":
                return last
            case "never":
                return np.zeros(len(last), np.bool_)


def combined(
    policy: Policy | None = None,
    last_response_only: bool = False,
    mask_out_tokens: str | Sequence[str] | None = None,
    prompt_weight: float | None = None,
    reduction: Reduction | None = None,
) -> Policy:
    """The policy with the arguments that are short for parts of it.

    Raises:
        SftMaskError: the policy is none.
    """
    chosen = Policy() if policy is None else policy
    if not isinstance(chosen, Policy):
        raise SftMaskError(f"policy={policy!r} is no Policy. Give Policy(turns='last'), for example.")
    texts = [mask_out_tokens] if isinstance(mask_out_tokens, str) else list(mask_out_tokens or ())
    if not all(isinstance(text, str) for text in texts):
        raise SftMaskError(
            f"mask_out_tokens={mask_out_tokens!r} holds what is no text. Give texts, such as ['</think>']."
        )
    changes: dict[str, Any] = {
        "turns": "last" if last_response_only else None,
        "regions": (*chosen.regions, *(Region(text=text) for text in texts)) if texts else None,
        "prompt_weight": prompt_weight,
        "reduction": reduction,
    }
    return replace(chosen, **{name: value for name, value in changes.items() if value is not None})


def _regions(given: Any) -> tuple[Region, ...]:
    regions = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if not all(isinstance(region, Region) for region in regions):
        raise SftMaskError(
            f"Policy(regions={given!r}) holds something else than Region. Give [Region(start, end), ...]."
        )
    return regions


def _roles(given: Any) -> dict[str, float]:
    named = {given: 1.0} if isinstance(given, str) else given
    pairs = named.items() if isinstance(named, Mapping) else ((role, 1.0) for role in named)
    roles = {str(role): _weight(weight, f"Policy(roles=...) of {role!r}") for role, weight in pairs}
    if not any(roles.values()):
        raise SftMaskError(f"Policy(roles={given!r}) trains nobody. Name a role, such as 'assistant'.")
    return roles


def _weight(given: Any, where: str) -> float:
    """A weight as a float."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
        raise SftMaskError(
            f"{where} is {given!r}: a weight must be a finite number that is not negative, since the loss is divided "
            "by the sum of weights. Give 0 for what is not trained."
        )
    return float(given)


def _flagged(message: Mapping[str, Any], by_role: float) -> float:
    """The weight of a message by its own ``train`` and ``weight``."""
    train, weight = (message.get(name) for name in FLAGS)
    if train is not None and not isinstance(train, bool):
        raise DataError(f"A message has train={train!r}, which is neither true nor false.")
    if train is False:
        return 0.0
    unless_trained = (by_role or 1.0) if train or weight is not None else by_role
    if weight is None:
        return unless_trained
    try:
        return unless_trained * _weight(weight, "The weight of a message")
    except SftMaskError as error:
        raise DataError(str(error)) from error


def is_last_of_document(turns: Turns) -> Bools:
    """Which turns are the last of their document.

    >>> turns = Turns.empty()
    >>> is_last_of_document(turns).tolist()
    []
    """
    if not len(turns):
        return np.zeros(0, np.bool_)
    return np.append(turns.document[1:] != turns.document[:-1], True)
