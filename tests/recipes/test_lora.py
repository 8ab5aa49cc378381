"""``recipes/lora_sft.py`` and every configuration of it, through the command line, on models of few weights."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from support.marks import slow_but
from support.recipe_runner import RECIPES, ROOT, Run, environment, run_recipe
from support.tiny import ASSISTANT, USER, chats, expected, tokenizer
from support.tiny import model as tiny_model
from support.tiny_chat import tokenizer_for
from support.tiny_families import FAMILIES, save
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_mask import mask_dataset

CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))
CONFIG = RECIPES / "configs" / "qwen3-0.6b.yaml"
TINY = ("--lora_dropout", 0, "--gradient_checkpointing", "false", "--report_to", "none", "--logging_steps", 1)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatML model on disk."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen conversations, as JSONL."""
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    write(path, [{"messages": messages} for messages in chats(16)])
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train(model: Path, data: Path, out: Path, *more: Any) -> Run:
    """Two steps, unless told otherwise."""
    given = ("--model_name_or_path", model, "--train_data", data, "--output_dir", out, "--max_steps", 2, *TINY)
    return run_recipe("lora_sft.py", *given, *more)


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def report(folder: Path, part: str = "splits") -> dict[str, Any]:
    return dict(json.loads((folder / "mask_report.json").read_text(encoding="utf-8"))[part]["train"])


# every configuration


def test_every_configuration_has_a_tiny_model() -> None:
    assert {path.stem for path in CONFIGS} == FAMILIES.keys()


