"""What expansion changes: four ways to make rows of the same conversations, measured by playing new ones turn by turn.

    OMP_NUM_THREADS=1 python recipes/turn_study.py --page docs/turn_study.md            # 13 runs, one CPU core
    python recipes/turn_study.py --model Qwen/Qwen3-0.6B --learning-rate 2e-4 --steps 100 --conversations 8 \
        --held-out 200 --output outputs/turn_study_gpu                                  # one CUDA GPU

Hardware: one CPU core and 4 GB, about a minute per run for SmolLM2-135M-Instruct; or one CUDA GPU. Every run writes
one JSON file to --output, and a run whose file exists is not repeated, so the study can be stopped at any time.
Expected: the table in docs/turn_study.md.

The chat template is of Qwen3's kind: the generation prompt is the header alone, so that the model opens its reasoning
itself, and the reasoning of all turns before the last user message is left out. One row per conversation therefore
trains every answer but the last without its reasoning, after the very prompt at which the model should reason.

All arms begin with the same model: one that has learnt to reason from conversations of a single turn, in which the arms
do not differ.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from local_model import find_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from sft_mask import IGNORE_INDEX, Policy, mask_dataset

TEMPLATE = """
{%- set last = namespace(user=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content and loop.index0 > last.user %}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
KEEPS_REASONING = TEMPLATE.replace(" and loop.index0 > last.user", "")
END_OF_TURN = "<|im_end|>"
WARMUP = 3
"""Steps until the learning rate is reached; it is constant then."""

Message = dict[str, Any]
Conversation = list[Message]


def one_row(chats: Dataset, tokenizer: Any) -> Dataset:
    return mask_dataset(chats, tokenizer, chat_template=TEMPLATE)


def last_turn(chats: Dataset, tokenizer: Any) -> Dataset:
    return mask_dataset(chats, tokenizer, policy=Policy(turns="last"), chat_template=TEMPLATE)


def keeps_reasoning(chats: Dataset, tokenizer: Any) -> Dataset:
    return mask_dataset(chats, tokenizer, chat_template=KEEPS_REASONING)


def expanded(chats: Dataset, tokenizer: Any) -> Dataset:
    return mask_dataset(chats, tokenizer, expand=True, chat_template=TEMPLATE)


ARMS: dict[str, Callable[[Dataset, Any], Dataset]] = {
    "one_row": one_row,
    "last_turn": last_turn,
    "keeps_reasoning": keeps_reasoning,
    "expanded": expanded,
}
PLAYED = {
    "before": ("start", TEMPLATE),
    "one_row": ("one_row", TEMPLATE),
    "last_turn": ("last_turn", TEMPLATE),
    "keeps_reasoning": ("keeps_reasoning", TEMPLATE),
    "keeps_reasoning, also played so": ("keeps_reasoning", KEEPS_REASONING),
    "expanded": ("expanded", TEMPLATE),
}
"""What is measured: a trained arm, and the template with which it is played."""

MEASURES = {
    "reasons_first": "reasons: first turn",
    "reasons_later": "later turns",
    "exact_first": "exact: first turn",
    "exact_later": "later turns",
    "stopped": "stopped",
}

PEOPLE = 4
TURNS = (2, 3, 4)
COLOURS = ("red", "blue", "green", "black", "white", "grey", "pink", "gold")
ANIMALS = ("cat", "dog", "fox", "owl", "pig", "cow", "bee", "ant", "bear", "duck", "fish", "goat", "wolf", "frog")
# fmt: off
TRAINING_NAMES = (
    "Ann", "Bob", "Carl", "Dora", "Emma", "Fred", "Greg", "Hugo", "Ivan", "Jane", "Karl", "Luke", "Mary", "Nick",
    "Omar", "Paul",
)
# fmt: on
HELD_OUT_NAMES = ("Adam", "Ben", "Clara", "David", "Eric", "Frank", "Helen", "Jack")


def conversation(rng: random.Random, names: tuple[str, ...], turns: int) -> Conversation:
    """Two tables in the first message, then a name per turn: first look up the name's colour, then the colour's animal.

    No name is asked for twice, so that no answer can be copied from an earlier one.
    """
    people, colours, animals = (rng.sample(words, PEOPLE) for words in (names, COLOURS, ANIMALS))
    colour_of = dict(zip(people, colours, strict=True))
    animal_of = dict(zip(colours, animals, strict=True))
    tables = [colour_of.items(), rng.sample(list(animal_of.items()), PEOPLE)]
    context = " ".join(", ".join(f"{key} {value}" for key, value in table) + "." for table in tables) + " "
    messages: Conversation = []
    for name in rng.sample(people, turns):
        colour = colour_of[name]
        reasoning = f"{name} {colour}, {colour} {animal_of[colour]}"
        messages.append({"role": "user", "content": f"{context}{name}?", "reasoning_content": None})
        messages.append({"role": "assistant", "content": animal_of[colour], "reasoning_content": reasoning})
        context = ""
    return messages


def conversations(count: int, names: tuple[str, ...], seed: int, turns: tuple[int, ...] = TURNS) -> list[Conversation]:
    """Conversations of two, three and four turns, equally many of each, shuffled."""
    rng = random.Random(seed)
    made = [conversation(rng, names, turns[at % len(turns)]) for at in range(count)]
    rng.shuffle(made)
    return made


def main() -> None:
    args = parse_arguments()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    args.output.mkdir(parents=True, exist_ok=True)
    runs = [("start", 0), *((arm, seed) for seed in args.seeds for arm in args.arms)]
    for done, (arm, seed) in enumerate(runs, 1):
        path = args.output / f"{arm}_seed_{seed}.json"
        if path.exists():
            refuse_other_settings(path, settings_of(args, arm))
            continue
        found = run_arm(args, arm, seed)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        unfinished.rename(path)
        print(f"{done}/{len(runs)} {arm} · seed {seed} · {found['seconds']:.0f} s", flush=True)
        print(table([found]), flush=True)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.output.glob("*.json"))]
    print(table(results))
    plot(results, args.output / "turn_study.svg")
    if args.page:
        write_page(args.page, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Four ways to make rows of the same conversations with reasoning, and the effect of each.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub name of a model that knows ChatML"
    )
    add("--output", type=Path, default=Path("outputs/turn_study"), help="folder for the plot and one JSON file per run")
    add("--page", type=Path, help="a Markdown page whose table is rewritten; the plot goes to images/ next to it")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="which rows to compare")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each draws other conversations, for all arms the same")
    add("--start-steps", type=int, default=24, help="optimizer steps of the model that all arms begin with")
    add("--steps", type=int, default=16, help="optimizer steps of each arm")
    add("--conversations", type=int, default=2, help="conversations per step, with all rows that an arm makes of them")
    add("--learning-rate", type=float, default=2e-3, help="the same for every arm")
    add("--held-out", type=int, default=9, help="held-out conversations")
    add("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    args = parser.parse_args()
    if args.held_out < len(TURNS):
        parser.error(f"--held-out {args.held_out}: at least {len(TURNS)}, one of each length")
    return args


def settings_of(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    names = ["model", "learning_rate", "held_out", "start_steps"]
    names += [] if arm == "start" else ["steps", "conversations"]
    return {name: getattr(args, name) for name in names}


def refuse_other_settings(path: Path, wanted: dict[str, Any]) -> None:
    there = json.loads(path.read_text(encoding="utf-8"))["settings"]
    if there != wanted:
        sys.exit(f"{path} was made with {there}, not with {wanted}: give another --output, or delete it.")


def run_arm(args: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Trains one arm on the conversations of one seed, and plays the held-out ones; "start" is what all begin with."""
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    start = args.output / "start"
    name = find_model(args.model) if arm == "start" else start
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")  # for generation
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
    is_start = arm == "start"
    steps, size, turns = (args.start_steps, 3, (1,)) if is_start else (args.steps, args.conversations, TURNS)
    chats = conversations(steps * size, TRAINING_NAMES, seed, turns)
    batches = [rows_of_step(arm, chats[at : at + size], tokenizer) for at in range(0, len(chats), size)]
    transformers.set_seed(seed)
    started = time.process_time()
    model = train(model, tokenizer, batches, args.learning_rate)
    seconds = time.process_time() - started
    if is_start:
        model.save_pretrained(start)
        tokenizer.save_pretrained(start)
    held_out = conversations(args.held_out, HELD_OUT_NAMES, seed=-1)
    return {
        "arm": arm,
        "seed": seed,
        "settings": settings_of(args, arm),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "rows": sum(map(len, batches)),
        "tokens": sum(len(row["input_ids"]) for rows in batches for row in rows),
        "trained": sum(label != IGNORE_INDEX for rows in batches for row in rows for label in row["labels"]),
        "seconds": seconds,
        "played": {
            shown: play(held_out, answerer(model, tokenizer, template))
            for shown, (of, template) in PLAYED.items()
            if of == arm
        },
    }


def rows_of_step(arm: str, chats: list[Conversation], tokenizer: Any) -> list[dict[str, list[int]]]:
    """The arm's rows of one step: those of these conversations, however many they are."""
    rows_of = one_row if arm == "start" else ARMS[arm]
    masked = rows_of(Dataset.from_list([{"messages": chat} for chat in chats]), tokenizer)
    return list(masked.select_columns(["input_ids", "labels"]))


def train(model: Any, tokenizer: Any, batches: list[list[dict[str, list[int]]]], learning_rate: float) -> Any:
    """One step per list of rows, with the mean over its trained tokens as the loss; the adapter is merged at the end.

    LoRA on the upper half of the layers: the gradients need not go further down.
    """
    layers = model.config.num_hidden_layers
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(layers // 2, layers)),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: min(1.0, (at + 1) / WARMUP))
    collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORE_INDEX)
    for at, rows in enumerate(batches, 1):
        batch = collate(rows).to(model.device)
        targets = batch.pop("labels")[:, 1:]  # position t predicts token t + 1
        trained = targets != IGNORE_INDEX
        hidden = model.base_model(**batch).last_hidden_state[:, :-1][trained]  # the LM head where it is needed only
        loss = F.cross_entropy(model.get_output_embeddings()(hidden), targets[trained])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"step {at}/{len(batches)}  {len(rows)} rows  loss {loss.item():.3f}", flush=True)
    return adapted.merge_and_unload()


Answerer = Callable[[list[Conversation]], list[tuple[str, bool]]]
"""Continues conversations that end with a user message: the text of each answer, and whether it ended by itself."""


def answerer(model: Any, tokenizer: Any, template: str) -> Answerer:
    """Greedy decoding after the template's generation prompt."""
    stop = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.eval()

    @torch.inference_mode()
    def answer(histories: list[Conversation]) -> list[tuple[str, bool]]:
        inputs = tokenizer.apply_chat_template(
            histories,
            chat_template=template,
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        made = model.generate(**inputs, max_new_tokens=28, do_sample=False, eos_token_id=stop)
        answers = made[:, inputs["input_ids"].shape[1] :].tolist()
        return [(tokenizer.decode(ids[: ids.index(stop)] if stop in ids else ids), stop in ids) for ids in answers]

    return answer


def play(chats: list[Conversation], answer: Answerer) -> list[dict[str, Any]]:
    """All turns, played as at inference: the users' messages are given, the earlier answers are the model's own."""
    histories: list[Conversation] = [[] for _ in chats]
    turns = []
    for at in range(0, max(map(len, chats)), 2):
        going_on = [number for number, chat in enumerate(chats) if at < len(chat)]
        for number in going_on:
            histories[number].append(chats[number][at])
        answers = answer([histories[number] for number in going_on])
        for number, (text, stopped) in zip(going_on, answers, strict=True):
            said = parsed(text)
            histories[number].append(said)
            turns.append(
                {
                    "conversation": number,
                    "turn": at // 2 + 1,
                    "text": text,
                    "reasons": bool(said["reasoning_content"]),
                    "exact": stopped and said["content"] == chats[number][at + 1]["content"],
                    "stopped": stopped,
                }
            )
    return turns


def parsed(text: str) -> Message:
    """An answer as a message, its reasoning apart, as an inference server's parser gives it.

    >>> parsed("<think>\\nAnn red, red cat\\n</think>\\n\\ncat")
    {'role': 'assistant', 'content': 'cat', 'reasoning_content': 'Ann red, red cat'}
    >>> parsed("cat")
    {'role': 'assistant', 'content': 'cat', 'reasoning_content': None}
    """
    reasoning, closed, content = text.partition("</think>")
    if not closed or not text.startswith("<think>"):
        return {"role": "assistant", "content": text, "reasoning_content": None}
    reasoning = reasoning.removeprefix("<think>").strip("\n")
    return {"role": "assistant", "content": content.lstrip("\n"), "reasoning_content": reasoning}


def measures(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Shares over the first turns, over the later turns, and over all."""
    first = [turn for turn in turns if turn["turn"] == 1]
    later = [turn for turn in turns if turn["turn"] > 1]
    return {
        "reasons_first": share(first, "reasons"),
        "reasons_later": share(later, "reasons"),
        "exact_first": share(first, "exact"),
        "exact_later": share(later, "exact"),
        "stopped": share(turns, "stopped"),
    }


def share(turns: list[dict[str, Any]], what: str) -> float:
    return statistics.fmean(turn[what] for turn in turns)


def played(results: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What was played, in the order of this file, and its runs."""
    for shown in PLAYED:
        runs = [run for run in results if shown in run["played"]]
        if runs:
            yield shown, runs


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table: the mean over the seeds, and their smallest and largest value."""
    columns = ["seeds", *MEASURES.values(), "rows", "tokens in them", "trained", "CPU s"]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for shown, runs in played(results):
        found = [measures(run["played"][shown]) for run in runs]
        cells = [spread([each[key] for each in found]) for key in MEASURES]
        cells += [
            f"{statistics.fmean(run[key] for run in runs):,.0f}" for key in ("rows", "tokens", "trained", "seconds")
        ]
        lines.append(f"| {shown} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    mean, low, high = (f"{value:.0%}" for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Per turn the share that reasons and the share that is exact: a line for the mean, a dot for each seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "turn study"  # the same picture, byte for byte, for the same numbers
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, (key, title) in zip(axes, {"reasons": "reasons", "exact": "exact answer"}.items(), strict=True):
        for place, (shown, runs) in enumerate(played(results)):
            at = [turn + (place - 2) * 0.06 for turn in range(1, max(TURNS) + 1)]  # side by side, not on each other
            seeds = [per_turn(run["played"][shown], key) for run in runs]
            for shares in seeds:
                axis.plot(at, shares, "o", color=f"C{place}", alpha=0.4, markersize=4)
            axis.plot(at, [statistics.fmean(each) for each in zip(*seeds, strict=True)], color=f"C{place}", label=shown)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("turn", fontsize=9)
        axis.set_xticks(range(1, max(TURNS) + 1))
        axis.set_ylim(-0.05, 1.05)
        axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        axis.tick_params(labelsize=8)
    figure.tight_layout(rect=(0, 0, 0.72, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(0.72, 0.5), fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def per_turn(turns: list[dict[str, Any]], what: str) -> list[float]:
    return [share([turn for turn in turns if turn["turn"] == at], what) for at in range(1, max(TURNS) + 1)]


def write_page(page: Path, results: list[dict[str, Any]]) -> None:
    """Replaces the text between the page's two marks."""
    start, end = "<!-- table -->\n", "<!-- end of table -->"
    text = page.read_text(encoding="utf-8")
    if start not in text or end not in text:
        sys.exit(f"{page} has no {start.strip()} and {end}: the table cannot be placed.")
    before, rest = text.split(start, 1)
    page.write_text(before + start + "\n" + table(results) + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
    (page.parent / "images").mkdir(exist_ok=True)
    plot(results, page.parent / "images" / "turn_study.svg")


if __name__ == "__main__":
    main()
