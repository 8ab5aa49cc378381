"""Batches with a known supervised share, trainers over one model, and the losses that are compared."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from local_model import smollm2_folder
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarking.chats import MARKERS, paragraphs
from sft_mask import train_on_responses_only

KINDS = ("full", "lora")
SHARES = (0.25, 0.5, 0.75)
OURS, TRL, MODEL, BODY = "sft_mask", "TRL", "the model's own loss", "body alone"
ARMS = (OURS, TRL, MODEL, BODY)
Batch = Mapping[str, Any]
Step = Callable[[], float]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both benchmarks of a step have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--kind", action="append", choices=KINDS, help="all parameters, or LoRA (default: both)")
    add("--share", action="append", type=float, help="of supervised tokens (default: 0.25, 0.5 and 0.75)")
    add("--batch", type=int, default=4, metavar="ROWS")
    add("--length", type=int, default=512, metavar="TOKENS")
    add("--rounds", type=int, default=5)
    add("--model", default=str(smollm2_folder()), help="folder or name (default: SmolLM2-135M-Instruct)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


@dataclass
class Setup:
    """One model, and the size of its batches.

    Attributes:
        name: folder or name of the model.
        kind: all parameters are trained (``"full"``), or LoRA on the linear layers.
        device: ``"cpu"`` or ``"cuda"``.
        batch: rows of a batch.
    """

    name: str
    kind: str
    device: str
    batch: int

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.name)
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.name, dtype=torch.float32)
        self.model.to(torch.device(self.device))
        if self.kind == "lora":
            adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
            self.model = get_peft_model(self.model, adapter)

    def rows(self, length: int, share: float) -> Dataset:
        """Rows of exactly ``length`` tokens: a question and its answer, with ``share`` of the row supervised."""
        words = self.tokenizer("\n\n".join(paragraphs()[:400]), add_special_tokens=False)["input_ids"]
        eot = [self.tokenizer.eos_token_id]
        headers = [self.tokenizer(marker, add_special_tokens=False)["input_ids"] for marker in MARKERS["special"]]
        answer = round(share * length) - len(eot)
        question = length - answer - len(eot) * 2 - sum(map(len, headers))
        assert answer > 0 < question, "there is room for a question and an answer"
        made, at = [], 0
        for _ in range(self.batch):
            asked, answered = words[at : at + question], words[at + question : at + question + answer]
            at = (at + length) % (len(words) - 2 * length)
            made.append([*headers[0], *asked, *eot, *headers[1], *answered, *eot])
        return Dataset.from_dict({"input_ids": made})

    def trainer(self, length: int, share: float, *, masked: bool = True, **weights: Any) -> Any:
        """A trainer that makes steps and writes no files; ``masked`` by ``train_on_responses_only``."""
        args = SFTConfig(
            output_dir=tempfile.gettempdir(),
            per_device_train_batch_size=self.batch,
            max_length=None,
            report_to="none",
            use_cpu=self.device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        rows = self.rows(length, share)
        trainer = SFTTrainer(model=self.model, args=args, train_dataset=rows, processing_class=self.tokenizer)
        trainer.model.train()
        return train_on_responses_only(trainer, *MARKERS["special"], **weights) if masked else trainer

    def arms(self, length: int, share: float) -> dict[str, Callable[[], Step]]:
        """What makes the step of each arm, all on the same batch and labels; fused losses only if they run here."""
        trainer = self.trainer(length, share)
        batch = first_batch(trainer)
        model = trainer.model
        made = {
            OURS: lambda: step(trainer, batch),
            TRL: lambda: step(self.trainer(length, share, masked=False), batch),
            MODEL: lambda: own_loss(model, batch),
            BODY: lambda: body(model, batch),
        }
        for name, (module, fused) in FUSED.items():
            if self.device != "cpu" and importlib.util.find_spec(module):  # both need Triton
                made[f"{name} {version(name)}"] = lambda fused=fused: fused(model, batch)
        return made


def first_batch(trainer: Any) -> Batch:
    """The first batch, on the trainer's device."""
    batch = next(iter(trainer.get_train_dataloader()))
    return {name: value.to(trainer.args.device) for name, value in batch.items()}


def step(trainer: Any, batch: Batch) -> Step:
    """Forward and backward pass as the trainer makes them; returns the loss."""
    items = (batch["labels"][:, 1:] != -100).sum()
    state = getattr(trainer, "_sft_mask", None)

    def run() -> float:
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        if state is not None and state.weighted:
            trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
        return float(trainer.training_step(trainer.model, dict(batch), items))

    return run


def own_loss(model: Any, batch: Batch) -> Step:
    """The model's own loss over all logits."""

    def run() -> float:
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    return run


def body(model: Any, batch: Batch) -> Step:
    """Forward and backward pass without the head: the lower bound for any loss."""
    return with_loss(model, batch, lambda hidden, *_: hidden.mean())


def with_loss(model: Any, batch: Batch, loss_of: Callable[[Any, Any, Any], Any]) -> Step:
    """Forward and backward pass with a loss of the last hidden states, the head's weight and the labels."""
    backbone = getattr(model, "base_model", model).model.model if hasattr(model, "peft_config") else model.model
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def run() -> float:
        model.zero_grad()
        hidden = backbone(**inputs, use_cache=False).last_hidden_state
        loss = loss_of(hidden, model.get_output_embeddings().weight, batch["labels"])
        loss.backward()
        return float(loss.detach())

    return run


def cut_cross_entropy(model: Any, batch: Batch) -> Step:
    from cut_cross_entropy import linear_cross_entropy

    return with_loss(model, batch, lambda hidden, head, labels: linear_cross_entropy(hidden, head, labels, shift=True))


def liger(model: Any, batch: Batch) -> Step:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss()
    return with_loss(
        model,
        batch,
        lambda hidden, head, labels: fused(head, hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
    )


FUSED = {"cut-cross-entropy": ("cut_cross_entropy", cut_cross_entropy), "liger-kernel": ("liger_kernel", liger)}
"""Losses of other packages, by name: the module, and what makes a step."""
