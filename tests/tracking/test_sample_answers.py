"""``SampleAnswers``: what the model is shown, where it stops, what is logged, and that training goes on unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support.kept_tables import KeptTables, keep_tables
from support.tiny import build, messages_dataset, model, tokenizer
from support.tiny_chat import tokenizer_for, trl_templates
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from sft_mask import SampleAnswers, mask_dataset, train_on_responses_only
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.tracking.generation import as_in_inference
from sft_mask.trainer.inference import known_stops, prompt_arguments, stops_of

PROMPTS = ["walk", [{"role": "system", "content": "red"}, {"role": "user", "content": "blue café, stone"}]]
END = "<|im_end|>"

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptTables:
    return keep_tables(monkeypatch)


def masked(**options: Any) -> SFTTrainer:
    return train_on_responses_only(build("out", messages_dataset(24), **options))


def speaking(template: str, rows: Any) -> SFTTrainer:
    """A masked trainer of a model of few weights that speaks one of TRL's templates."""
    speaker = tokenizer_for(trl_templates().get(template, template))
    speaker.pad_token = speaker.bos_token
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(speaker), num_key_value_heads=1, **sizes))
    args = SFTConfig(output_dir="out", use_cpu=True, bf16=False, report_to=[], max_steps=1)
    data = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    trainer = SFTTrainer(network, args=args, train_dataset=data, processing_class=speaker)
    return train_on_responses_only(trainer)


