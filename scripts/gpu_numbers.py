"""Tokens per second and peak memory on the GPUs of this machine, with and without the mask: a table of docs/launch.md.

    python scripts/gpu_numbers.py                                 # Qwen3-0.6B; needs a GPU, QLoRA also bitsandbytes
    python scripts/gpu_numbers.py --model Qwen/Qwen3-8B --rows 4 --length 2048

Every line is a launch of its own: LoRA of the model on the recipes' data by TRL's trainer alone (every token is
trained), with the mask, and with a prompt weight; the same in 4 bits; with the mask and the library's LM head in place
of TRL's Triton kernel; and, if there are several GPUs, with FSDP2 on 2, 4, ... of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarking.pages import write_between

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "launch.md"
DATA = ROOT / "recipes" / "data" / "house_style_train.jsonl"
WARM_UP = 3
"""Steps that are not measured."""
HEADER = "| run | GPUs | tokens per second | trained tokens per second | peak memory of a GPU |\n|---|--:|--:|--:|--:|"


@dataclass(frozen=True)
class Arm:
    """One training that is measured.

    Attributes:
        name: its line in the table.
        mask: ``none`` (TRL alone), ``mask`` or ``prompt``.
        bits: whether the weights are in 4 bits.
        triton: whether TRL's kernel projects to the vocabulary; otherwise the library's LM head.
        processes: GPUs.
    """

    name: str
    mask: str = "mask"
    bits: bool = False
    triton: bool = True
    processes: int = 1


def arms(gpus: int, quantized: bool) -> list[Arm]:
    """What can be measured on this machine."""
    kinds = [("none", "every token (TRL alone)"), ("mask", "response-only mask"), ("prompt", "prompt weight 0.1")]
    made = [Arm(f"LoRA, {said}", mask) for mask, said in kinds]
    made.append(Arm("LoRA, response-only mask, the library's LM head", triton=False))
    if quantized:
        made += [Arm(f"QLoRA, {said}", mask, bits=True) for mask, said in kinds]
    count = 2
    while count <= gpus:
        made += [Arm(f"LoRA, FSDP2, {said}", mask, processes=count) for mask, said in kinds[:2]]
        count *= 2
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second and peak memory on the GPUs of this machine.")
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B", help="folder or hub name of a chat model")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--length", type=int, default=1024, help="max_length; rows are packed up to it")
    parser.add_argument("--steps", type=int, default=23, help=f"the first {WARM_UP} are not measured")
    parser.add_argument("--cpu", action="store_true", help="to try the script out; the page is not written")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps <= WARM_UP:
        parser.error(f"--steps {args.steps}: the first {WARM_UP} are not measured; ask for more")
    if args.arm:
        return measure(Arm(**json.loads(args.arm)), args)
    if not torch.cuda.is_available() and not args.cpu:
        parser.error("no CUDA GPU was found; --cpu tries the script out")
    rows = []
    for arm in arms(torch.cuda.device_count(), not args.cpu and importlib.util.find_spec("bitsandbytes") is not None):
        rows.append(line(arm, launched(arm, args)))
        print(rows[-1], flush=True)
    if not args.cpu:
        device = torch.cuda.get_device_name()
        title = f"{args.model}, {args.rows} x {args.length} tokens a batch, {device}:"
        write_between(PAGE, "gpu", "\n".join([title, "", HEADER, *rows]))
    return None


def launched(arm: Arm, args: argparse.Namespace) -> dict[str, float]:
    """What the first process of a launch measured."""
    file = "one_gpu.yaml" if arm.processes == 1 else "fsdp2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(arm.processes)]
    command += ["--cpu"] if args.cpu else ["--config_file", str(ROOT / "recipes" / "accelerate" / file)]
    given = ["--model", args.model, "--rows", args.rows, "--length", args.length, "--steps", args.steps]
    command += [__file__, *map(str, given), *(["--cpu"] if args.cpu else []), "--arm", json.dumps(asdict(arm))]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = re.search(r"^measured (\{.*\})$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        sys.exit(f"{done.stdout[-6000:]}\n{arm.name!r} ended with {done.returncode}")
    return dict(json.loads(found[1]))


def measure(arm: Arm, args: argparse.Namespace) -> None:
    """Trains one arm and prints what its first process measured."""
    from transformers import TrainerCallback
    from trl.trainer import utils

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = ended = 0.0

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if state.global_step == WARM_UP:
                self.started = time.perf_counter()
            self.ended = time.perf_counter()

    if not arm.triton:
        utils._use_triton = lambda _: False
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(arm, args, folder)
        trainer.add_callback(clock)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "num_tokens" in entry]
    seconds = clock.ended - clock.started
    measured = {
        "tokens": (logs[-1]["num_tokens"] - logs[WARM_UP - 1]["num_tokens"]) / seconds,
        "trained": sum(entry.get("supervised_tokens", 0) for entry in logs[WARM_UP:]) / seconds,
        "peak": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
    }
    if trainer.is_world_process_zero():
        print(f"measured {json.dumps(measured)}", flush=True)


def build(arm: Arm, args: argparse.Namespace, folder: str) -> Any:
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from sft_mask import train_on_responses_only

    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    dtype = torch.float32 if args.cpu else torch.bfloat16
    options = SFTConfig(
        output_dir=folder,
        max_steps=args.steps,
        per_device_train_batch_size=args.rows,
        max_length=args.length,
        packing=True,
        packing_strategy="wrapped",  # all rows are full, so that all batches are equal
        gradient_checkpointing=True,
        bf16=not args.cpu,
        use_cpu=args.cpu,
        model_init_kwargs={"dtype": dtype},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        args.model,
        args=options,
        train_dataset=load_dataset("json", data_files=str(DATA), split="train"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        quantization_config=bits if arm.bits else None,
    )
    if arm.mask == "none":
        return trainer
    return train_on_responses_only(trainer, prompt_weight=0.1 if arm.mask == "prompt" else None)


def line(arm: Arm, measured: dict[str, float]) -> str:
    trained = f"{measured['trained']:,.0f}" if measured["trained"] else ""
    return f"| {arm.name} | {arm.processes} | {measured['tokens']:,.0f} | {trained} | {measured['peak']:.1f} GB |"


if __name__ == "__main__":
    main()