@pytest.mark.parametrize("config", slow_but([CONFIG], CONFIGS), ids=lambda path: path.stem)
def test_a_configuration_trains_two_steps_and_saves_the_stop_it_trained(config: Path, tmp_path: Path) -> None:
    tokenizer = save(config.stem, tmp_path / "model")
    rows = [json.loads(line) for line in (RECIPES / "data" / "house_style_train.jsonl").read_text("utf-8").splitlines()]
    without_system = [{"messages": [m for m in row["messages"] if m["role"] != "system"]} for row in rows[:4]]
    data = write(tmp_path / "rows.jsonl", without_system)
    out = tmp_path / "out"
    sizes = ("--max_steps", 2, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1)
    chosen = yaml.safe_load(config.read_text(encoding="utf-8"))
    on_cpu = ("--attn_implementation", "sdpa") if "flash" in str(chosen.get("attn_implementation")) else ()
    run = run_recipe(
        *("lora_sft.py", "--config", config, "--model_name_or_path", tmp_path / "model", "--output_dir", out, *sizes),
        *("--train_data", data, "--eval_data", data, "--eval_steps", 2, "--save_steps", 2, *on_cpu),
    )
    assert run.code == 0, run.output[-3000:]
    assert "read from the chat template" in run.output
    assert "the first row" in run.output
    assert len(json.loads((out / "trainer_state.json").read_text())["log_history"]) > 0
    assert json.loads((out / "all_results.json").read_text())["eval_loss"] > 0
    weights = "adapter_model.safetensors" if chosen.get("use_peft", True) else "model.safetensors"
    assert (out / weights).stat().st_size > 0
    generation = json.loads((out / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == FAMILIES[config.stem].stop
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_markers_in_a_configuration_are_those_of_the_template(config: Path, tmp_path: Path) -> None:
    """The commented lines, uncommented, give the mask that detection gives."""
    lines = config.read_text(encoding="utf-8").splitlines()
    given = [line.removeprefix("# ") for line in lines if line.startswith(("# instruction_part:", "# response_part:"))]
    markers = yaml.safe_load("\n".join(given))
    assert set(markers) == {"instruction_part", "response_part"}
    tokenizer = tokenizer_for(FAMILIES[config.stem].template())
    said = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}] * 2
    rows = Dataset.from_list([{"messages": said}])
    assert mask_dataset(rows, tokenizer, **markers)[0]["labels"] == mask_dataset(rows, tokenizer)[0]["labels"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_what_it_needs_and_what_was_run(config: Path) -> None:
    head = config.read_text(encoding="utf-8").split("model_name_or_path:")[0]
    for line in ("Hardware", "Memory", "Time", "Trained", "Loss", "Markers"):
        assert f"# {line} " in head
    assert f"--config recipes/configs/{config.name}" in head
    assert ("not run" in head) == (config.stem != "smollm2-135m")
    for option in ("train_data", "eval_data"):
        assert (ROOT / yaml.safe_load(config.read_text(encoding="utf-8"))[option]).is_file()


# the recipe itself


def launch(*arguments: Any, program: tuple[str, ...] = ("-m", "accelerate.commands.launch")) -> Run:
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    return Run(done.returncode, done.stdout)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_accelerate_launches_it_and_a_resumed_run_is_the_uninterrupted_run(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    config = ("--config", RECIPES / "configs" / "smollm2-135m.yaml", "--learning_rate", 1e-2)
    steps = ("--max_steps", 4, "--save_steps", 2, "--eval_steps", 2, "--eval_data", data)
    given = ("--model_name_or_path", tiny_folder, "--train_data", data, *TINY, *steps)
    launched = launch(RECIPES / "lora_sft.py", *config, *given, "--output_dir", tmp_path / "whole")
    assert launched.code == 0, launched.output[-3000:]
    whole = losses(tmp_path / "whole")
    assert len(whole) == 4
    assert "eval_loss" in (tmp_path / "whole" / "all_results.json").read_text(encoding="utf-8")
    resumed = train(
        *(tiny_folder, data, tmp_path / "resumed", *config, *steps),
        *("--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2"),
    )
    assert resumed.code == 0, resumed.output[-3000:]
    assert losses(tmp_path / "resumed") == pytest.approx(whole, rel=1e-6)
    assert whole[3] < whole[0]


def test_a_saved_adapter_answers_and_stops_and_so_does_the_merged_model(tiny_folder: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "river stone"}, {"role": "assistant", "content": "seven red"}]
    data = write(tmp_path / "one.jsonl", [{"messages": said}] * 8)
    out = tmp_path / "out"
    more = ("--max_steps", 80, "--learning_rate", 0.006, "--lora_r", 32, "--merge", "--per_device_train_batch_size", 2)
    run = train(tiny_folder, data, out, *more)
    assert run.code == 0, run.output[-3000:]
    for folder in (out, out / "merged"):
        asked = run_recipe("answer.py", folder, "river stone", "--max-new-tokens", 30)
        assert asked.code == 0, asked.output[-3000:]
        assert "seven red" in asked.output
        assert "stopped by '<|im_end|>'" in asked.output
    ids = torch.tensor([tokenizer()("river stone")["input_ids"]])
    adapted = AutoPeftModelForCausalLM.from_pretrained(out)(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")(ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, tiny_model()(ids).logits, atol=1e-2)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3") / "model"
    save("qwen3-0.6b", folder)
    return folder


def answered(*answers: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        part for answer in answers for part in ({"role": "user", "content": "red"}, {"role": "assistant", **answer})
    ]


def test_a_model_is_asked_with_the_prompt_that_was_trained(qwen3_folder: Path, tmp_path: Path) -> None:
    """Qwen3's template: without reasoning the last answer comes after an empty block, which a prompt must hold."""
    plain = answered({"content": "blue"}, {"content": "seven"}, {"content": "walk"})
    data = write(tmp_path / "plain.jsonl", [{"messages": plain}] * 4)
    out = tmp_path / "out"
    assert train(qwen3_folder, data, out, "--merge").code == 0
    for folder in (out, out / "merged"):
        assert json.loads((folder / "chat_template_kwargs.json").read_text()) == {"enable_thinking": False}
        asked = run_recipe("answer.py", folder, "red", "--max-new-tokens", 2)
        assert asked.code == 0, asked.output[-3000:]
        assert "asked with enable_thinking=False" in asked.output


def test_expanded_conversations_train_each_answer_with_its_reasoning(qwen3_folder: Path, tmp_path: Path) -> None:
    said = answered(*({"content": word, "reasoning_content": "stone"} for word in ("blue", "seven", "walk")))
    data = write(tmp_path / "reasoned.jsonl", [{"messages": said}] * 4)
    out = tmp_path / "out"
    run = train(qwen3_folder, data, out, "--expand", "true")
    assert run.code == 0, run.output[-3000:]
    assert "expanded: 4 conversations of" in run.output
    assert "into 12 rows" in run.output
    assert report(out)["rows"] == 12
    assert json.loads((out / "chat_template_kwargs.json").read_text()) == {}
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    masked = mask_dataset(Dataset.from_list(rows), AutoTokenizer.from_pretrained(qwen3_folder), expand=True)
    assert report(out)["trained_tokens"] == sum(label != -100 for labels in masked["labels"] for label in labels)


@pytest.mark.slow
def test_two_ranks_have_the_loss_curve_of_one(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """The same eight rows a step; the look at the mask is printed once."""
    given = ("--model_name_or_path", tiny_folder, "--train_data", data, *TINY, "--max_steps", 4, "--use_cpu", "true")
    ranks = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()))
    two = launch(
        *(RECIPES / "lora_sft.py", *given, "--learning_rate", 1e-2, "--output_dir", tmp_path / "two"),
        *("--per_device_train_batch_size", 4),
        program=ranks,
    )
    assert two.code == 0, two.output[-3000:]
    more = ("--learning_rate", 1e-2, "--per_device_train_batch_size", 8, "--max_steps", 4)
    assert train(tiny_folder, data, tmp_path / "one", *more).code == 0
    one = losses(tmp_path / "one")
    assert len(one) == 4
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-5)
    assert max(one) - min(one) > 1e-2, "the curve moves, so that equal curves say something"
    assert two.output.count("train: 16 rows") == 1
    state = json.loads((tmp_path / "two" / "trainer_state.json").read_text())
    assert state["train_batch_size"] == 4