def answered(**answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", **answer}]}


def greedy(network: Any, prompt: str | list[dict[str, Any]], most: int) -> tuple[str, bool, int]:
    """Text, whether it stopped, and the number of tokens of an answer: token by token, without a cache or padding."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    shown = tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer()(shown, add_special_tokens=False)["input_ids"]
    begin = len(ids)
    end = tokenizer().convert_tokens_to_ids(END)
    with torch.no_grad():
        while len(ids) < begin + most:
            following = int(network(torch.tensor([ids])).logits[0, -1].argmax())
            if following == end:
                return tokenizer().decode(ids[begin:]), True, len(ids) - begin
            ids.append(following)
    return tokenizer().decode(ids[begin:]), False, len(ids) - begin


@pytest.mark.parametrize("batch", [1, 8])
def test_answers_are_those_of_a_plain_loop_before_and_after_training(kept: KeptTables, batch: int) -> None:
    trainer = masked(max_steps=6, per_device_eval_batch_size=batch)
    wanted = [greedy(model().eval(), prompt, 8) for prompt in PROMPTS]
    trainer.add_callback(SampleAnswers(trainer, PROMPTS, every=100, max_new_tokens=8))
    trainer.train()
    (first, before), (last, after) = kept.tables("samples")
    assert (first, last) == (0, 6)
    wanted_after = [greedy(trainer.model.eval(), prompt, 8) for prompt in PROMPTS]
    for rows, expected in ((before, wanted), (after, wanted_after)):
        assert [(row["answer"], row["stopped"], row["tokens"]) for row in rows] == expected
    assert [row["prompt"] for row in after] == ["walk", "blue café, stone"]
    assert wanted != wanted_after
    assert {stopped for _, stopped, _ in (*wanted, *wanted_after)} == {False, True}


def test_stop_rate_and_length_are_logged_with_the_losses(kept: KeptTables) -> None:
    trainer = masked(max_steps=5, logging_steps=2)
    trainer.add_callback(SampleAnswers(trainer, PROMPTS, every=2, max_new_tokens=8))
    trainer.train()
    sampled = [entry for entry in trainer.state.log_history if "samples/stop_rate" in entry]
    assert [entry["step"] for entry in sampled] == [0, 2, 4, 5]
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2, 4]
    for entry, (_, rows) in zip(sampled, kept.tables("samples"), strict=True):
        assert entry["samples/stop_rate"] == sum(row["stopped"] for row in rows) / 2
        assert entry["samples/mean_length"] == sum(row["tokens"] for row in rows) / 2


def lora(**_: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(model(), LoraConfig(target_modules="all-linear", lora_dropout=0.5, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["", "checkpointing"])
@pytest.mark.parametrize("network", [model, lora], ids=["whole", "lora"])
def test_training_is_the_same_with_and_without_samples(network: Any, options: dict[str, Any]) -> None:
    found = []
    for samples in (False, True):
        trainer = masked(network=network(), max_steps=3, seed=1, **options)
        if samples:
            trainer.add_callback(SampleAnswers(trainer, PROMPTS, every=1, max_new_tokens=4))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, trainer.model.state_dict(), torch.get_rng_state()))
    (losses, weights, state), (same, others, same_state) = found
    assert losses == same
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert torch.equal(state, same_state)


def test_a_cache_is_used_with_gradient_checkpointing() -> None:
    trainer = masked(max_steps=1, gradient_checkpointing=True)
    lengths: list[int] = []

    def see(network: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not network.training:
            lengths.append(kwargs["input_ids"].shape[1])

    trainer.model.register_forward_pre_hook(see, with_kwargs=True)
    trainer.add_callback(SampleAnswers(trainer, ["walk"], every=100, max_new_tokens=4))
    trainer.train()
    assert lengths[0] > 1
    assert lengths[1] == 1


def test_the_mode_of_each_module_comes_back_also_after_an_error() -> None:
    network = model().train()
    network.model.layers[0].eval()
    before = [module.training for module in network.modules()]

    def fail() -> None:
        with as_in_inference(network):
            assert not any(module.training for module in network.modules())
            assert not torch.is_grad_enabled()
            torch.rand(1)
            raise RuntimeError("out of memory")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert [module.training for module in network.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def prompts_shown(trainer: SFTTrainer, callback: SampleAnswers) -> list[str]:
    return [trainer.processing_class.decode(list(prompt.ids)) for prompt in callback._shown()]


def test_a_model_is_shown_the_prompt_that_was_trained() -> None:
    """Qwen3's template: without reasoning the last answer comes after an empty block, which a prompt must hold."""
    trainer = speaking("qwen3", [answered(content=word) for word in ("blue", "seven")])
    assert prompt_arguments(trainer) == {"enable_thinking": False}
    (shown,) = prompts_shown(trainer, SampleAnswers(trainer, ["red"], every=1))
    assert shown.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    (thinking,) = prompts_shown(trainer, SampleAnswers(trainer, ["red"], every=1, chat_template_kwargs={}))
    assert thinking.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("expand", [False, True])
def test_the_prompt_is_found_also_of_rows_that_mask_dataset_labelled(expand: bool) -> None:
    speaker = tokenizer_for(trl_templates()["qwen3"])
    rows = Dataset.from_list([answered(content=word) for word in ("blue", "seven")])
    made = mask_dataset(rows, speaker, expand=expand)
    trainer = speaking("qwen3", made)
    assert trainer.mask_report.splits["train"].rows_masked_before == 2
    assert prompt_arguments(trainer) == {"enable_thinking": False}


def test_the_arguments_that_all_rows_have_are_those_of_the_prompt() -> None:
    rows = [{**answered(content=word), "chat_template_kwargs": {"enable_thinking": False}} for word in ("blue", "red")]
    trainer = speaking("qwen3", rows)
    assert prompt_arguments(trainer) == {"enable_thinking": False}


def test_generation_does_not_stop_between_reasoning_and_answer() -> None:
    """gpt-oss ends its reasoning with ``<|end|>`` and its answer with ``<|return|>``."""
    trainer = speaking("gptoss", [answered(content="blue", thinking="walk"), answered(content="red", thinking="over")])
    speaker = trainer.processing_class
    assert speaker.convert_tokens_to_ids("<|end|>") in known_stops(trainer).ids
    assert stops_of(trainer).ids == (speaker.convert_tokens_to_ids("<|return|>"),)


def test_prompts_of_rows_without_a_template_are_whole(kept: KeptTables) -> None:
    rows = [{"text": f"### Ask:\n{word}\n\n### Reply:\n{word} yes</s>"} for word in ("blue", "red", "over")]
    speaker = tokenizer_for("<|x|>")
    speaker.chat_template, speaker.pad_token = None, speaker.bos_token
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(speaker), num_key_value_heads=1, **sizes))
    args = SFTConfig(output_dir="out", use_cpu=True, bf16=False, report_to=[], max_steps=1)
    trainer = SFTTrainer(network, args=args, train_dataset=Dataset.from_list(rows), processing_class=speaker)
    train_on_responses_only(trainer, "### Ask:\n", "### Reply:\n")
    with pytest.raises(DataError, match=r"ends with 'blue', not with a marker that opens an answer \('### Reply:"):
        SampleAnswers(trainer, ["blue"], every=1)
    with pytest.raises(DataError, match="list of messages, but no chat template rendered the rows"):
        SampleAnswers(trainer, [[{"role": "user", "content": "blue"}]], every=1)
    trainer.add_callback(SampleAnswers(trainer, ["### Ask:\nblue\n\n### Reply:\n"], every=1, max_new_tokens=3))
    trainer.train()
    assert kept.tables("samples")[0][1][0]["prompt"] == "### Ask:\nblue\n\n### Reply:\n"
    assert stops_of(trainer).ids == (speaker.eos_token_id,)


