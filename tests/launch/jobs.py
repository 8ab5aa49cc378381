"""What each rank of a launch runs: one short training after the other, in one process group.

    accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 2 tests/launch/on_cpu.py \
        tests/launch/jobs.py FOLDER '[{"name": "mask", "arm": "mask"}]'

Each job leaves ``FOLDER/NAME-rankR.pt``: losses, every whole parameter, and what the launch really was.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from support.reference_loss import CHATS, PLAIN_SGD, POLICIES, STEPS, network
from support.tiny import tokenizer
from transformers import BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sft_mask import train_on_responses_only
from sft_mask.trainer import lm_head

ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_grad_norm": 0.1}


@dataclass(frozen=True)
class Job:
    """One training of two steps over the same eight conversations.

    Attributes:
        arm: a key of ``POLICIES``: what counts how much.
        rows: rows of a batch of one rank.
        accumulation: batches of one optimizer step.
        model: a key of ``MODELS``; ``tied`` for a Llama with tied embeddings.
        lora: adapters instead of all weights.
        bits: weights in 4 bits (nf4, double quantization), adapters in float32.
        adamw: AdamW with clipped gradients instead of plain SGD.
        head: whether the library's LM head is used; otherwise TRL's.
        checkpointing: gradient checkpointing.
        compiled: ``torch.compile``, with the ``eager`` backend (no compiler is needed).
        mask: whether the library is used at all; otherwise TRL trains every token.
        averaged: ``average_tokens_across_devices``.
        vocabulary: another size of the vocabulary, to see what the logits take.
        width: every row is padded to a multiple of this many tokens.
        evaluated: whether seven rows are evaluated afterwards.
        resumed: the second step is made by another trainer, from the checkpoint of the first.
        fault: something to break on purpose, a key of ``FAULTS``.
    """

    name: str
    arm: str = "mask"
    rows: int = 2
    accumulation: int = 2
    model: str = "llama"
    lora: bool = False
    bits: bool = False
    adamw: bool = False
    head: bool = True
    checkpointing: bool = False
    compiled: bool = False
    mask: bool = True
    averaged: bool = True
    vocabulary: int = 0
    width: int | None = None
    evaluated: bool = True
    resumed: bool = False
    fault: str = ""


class Dies(TrainerCallback):
    """Ends the second rank in the middle, as a machine that loses power or memory does."""

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if args.process_index == 1 and state.global_step == 1:
            Path(args.output_dir, "died").touch()
            raise RuntimeError("rank 1 has lost its device")


def drop_count(trainer: Any) -> None:
    """The tokens of the second rank are left out of the number by which the step is divided."""
    original = trainer.get_batch_samples

    def counted(*args: Any, **options: Any) -> Any:
        samples, items = original(*args, **options)
        own = targets(samples) if trainer.accelerator.process_index == 1 else 0
        lost = trainer.accelerator.gather(torch.tensor([own])).sum()
        if trainer._sft_mask.weighted:
            trainer._sft_mask.step_weight = trainer._sft_mask.step_weight * (items - lost) / items
        return samples, items - lost

    trainer.get_batch_samples = counted


def skip_scale(trainer: Any) -> None:
    """The loss is not multiplied by the number of ranks, over which the gradients are averaged."""
    original = trainer.accelerator.backward

    def shrunk(loss: torch.Tensor, **options: Any) -> None:
        original(loss / trainer.accelerator.num_processes, **options)

    trainer.accelerator.backward = shrunk


def die(trainer: Any) -> None:
    trainer.add_callback(Dies())


FAULTS = {"drop_count": drop_count, "skip_scale": skip_scale, "die": die}


def targets(batches: Any) -> int:
    """How many tokens of the batches are predicted and trained."""
    labels = [batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1:] for batch in batches]
    return sum(int((each != -100).sum()) for each in labels)


def options_of(job: Job, folder: Path) -> dict[str, Any]:
    on_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    made: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": not on_deepspeed,  # DeepSpeed is told by DS_ACCELERATOR
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_length": 256,
        "pad_to_multiple_of": job.width,
        "max_steps": STEPS,
        "per_device_train_batch_size": job.rows,
        "per_device_eval_batch_size": job.rows,
        "gradient_accumulation_steps": job.accumulation,
        "gradient_checkpointing": job.checkpointing,
        "average_tokens_across_devices": job.averaged,
        **(ADAMW if job.adamw else PLAIN_SGD),
    }
    if job.compiled:
        made |= {"torch_compile": True, "torch_compile_backend": "eager"}
    if job.resumed:
        made |= {"save_strategy": "steps", "save_steps": 1}
    if on_deepspeed:
        made["ddp_backend"] = "gloo"
    if os.environ.get("TENSOR_PARALLEL") == "true":
        made["model_init_kwargs"] = {"tp_plan": "auto", "dtype": "float32"}
    elif job.bits:
        made["model_init_kwargs"] = {"dtype": "float32"}
    return made


def model_of(job: Job) -> Any:
    if job.model != "tied" and not job.vocabulary:
        return copy.deepcopy(network(job.model))
    torch.manual_seed(3)
    config = copy.deepcopy(network("llama").config)
    config.tie_word_embeddings = job.model == "tied"
    config.vocab_size = job.vocabulary or config.vocab_size
    return type(network("llama"))(config)


def trainer_of(job: Job, folder: Path) -> Any:
    data = Dataset.from_list([{"messages": messages} for messages in CHATS])
    peft = None
    if job.lora:
        from peft import LoraConfig

        peft = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")
    loaded = job.bits or os.environ.get("TENSOR_PARALLEL") == "true"  # only a loaded model is split or quantized
    trainer = SFTTrainer(
        str(own_model(folder.parent)) if loaded else model_of(job),
        args=SFTConfig(**options_of(job, folder)),
        train_dataset=data,
        eval_dataset=data.select(range(7)),
        processing_class=tokenizer(),
        peft_config=peft,
        quantization_config=four_bits() if job.bits else None,
    )
    if job.lora:
        fill_adapters(trainer.model)
    if job.mask:
        train_on_responses_only(trainer, policy=POLICIES[job.arm])
    if job.fault:
        FAULTS[job.fault](trainer)
    return trainer


def own_model(folder: Path) -> Path:
    """Where this rank saved the model before it knew of the others."""
    return folder / f"model-{os.environ.get('RANK', '0')}"


def four_bits() -> BitsAndBytesConfig:
    """As the recipe has it: under FSDP, stored in the dtype of the other weights."""
    storage = torch.float32 if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=storage,
    )


def fill_adapters(model: Any) -> None:
    """Both halves of each adapter are drawn, so that both have gradients in the first step.

    They become float32: TRL keeps the adapters of a quantized model in bfloat16, in which the sums of a step are
    rounded differently for every split of it.
    """
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.data = parameter.data.float()
                parameter.copy_(torch.randn(parameter.shape) * 0.05)


def run(job: Job, folder: Path) -> dict[str, Any]:
    """What one rank has after the training, and what it says of seven rows, of which ``accelerate`` repeats one."""
    seen = Seen()
    with nullcontext() if job.head else trls_head(), seen.watched_head():
        trainer = trainer_of(job, folder / job.name)
        seen.count_tokens(trainer)
        forget_peak()
        before = megabytes("VmRSS")
        trainer.train()
        peak = megabytes("VmHWM") - before
        if job.resumed:
            trainer = trainer_of(job, folder / job.name)
            trainer.train(resume_from_checkpoint=str(folder / job.name / "checkpoint-1"))
        evaluated = trainer.evaluate() if job.evaluated else {}
    trainer.save_model(str(folder / job.name / "saved"))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    inner = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    return {
        "processes": trainer.accelerator.num_processes,
        "kind": trainer.accelerator.distributed_type.value,
        "sharded": sum(hasattr(p, "ds_id") or hasattr(p, "full_tensor") for p in inner.parameters()),
        "losses": [entry["loss"] for entry in logs],
        "supervised_tokens": [entry.get("supervised_tokens") for entry in logs],
        "own_tokens": seen.own_tokens,
        "peak": peak,
        "library_head": seen.library_head,
        "eval_loss": evaluated.get("eval_loss"),
        "eval_supervised_tokens": evaluated.get("eval_supervised_tokens"),
        "parameters": whole_parameters(inner, trained=job.bits),
    }


def forget_peak() -> None:
    """From here on ``VmHWM`` is the peak of what follows (on Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def megabytes(name: str) -> float:
    """A line of this process's status: ``VmRSS`` is its memory now, ``VmHWM`` the most it was; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


class Seen:
    """What a rank was given, and how often the library's LM head projected."""

    def __init__(self) -> None:
        self.own_tokens = 0
        self.library_head = 0

    def count_tokens(self, trainer: Any) -> None:
        original = trainer.get_batch_samples

        def counted(*args: Any, **options: Any) -> Any:
            samples, items = original(*args, **options)
            self.own_tokens += targets(samples)
            return samples, items

        trainer.get_batch_samples = counted

    @contextmanager
    def watched_head(self) -> Iterator[None]:
        apply = lm_head._Scores.apply

        def counted(*args: Any) -> Any:
            self.library_head += 1
            return apply(*args)  # type: ignore[no-untyped-call]

        with mock.patch.object(lm_head._Scores, "apply", counted):
            yield


def trls_head() -> Any:
    """TRL's own LM head while the block runs."""
    return mock.patch("sft_mask.trainer.hook.supervised_positions_only", return_value=nullcontext())


def whole_parameters(model: Any, *, trained: bool) -> dict[str, torch.Tensor]:
    """Every parameter, or those that are trained, gathered from all ranks, under the name it has in one process."""
    made = {}
    for wrapped_name, parameter in model.named_parameters():
        name = wrapped_name
        if trained and not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                value = parameter.detach().clone()
        else:
            value = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        for wrapper in ("module.", "_orig_mod.", "_checkpoint_wrapped_module."):
            name = name.replace(wrapper, "")
        made[name] = value.detach().float().cpu().clone()
    return made


def main(folder: Path, jobs: list[dict[str, Any]]) -> None:
    gc.freeze()  # each `train()` collects garbage, and what was imported is none
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    made = [Job(**job) for job in jobs]
    if os.environ.get("TENSOR_PARALLEL") == "true" or any(job.bits for job in made):
        network("llama").save_pretrained(own_model(folder))
    for job in made:
        torch.save(run(job, folder), folder / f"{job.name}-rank{rank}.pt")
        print(f"rank {rank}: {job.name} is done", flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
