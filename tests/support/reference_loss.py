"""Losses, gradients and parameters from a plain loop that knows nothing of the library.

Weights come from the character offsets of each message, the loss from one unpadded conversation after the other, the
optimizer is two lines.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from support.tiny import STOP, chats, tokenized, tokenizer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TrainerCallback,
)

from sft_mask import Policy

RATE = 0.1
STEPS = 2
FLAGS = [{"weight": 0.25}, {"train": True}, {"weight": 3.0}, {"train": False}, {}, {"weight": 0.0}, {"weight": 1.5}]


def flagged(messages: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Messages of the model with flags of every kind; sometimes a user is trained."""
    made = []
    for at, message in enumerate(messages):
        flags = FLAGS[(seed + 3 * at) % len(FLAGS)] if message["role"] == "assistant" else {}
        if message["role"] == "user" and (seed + at) % 5 == 0:
            flags = {"weight": 0.5}
        made.append({"role": message["role"], "content": message["content"], "train": None, "weight": None, **flags})
    return made


CHATS = [flagged(messages, seed) for seed, messages in enumerate(chats(8, seed=4))]


POLICIES: dict[str, Policy] = {
    "mask": Policy(),
    "prompt": Policy(prompt_weight=0.1),
    "messages": Policy(turns="flagged"),
    "turn": Policy(reduction="turn"),
    "sequence": Policy(reduction="sequence"),
    "messages by turn": Policy(turns="flagged", reduction="turn"),
    "prompt by sequence": Policy(prompt_weight=0.3, reduction="sequence"),
}


def spoken(messages: list[dict[str, Any]], at: int) -> list[int]:
    """Tokens of one message, by character offsets: its words and its stop."""
    text, place = "", (0, 0)
    for index, message in enumerate(messages):
        text += f"<|im_start|>{message['role']}\n"
        if index == at:
            place = (len(text), len(text + message["content"] + STOP))
        text += message["content"] + STOP + "\n"
    offsets = tokenizer()(text, return_offsets_mapping=True)["offset_mapping"]
    return [token for token, (start, stop) in enumerate(offsets) if start < place[1] and stop > place[0]]


def flag_weight(message: dict[str, Any]) -> float:
    if message["train"] is False:
        return 0.0
    if message["weight"] is not None:
        return float(message["weight"])
    return 1.0 if message["train"] or message["role"] == "assistant" else 0.0


def weights(messages: list[dict[str, Any]], arm: str) -> list[float]:
    """What each token of a conversation counts."""
    size = len(tokenized([{"role": m["role"], "content": m["content"]} for m in messages]))
    made, answered = [0.0] * size, [False] * size
    for at, message in enumerate(messages):
        weight = flag_weight(message) if "messages" in arm else float(message["role"] == "assistant")
        if weight == 0 and message["role"] != "assistant":
            continue
        places = spoken(messages, at)
        for place in places:
            made[place] = weight / len(places) if "turn" in arm else weight
            answered[place] = True
    if "prompt" in arm:
        made = [w if mine else POLICIES[arm].prompt_weight for w, mine in zip(made, answered, strict=True)]
    if "sequence" in arm:
        total = sum(made[1:])
        made = [w / total for w in made]
    return made


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
PLAIN_SGD: dict[str, Any] = {
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
}
"""What the reference does in two lines."""


class Gradients(TrainerCallback):
    """Collects the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()),
            **SMALL,
            max_position_embeddings=1024,
        )
    )


def gemma() -> PreTrainedModel:
    """Soft-capped logits, tied embeddings."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer()),
            **SMALL,
            head_dim=16,
            max_position_embeddings=1024,
            final_logit_softcapping=5.0,
            attn_implementation="eager",
        )
    )


def experts() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(tokenizer()),
            **SMALL,
            moe_intermediate_size=32,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=1024,
            experts_implementation="eager",  # the grouped one has no float64
            router_aux_loss_coef=0.0,  # a mean over each micro-batch, so it cannot be the same for every split
        )
    )


MODELS = {"llama": llama, "gemma": gemma, "experts": experts}


@cache
def network(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    return MODELS[name]()


@cache
def reference(name: str, arm: str) -> tuple[list[float], list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Losses and gradients of two steps over all conversations, and the parameters after them."""
    alone = copy.deepcopy(network(name)).double()
    losses, gradients = [], []
    for _ in range(STEPS):
        alone.zero_grad()
        total, weight = torch.zeros((), dtype=torch.float64), 0.0
        for messages in CHATS:
            ids = torch.tensor([tokenized([{"role": m["role"], "content": m["content"]} for m in messages])])
            counts = torch.tensor(weights(messages, arm), dtype=torch.float64)[1:]
            logits = alone(input_ids=ids, use_cache=False).logits[0].double()
            total = total + (counts * F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")).sum()
            weight += float(counts.sum())
        loss = total / weight
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        gradients.append({k: p.grad.clone() for k, p in alone.named_parameters() if p.grad is not None})
        with torch.no_grad():
            for parameter in alone.parameters():
                if parameter.grad is not None:
                    parameter.sub_(RATE * parameter.grad)
    return losses, gradients, {k: p.detach().clone() for k, p in alone.named_parameters()}


def distance(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of all tensors over the norm of the wanted ones."""
    assert given.keys() == wanted.keys()
    apart = sum(float((given[k].double() - v.double()).square().sum()) for k, v in wanted.items())
    return float((apart / sum(float(v.double().square().sum()) for v in wanted.values())) ** 0.5)
