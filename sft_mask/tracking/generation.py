"""Greedy answers of a model that is being trained, which is afterwards as it was before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sft_mask.errors import extra
from sft_mask.trainer.inference import Stops

with extra("train", "SampleAnswers"):
    import torch
    from transformers import GenerationConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        ids: without the end-of-turn token.
        stopped: whether the model ended the answer, and not the limit of tokens.
    """

    ids: tuple[int, ...]
    stopped: bool


@contextmanager
def as_in_inference(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients while the block runs; each module's mode and the random state come back."""
    modes = [(module, module.training) for module in model.modules()]
    device = model.device
    forked = [device] if device.type not in ("cpu", "meta") else []
    kind = device.type if forked else "cuda"
    model.eval()
    try:
        with torch.random.fork_rng(forked, device_type=kind), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stops: Stops,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[Answer]:
    """The most likely answer to each prompt.

    Args:
        model: has ``generate``; its modes and the random state are the same afterwards.
        tokenizer: for the text of ends that are not single tokens.
        prompts: token ids.
        stops: what ends an answer.
        max_new_tokens: the most tokens of an answer, its end included.
        batch_size: prompts at once.
    """
    found: list[Answer] = []
    with as_in_inference(model):
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            found += _batch_of_answers(model, tokenizer, batch, stops, max_new_tokens)
    return found


def _batch_of_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], stops: Stops, max_new_tokens: int
) -> list[Answer]:
    longest = max(map(len, prompts))
    pad = next((token for token in (tokenizer.pad_token_id, *stops.ids) if token is not None), 0)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stops.ids) or None,
        pad_token_id=pad,
        use_cache=True,  # gradient checkpointing has switched it off in the model's own configuration
    )
    ends = {"stop_strings": list(stops.texts), "tokenizer": tokenizer} if stops.texts else {}
    made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **ends)
    return [_answer(row, tokenizer, stops) for row in made[:, longest:].tolist()]


def _answer(generated: Sequence[int], tokenizer: Any, stops: Stops) -> Answer:
    """The answer in what was generated, which is padded after its end."""
    end = next((at for at, token in enumerate(generated) if token in stops.ids), None)
    if end is not None:
        return Answer(tuple(generated[:end]), stopped=True)
    kept = list(generated)
    while kept and kept[-1] == tokenizer.pad_token_id:
        kept.pop()
    stopped = any(text in tokenizer.decode(kept) for text in stops.texts)
    return Answer(tuple(kept), stopped)
