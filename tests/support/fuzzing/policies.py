"""Random policies on conversations with flags, against a loop over tokens."""

from __future__ import annotations

import math
import random
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from datasets import Dataset
from support import tiny
from support.conformance.alignment import Vocabulary, align, read_vocabulary
from support.fuzzing.outcome import IGNORED, Outcome, Subject

from sft_mask import Policy, Region

Message = dict[str, Any]

STOP = "<|im_end|>"
FLAGS: tuple[Message, ...] = (
    {},
    {},
    {"train": True},
    {"train": False},
    {"weight": 0.0},
    {"weight": 0.25},
    {"weight": 3.0},
)
PIECES = (
    "red",
    " blue",
    " call_12",
    "<think>",
    "</think>",
    " 東京",
    "🙂",
    "\n",
    " (a)",
    "(",
    ")",
    " the",
    " stone",
    "?",
)
REGIONS = (
    {"start": "<think>", "end": "</think>"},
    {"start": "(", "end": ")"},
    {"pattern": r" ?call_\d+"},
    {"pattern": "[a-z]+"},
    {"text": "blue"},
    {"text": STOP},
)


@dataclass(frozen=True)
class Said:
    """A message in a row, in tokens: from its first word, to its stop, to its end.

    Attributes:
        start: first token of its words.
        said: one past the last token of its words.
        stop: one past the last token of its stop.
        role: who speaks.
        weight: how much the policy says it counts.
        is_cut: whether the row ends before it does.
    """

    start: int
    said: int
    stop: int
    role: str
    weight: float
    is_cut: bool


@cache
def vocabulary() -> Vocabulary:
    return read_vocabulary(tiny.tokenizer())


def piece(token: int) -> bytes:
    added = vocabulary().added.get(token)
    return added.content if added is not None else vocabulary().ordinary[token]


# the reference


def weight_of(message: Message, policy: Policy) -> float:
    roles = policy.roles if isinstance(policy.roles, Mapping) else dict.fromkeys(policy.roles, 1.0)
    by_role = roles.get(message["role"], 0.0)
    if policy.turns != "flagged" or (message["train"] is None and message["weight"] is None):
        return by_role
    if message["train"] is False:
        return 0.0
    return (by_role or 1.0) * (1.0 if message["weight"] is None else message["weight"])


def said_in(messages: Sequence[Message], policy: Policy, size: int) -> tuple[list[int], list[Said]]:
    """The ids of a row of so many tokens, and the messages in it; by the bytes of each token."""
    text, spans = "", []
    for message in messages:
        text += f"<|im_start|>{message['role']}\n"
        low = len(text.encode())
        spans.append((low, low + len(message["content"].encode()), message))
        text += message["content"] + STOP + "\n"
    ids = list(tiny.tokenizer()(text)["input_ids"])
    starts = [start for start, _ in align(text, ids, vocabulary())]
    found = []
    for low, high, message in spans:
        first, said = starts.index(low), starts.index(high)
        bounds = [min(at, size) for at in (first, said, said + 1)]
        found.append(Said(*bounds, message["role"], weight_of(message, policy), said + 1 > size))
    return ids[:size], [one for one in found if one.start < size]


def chosen(turns: Sequence[Said], policy: Policy) -> list[Said]:
    """The turns that are trained, their stops taken off where the policy says so."""
    counted = [turn for turn in turns if turn.weight]
    made = []
    for turn in counted:
        is_last = turn is counted[-1]
        if (policy.turns == "last" and not is_last) or (policy.cut_answers == "mask" and turn.is_cut):
            continue
        with_stop = policy.stop == "always" or (policy.stop == "last" and is_last)
        stop = turn.stop if with_stop or turn.is_cut else turn.said
        made.append(Said(turn.start, turn.said, stop, turn.role, turn.weight, turn.is_cut))
    return made


def in_regions(ids: Sequence[int], turn: Said, policy: Policy) -> list[float]:
    """What the regions make of the weight of each token of a turn."""
    made = [1.0] * (turn.stop - turn.start)
    for region in policy.regions:
        stop = turn.stop if region.text else min(turn.said, turn.stop)
        pieces = [piece(token) for token in ids[turn.start : stop]]
        inside = covered(b"".join(pieces), region)
        at = 0
        for index, held in enumerate(pieces):
            made[index] *= region.weight if all(inside[at : at + len(held)]) else 1.0
            at += len(held)
    return made


def covered(answer: bytes, region: Region) -> list[bool]:
    """Which bytes of an answer lie in a region."""
    if region.start:
        expression = re.escape(region.start) + "(?s:.*?)(?:" + re.escape(region.end) + r"|\Z)"
    else:
        expression = region.pattern or re.escape(region.text)
    inside = [False] * len(answer)
    for found in re.finditer(expression.encode(), answer):
        inside[found.start() : found.end()] = [True] * (found.end() - found.start())
    return inside


