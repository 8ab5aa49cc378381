"""Words that no row holds: the doctor names the symptom that people notice, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from support.tiny import build, tokenizer
from support.tiny_chat import chat
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from sft_mask import mask_dataset, train_on_responses_only
from sft_mask.doctor import Finding, diagnose, symptoms

pytestmark = pytest.mark.usefixtures("in_tmp_path")

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def asked(*answers: dict[str, Any]) -> Dataset:
    said = [
        part for answer in answers for part in ({"role": "user", "content": "red"}, {"role": "assistant", **answer})
    ]
    return Dataset.from_list([{"messages": said}] * 6)


def with_qwen3(data: Dataset, **options: Any) -> SFTTrainer:
    words = chat("qwen3")[0]
    words.pad_token, words.eos_token = "</s>", "<|im_end|>"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), num_key_value_heads=2, **sizes))
    args = SFTConfig(output_dir="out", use_cpu=True, bf16=False, report_to=[], **options)
    return SFTTrainer(model, args=args, train_dataset=data, processing_class=words)


def only(findings: tuple[Finding, ...]) -> Finding:
    (found,) = findings
    return found


@pytest.mark.parametrize("masked", [True, False])
def test_calls_that_no_row_holds(masked: bool) -> None:
    data = asked({"content": "blue", "tool_calls": [CALL, CALL]}, {"content": "seven"})
    trainer = build("out", data) if not masked else train_on_responses_only(build("out", data))
    found = [each for each in diagnose(trainer).findings if each.symptom == symptoms.SILENT]
    assert only(tuple(found)).diagnosis.startswith("the chat template does not write 12 of 12 tool calls")
    assert "answers with nothing after a tool would be called" in symptoms.SILENT
    assert "chat template that writes them" in found[0].cure


def test_reasoning_that_history_drops_and_its_cure() -> None:
    data = asked(*({"content": word, "reasoning_content": "stone"} for word in ("blue", "seven", "walk")))
    found = only(diagnose(train_on_responses_only(with_qwen3(data))).findings)
    assert found.symptom == symptoms.THOUGHTLESS == "the model stopped thinking in later turns"
    assert "12 of 18 trained answers" in found.diagnosis
    assert "12 of them without the reasoning" in found.diagnosis
    assert "expand=True" in found.cure
    cured = mask_dataset(data, chat("qwen3")[0], expand=True)
    assert diagnose(train_on_responses_only(with_qwen3(cured))).healthy


def test_answers_beyond_max_length_and_their_cure() -> None:
    data = asked(*({"content": f"blue stone {word}"} for word in ("one", "two", "three", "four")))
    ids = tokenizer().apply_chat_template(data[0]["messages"], tokenize=True, return_dict=True)["input_ids"]
    first = train_on_responses_only(build("out", data, max_length=len(ids) // 2))
    found = [each for each in diagnose(first).findings if each.symptom == symptoms.FORGETFUL]
    assert symptoms.FORGETFUL == "long conversations lose their last answers"
    lost = first.mask_report.splits["train"].answers_cut_off
    assert only(tuple(found)).diagnosis.startswith(f"{lost} of 24 answers")
    assert lost in (6, 12)
    assert diagnose(train_on_responses_only(build("out", data, max_length=len(ids)))).healthy
