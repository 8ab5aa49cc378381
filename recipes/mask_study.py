"""What masking changes: four masks over the same rows, measured on held-out data.

    OMP_NUM_THREADS=1 python recipes/mask_study.py --page docs/mask_study.md            # 24 runs, one CPU core
    python recipes/mask_study.py --model Qwen/Qwen3-0.6B --rows 1600 --steps 200 --held-out 200 \
        --output outputs/mask_study_gpu                                                 # one CUDA GPU

Hardware: one CPU core and 4 GB, about a minute per run for SmolLM2-135M-Instruct; or one CUDA GPU. Every run writes one
JSON file to --output, and a run whose file exists is not repeated, so the study can be stopped at any time.
Expected: the table in docs/mask_study.md.

Training losses of different masks are means over different tokens, so they are never compared. What is compared, on
questions whose subjects occur in no training row: the loss of the response's tokens, and of its text and its
end-of-turn token separately; the share of answers that are exact to the character, that begin with the right answer,
that stop, and that echo the prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from local_model import find_model
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sft_mask import IGNORE_INDEX, Policy, mask_dataset, train_on_responses_only

ARMS: dict[str, Callable[[SFTTrainer], SFTTrainer]] = {
    "full loss": lambda trainer: trainer,
    "responses only": train_on_responses_only,
    "prompt weight 0.1": lambda trainer: train_on_responses_only(trainer, prompt_weight=0.1),
    "responses without stop": lambda trainer: train_on_responses_only(trainer, policy=Policy(stop="never")),
}
MEASURES = {
    "response_loss": "response loss",
    "words_loss": "its words",
    "stop_loss": "its stop",
    "exact": "exact",
    "begins_right": "begins right",
    "stopped": "stopped",
    "echoed": "echoed",
}
ECHO_WORDS = 5
"""An answer with this many consecutive words of its prompt echoes it; no right answer does."""

COLOURS = ("red", "blue", "green", "black", "white", "grey")
VERBS = ("Find", "Wash", "Paint", "Pack")
# fmt: off
TRAINING_NOUNS = [
    "lamp", "chair", "river", "stone", "clock", "basket", "ladder", "window", "mirror", "hammer", "bottle", "blanket",
    "carpet", "bucket", "candle", "pillow", "drawer", "kettle", "guitar", "wallet",
]
# fmt: on
HELD_OUT_NOUNS = ["spoon", "bridge", "garden", "button", "pencil", "table", "jacket", "engine"]


def lookup(rng: random.Random, nouns: list[str]) -> tuple[str, str]:
    """Long prompt, short answer: one number from a list."""
    things = [f"{rng.choice(COLOURS)} {noun}" for noun in rng.sample(nouns, 6)]
    stock = {thing: rng.randint(2, 99) for thing in things}
    wanted = rng.choice(things)
    listed = ", ".join(f"{thing} {count}" for thing, count in stock.items())
    return f"In stock: {listed}. How many of {wanted}?", f"{wanted} = {stock[wanted]}"


def plan(rng: random.Random, nouns: list[str]) -> tuple[str, str]:
    """Short prompt, long answer: a numbered plan in a fixed form."""
    things = rng.sample(nouns, len(VERBS))
    steps = [f"{at}. {verb} the {thing}." for at, (verb, thing) in enumerate(zip(VERBS, things, strict=True), 1)]
    closing = f"Then the {things[-1]} and the {things[0]} are ready."
    return f"Plan: {' '.join(things)}", "\n".join([*steps, closing])


SHAPES: dict[str, Callable[[random.Random, list[str]], tuple[str, str]]] = {
    "long prompt, short answer": lookup,
    "short prompt, long answer": plan,
}


def main() -> None:
    args = parse_arguments()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    args.output.mkdir(parents=True, exist_ok=True)
    runs = [(shape, arm, seed) for seed in args.seeds for shape in args.shapes for arm in args.arms]
    runs = [*((shape, "before training", 0) for shape in args.shapes), *runs]
    for done, (shape, arm, seed) in enumerate(runs, 1):
        path = args.output / f"{shape}, {arm}, seed {seed}.json".replace(" ", "_").replace(",", "")
        if path.exists():
            refuse_other_settings(path, args)
            continue
        started = time.perf_counter()
        found = measure_run(args, shape, arm, seed)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        unfinished.rename(path)
        shown = ", ".join(f"{name} {found[key]:.3f}" for key, name in MEASURES.items())
        print(f"{done}/{len(runs)} {shape} · {arm} · seed {seed}: {shown} ({time.perf_counter() - started:.0f} s)")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.output.glob("*.json"))]
    print(table(results))
    plot(results, args.output / "mask_study.svg")
    if args.page:
        write_page(args.page, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Four masks over the same rows, and the effect of each on held-out answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub name of a chat model")
    add("--output", type=Path, default=Path("outputs/mask_study"), help="folder for the plot and one JSON file per run")
    add("--page", type=Path, help="a Markdown page whose table is rewritten; the plot goes to images/ next to it")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="which masks to compare")
    add("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), metavar="SHAPE", help="kinds of data")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        help="for the order of the rows and the adapter's initialization",
    )
    add("--rows", type=int, default=160, help="training conversations of each kind")
    add("--steps", type=int, default=20, help="optimizer steps")
    add("--batch-size", type=int, default=8, help="conversations per step")
    add("--learning-rate", type=float, default=1e-3, help="the same for every arm")
    add("--held-out", type=int, default=24, help="held-out conversations of each kind")
    add("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    return parser.parse_args()


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("model", "rows", "steps", "batch_size", "learning_rate", "held_out")}


def refuse_other_settings(path: Path, args: argparse.Namespace) -> None:
    there = json.loads(path.read_text(encoding="utf-8"))["settings"]
    if there != settings_of(args):
        sys.exit(f"{path} was made with {there}, not with {settings_of(args)}: give another --output, or delete it.")


def conversations(shape: str, count: int, nouns: list[str], seed: int) -> Dataset:
    rng = random.Random(seed)
    pairs = [SHAPES[shape](rng, nouns) for _ in range(count)]
    system = {"role": "system", "content": "Be exact."}  # otherwise SmolLM2's template adds a longer one
    return Dataset.from_list(
        [
            {"messages": [system, {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
            for asked, answer in pairs
        ]
    )


def measure_run(args: argparse.Namespace, shape: str, arm: str, seed: int) -> dict[str, Any]:
    """Trains one arm with one seed, and measures it; "before training" is the original model."""
    on_gpu = torch.cuda.is_available() and not args.cpu
    transformers.set_seed(seed)
    name = find_model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")  # for generation; TRL pads on its own
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16 if on_gpu else torch.float32)
    model.to("cuda" if on_gpu else "cpu")
    train = conversations(shape, args.rows, TRAINING_NOUNS, seed=1)
    held_out = conversations(shape, args.held_out, HELD_OUT_NOUNS, seed=2)
    masked, report = mask_dataset(held_out, tokenizer, return_report=True)
    if arm != "before training":
        trainer = build_trainer(args, model, tokenizer, train, seed, on_gpu)
        trainer = ARMS[arm](trainer)
        trainer.train()
        model = trainer.model
    return {
        "shape": shape,
        "arm": arm,
        "seed": seed,
        "settings": settings_of(args),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "share": report.splits["train"].share,
        **held_out_loss(model, masked, stop_of(masked)),
        **answers(model, tokenizer, held_out, stop_of(masked)),
    }


def build_trainer(
    args: argparse.Namespace, model: Any, tokenizer: Any, train: Dataset, seed: int, on_gpu: bool
) -> SFTTrainer:
    return SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=str(args.output / "trainer"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, args.steps // 10),
            max_length=512,
            gradient_checkpointing=False,  # the model is small enough without it, and it costs a second forward pass
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            seed=seed,
        ),
        train_dataset=train,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def stop_of(masked: Dataset) -> int:
    """The end-of-turn token: the last trained id of a row."""
    return [label for label in masked[0]["labels"] if label != IGNORE_INDEX][-1]


@torch.inference_mode()
def held_out_loss(model: Any, masked: Dataset, stop: int) -> dict[str, float]:
    """Mean negative log likelihood of the response's tokens, of its text alone, and of its end-of-turn token alone."""
    model.eval()
    words: list[float] = []
    stops: list[float] = []
    for row in masked:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        targets = torch.tensor(row["labels"][1:], device=model.device)  # position t predicts token t + 1
        trained = targets != IGNORE_INDEX
        logits = model(input_ids=ids).logits[0, :-1][trained].float()
        each = F.cross_entropy(logits, targets[trained], reduction="none").tolist()
        for loss, target in zip(each, targets[trained].tolist(), strict=True):
            (stops if target == stop else words).append(loss)
    return {
        "response_loss": statistics.fmean(words + stops),
        "words_loss": statistics.fmean(words),
        "stop_loss": statistics.fmean(stops),
    }


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, held_out: Dataset, stop: int) -> dict[str, Any]:
    """Greedy answers of up to one and a half times the length of the longest right one, and how good they are."""
    prompts = [row["messages"][:-1] for row in held_out]
    wanted = [row["messages"][-1]["content"] for row in held_out]
    room = max(len(tokenizer(text)["input_ids"]) for text in wanted) * 3 // 2 + 2
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    made = model.generate(**inputs, max_new_tokens=room, do_sample=False, eos_token_id=stop)
    made = made[:, inputs["input_ids"].shape[1] :].tolist()
    said = [tokenizer.decode(ids[: ids.index(stop)] if stop in ids else ids) for ids in made]
    echoed = [echoes(text, prompt[-1]["content"]) for text, prompt in zip(said, prompts, strict=True)]
    return {
        "exact": statistics.fmean(text == right for text, right in zip(said, wanted, strict=True)),
        "begins_right": statistics.fmean(text.startswith(right) for text, right in zip(said, wanted, strict=True)),
        "stopped": statistics.fmean(stop in ids for ids in made),
        "echoed": statistics.fmean(echoed),
        "answers": said,
    }


