#!/usr/bin/env python
"""From raw chats to a masked, tokenized dataset: TRL's own preparation, and ``mask_dataset``.

    python scripts/bench_prepare.py                                        # everything, about 8 minutes on two cores
    python scripts/bench_prepare.py --part prepare --rows 2000 --rounds 1  # a quick look
    python scripts/bench_prepare.py --tokenizer Qwen/Qwen3-8B              # another tokenizer: a name or a folder

prepare   TRL's preparation of raw chats against mask_dataset, with 1 and 2 processes and no cache; ids must be equal;
          and the tokenizer alone, which encodes the rendered texts as one batch in its own threads
stream    rows per second of a masked stream, against those of the map
scaling   mask_dataset from 1,000 rows on, with the memory above the start, and rows of 100 to 100,000 tokens
turns     one conversation of 200 turns and 100,000 tokens by its messages, against its tokenization
trainer   train_on_responses_only's labels for rows with messages, against rows of ids only
first     seconds from the command to the first step, where the trainer tokenizes, and where mask_dataset does

The chats are made of paragraphs of Python's own manual, no two alike: several turns, half of them with a system prompt,
a quarter with tools (calls and results), a quarter with reasoning. Arms take turns, each run in a process of its own
that has imported everything and read a few rows before the clock starts. The exit code is 1 if ids differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes"), str(ROOT / "scripts")]

import datasets  # noqa: E402 - the clone's own folders come first
import numpy as np  # noqa: E402
from benchmarking.arms import digits, fresh_process, machine, table, take_turns, timed  # noqa: E402
from benchmarking.chats import paragraphs  # noqa: E402
from benchmarking.memory import Peak  # noqa: E402
from rich.console import Console  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from sft_mask import mask_dataset  # noqa: E402
from sft_mask.data.setup import MaskSettings, build_masker, read_tokenizer  # noqa: E402

PARTS = ("prepare", "stream", "scaling", "turns", "trainer", "first")
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "look_up",
                "description": "Looks a topic up in the manual.",
                "parameters": {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]},
            },
        }
    ]
)


# chats


def chats(
    rows: int, *, seed: int = 0, turns: int | None = None, characters: int | None = None
) -> Iterator[dict[str, Any]]:
    """Conversations, no two of which are alike."""
    rng = random.Random(seed)
    for row in range(rows):
        kind = row % 4
        messages: list[dict[str, Any]] = []
        if row % 2:
            messages.append({"role": "system", "content": f"You are the help of version {rng.random():.6f}. Be brief."})
        for _ in range(turns or rng.randint(1, 4)):
            question, answer = _words(rng, characters or 160), _words(rng, characters or 700)
            messages.append({"role": "user", "content": question})
            if kind == 1:
                call = {"function": {"name": "look_up", "arguments": {"topic": question[:30]}}, "type": "function"}
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
                messages.append({"role": "tool", "content": _words(rng, 300)})
            thought = {"reasoning_content": _words(rng, 300)} if kind == 2 else {}
            messages.append({"role": "assistant", "content": answer, **thought})
        yield {"messages": messages, "tools": TOOLS if kind == 1 else None}


def _words(rng: random.Random, characters: int) -> str:
    """About so many characters of the manual, from a random place on."""
    text = rng.choice(paragraphs())
    while len(text) < characters:
        text = f"{text}\n\n{rng.choice(paragraphs())}"
    start = rng.randrange(max(1, len(text) - characters))
    return text[start : start + characters]


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _small_tokenizer(folder: Path) -> Path:
    """SmolLM2's tokenizer with the template of Qwen3, which writes tool calls and reasoning; its own drops them."""
    import trl
    from local_model import smollm2_folder

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return folder


# arms, each in a process of its own