def weights(ids: Sequence[int], turns: Sequence[Said], policy: Policy, own: Sequence[float]) -> list[float]:
    """What each token of a row counts; all zero where no answer is trained."""
    made = [0.0] * len(ids)
    for turn in chosen(turns, policy):
        places = range(turn.start, turn.stop)
        factors = [factor * own[at] for at, factor in zip(places, in_regions(ids, turn, policy), strict=True)]
        total = sum(factor for at, factor in zip(places, factors, strict=True) if at > 0)
        for at, factor in zip(places, factors, strict=True):
            made[at] = turn.weight * (factor / total if policy.reduction == "turn" and total else factor)
    if any(made) and policy.prompt_weight:
        speaks = [turn for turn in turns if turn.weight or turn.role == "assistant"]
        spoken = {at for turn in speaks for at in range(turn.start, turn.stop)}
        made = [weight if at in spoken else policy.prompt_weight * own[at] for at, weight in enumerate(made)]
    if policy.reduction == "sequence" and sum(made[1:]):
        made = [0.0, *(weight / sum(made[1:]) for weight in made[1:])]
    return made


def decoded(label: int) -> tuple[int, float]:
    """The id and the weight of a label, read bit by bit."""
    if label == IGNORED:
        return IGNORED, 0.0
    (weight,) = struct.unpack("<f", struct.pack("<I", (label >> 32) ^ 0x3F800000))
    return label % (1 << 24), weight


# the cases


def some_policy(rng: random.Random) -> Policy:
    only, several = ("assistant",), {"assistant": 1.0, "tool": 0.2}
    roles: Any = rng.choice([only, only, {"assistant": 0.5}, several, ("user",)])
    regions = [
        Region(**how, weight=rng.choice([0.0, 0.0, 0.5, 2.0])) for how in rng.sample(REGIONS, rng.choice((0, 0, 1, 2)))
    ]
    reduction = rng.choice(["token", "token", "turn", "sequence"])
    return Policy(
        turns=rng.choice(["all", "all", "last", "flagged"]),
        roles=roles,
        stop=rng.choice(["always", "always", "last", "never"]),
        cut_answers=rng.choice(["keep", "mask"]),
        regions=regions,
        prompt_weight=rng.choice([0.0, 0.1]) if reduction != "turn" else 0.0,
        reduction=reduction,
    )


def some_messages(rng: random.Random) -> list[Message]:
    rounds = rng.choices([("user", "assistant"), ("user", "assistant", "tool", "assistant")], k=rng.randint(1, 3))
    roles = chain(rng.choice([(), ("system",)]), *rounds)
    flagged = rng.random() < 0.5
    return [
        {
            "role": role,
            "content": f"x{''.join(rng.choices(PIECES, k=rng.randint(0, 6)))}y",
            "train": None,
            "weight": None,
        }
        | (rng.choice(FLAGS) if flagged else {})
        for role in roles
    ]


def weighted(rng: random.Random, subject: Subject) -> Outcome:
    """Labels and weights of every token, with and without messages, a ``loss_weights`` column and truncation."""
    policy, outcome = some_policy(rng), Outcome()
    count = rng.choice((1, 20, 200))
    with_messages = policy.needs_messages or policy.turns == "flagged" or rng.random() < 0.5
    conversations = [some_messages(rng) for _ in range(count)]
    rows = [said_in(messages, policy, 10**6) for messages in conversations]
    if rng.random() < 0.4:
        sizes = [rng.randint(1, len(ids)) if at else len(ids) for at, (ids, _) in enumerate(rows)]
        rows = [said_in(messages, policy, size) for messages, size in zip(conversations, sizes, strict=True)]
    has_column = rng.random() < 0.3
    own = [[rng.choice((0.0, 0.5, 1.0, 2.0)) if has_column else 1.0 for _ in ids] for ids, _ in rows]
    columns: dict[str, Any] = {"input_ids": [ids for ids, _ in rows], "n": list(range(count))}
    columns |= {"messages": conversations} if with_messages else {}
    columns |= {"loss_weights": own} if has_column else {}
    try:
        masked = subject.mask(Dataset.from_dict(columns), tiny.tokenizer(), policy=policy)
    except subject.refusal as error:
        outcome.named(error)
        return outcome
    wanted = [weights(ids, turns, policy, factors) for (ids, turns), factors in zip(rows, own, strict=True)]
    labels = dict(zip(masked["n"], masked["labels"], strict=True))
    for at, (ids, _) in enumerate(rows):
        outcome.rows += 1
        outcome.tokens += len(ids)
        places = differing(ids, wanted[at], labels.get(at, [IGNORED] * len(ids)))
        if places:
            text = "".join(f"[{piece(token).decode(errors='replace')}]" for token in ids)
            shown = [round(weight, 4) for weight in wanted[at]]
            outcome.wrong.append(f"{policy}, messages {with_messages}: {places[:8]} of {text}, wanted {shown}")
    return outcome


def differing(ids: Sequence[int], wanted: Sequence[float], labels: Sequence[int]) -> list[int]:
    """Tokens whose label is not the id with the wanted weight, or ignored where that is zero.

    Nothing predicts the first token, so there a weight of zero may be written either way.
    """
    made = []
    for at, (token, weight, label) in enumerate(zip(ids, wanted, labels, strict=True)):
        given, found = decoded(label)
        names = {token, IGNORED} if at == 0 and not weight else {token if weight else IGNORED}
        if given not in names or not math.isclose(found, weight, rel_tol=1e-5):
            made.append(at)
    return made
