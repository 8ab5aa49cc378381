"""``recipes/chat.py`` and what it shares with ``recipes/answer.py``, on SmolLM2 itself with an adapter beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chat
import pytest
import torch
from local_model import smollm2_folder
from peft import LoraConfig, get_peft_model
from saved_model import SavedModel, load
from support.tiny_families import save
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

JAPAN = "What is the capital of Japan?"
LIMIT = 12
IM_END = 2
Talk = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes nothing, as a recipe saves it, without a generation config."""
    folder = tmp_path_factory.mktemp("saved")
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder())
    get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_folder()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(folder: Path) -> SavedModel:
    return load(folder, LIMIT)


@pytest.fixture
def talk(saved: SavedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """What the chat prints while these lines are typed; the input ends after them."""

    def talk(*lines: str, system: str = "") -> str:
        typed: Iterator[str] = iter(lines)

        def read(prompt: str) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        chat.chat(saved, [{"role": "system", "content": system}] if system else [])
        return capsys.readouterr().out

    return talk


def greedy(saved: SavedModel, text: str) -> str:
    """What the model says after a prompt that was rendered by hand, up to its end-of-turn token."""
    prompt = saved.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    made = saved.model.generate(**prompt, max_new_tokens=LIMIT, do_sample=False, eos_token_id=IM_END)
    said = made[0, prompt["input_ids"].shape[1] :].tolist()
    return str(saved.tokenizer.decode(said[: said.index(IM_END)] if IM_END in said else said))


def turn(role: str, words: str) -> str:
    return f"<|im_start|>{role}\n{words}<|im_end|>\n"


def test_a_second_message_is_answered_with_the_first_ones_in_view(saved: SavedModel, talk: Talk) -> None:
    asks = "<|im_start|>assistant\n"
    first = turn("system", "Be brief.") + turn("user", JAPAN)
    said = greedy(saved, first + asks)
    assert "Tokyo" in said
    more = turn("assistant", said) + turn("user", "And of Peru?")
    then = greedy(saved, first + more + asks)
    assert then != greedy(saved, turn("system", "Be brief.") + turn("user", "And of Peru?") + asks)
    shown = talk(JAPAN, "And of Peru?", system="Be brief.")
    assert shown.index(said) < shown.index(then)


def test_a_new_conversation_knows_nothing_of_the_old_one(talk: Talk) -> None:
    shown = talk("And of Peru?", "/new", JAPAN)
    assert shown.split("(a new conversation)\n")[1].strip() == talk(JAPAN).removeprefix(f"{chat.COMMANDS}\n").strip()


def test_an_answer_ends_at_the_end_of_turn_token_which_is_not_shown(talk: Talk) -> None:
    shown = talk(JAPAN, "", "/what", "/quit", "never read")
    assert "The capital of Japan is Tokyo.\n(8 tokens, stopped by '<|im_end|>')\n" in shown
    assert "Tokyo.<|im_end|>" not in shown
    assert shown.count(" tokens, ") == 1
    assert f"(there is no /what: {chat.COMMANDS})" in shown


def test_a_stopped_answer_and_its_question_are_forgotten(
    saved: SavedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SavedModel, "answer", interrupted)
    before = [{"role": "system", "content": "Be brief."}]
    assert chat.reply(saved, [*before, {"role": "user", "content": JAPAN}]) == before
    assert "stopped" in capsys.readouterr().out


def test_the_saved_generation_config_and_prompt_arguments_are_used(tmp_path: Path) -> None:
    tokenizer = save("qwen3-0.6b", tmp_path)
    GenerationConfig(eos_token_id=5).save_pretrained(tmp_path)
    (tmp_path / "chat_template_kwargs.json").write_text(json.dumps({"enable_thinking": False}))
    saved = load(tmp_path, 3)
    assert saved.generation.eos_token_id == 5
    asked: list[Any] = []
    saved.model.generate = lambda **given: (
        asked.append(given) or torch.cat([given["input_ids"], torch.tensor([[7, 5]])], dim=1)
    )
    answer, remark = saved.answer([{"role": "user", "content": "red"}])
    assert answer == tokenizer.decode([7])
    assert remark == f"(2 tokens, asked with enable_thinking=False, stopped by {tokenizer.decode(5)!r})"
    assert tokenizer.decode(asked[0]["input_ids"][0]).endswith("assistant\n<think>\n\n</think>\n\n")


def test_without_a_chat_template_the_error_says_what_to_save(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=r"has no chat template.*tokenizer\.chat_template = "):
        load(tmp_path, 3)


def test_the_command_line_chats(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["chat.py", str(folder), "--max-new-tokens", "3"])
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{JAPAN}\n/quit\n"))
    chat.main()
    assert "> The capital of\n(3 tokens, cut off)\n> " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("--help", 0, "python recipes/chat.py outputs/quickstart"),
        ("--help", 0, "/new starts a new conversation"),
        ("nowhere", 2, "there is no folder nowhere; train first, as with scripts/quickstart.sh"),
    ],
)
def test_the_command_line_explains_itself(
    given: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["chat.py", given])
    with pytest.raises(SystemExit) as ended:
        chat.main()
    assert ended.value.code == code
    assert said in " ".join("".join(capsys.readouterr()).split())