def run_child(arm: str, file: str, tokenizer_name: str, num_proc: int) -> dict[str, Any]:
    """Seconds of one arm, with the rows, the tokens, a digest of the ids and the memory above the start."""
    datasets.disable_progress_bars()
    if arm.startswith("first"):
        return {"seconds": _first_step(file, tokenizer_name, num_proc, masked_before=arm == "first-ours")}
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    with tempfile.TemporaryDirectory(dir=Path(file).parent) as folder:
        data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=folder)
        few = data.select(range(min(40, len(data)))).flatten_indices(keep_in_memory=True)
        run = {"trl": _trl, "ours": _ours, "stream": _stream, "encode": _encode}[arm]
        if arm == "encode":
            data = few = _rendered(data, tokenizer)
        run(few, tokenizer, 1)  # modules are imported, the template is compiled
        with Peak() as peak:
            start = time.perf_counter()
            made = run(data, tokenizer, num_proc)
            seconds = time.perf_counter() - start
        digest, tokens = hashlib.sha256(), 0
        for batch in made.with_format("arrow").iter(1000) if hasattr(made, "with_format") else ():
            ids = batch["input_ids"].combine_chunks()
            digest.update(np.asarray(ids.flatten(), np.int32).tobytes() + np.asarray(ids.value_lengths()).tobytes())
            tokens += len(ids.flatten())
        found = {
            "seconds": seconds,
            "rows": len(data),
            "tokens": tokens,
            "ids": digest.hexdigest(),
            "bytes": peak.above,
        }
        del made, data
    return found


def _trl(data: Any, tokenizer: Any, num_proc: int) -> Any:
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir="unused", max_length=1 << 30, dataset_num_proc=num_proc, use_cpu=True, bf16=False, report_to=[]
    )
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=False)
    return SFTTrainer._prepare_dataset(trainer, data, tokenizer, arguments, False, None, "train")


def _ours(data: Any, tokenizer: Any, num_proc: int) -> Any:
    return mask_dataset(data, tokenizer, num_proc=num_proc)


def _stream(data: Any, tokenizer: Any, _: int) -> list[int]:
    return [len(row["labels"]) for row in mask_dataset(data.to_iterable_dataset(), tokenizer)]


def _rendered(data: Any, tokenizer: Any) -> list[str]:
    return [
        tokenizer.apply_chat_template(row["messages"], tools=json.loads(row["tools"] or "null"), tokenize=False)
        for row in data
    ]


def _encode(texts: list[str], tokenizer: Any, _: int) -> Any:
    return tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def _first_step(file: str, tokenizer_name: str, num_proc: int, *, masked_before: bool) -> float:
    """Seconds from the start of this process to the end of the first step of a tiny model."""
    import psutil
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from sft_mask import train_on_responses_only

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **small))
    with tempfile.TemporaryDirectory(dir=Path(file).parent) as folder:
        data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=folder)
        if masked_before:
            data = mask_dataset(data, tokenizer, num_proc=num_proc)
        options = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
        arguments = SFTConfig(folder, max_steps=1, max_length=4096, dataset_num_proc=num_proc, **options)
        trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
        train_on_responses_only(trainer).train()
    return time.time() - float(psutil.Process().create_time())


# parts


def prepare(given: argparse.Namespace, folder: Path, show: Console) -> bool:
    """TRL's preparation and ``mask_dataset``."""
    file = folder / "chats.jsonl"
    write(file, chats(given.rows))
    right = True
    for num_proc in (1, 2):
        seen: dict[str, dict[str, Any]] = {}

        def arm(name: str, num_proc: int = num_proc, seen: dict[str, dict[str, Any]] = seen) -> float:
            seen[name] = fresh_process(__file__, "--child", name, file, given.tokenizer, num_proc)
            return float(seen[name]["seconds"])

        arms = {"TRL": lambda: arm("trl"), "mask_dataset": lambda: arm("ours"), "encoding": lambda: arm("encode")}
        measured = take_turns(f"{num_proc} processes", arms, given.rounds, warm_up=False)
        found, theirs = seen["ours"], seen["trl"]
        same = found["ids"] == theirs["ids"]
        right &= same
        caption = f"{found['rows']:,} chats, {found['tokens']:,} tokens; ids {'equal' if same else 'DIFFER'}"
        show.print(table(f"Raw chats to labels, num_proc={num_proc}", measured, "TRL", caption=caption))
    return right


