"""Fine-tune a chat model with LoRA, QLoRA or in full on the assistant's words only, on a CPU, one GPU or many.

    accelerate launch recipes/lora_sft.py --config recipes/configs/smollm2-135m.yaml
    accelerate launch recipes/lora_sft.py --config recipes/configs/qwen3-8b.yaml --load_in_4bit true      # QLoRA
    accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 4 \
        recipes/lora_sft.py --config recipes/configs/llama3.1-8b.yaml --train_data my_chats.jsonl
    accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 8 \
        recipes/lora_sft.py --config recipes/configs/llama3.1-8b-full.yaml          # all weights (use_peft: false)

To use your own data, change three lines of a YAML file: model_name_or_path, train_data, output_dir. Every field of
TRL's SFTConfig and ModelConfig and of the class below can be a key of the YAML file or a command-line option; options
win.

Hardware, minutes, the share of trained tokens and the expected loss are at the top of each file in recipes/configs;
when to use which launch configuration is in docs/launch.md. Saved in output_dir: the adapter or the model, the
tokenizer with its chat template, a generation_config.json that ends an answer at the end-of-turn tokens trained, and
chat_template_kwargs.json, the arguments of the generation prompt that the trained answers come after.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from local_model import find_model
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from saved_model import PROMPT, as_list
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Mxfp4Config
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from sft_mask import (
    LogMask,
    MaskReport,
    Policy,
    Region,
    SampleAnswers,
    SftMaskError,
    mask_dataset,
    train_on_responses_only,
)
from sft_mask.data.formats.read import read_chats
from sft_mask.data.setup import read_tokenizer
from sft_mask.preview import build_row
from sft_mask.preview.terminal import RowView
from sft_mask.trainer.inference import trained_stops

ROWS_LOOKED_AT = 200
"""Rows that are masked before the model is loaded, so that problems with markers or template show up in seconds."""


@dataclass
class RecipeArguments:
    """The data, and which of its tokens are trained."""

    train_data: str | None = field(default=None, metadata={"help": "a .jsonl or .parquet file, or a hub name"})
    train_split: str = field(default="train", metadata={"help": "split of a hub dataset"})
    eval_data: str | None = field(
        default=None, metadata={"help": "likewise; evaluated at the end, and according to eval_strategy"}
    )
    eval_split: str = field(default="test", metadata={"help": "split of a hub dataset"})
    columns: dict[str, Any] | None = field(
        default=None, metadata={"help": "what columns are whose names do not say it: {ask: prompt, reply: response}"}
    )
    roles: dict[str, Any] | None = field(
        default=None, metadata={"help": "what roles are, likewise: {alice: user, bob: assistant}"}
    )
    eval_share: float = field(default=0.0, metadata={"help": "without eval_data: share of train_data to hold out"})
    instruction_part: list[str] | None = field(
        default=None, metadata={"help": "text before the user's words; None: both are detected"}
    )
    response_part: list[str] | None = field(default=None, metadata={"help": "text before the assistant's words"})
    turns: str = field(default="all", metadata={"help": "all, last, or flagged: which answers are trained"})
    stop: str = field(
        default="always", metadata={"help": "always, last or never: when the end-of-turn token is trained"}
    )
    cut_answers: str = field(
        default="keep", metadata={"help": "keep or mask answers that are cut off at the end of a row"}
    )
    mask_between: list[str] = field(
        default_factory=list,
        metadata={"help": "two texts: parts of answers from the first to the second are not trained; or several pairs"},
    )
    mask_pattern: list[str] = field(
        default_factory=list, metadata={"help": "regular expressions: parts of answers that are not trained"}
    )
    on_ambiguous: str = field(
        default="error", metadata={"help": "error, drop or mask: for rows that cannot be decided"}
    )
    prompt_weight: float = field(default=0.0, metadata={"help": "weight of a prompt token; an answer token has 1"})
    reduction: str = field(
        default="token", metadata={"help": "token, turn or sequence: what has the same weight in the loss"}
    )
    expand: bool = field(
        default=False, metadata={"help": "make rows in which each answer is as inference shows it (mask_dataset)"}
    )
    sample_prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "with report_to: questions that the model answers before, while and after it is trained"},
    )
    sample_every: int = field(default=50, metadata={"help": "after how many steps it answers them again"})
    merge: bool = field(
        default=False, metadata={"help": "also save the whole model with the adapter merged, in merged/"}
    )


def main() -> None:
    recipe, training, model_args = read_arguments(sys.argv[1:])
    tokenizer = load_tokenizer(model_args, training)
    with training.main_process_first(desc="reading the data"):
        train, evaluation = read_data(recipe, training, tokenizer)
    mask = mask_settings(recipe)
    stops, prompt = look_before_loading(train, tokenizer, mask)
    train, evaluation, report = masked(train, evaluation, tokenizer, mask, recipe, training)

    training.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = SFTTrainer(
        model=model_args.model_name_or_path,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        quantization_config=quantization(model_args),
        peft_config=get_peft_config(model_args),
    )
    check_sharding(trainer)
    # The labels are made already and stay as they are; from here on the loss knows them.
    try:
        trainer = train_on_responses_only(trainer, **mask)
        if training.report_to:
            log_to_trackers(trainer, recipe, prompt)
    except SftMaskError as error:
        refuse(str(error))
    if trainer.is_world_process_zero():
        show(trainer, tokenizer, report)

    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    if evaluation is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    trainer.save_model()  # on every rank: sharded weights are gathered
    trainer.save_state()
    if trainer.is_world_process_zero():
        save_beside_the_weights(trainer, tokenizer, report, stops, prompt)
        if recipe.merge:
            merge(Path(training.output_dir), model_args.dtype)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


# arguments


def read_arguments(given: Sequence[str]) -> tuple[RecipeArguments, SFTConfig, ModelConfig]:
    """Defaults of this recipe, then the YAML file, then the command line; errors come before anything is set up."""
    parser = TrlParser((RecipeArguments, SFTConfig, ModelConfig))
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    parser.set_defaults(
        use_cpu=not on_gpu and local_world_size() == 1,
        bf16=on_gpu,
        dtype="bfloat16" if on_gpu else "float32",
        use_peft=True,
        lora_target_modules=["all-linear"],
        use_bnb_nested_quant=True,
        output_dir="outputs/lora",
        dataloader_pin_memory=on_gpu,
    )
    arguments = [part for text in given for part in (text.split("=", 1) if text.startswith("--config=") else [text])]
    config = read_config(arguments)
    known = [action.dest for action in parser._actions]
    for key in config:
        if key not in {*known, "env"}:
            refuse(f"{key!r} in the YAML file is not an option of this recipe{nearest(key, known)}.")
    parser.set_defaults_with_config(**{key: value for key, value in config.items() if key != "env"})
    without_config = [text for at, text in enumerate(arguments) if "--config" not in arguments[max(at - 1, 0) : at + 1]]
    wanted, unknown = parser.parse_known_args(without_config)
    if unknown:
        refuse(f"{unknown[0]!r} is not an option of this recipe{nearest(unknown[0].lstrip('-'), known)}.")
    check_request(wanted)
    recipe, training, model_args = parser.parse_args_and_config(arguments)
    model_args.model_name_or_path = find_model(model_args.model_name_or_path)
    training.resume_from_checkpoint = checkpoint(training)
    return recipe, training, model_args


def read_config(arguments: Sequence[str]) -> dict[str, Any]:
    if "--config" not in arguments:
        return {}
    path = Path(next(iter(arguments[arguments.index("--config") + 1 :]), ""))
    if not path.is_file():
        refuse(f"the configuration {str(path)!r} does not exist; the recipe's own are in recipes/configs.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        refuse(f"{path} is not valid YAML: {' '.join(str(error).split())}.")
    if not isinstance(config, dict):
        refuse(f"{path} has no `key: value` lines.")
    return config


def nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}" if close else ""


def local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def refuse(why: str) -> NoReturn:
    """Exits with one sentence from the first process of each machine; the others exit silently."""
    first = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
    sys.exit(f"lora_sft: {why}{which_machine()}" if first else 1)


def which_machine() -> str:
    machines = int(os.environ.get("WORLD_SIZE", "1")) // local_world_size()
    return f" (on {os.uname().nodename}, one of {machines} machines)" if machines > 1 else ""


def launched_with(variable: str) -> bool:
    """Whether ``accelerate launch`` set a variable, as its configuration asks."""
    return os.environ.get(variable, "false").lower() == "true"


def check_request(wanted: Namespace) -> None:
    """Refuses what cannot work on this machine or with these files, before anything is loaded."""
    check_launch(wanted)
    if wanted.load_in_4bit or wanted.load_in_8bit:
        check_quantization(wanted)
    if wanted.merge and not wanted.use_peft:
        refuse("merge: true with use_peft: false: there is no adapter to merge; leave merge out.")
    if not wanted.model_name_or_path:
        refuse("no model was given; set model_name_or_path, a folder or a hub name.")
    if not wanted.train_data:
        refuse("no data was given; set train_data, a .jsonl or .parquet file or a hub name.")
    for name in ("train_data", "eval_data"):
        check_file(name, getattr(wanted, name))
    if wanted.eval_strategy != "no" and not wanted.eval_data and not wanted.eval_share:
        refuse(f"eval_strategy is {wanted.eval_strategy!r} with nothing to evaluate; set eval_data or eval_share.")
    template = wanted.chat_template_path
    if template and not Path(template).is_file():
        refuse(f"the chat template {template!r} does not exist; chat_template_path is a .jinja file.")


def check_launch(wanted: Namespace) -> None:
    processes, gpus = local_world_size(), torch.cuda.device_count()
    on_cpu = wanted.use_cpu or os.environ.get("DS_ACCELERATOR") == "cpu"
    if processes > gpus and not on_cpu:
        refuse(
            f"{processes} processes were launched on this machine, which has {gpus} CUDA GPUs; launch with "
            f"--num_processes {max(gpus, 1)}, or pass --use_cpu true to run them on the CPU."
        )
    if launched_with("ACCELERATE_USE_DEEPSPEED") and importlib.util.find_spec("deepspeed") is None:
        refuse(
            "the launch configuration asks for DeepSpeed, which is missing: `pip install deepspeed`, or use fsdp2.yaml."
        )


def check_quantization(wanted: Namespace) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        refuse(
            "QLoRA needs bitsandbytes, which is missing: `pip install 'sft-mask[qlora]'`, or leave load_in_4bit out."
        )
    if not wanted.use_peft:
        refuse("weights in 4 or 8 bits cannot be trained, only an adapter can: leave load_in_4bit or use_peft out.")
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        refuse("ZeRO-3 does not shard weights in 4 or 8 bits; use recipes/accelerate/fsdp2_qlora.yaml, or zero2.yaml.")
    if launched_with("ACCELERATE_USE_FSDP") and wanted.load_in_8bit:
        refuse("FSDP does not shard weights in 8 bits; use --load_in_4bit true, or recipes/accelerate/ddp.yaml.")


def check_sharding(trainer: SFTTrainer) -> None:
    """Refuses to train unsharded what was to be sharded."""
    if launched_with("ACCELERATE_USE_FSDP") and not trainer.is_fsdp_enabled:
        refuse("accelerate does not run FSDP on CPUs and would run DDP instead; use recipes/accelerate/ddp.yaml.")


def check_file(option: str, name: str | None) -> None:
    if name is None or not name.endswith((".jsonl", ".json", ".parquet")):
        return
    if not Path(name).is_file():
        refuse(f"the file {name!r} of {option} does not exist (looked for in {Path.cwd()}).")
    if not Path(name).stat().st_size:
        refuse(f"the file {name!r} of {option} is empty; it needs at least one row.")


def checkpoint(training: SFTConfig) -> str | None:
    """The checkpoint to resume from; ``true`` means the last one in ``output_dir``."""
    asked = str(training.resume_from_checkpoint or "")
    if asked.lower() in ("", "false", "none"):
        return None
    if asked.lower() != "true":
        if not Path(asked).is_dir():
            refuse(f"the checkpoint {asked!r} does not exist; give its folder, or `true` for the last one.")
        return asked
    last = get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None
    if last is None:
        refuse(f"there is no checkpoint in {training.output_dir!r} to resume from; leave resume_from_checkpoint out.")
    return last


# tokenizer and data


def load_tokenizer(model_args: ModelConfig, training: SFTConfig) -> Any:
    name = model_args.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=training.trust_remote_code
        )
    except OSError as error:
        refuse(f"no tokenizer could be read from {name!r}: {str(error).splitlines()[0]}")
    if training.eos_token:
        tokenizer.eos_token = training.eos_token  # as the trainer does; texts end with it
    if training.chat_template_path:
        tokenizer.chat_template = Path(training.chat_template_path).read_text(encoding="utf-8")
    return tokenizer


def read_data(recipe: RecipeArguments, training: SFTConfig, tokenizer: Any) -> tuple[Dataset, Dataset | None]:
    train = as_chats(read_rows("train_data", recipe.train_data, recipe.train_split), "train", tokenizer, recipe)
    if recipe.eval_data:
        return train, as_chats(read_rows("eval_data", recipe.eval_data, recipe.eval_split), "eval", tokenizer, recipe)
    if not recipe.eval_share:
        return train, None
    parts = train.train_test_split(test_size=recipe.eval_share, seed=training.data_seed or training.seed)
    return parts["train"], parts["test"]


def read_rows(option: str, name: str, split: str) -> Dataset:
    try:
        if name.endswith((".jsonl", ".json")):
            rows = load_dataset("json", data_files=name, split="train")
        elif name.endswith(".parquet"):
            rows = load_dataset("parquet", data_files=name, split="train")
        else:
            rows = load_dataset(name, split=split)
    except DatasetGenerationError as error:
        refuse(f"{name!r} of {option} could not be read: {' '.join(str(error.__cause__ or error).split())}")
    if not len(rows):
        refuse(f"{name!r} of {option} has no rows; it needs at least one.")
    return rows


def as_chats(rows: Dataset, name: str, tokenizer: Any, recipe: RecipeArguments) -> Dataset:
    """The rows in a format that TRL reads; other formats in use are turned into messages."""
    try:
        chats, read_as = read_chats(rows, name, read_tokenizer(tokenizer).template, recipe.columns, recipe.roles)
    except SftMaskError as error:
        refuse(str(error))
    if read_as:
        print(f"{name}: read as {read_as}")
    return chats


# the mask


def mask_settings(recipe: RecipeArguments) -> dict[str, Any]:
    """The arguments of ``train_on_responses_only``."""
    between = recipe.mask_between
    if len(between) % 2:
        refuse(f"mask_between has {len(between)} texts; it needs pairs: what opens a part, and what closes it.")
    try:
        regions = (
            *(Region(start, end) for start, end in zip(between[::2], between[1::2], strict=True)),
            *(Region(pattern=pattern) for pattern in recipe.mask_pattern),
        )
        policy = Policy(
            turns=recipe.turns,
            stop=recipe.stop,
            cut_answers=recipe.cut_answers,
            regions=regions,
            prompt_weight=recipe.prompt_weight,
            reduction=recipe.reduction,
        )
    except SftMaskError as error:
        refuse(str(error))
    return {
        "instruction_part": recipe.instruction_part,
        "response_part": recipe.response_part,
        "policy": policy,
        "on_ambiguous": recipe.on_ambiguous,
    }


def look_before_loading(train: Dataset, tokenizer: Any, mask: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    """Masks the first rows: what the library refuses, the end-of-turn tokens, the generation prompt's arguments."""
    if tokenizer.chat_template is None and {"messages", "conversations"} & set(train.column_names):
        refuse("the tokenizer has no chat template, and the data are messages; set chat_template_path, a .jinja file.")
    if tokenizer.chat_template is None and mask["response_part"] is None:
        refuse("the tokenizer has no chat template, and no markers were given; set instruction_part and response_part.")
    rows = train.select(range(min(len(train), ROWS_LOOKED_AT)))
    plain = {**mask, "policy": replace(mask["policy"], prompt_weight=0.0, reduction="token")}  # only answers
    try:
        masked, report = mask_dataset(rows, tokenizer, **plain, return_report=True)
    except SftMaskError as error:
        refuse(str(error))
    known = {tokenizer.convert_tokens_to_ids(stop) for stop in report.markers.stops}
    return trained_stops(masked["labels"], known), {
        **report.splits["train"].prompt_arguments,
        **common_arguments(rows),
    }


