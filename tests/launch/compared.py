"""What is launched, and how far it is from one process: used by the tests and by ``scripts/launches.py``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from launch.jobs import Job, own_model, run
from launch.launching import CONFIGURATIONS
from safetensors.torch import load_file
from support.reference_loss import distance, network, reference
from transformers import AutoModelForCausalLM

ARMS = ("mask", "prompt", "turn")
SPLITS = ((4, 1), (2, 2))
"""Rows of a batch and accumulation: all eight rows in each step of two ranks."""
TOLERANCE = 1e-5
"""Of a loss, and of all parameters together, relative to those of one process."""


def _split(rows: int, accumulation: int) -> dict[str, Any]:
    return {"rows": rows, "accumulation": accumulation}


MATRIX = [
    Job(f"{'lora' if lora else 'full'}-{arm}-{rows}x{accumulation}", arm, **_split(rows, accumulation), lora=lora)
    for lora, arm, (rows, accumulation) in product((False, True), ARMS, SPLITS)
]
MORE = [
    Job("adamw", "turn", adamw=True),
    Job("resumed", "turn", adamw=True, resumed=True),
    Job("resumed-lora", "prompt", adamw=True, resumed=True, lora=True),
    Job("checkpointing", "mask", checkpointing=True),
    Job("checkpointing-lora", "turn", checkpointing=True, lora=True),
    Job("tied", "prompt", model="tied"),
    Job("trls-head", "mask", head=False),
    Job("experts", "turn", model="experts"),
]
MEMORY = [
    Job(f"memory-{head}", "mask", **_split(4, 1), head=head == "ours", vocabulary=1 << 17) for head in ("ours", "trls")
]
"""The same training with the library's LM head and with TRL's, and logits that are most of its memory."""
QUANTIZED = [
    Job(f"nf4-{arm}-{rows}x{accumulation}", arm, **_split(rows, accumulation), lora=True, bits=True)
    for arm, (rows, accumulation) in product(ARMS, SPLITS)
]
FAULTY = [
    Job("fault-mask", "mask", fault="drop_count"),
    Job("fault-turn", "turn", fault="drop_count"),
    Job("fault-scale", "mask", fault="skip_scale"),
    Job("fault-averaging", "mask", averaged=False),
]
FAST = (
    *("full-mask-2x2", "full-prompt-4x1", "full-turn-2x2", "lora-mask-2x2", "lora-turn-4x1", "adamw", "resumed"),
    *("nf4-mask-2x2", "nf4-turn-4x1"),
)
FAST_FAULTY = ("fault-mask", "fault-turn", "fault-averaging")


def jobs_of(name: str, *, fast: bool) -> list[Job]:
    """The jobs of a configuration, as it splits them."""
    if name == "sequence":  # DeepSpeed makes its groups once in a process, and batches of one width with gloo
        return [Job("full-mask-4x1", rows=4, accumulation=1, width=256)]
    jobs = [*MEMORY, *MATRIX, *MORE, *FAULTY]
    if name == "fsdp2_qlora":
        jobs = [*QUANTIZED]
    if name == "tensor":  # both ranks have the same rows, and adapters are not split
        jobs = [replace(job, rows=2 * job.rows) for job in MATRIX if not job.lora]
    if name in ("ddp", "two_nodes"):  # what torch.compile makes of a sharded model is not ours
        jobs.append(Job("compiled", "turn", compiled=True))
    return [job for job in jobs if not fast or job.name in FAST + FAST_FAULTY]


@dataclass(frozen=True)
class Differences:
    """How far a launch is from one process, relative; the second rank included.

    Attributes:
        loss: of any step.
        parameters: of all of them together, after the last step.
        evaluation: of the loss over seven rows.
        saved: of the largest element of the saved file, from the parameters.
    """

    loss: float
    parameters: float
    evaluation: float
    saved: float

    @classmethod
    def largest(cls, every: Iterable[Differences]) -> Differences:
        rows = [asdict(one) for one in every]
        return cls(**{name: max(row[name] for row in rows) for name in rows[0]})


def found(folder: Path, job: Job) -> list[dict[str, Any]]:
    """What each rank left."""
    return [torch.load(folder / f"{job.name}-rank{rank}.pt") for rank in (0, 1)]


def differences(name: str, job: Job, folder: Path) -> Differences:
    ranks, single = found(folder, job), alone(in_one_process(name, job))
    losses, parameters = single["losses"], single["parameters"]
    plain = job.model == "llama" and not (job.lora or job.adamw or job.vocabulary)
    if plain and name != "sequence":
        losses, _, parameters = reference(job.model, job.arm)  # a plain loop in float64
    loss = max(abs(a - b) / b for a, b in zip(ranks[0]["losses"], losses, strict=True))
    return Differences(
        loss,
        max(distance(rank["parameters"], parameters) for rank in ranks),
        max(abs(rank["eval_loss"] - single["eval_loss"]) / single["eval_loss"] for rank in ranks),
        _saved(folder / job.name / "saved", ranks[0]["parameters"]),
    )


def in_one_process(name: str, job: Job) -> Job:
    """The same training in one process: all rows of a step in one batch, and nothing that is tested."""
    rows = job.rows * job.accumulation * (1 if CONFIGURATIONS[name].same_rows else 2)
    return replace(
        job,
        name="alone",
        rows=rows,
        accumulation=1,
        resumed=False,
        checkpointing=False,
        compiled=False,
        averaged=True,
        fault="",
    )


@cache
def alone(job: Job) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if job.bits:
            network("llama").save_pretrained(own_model(Path(folder)))
        return run(job, Path(folder))


def _saved(folder: Path, parameters: dict[str, torch.Tensor]) -> float:
    """How far the saved weights are from the parameters; infinitely, where one that was trained is not among them."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        kept = load_file(adapter)
        wanted = {name.replace(".default", ""): value for name, value in parameters.items() if "lora_" in name}
    else:
        kept = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
        wanted = parameters
    if not wanted or wanted.keys() - kept.keys():
        return float("inf")
    return max(float((kept[name].float() - value).abs().max()) for name, value in wanted.items())