def stream(given: argparse.Namespace, folder: Path, show: Console) -> bool:
    """A masked stream, and the map."""
    file = folder / "stream.jsonl"
    write(file, chats(given.rows // 4))

    def arm(name: str) -> float:
        return float(fresh_process(__file__, "--child", name, file, given.tokenizer, 1)["seconds"])

    arms = {"map": lambda: arm("ours"), "stream": lambda: arm("stream")}
    show.print(table("A stream, every row read", take_turns("stream", arms, given.rounds, warm_up=False), "map"))
    return True


def scaling(given: argparse.Namespace, folder: Path, show: Console) -> bool:
    """``mask_dataset`` as data grows."""
    show.print("[bold]Scaling[/]: rows, tokens, seconds, million tokens a second, memory above the start")
    file = folder / "scaling.jsonl"
    sizes = [(rows, 700) for rows in given.scaling] + [(64, 4 * length) for length in (100, 1000, 10_000, 100_000)]
    for rows, characters in sizes:
        write(file, chats(rows, turns=2 if characters == 700 else 1, characters=characters))
        found = fresh_process(__file__, "--child", "ours", file, given.tokenizer, 1)
        speed = digits(found["tokens"] / found["seconds"] / 1e6)
        memory = f"{found['bytes'] / 2**20:,.0f} MiB"
        show.print(f"  {rows:>9,}  {found['tokens']:>12,}  {digits(found['seconds']):>6} s  {speed:>6}  {memory}")
    return True


def turns(given: argparse.Namespace, _: Path, show: Console) -> bool:
    """A long conversation by its messages."""
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    masker = build_masker(read_tokenizer(tokenizer), [], MaskSettings())
    messages = next(chats(1, turns=100, characters=2000))["messages"]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    aligner: Any = masker.decider.aligner
    arms = {
        "tokenization": timed(lambda: tokenizer.apply_chat_template(messages, return_dict=True)),
        "by messages": timed(lambda: aligner.turns(messages, np.asarray(ids))),
    }
    title = f"{len(messages)} messages, {len(ids):,} tokens"
    show.print(table(title, take_turns("turns", arms, 2 * given.rounds + 3), "tokenization"))
    return True


def trainer(given: argparse.Namespace, folder: Path, show: Console) -> bool:
    """Labels for rows that are tokenized, with and without their messages."""
    file = folder / "rows.jsonl"
    write(file, chats(given.rows))
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    data = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "rows"))
    data = mask_dataset(data, tokenizer, num_proc=2).remove_columns("labels")
    both = {"ids": data.select_columns(["input_ids"]), "ids and messages": data}
    count = iter(range(1_000_000))

    def arm(name: str) -> float:
        fresh = both[name].select(range(len(data)))
        fresh._fingerprint = f"benchmark-{next(count)}"  # nothing is found in the cache
        return timed(lambda: mask_dataset(fresh, tokenizer))()

    arms = {name: lambda name=name: arm(name) for name in both}
    caption = f"{len(data):,} rows, {sum(len(chunk.flatten()) for chunk in data.data['input_ids'].chunks):,} tokens"
    show.print(table("Labels of tokenized rows", take_turns("labels", arms, 3), "ids", caption=caption))
    start = timed(lambda: build_masker(read_tokenizer(tokenizer), [], MaskSettings()))
    fixed = take_turns("reading", {"reading the tokenizer": start}, 5)
    show.print(table(f"Fixed cost, {len(tokenizer):,} ids", fixed, "reading the tokenizer"))
    return True


def first(given: argparse.Namespace, folder: Path, show: Console) -> bool:
    """The first step of training, with and without ``mask_dataset`` before the trainer."""
    file = folder / "first.jsonl"
    write(file, chats(given.rows // 2))
    for num_proc in (1, 2):

        def arm(name: str, num_proc: int = num_proc) -> float:
            return float(fresh_process(__file__, "--child", name, file, given.tokenizer, num_proc)["seconds"])

        arms = {"the trainer tokenizes": lambda: arm("first-trl"), "mask_dataset before": lambda: arm("first-ours")}
        title = f"From the command to the first step, {given.rows // 2:,} chats, num_proc={num_proc}"
        measured = take_turns("first step", arms, given.rounds, warm_up=False)
        show.print(table(title, measured, "the trainer tokenizes"))
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only these parts")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--tokenizer",
        default=None,
        help="a name or a folder, whose template writes tool calls; by default SmolLM2's, with Qwen3's template",
    )
    parser.add_argument("--scaling", type=int, nargs="*", default=[1000, 10_000, 50_000], help="rows")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        arm, file, tokenizer, num_proc = given.child
        print(json.dumps(run_child(arm, file, tokenizer, int(num_proc))))
        return 0
    show = Console(width=110)
    show.print(machine())
    right = True
    folder = Path(tempfile.mkdtemp(prefix="bench-prepare-"))
    try:
        if given.tokenizer is None:
            given.tokenizer = str(_small_tokenizer(folder / "tokenizer"))
        for part in given.part or PARTS:
            started = time.perf_counter()
            right &= globals()[part](given, folder, show)
            show.print(f"[dim]{part}: {time.perf_counter() - started:.0f} s[/]")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