def common_arguments(rows: Dataset) -> dict[str, Any]:
    """The chat_template_kwargs that all rows have in common; they shape the prompt too."""
    if "chat_template_kwargs" not in rows.column_names:
        return {}
    given = [json.loads(row) if isinstance(row, str) else (row or {}) for row in rows["chat_template_kwargs"]]
    return {name: value for name, value in given[0].items() if all(row.get(name) == value for row in given)}


def masked(
    train: Dataset,
    evaluation: Dataset | None,
    tokenizer: Any,
    mask: dict[str, Any],
    recipe: RecipeArguments,
    training: SFTConfig,
) -> tuple[Dataset, Dataset | None, MaskReport]:
    """The rows with the trainer's own ids, which take it twice as long or more to make, and with their labels."""
    splits = {"train": train, **({} if evaluation is None else {"eval": evaluation})}
    try:
        made, report = mask_dataset(
            DatasetDict(splits),
            tokenizer,
            **mask,
            num_proc=training.dataset_num_proc,
            expand=recipe.expand,
            return_report=True,
        )
    except SftMaskError as error:
        refuse(str(error))
    if os.environ.get("RANK", "0") == "0":
        Console(highlight=False).print(report, soft_wrap=True)
    return made["train"], made.get("eval"), report


def log_to_trackers(trainer: Any, recipe: RecipeArguments, prompt: dict[str, Any]) -> None:
    """With report_to (trackio, tensorboard, wandb, mlflow): the mask, and what the model answers, beside the losses."""
    trainer.add_callback(LogMask(trainer))
    if recipe.sample_prompts:
        asked = {"every": recipe.sample_every, "chat_template_kwargs": prompt}
        trainer.add_callback(SampleAnswers(trainer, recipe.sample_prompts, **asked))


