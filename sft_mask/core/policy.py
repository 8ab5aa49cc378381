"""Which turns are trained, and how much each counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, FLAGS, SPAN_FLAGS
from sft_mask.core.regions import Region
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError, SftMaskError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools

WhichTurns = Literal["all", "last", "flagged"]
WhichStops = Literal["always", "last", "never"]
CutAnswers = Literal["keep", "mask"]
EmptyReasoning = Literal["mask", "train"]
Reduction = Literal["token", "turn", "sequence"]

_CHOICES: Mapping[str, object] = {
    "turns": WhichTurns,
    "stop": WhichStops,
    "cut_answers": CutAnswers,
    "empty_reasoning": EmptyReasoning,
    "reduction": Reduction,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is trained of a conversation, and how much it counts.

    Attributes:
        turns: ``"all"`` answers; the ``"last"`` of each conversation (of each document of a packed row); or what the
            messages say themselves (``"flagged"``): ``train: false`` or ``weight: 0`` leaves a message out,
            ``train: true`` or another ``weight`` trains it, also a user's; one without either goes by its role.
            ``training``, ``trainable`` and ``loss`` are read like ``train``; ``loss_weight`` and ``loss_scale``
            like ``weight``.
        roles: roles that are trained, ``("assistant",)`` by default, or with a weight each: ``{"assistant": 1.0,
            "tool": 0.2}``. For roles other than the assistant, the message's own text and the end-of-turn token after
            it are trained; this needs the messages.
        tool_calls: whether tool calls are trained. Without them an answer ends before its first call, without an
            end-of-turn token; this needs the messages.
        stop: the end-of-turn token is trained ``"always"`` (the model must learn to stop), on the ``"last"`` answer of
            each conversation only, or ``"never"``.
        cut_answers: an answer that is cut off by the end of its row is trained as far as it goes (``"keep"``) or not
            at all (``"mask"``).
        empty_reasoning: an empty reasoning block that the chat template writes before an answer and some generation
            prompt of it holds (Qwen3's with ``enable_thinking=False``) is masked (``"mask"``), or trained as what the
            assistant says after the prompt without it (``"train"``). One that no prompt holds is always trained.
        regions: parts of an answer that are not trained, or count less: ``Region("<think>", "</think>", weight=0.3)``.
        prompt_weight: weight of every token outside of the assistant's turns; 0 leaves them out.
        reduction: what counts equally in the loss: every ``"token"``, every ``"turn"`` (the mean over its tokens), or
            every ``"sequence"`` (conversation, document). The loss is ``sum(w * nll) / sum(w)`` over all tokens of the
            optimizer step, with ``w`` divided by the sum of ``w`` over the token's own turn or sequence.

    Raises:
        SftMaskError: another value, a negative weight, or ``prompt_weight`` with ``reduction="turn"`` (the prompt is
            not a turn).

    >>> Policy(roles=["assistant", "tool"]).roles
    {'assistant': 1.0, 'tool': 1.0}
    """

    turns: WhichTurns = "all"
    roles: Sequence[str] | Mapping[str, float] = ("assistant",)
    tool_calls: bool = True
    stop: WhichStops = "always"
    cut_answers: CutAnswers = "keep"
    empty_reasoning: EmptyReasoning = "mask"
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
                "Policy(prompt_weight=..., reduction='turn') has no meaning: the prompt belongs to none of the "
                "assistant's turns, so nothing says how much it counts. Use reduction='token' or 'sequence'."
            )

    @property
    def role_weights(self) -> Mapping[str, float]:
        """Weight of every role that is trained; ``model`` is another name of the assistant."""
        weights = dict(self.roles) if isinstance(self.roles, Mapping) else dict.fromkeys(self.roles, 1.0)
        own = weights.pop("model", weights.get("assistant", 0.0))
        return {**weights, **dict.fromkeys(ASSISTANT_ROLES, weights.get("assistant", own))}

    @property
    def needs_messages(self) -> bool:
        """Whether only messages show what is trained."""
        others = (weight for role, weight in self.role_weights.items() if role not in ASSISTANT_ROLES)
        return not self.tool_calls or any(others)

    @property
    def is_weighted(self) -> bool:
        """Whether tokens may have other weights than 0 and 1."""
        return (
            bool(self.prompt_weight)
            or self.reduction != "token"
            or any(region.weight for region in self.regions)
            or any(weight not in (0.0, 1.0) for weight in self.role_weights.values())
        )

    @property
    def every_turn_stops(self) -> bool:
        """Whether every trained turn should end with a trained end-of-turn token."""
        return self.stop == "always" and self.turns != "flagged" and not self.needs_messages

    def message_weights(self, messages: Sequence[Mapping[str, object]]) -> list[float]:
        """How much each message counts; 0 for those that are not trained.

        Raises:
            DataError: a message's own ``train`` or ``weight`` is invalid.
        """
        by_role = self.role_weights
        weighted = ((message, by_role.get(str(message.get("role")), 0.0)) for message in messages)
        flagged = self.turns == "flagged"
        return [_flagged(message, weight) if flagged else weight for message, weight in weighted]

    def apply(self, turns: Turns, is_whole: Bools | None = None) -> Turns:
        """The turns to train, without their end-of-turn tokens if these are not trained.

        Args:
            turns: all turns of some documents.
            is_whole: ``(documents,)`` whether a conversation ends with the document; by default each does.
        """
        turns = turns.select(turns.weight > 0)
        last = is_last_of_document(turns)
        if is_whole is not None:
            last = last & is_whole[turns.document]
        keep = last if self.turns == "last" else np.ones(len(turns), np.bool_)
        if self.cut_answers == "mask":
            keep = keep & ~turns.cut
        has_eot = turns.has_eot & (last if self.stop == "last" else self.stop == "always")
        end = np.where(has_eot, turns.end, turns.eot_start)
        return replace(turns, end=end, has_eot=has_eot).select(keep & (end > turns.start))