def echoes(answer: str, prompt: str) -> bool:
    """Whether an answer contains enough consecutive words of its prompt.

    >>> echoes("It is: red lamp 4, blue chair 7.", "In stock: red lamp 4, blue chair 7.")
    True
    >>> echoes("blue chair = 7", "In stock: red lamp 4, blue chair 7.")
    False
    """
    words = prompt.split()
    runs = (" ".join(words[at : at + ECHO_WORDS]) for at in range(len(words) - ECHO_WORDS + 1))
    spoken = " ".join(answer.split())
    return any(run in spoken for run in runs)


def grouped(results: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs by shape and arm, in the order of this file."""
    by_shape = {
        shape: {
            arm: [run for run in results if run["shape"] == shape and run["arm"] == arm]
            for arm in ("before training", *ARMS)
        }
        for shape in SHAPES
    }
    return {shape: {arm: runs for arm, runs in arms.items() if runs} for shape, arms in by_shape.items()}


def table(results: list[dict[str, Any]]) -> str:
    """One Markdown table per shape: the mean over the seeds, and their smallest and largest value."""
    lines = []
    for shape, arms in grouped(results).items():
        if not arms:
            continue
        share = next(iter(arms.values()))[0]["share"]
        lines += [f"**{shape[0].upper()}{shape[1:]}** ({share:.0%} of the tokens are the response's)", ""]
        lines += ["| | seeds | " + " | ".join(MEASURES.values()) + " |", "|---|--:|" + "--:|" * len(MEASURES)]
        for arm, runs in arms.items():
            cells = [spread([run[key] for run in runs], key) for key in MEASURES]
            lines.append(f"| {arm} | {len(runs)} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def spread(values: list[float], key: str) -> str:
    shown = "{:.3f}" if key.endswith("loss") else "{:.0%}"
    mean, low, high = (shown.format(value) for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """One row of panels per shape, one panel per measure, one dot per seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "mask study"  # the same picture, byte for byte, for the same numbers
    import matplotlib.pyplot as plt

    shapes = {shape: arms for shape, arms in grouped(results).items() if arms}
    figure, axes = plt.subplots(
        len(shapes), len(MEASURES), figsize=(14, 1.2 + 1.6 * len(shapes)), sharey="row", squeeze=False
    )
    for row, (shape, arms) in zip(axes, shapes.items(), strict=True):
        for axis, (key, name) in zip(row, MEASURES.items(), strict=True):
            trained = [arm for arm in arms if arm != "before training"]
            for place, arm in enumerate(trained):
                values = [run[key] for run in arms[arm]]
                axis.plot(values, [place] * len(values), "o", color=f"C{place}", alpha=0.6)
                axis.plot(statistics.fmean(values), place, "|", color=f"C{place}", markersize=18)
            axis.set_yticks(range(len(trained)), trained)
            axis.set_ylim(len(trained) - 0.5, -0.5)
            axis.set_title(name, fontsize=9)
            axis.tick_params(labelsize=8)
            if not key.endswith("loss"):
                axis.set_xlim(-0.05, 1.05)
        row[0].set_ylabel(shape.replace(", ", ",\n"), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write_page(page: Path, results: list[dict[str, Any]]) -> None:
    """Replaces the text between the page's two marks."""
    start, end = "<!-- table -->\n", "<!-- end of table -->"
    text = page.read_text(encoding="utf-8")
    if start not in text or end not in text:
        sys.exit(f"{page} has no {start.strip()} and {end}: the table cannot be placed.")
    before, rest = text.split(start, 1)
    page.write_text(before + start + "\n" + table(results) + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
    (page.parent / "images").mkdir(exist_ok=True)
    plot(results, page.parent / "images" / "mask_study.svg")


if __name__ == "__main__":
    main()