def show(trainer: Any, tokenizer: Any, masked: MaskReport) -> None:
    """Shows one row as it will be trained, and what truncation changed."""
    console = Console(highlight=False)
    left = sum(split.trained_tokens for split in trainer.mask_report.splits.values())
    if left < sum(split.trained_tokens for split in masked.splits.values()):
        console.print("after truncation:", trainer.mask_report, soft_wrap=True)
    row = next(iter(trainer.train_dataset))
    console.print(RowView(build_row(tokenizer, row["input_ids"], row["labels"], name="the first row")))


# the model


def quantization(model_args: ModelConfig) -> Any:
    """4 or 8 bits as requested; a model that comes in MXFP4 (gpt-oss) is unpacked, or it could not be trained."""
    if model_args.load_in_4bit and launched_with("ACCELERATE_USE_FSDP"):
        model_args.bnb_4bit_quant_storage = model_args.dtype  # FSDP shards tensors of a single dtype
    chosen = get_quantization_config(model_args)
    if chosen is not None:
        return chosen
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    stored = getattr(config, "quantization_config", None) or {}
    return Mxfp4Config(dequantize=True) if stored.get("quant_method") == "mxfp4" else None


def save_beside_the_weights(
    trainer: Any, tokenizer: Any, masked: MaskReport, stops: list[int], prompt: dict[str, Any]
) -> None:
    """Saves reports, a generation config that stops at the trained end-of-turn token, and the prompt's arguments."""
    folder = Path(trainer.args.output_dir)
    generation = GenerationConfig.from_dict(trainer.model.generation_config.to_dict())
    # If there are several, keep those the model was released with: gpt-oss ends earlier answers with another token.
    stops = [stop for stop in stops if stop in as_list(generation.eos_token_id)] or stops
    if stops:
        generation.eos_token_id = stops[0] if len(stops) == 1 else stops
    generation.pad_token_id = tokenizer.pad_token_id
    generation.save_pretrained(folder)
    reports = {**masked.to_dict(), "as_trained": trainer.mask_report.to_dict()["splits"]}
    report = json.dumps(reports, indent=1, ensure_ascii=False)
    (folder / "mask_report.json").write_text(report + "\n", encoding="utf-8")
    (folder / PROMPT).write_text(json.dumps(prompt) + "\n", encoding="utf-8")
    ends = " or ".join(map(repr, tokenizer.convert_ids_to_tokens(stops)))
    says = f"that stops at {ends}" if stops else "as it was, since no end-of-turn token was trained"
    what = "adapter" if hasattr(trainer.model, "peft_config") else "model"
    print(f"Saved in {folder}: the {what}, the tokenizer and a generation config {says}")


def merge(folder: Path, dtype: str) -> None:
    """Merges the adapter into the weights of its base model, and saves an ordinary model folder."""
    merged = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu").merge_and_unload()
    merged.generation_config = GenerationConfig.from_pretrained(folder)
    merged.save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "merged")
    shutil.copy(folder / PROMPT, folder / "merged")
    print(f"Saved in {folder / 'merged'}: the whole model with the adapter merged")


if __name__ == "__main__":
    main()