def test_rows_that_mask_dataset_labelled_are_sampled_too(kept: KeptTables) -> None:
    made = mask_dataset(messages_dataset(24), tokenizer())
    trainer = train_on_responses_only(build("out", made, max_steps=1))
    trainer.add_callback(SampleAnswers(trainer, PROMPTS, every=1, max_new_tokens=3))
    trainer.train()
    assert [step for step, _ in kept.tables("samples")] == [0, 1]
    assert stops_of(trainer).ids == (tokenizer().convert_tokens_to_ids(END),)


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ("walk", "The prompts are a str, 'walk'. Give a list"),
        ([], "There are no prompts"),
        (["walk", " "], "Prompt 1 is empty"),
        ([{"role": "user", "content": "walk"}], "Prompt 0 is a single message. Put it in a list"),
        ([7], "Prompt 0 is 7, of type int"),
        ([[{"role": "user"}]], "Message 0 of prompt 0 has no role or no content"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], "Message 0 of prompt 0 holds more than text"),
        ([[{"role": "assistant", "content": "walk"}]], "Prompt 0 ends with a message of the assistant"),
        (["walk " * 600], r"Prompt 0 has \d+ tokens, and with max_new_tokens=128 that is more than the 512 positions"),
    ],
)
def test_bad_prompts_are_refused_before_training(prompts: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        SampleAnswers(masked(), prompts, every=1)


def test_a_prompt_that_the_template_refuses_is_named() -> None:
    trainer = speaking("gemma", [answered(content="blue"), answered(content="red")])
    with pytest.raises(DataError, match="Prompt 1 cannot be rendered by the chat template"):
        SampleAnswers(trainer, ["red", [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]], every=1)


@pytest.mark.parametrize("numbers", [{"every": 0}, {"every": 1, "max_new_tokens": 0}, {"every": 2.5}], ids=str)
def test_numbers_that_are_not_positive_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"is not a positive whole number. Give 1 or more"):
        SampleAnswers(masked(), PROMPTS, **numbers)


def test_weights_that_are_split_over_processes_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = masked()
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(UnsupportedError, match=r"SampleAnswers does not work with FSDP: each process has a part"):
        SampleAnswers(trainer, PROMPTS, every=1)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", False)
    monkeypatch.setattr(trainer, "get_tp_size", lambda: 2)
    with pytest.raises(UnsupportedError, match="does not work with tensor parallelism"):
        SampleAnswers(trainer, PROMPTS, every=1)


def test_a_trainer_without_a_mask_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"add_callback\(SampleAnswers\(trainer, ...\)\)"):
        SampleAnswers(build("out"), PROMPTS, every=1)
