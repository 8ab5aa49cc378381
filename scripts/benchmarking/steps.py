"""Batches of a known supervised share, trainers over one model, and the ways of making a loss that are compared."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from benchmarking.chats import MARKERS, paragraphs

KINDS = ("full", "lora")
Batch = dict[str, Any]
_PEERS = {"Cut Cross-Entropy": ("cut_cross_entropy", "cut-cross-entropy"), "Liger": ("liger_kernel", "liger-kernel")}


def load(name: str, kind: str, device: str) -> Any:
    """A causal language model that trains all of its parameters (``"full"``), or LoRA on its linear layers."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model.to(torch.device(device))  # type: ignore[arg-type]
    if kind == "lora":
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    return model


def conversations(tokenizer: Any, rows: int, length: int, share: float) -> Dataset:
    """Rows of exactly ``length`` tokens: a question, and an answer of which ``share`` of the row is supervised."""
    words = tokenizer("\n\n".join(paragraphs()), add_special_tokens=False)["input_ids"]
    stop = [tokenizer.eos_token_id]
    before, between = (tokenizer(marker, add_special_tokens=False)["input_ids"] for marker in MARKERS["special"])
    answer = round(share * length) - len(stop)
    question = length - answer - len(stop) * 2 - len(before) - len(between)
    assert answer > 0 < question, "there is room for a question and an answer"
    made, at = [], 0
    for _ in range(rows):
        said, answered = words[at : at + question], words[at + question : at + question + answer]
        at = (at + length) % (len(words) - 2 * length)
        made.append([*before, *said, *stop, *between, *answered, *stop])
    return Dataset.from_dict({"input_ids": made})


def build(model: Any, tokenizer: Any, data: Dataset, device: str, *, batch: int, masked: bool, **weights: Any) -> Any:
    """A trainer that makes steps and no files; ``masked`` by ``train_on_responses_only``."""
    from sft_mask import train_on_responses_only

    args = SFTConfig(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=batch,
        max_length=None,
        report_to="none",
        use_cpu=device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.model.train()
    return train_on_responses_only(trainer, *MARKERS["special"], **weights) if masked else trainer


def first_batch(trainer: Any) -> Batch:
    """The first batch on the trainer's device."""
    batch = next(iter(trainer.get_train_dataloader()))
    return {name: value.to(trainer.args.device) for name, value in batch.items()}


def tokenizer_of(name: str) -> Any:
    """The model's tokenizer."""
    return AutoTokenizer.from_pretrained(name)


def step(trainer: Any, batch: Mapping[str, Any]) -> Callable[[], float]:
    """Forward and backward pass as the trainer makes them; gives the loss."""
    labels = batch["labels"]
    items = (labels[:, 1:] != -100).sum()
    state = getattr(trainer, "_sft_mask", None)

    def run() -> float:
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        if state is not None and state.weighted:
            trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
        loss = trainer.training_step(trainer.model, dict(batch), items)
        return float(loss)

    return run


def plain(model: Any, batch: Mapping[str, Any]) -> Callable[[], float]:
    """The model's own loss over all logits."""

    def run() -> float:
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    return run


def backbone(model: Any) -> Any:
    """The model without its head and without an adapter's wrapper."""
    return getattr(model, "base_model", model).model.model if hasattr(model, "peft_config") else model.model


def body(model: Any, batch: Mapping[str, Any]) -> Callable[[], float]:
    """Forward and backward pass without the head: what no loss can save."""

    def run() -> float:
        model.zero_grad()
        hidden = backbone(model)(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        hidden.mean().backward()
        return 0.0

    return run


def peers(device: str) -> dict[str, Callable[[Any, Mapping[str, Any]], Callable[[], float]]]:
    """Fused losses of others that run here, by name and version; both need Triton."""
    if device == "cpu":
        return {}
    makers = {"Cut Cross-Entropy": _cut_cross_entropy, "Liger": _liger}
    return {
        f"{name} {version(package)}": makers[name]
        for name, (module, package) in _PEERS.items()
        if importlib.util.find_spec(module)
    }


def _with_loss(model: Any, batch: Mapping[str, Any], loss_of: Callable[[Any, Any, Any], Any]) -> Callable[[], float]:
    def run() -> float:
        model.zero_grad()
        hidden = backbone(model)(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        loss = loss_of(hidden, model.get_output_embeddings().weight, batch["labels"])
        loss.backward()
        return float(loss.detach())

    return run


def _cut_cross_entropy(model: Any, batch: Mapping[str, Any]) -> Callable[[], float]:
    from cut_cross_entropy import linear_cross_entropy

    return _with_loss(model, batch, lambda hidden, head, labels: linear_cross_entropy(hidden, head, labels, shift=True))


def _liger(model: Any, batch: Mapping[str, Any]) -> Callable[[], float]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss()
    return _with_loss(
        model,
        batch,
        lambda hidden, head, labels: fused(head, hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
    )
