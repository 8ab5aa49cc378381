"""Every other kind of trainer gets one sentence: what it trains on, and what to do."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from typing import Any

import pytest
import trl.trainer
from support.plain_trainer import CHATS, build_plain, token_rows
from support.tiny import build, messages_dataset, model, tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)
from trl import SFTTrainer

from sft_mask import train_on_responses_only
from sft_mask.doctor import diagnose
from sft_mask.errors import UnsupportedError
from sft_mask.trainer.kinds import check_kind

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def trainers_of_trl() -> list[type[Trainer]]:
    """Every trainer that TRL defines, its experimental ones aside (they warn at import)."""
    names = [module.name for module in pkgutil.iter_modules(trl.trainer.__path__) if module.name.endswith("_trainer")]
    return [
        kind
        for module in (import_module(f"trl.trainer.{name}") for name in names)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Trainer) and kind.__module__ == module.__name__ and not name.startswith("_")
    ]


def unbuilt(kind: type) -> Any:
    """An instance that was never initialised: the kind is read from the class alone."""
    return object.__new__(kind)


def test_trl_still_defines_the_trainers_that_are_named() -> None:
    assert {"SFTTrainer", "DPOTrainer", "GRPOTrainer", "RewardTrainer", "KTOTrainer"} <= {
        kind.__name__ for kind in trainers_of_trl()
    }


@pytest.mark.parametrize("kind", [kind for kind in trainers_of_trl() if kind is not SFTTrainer])
@pytest.mark.parametrize("verb", ["train_on_responses_only", "diagnose"])
def test_each_other_trainer_of_trl_gets_a_sentence_of_its_own(kind: type, verb: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^{verb} does not take a {kind.__name__}: it .*as it is") as caught:
        check_kind(unbuilt(kind), verb)
    assert "of TRL's trainers only SFTTrainer" not in str(caught.value)


@pytest.mark.parametrize("function", [train_on_responses_only, diagnose])
def test_dpo_is_told_what_to_do(function: Any) -> None:
    from trl import DPOTrainer

    with pytest.raises(UnsupportedError, match=r"DPOTrainer: it compares a chosen .* Call its train\(\) as it is"):
        function(unbuilt(DPOTrainer))


def test_a_class_of_ones_own_and_unsloths_are_recognized_by_their_bases() -> None:
    from trl import DPOTrainer

    class Mine(DPOTrainer):
        pass

    with pytest.raises(UnsupportedError, match=r"does not take a Mine \(a DPOTrainer\): it compares"):
        train_on_responses_only(unbuilt(Mine))
    theirs = type("UnslothGRPOTrainer", (type("_UnslothGRPOTrainer", (Trainer,), {}),), {})
    with pytest.raises(UnsupportedError, match=r"UnslothGRPOTrainer \(a GRPOTrainer\): it trains on answers"):
        train_on_responses_only(unbuilt(theirs))


def test_a_subclass_of_sft_trainer_that_distills_is_not_taken_for_one() -> None:
    gkd = type("GKDTrainer", (SFTTrainer,), {})
    with pytest.raises(UnsupportedError, match="a GKDTrainer: it learns from the probabilities of a teacher"):
        train_on_responses_only(unbuilt(gkd))


def test_a_trainer_of_trl_that_is_not_known_yet_is_refused_by_name() -> None:
    new = type("NewTrainer", (Trainer,), {"__module__": "trl.trainer.new_trainer"})
    with pytest.raises(UnsupportedError, match=r"needs a trl\.SFTTrainer, not NewTrainer: of TRL's trainers only"):
        train_on_responses_only(unbuilt(new))


@pytest.mark.parametrize(
    ("given", "name"),
    [(None, "NoneType"), ([], "list"), (model(), "LlamaForCausalLM"), (messages_dataset(1), "Dataset")],
)
def test_what_is_not_a_trainer_is_named(given: Any, name: str) -> None:
    for function in (train_on_responses_only, diagnose):
        with pytest.raises(
            UnsupportedError, match=rf"{function.__name__} needs a built trl.SFTTrainer or .*, not {name}\."
        ):
            function(given)


TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS: dict[str, tuple[Any, str]] = {
    "encoder-decoder": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
        "T5ForConditionalGeneration writes its answer in a decoder",
    ),
    "masked": (lambda: BertForMaskedLM(BertConfig(vocab_size=400, **TINY)), "BertForMaskedLM fills in masked tokens"),
    "classifier": (
        lambda: LlamaForSequenceClassification(model().config),
        "LlamaForSequenceClassification classifies whole rows",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_do_not_continue_a_text_are_refused(name: str) -> None:
    make, match = MODELS[name]
    with pytest.raises(UnsupportedError, match=rf"AutoModelForCausalLM.* The trainer's {match}"):
        train_on_responses_only(build_plain(network=make()))


def test_peft_models_are_looked_through() -> None:
    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(LlamaForSequenceClassification(model().config), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedError, match="LlamaForSequenceClassification classifies"):
        train_on_responses_only(build_plain(network=lora))
    lora = get_peft_model(model(), LoraConfig(target_modules=["q_proj"]))
    assert check_kind(build_plain(token_rows(CHATS[:4]), network=lora), "verb") is False


def test_trls_own_is_told_from_the_others() -> None:
    assert check_kind(build("out"), "verb") is True
    assert check_kind(build_plain(), "verb") is False
    assert tokenizer().pad_token == "<pad>"