def combined(
    policy: Policy | None = None,
    last_response_only: bool = False,
    mask_out_tokens: str | Sequence[str] | None = None,
    prompt_weight: float | None = None,
    reduction: Reduction | None = None,
) -> Policy:
    """The policy with the short arguments for parts of it.

    Raises:
        SftMaskError: ``policy`` is not a Policy, or ``mask_out_tokens`` are not texts.
    """
    chosen = Policy() if policy is None else policy
    if not isinstance(chosen, Policy):
        raise SftMaskError(f"policy={policy!r} is not a Policy. Give Policy(turns='last'), for example.")
    texts = [mask_out_tokens] if isinstance(mask_out_tokens, str) else list(mask_out_tokens or ())
    if not all(isinstance(text, str) for text in texts):
        raise SftMaskError(
            f"mask_out_tokens={mask_out_tokens!r} holds something that is not text. Give texts, such as ['</think>']."
        )
    return replace(
        chosen,
        turns="last" if last_response_only else chosen.turns,
        regions=(*chosen.regions, *(Region(text=text) for text in texts)),
        prompt_weight=chosen.prompt_weight if prompt_weight is None else prompt_weight,
        reduction=chosen.reduction if reduction is None else reduction,
    )


def _regions(given: object) -> tuple[Region, ...]:
    regions = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if not all(isinstance(region, Region) for region in regions):
        raise SftMaskError(
            f"Policy(regions={given!r}) holds something other than a Region. Give [Region(start, end), ...]."
        )
    return regions


def _roles(given: str | Iterable[str] | Mapping[str, float]) -> dict[str, float]:
    named = [given] if isinstance(given, str) else given
    pairs = named.items() if isinstance(named, Mapping) else ((role, 1.0) for role in named)
    roles = {str(role): _weight(weight, f"Policy(roles=...) of {role!r}") for role, weight in pairs}
    if not any(roles.values()):
        raise SftMaskError(f"Policy(roles={given!r}) trains no role. Name one, such as 'assistant'.")
    return roles


def _weight(given: object, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
        raise SftMaskError(
            f"{where} is {given!r}: a weight must be a finite number, 0 or more, since the loss is divided by the sum "
            "of weights. Give 0 for what is not trained."
        )
    return float(given)


def _flagged(message: Mapping[str, object], by_role: float) -> float:
    """The weight of a message by its own flags (:data:`~sft_mask.constants.FLAGS`)."""
    said = {name: message[name] for name in FLAGS if message.get(name) is not None}
    _refuse_spans(message)
    switches = {name: value for name, value in said.items() if name in _SWITCHES or value is True or value is False}
    switches = {name: value for name, value in switches.items() if name not in _WEIGHTS}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise DataError(
                f"A message has {name}={value!r}, which is neither true nor false. Set one of them, or leave it out."
            )
    if len({*switches.values()}) > 1:
        told = ", ".join(f"{name}={value}" for name, value in switches.items())
        raise DataError(f"A message contradicts itself: {told}. Keep one of them.")
    if False in switches.values():
        return 0.0
    unless_trained = (by_role or 1.0) if said else by_role
    weights = {name: _number(name, value) for name, value in said.items() if name not in switches}
    if len({*weights.values()}) > 1:
        told = ", ".join(f"{name}={value:g}" for name, value in weights.items())
        raise DataError(f"A message has two weights: {told}. Keep one of them.")
    return unless_trained * next(iter(weights.values()), 1.0)


_SWITCHES = ("train", "training", "trainable")
_WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""Flags that are true or false, and flags that are numbers; ``loss`` may be either."""


def _number(name: str, value: object) -> float:
    try:
        return _weight(value, f"The {name} of a message")
    except SftMaskError as error:
        raise DataError(str(error)) from error


def _refuse_spans(message: Mapping[str, object]) -> None:
    name = next((name for name in SPAN_FLAGS if message.get(name)), None)
    if name is not None:
        raise DataError(
            f"A message has {name}, which marks characters of it: {message[name]!r:.80}. Flags of whole messages are "
            "read, those of characters are not. Leave it out, and choose such parts by their text or by a pattern: "
            "Policy(turns='flagged', regions=[Region(text=...)])."
        )


def is_last_of_document(turns: Turns) -> Bools:
    """Which turns are the last of their document.

    >>> turns = Turns.empty()
    >>> is_last_of_document(turns).tolist()
    []
    """
    if not len(turns):
        return np.zeros(0, np.bool_)
    return np.append(turns.document[1:] != turns.document[:-1], True)