def test_the_command_line_wins_over_the_yaml(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    config = {
        "model_name_or_path": str(tiny_folder),
        "train_data": str(data),
        "learning_rate": 1.0,
        "max_steps": 1,
        "turns": "last",
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "logging_steps": 1,
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    assert run_recipe("lora_sft.py", f"--config={path}", "--learning_rate", 0.25, "--max_steps", 2).code == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    assert rates == [0.25, 0.125]
    counts = report(tmp_path / "out")
    assert counts["turns_trained"] == counts["rows"] < counts["turns"]


OPTIONS = {
    "markers": (("--instruction_part", USER, "--response_part", ASSISTANT), lambda r: r["turns_trained"] == r["turns"]),
    "last": (("--turns", "last"), lambda r: r["turns_trained"] == r["rows"] < r["turns"]),
    "stop": (("--stop", "last"), lambda r: r["stops_trained"] == r["rows"] < r["turns_with_stop"]),
    "pattern": (("--mask_pattern", ".+"), lambda r: r["trained_tokens"] == r["stops_trained"] == r["turns"]),
    "between": (("--mask_between", "red", "blue"), lambda r: 0 < ALL - r["trained_tokens"] < ALL),
    "weight": (("--prompt_weight", 0.1), lambda r: r["rows"] == 16),
    "turn mean": (("--reduction", "turn"), lambda r: r["trained_tokens"] == ALL),
    "packed": (("--packing", "true", "--max_length", 256), lambda r: r["trained_tokens"] == ALL),
    "free": (("--padding_free", "true", "--max_length", "None"), lambda r: r["trained_tokens"] == ALL),
    "saved memory": (("--gradient_checkpointing", "true"), lambda r: r["trained_tokens"] == ALL),
    "held out": (("--eval_share", 0.25, "--eval_strategy", "steps", "--eval_steps", 1), lambda r: r["rows"] == 12),
}  # fmt: skip
ALL = sum(label != -100 for messages in chats(16) for label in expected(messages))


@pytest.mark.parametrize("name", slow_but(["markers", "last", "packed"], OPTIONS))
def test_an_option_of_the_mask_reaches_the_mask(name: str, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    given, holds = OPTIONS[name]
    run = train(tiny_folder, data, tmp_path, *given)
    assert run.code == 0, run.output[-3000:]
    assert holds(report(tmp_path)), report(tmp_path)
    assert (report(tmp_path, "as_trained")["rows"] < report(tmp_path)["rows"]) == (name == "packed")


def test_what_truncation_cuts_off_is_said(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    run = train(tiny_folder, data, tmp_path, "--max_length", 24)
    assert run.code == 0, run.output[-3000:]
    whole, kept = report(tmp_path), report(tmp_path, "as_trained")
    assert kept["trained_tokens"] < whole["trained_tokens"]
    assert kept["rows_at_max_length"] > 0
    assert "possibly cut" in run.output.split("after truncation:")[1]


def test_parquet_is_read_and_a_template_can_be_given(tiny_folder: Path, tmp_path: Path) -> None:
    Dataset.from_list([{"messages": messages} for messages in chats(8)]).to_parquet(tmp_path / "rows.parquet")
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    run = train(tiny_folder, tmp_path / "rows.parquet", tmp_path / "out", "--chat_template_path", template)
    assert run.code == 0, run.output[-3000:]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template.read_text()


def test_the_mask_and_answers_are_logged_where_report_to_says(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    given = ("--report_to", "tensorboard", "--sample_prompts", "walk", "red café", "--sample_every", 1)
    out = tmp_path / "out"
    run = train(tiny_folder, data, out, *given)
    assert run.code == 0, run.output[-3000:]
    events = EventAccumulator(str(next(out.glob("runs/*"))))
    events.Reload()
    assert [event.step for event in events.Tensors("samples/text_summary")] == [0, 1, 2]
    rows = events.Tensors("mask/rows/text_summary")[0].tensor_proto.string_val[0].decode()
    assert f"⟦{chats(16)[0][-1]['content']}<|im_end|>⟧" in rows


def test_without_a_trained_stop_the_model_keeps_its_own(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    run = train(tiny_folder, data, tmp_path, "--stop", "never")
    assert run.code == 0, run.output[-3000:]
    assert "as it was, since no end-of-turn token was trained" in run.output
    eos = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert eos == [tokenizer().eos_token_id, tiny_model().generation_config.eos_token_id], (
        "as transformers aligned them"
    )


# what is refused


@cache
def refusals() -> dict[str, tuple[tuple[Any, ...], str]]:
    return {
        "key": (("--config", "{bad_key}"), "not an option of this recipe; did you mean 'learning_rate'"),
        "option": (("--nonsense", 3), "'--nonsense' is not an option of this recipe"),
        "no yaml": (("--config", "{broken}"), "is not valid YAML"),
        "list": (("--config", "{listed}"), "has no `key: value` lines"),
        "config": (("--config", "nowhere.yaml"), "'nowhere.yaml' does not exist"),
        "model": (("--model_name_or_path", "{tmp}/nothing"), "no tokenizer could be read from"),
        "file": (("--train_data", "nowhere.jsonl"), "the file 'nowhere.jsonl' of train_data does not exist"),
        "eval file": (("--eval_data", "nowhere.parquet"), "the file 'nowhere.parquet' of eval_data does not exist"),
        "empty file": (("--train_data", "{empty}"), "of train_data is empty"),
        "no json": (("--train_data", "{no_json}"), "of train_data could not be read"),
        "columns": (("--train_data", "{columns}"), "it has src, tgt"),
        "template": (("--chat_template_path", "nowhere.jinja"), "the chat template 'nowhere.jinja' does not exist"),
        "checkpoint": (("--resume_from_checkpoint", "true"), "there is no checkpoint in"),
        "checkpoint folder": (("--resume_from_checkpoint", "nowhere"), "the checkpoint 'nowhere' does not exist"),
        "evaluation": (("--eval_strategy", "epoch"), "nothing to evaluate"),
        "merged": (("--merge", "true", "--use_peft", "false"), "there is no adapter to merge"),
        "odd pairs": (("--mask_between", "<think>"), "mask_between has 1 texts"),
        "policy": (("--turns", "first"), "turns='first'"),
        "one marker": (("--response_part", "x"), "instruction_part is missing"),
        "absent marker": (("--instruction_part", "@@", "--response_part", "%%"), "opens a turn in none of the rows"),
        "no template": (("--model_name_or_path", "{bare}"), "has no chat template, and the data are messages"),
        "no markers": (("--model_name_or_path", "{bare}", "--train_data", "{text}"), "and no markers were given"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, str]:
    """Files that are wrong, by what is wrong with them."""
    tmp = tmp_path_factory.mktemp("bad")
    texts = {
        "bad_key": "learnin_rate: 3\n",
        "broken": "a: [1\n",
        "listed": "- 1\n",
        "empty": "",
        "no_json": "{\n",
        "columns": '{"src": "a", "tgt": "b"}\n',
        "text": '{"text": "red"}\n',
    }
    files = {}
    for name, text in texts.items():
        path = tmp / (f"{name}.yaml" if name in ("bad_key", "broken", "listed") else f"{name}.jsonl")
        path.write_text(text)
        files[name] = str(path)
    bare = AutoTokenizer.from_pretrained(tiny_folder)
    bare.chat_template = None
    bare.save_pretrained(tmp / "bare")
    return {**files, "bare": str(tmp / "bare"), "tmp": str(tmp)}


@pytest.mark.parametrize("name", refusals())
def test_bad_input_gets_one_sentence_and_no_model(
    name: str, bad: dict[str, str], tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    """The folder holds a tokenizer alone: whoever tried to load a model would fail with another message."""
    only_tokenizer = Path(bad["tmp"]) / "tokenizer"
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(only_tokenizer)
    given, sentence = refusals()[name]
    given = tuple(str(part).format(**bad) for part in given)
    run = run_recipe(
        *(
            "lora_sft.py",
            "--model_name_or_path",
            only_tokenizer,
            "--train_data",
            data,
            "--output_dir",
            tmp_path / "out",
        ),
        *given,
    )
    assert run.code == 1
    assert "lora_sft: " in run.output
    assert sentence in run.output, run.output[-2000:]
    assert "Traceback" not in run.output


def test_nothing_named_is_refused_by_name() -> None:
    assert "no model was given" in run_recipe("lora_sft.py").output
    assert "no data was given" in run_recipe("lora_sft.py", "--model_name_or_path", "x").output
