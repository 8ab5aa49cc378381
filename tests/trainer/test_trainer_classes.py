"""Classes of trainers: those that change ``compute_loss``, those that go past TRL's, those in the place of TRL's own.

The reference runs a float64 copy of the model over one unpadded conversation after the other.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import cache, wraps
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import trl
from datasets import Dataset
from support.refusing import refused
from support.tiny import arms, build, chats, expected, messages_dataset, model, tokenized, tokenizer
from transformers import LlamaForCausalLM, Trainer, TrainerCallback
from trl import SFTTrainer
from trl.trainer import sft_trainer, utils

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask._compat import LossPath
from sft_mask.errors import UnsupportedError
from sft_mask.trainer import lm_head as head
from sft_mask.trainer.hook import hooked_class
from sft_mask.trainer.refusals import normalizes_by_tokens

CHATS = chats(8, seed=4)
PROMPT = 0.25
ARMS: dict[str, dict[str, Any]] = {"mask": {}, "prompt": {"prompt_weight": PROMPT}}
SPLITS = {"8x1": (8, 1), "2x4": (2, 4)}


pytestmark = pytest.mark.usefixtures("in_tmp_path")


# the classes


class Inherits(SFTTrainer):
    """Changes something else."""

    def log(self, logs: Any, *arguments: Any, **named: Any) -> None:
        super().log({**logs, "seen": 1.0}, *arguments, **named)


class Delegates(SFTTrainer):
    """Does something of its own, and leaves the loss to TRL."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        self.rows_seen = getattr(self, "rows_seen", 0) + len(inputs["input_ids"])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)


class DelegatesByName(Delegates):
    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        return super(DelegatesByName, self).compute_loss(*arguments, **named)  # noqa: UP008


class Bypasses(SFTTrainer):
    """As Unsloth's: the loss is that of the model, by way of ``transformers.Trainer``."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        return super(SFTTrainer, self).compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )


class InheritsBypassing(Bypasses):
    pass


@cache
def in_its_place() -> type[SFTTrainer]:
    """A class made from the source of TRL's, without its loss: no subclass of it, as Unsloth's is none."""
    source = inspect.getsource(SFTTrainer).replace("class SFTTrainer(", "class _UnslothSFTTrainer(", 1)
    scope: dict[str, Any] = {**vars(sft_trainer), "__name__": "UnslothSFTTrainer"}
    exec(source, scope)
    made: Any = scope["_UnslothSFTTrainer"]
    del made.compute_loss
    return type("UnslothSFTTrainer", (made,), {"__module__": "UnslothSFTTrainer"})


def exchange(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    for module in (trl, trl.trainer, sft_trainer):
        monkeypatch.setattr(module, "SFTTrainer", kind)


TRLS: dict[str, type[SFTTrainer]] = {"TRL's own": SFTTrainer, "inherits": Inherits}
DELEGATING = {"delegates": Delegates, "delegates by name": DelegatesByName}
BYPASSING = {"bypasses": Bypasses, "inherits bypassing": InheritsBypassing}
KINDS = {**TRLS, **DELEGATING, **BYPASSING}


class Ignores(LlamaForCausalLM):
    """Takes the number of tokens of the step and does nothing with it."""

    accepts_loss_kwargs = False

    def forward(self, *arguments: Any, num_items_in_batch: Any = None, **named: Any) -> Any:  # type: ignore[override]
        return super().forward(*arguments, **named)


def ignores() -> LlamaForCausalLM:
    network = Ignores(model().config)
    network.load_state_dict(model().state_dict())
    return network


NETWORKS = {"accepts": model, "ignores": ignores}

# the reference


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append({name: weight.grad.clone() for name, weight in model.named_parameters()})


def counts(row: int, arm: str) -> torch.Tensor:
    base = PROMPT if arm == "prompt" else 0.0
    return torch.tensor([base if label == -100 else 1.0 for label in expected(CHATS[row])], dtype=torch.float64)


def plain(batches: Sequence[Sequence[int]], arm: str = "mask") -> tuple[float, dict[str, torch.Tensor]]:
    """The mean over the batches of the mean over the (weighted) tokens of each; one batch is the whole step."""
    alone = model().double()
    losses = []
    for batch in batches:
        total, weight = torch.zeros((), dtype=torch.float64), 0.0
        for row in batch:
            ids = torch.tensor([tokenized(CHATS[row])])
            logits = alone(input_ids=ids, use_cache=False).logits[0]
            weights = counts(row, arm)[1:]
            total = total + (weights * F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")).sum()
            weight += float(weights.sum())
        losses.append(total / weight)
    loss = torch.stack(losses).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}


WHOLE = [list(range(len(CHATS)))]


class Run:
    """One step of a trainer: its loss, its gradients, and which rows each batch had."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, gradients = trainer, Gradients()
        self.batches: list[list[int]] = []
        trainer.add_callback(gradients)
        reading = trainer.model.register_forward_pre_hook(self._read, with_kwargs=True)
        trainer.train()
        reading.remove()
        (self.log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        (self.gradients,) = gradients.steps

    def _read(self, _: Any, __: Any, named: dict[str, Any]) -> None:
        pairs = zip(named["input_ids"], named["attention_mask"], strict=True)
        ids = [row[kept.bool()].tolist() for row, kept in pairs]
        self.batches.append([[tokenized(chat) for chat in CHATS].index(row) for row in ids])

    def agrees(self, loss: float, gradients: dict[str, torch.Tensor], near: float = 2e-6) -> None:
        assert self.log["loss"] == pytest.approx(loss, rel=near)
        assert self.gradients.keys() == gradients.keys()
        apart = sum(float((self.gradients[k].double() - g.double()).square().sum()) for k, g in gradients.items())
        assert (apart / sum(float(g.double().square().sum()) for g in gradients.values())) ** 0.5 < near


def made(kind: type[SFTTrainer], network: str, split: str = "2x4", data: Any = None, **options: Any) -> SFTTrainer:
    rows = Dataset.from_list([{"messages": chat} for chat in CHATS]) if data is None else data
    size, accumulation = SPLITS[split]
    options = {"max_steps": 1, "max_grad_norm": 0.0, **options}
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    return build("out", rows, kind=kind, network=NETWORKS[network](), **sizes, **options)


def labelled() -> Dataset:
    """The same rows with the same labels, for a trainer that this library never sees."""
    return Dataset.from_list([{"input_ids": tokenized(chat), "labels": expected(chat)} for chat in CHATS])


# a mask


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", TRLS)
@pytest.mark.newest
def test_where_the_loss_is_trls_own_it_is_exact_for_every_model_and_split(kind: str, network: str, split: str) -> None:
    run = Run(train_on_responses_only(made(TRLS[kind], network, split)))
    run.agrees(*plain(WHOLE))
    assert run.trainer.model_accepts_loss_kwargs


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", {**DELEGATING, **BYPASSING})
@pytest.mark.newest
def test_where_the_class_changes_the_loss_it_is_what_it_is_without_this_library(
    kind: str, network: str, split: str
) -> None:
    run = Run(train_on_responses_only(made(KINDS[kind], network, split)))
    run.agrees(*plain(WHOLE if network == "accepts" else run.batches))
    assert run.trainer.model_accepts_loss_kwargs == (network == "accepts")
    alone = Run(made(KINDS[kind], network, split, labelled(), dataset_kwargs={"skip_prepare_dataset": True}))
    assert alone.batches == run.batches
    run.agrees(alone.log["loss"], alone.gradients)


@pytest.mark.newest
def test_a_class_that_hands_the_number_of_tokens_on_can_be_made_exact() -> None:
    trainer = made(Delegates, "ignores")
    trainer.model_accepts_loss_kwargs = True
    Run(train_on_responses_only(trainer)).agrees(*plain(WHOLE))


def test_a_loss_that_was_set_on_the_trainer_itself_is_left_as_it_is() -> None:
    trainer = made(SFTTrainer, "ignores")
    trainer.compute_loss = MethodType(Trainer.compute_loss, trainer)  # type: ignore[method-assign]
    run = Run(train_on_responses_only(trainer))
    run.agrees(*plain(run.batches))
    assert not trainer.model_accepts_loss_kwargs


def test_a_class_that_says_its_loss_is_not_scaled_is_believed() -> None:
    class Unscaled(SFTTrainer):
        loss_is_scaled_for_ga = False

    run = Run(train_on_responses_only(made(Unscaled, "ignores")))
    run.agrees(*plain(run.batches))


@pytest.mark.parametrize("kind", {**KINDS, "in its place": None})
@pytest.mark.parametrize("split", SPLITS)
def test_tokens_in_the_log_are_those_of_a_batch_whatever_the_class(
    kind: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "in its place":
        exchange(monkeypatch, in_its_place())
    run = Run(train_on_responses_only(made(KINDS.get(kind) or in_its_place(), "ignores", split)))
    trained = sum(label != -100 for chat in CHATS for label in expected(chat)[1:])
    assert run.log["supervised_tokens"] == trained / SPLITS[split][1]
    assert run.log["supervised_share"] == pytest.approx(trained / sum(len(tokenized(chat)) for chat in CHATS))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_loss_is_the_mean_over_tokens_whatever_the_class(kind: str, network: str) -> None:
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    trainer = made(KINDS[kind], network, evals=data, per_device_eval_batch_size=3)
    assert train_on_responses_only(trainer).evaluate()["eval_loss"] == pytest.approx(plain(WHOLE)[0], rel=2e-6)


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor`:FutureWarning")
def test_a_loss_that_takes_the_labels_out_of_the_batch_can_be_evaluated() -> None:
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    options = {"evals": data, "per_device_eval_batch_size": 8, "label_smoothing_factor": 0.1}
    metrics = train_on_responses_only(made(Bypasses, "accepts", **options)).evaluate()
    assert metrics["eval_loss"] > 0
    assert metrics["eval_supervised_tokens"] == sum(label != -100 for chat in CHATS for label in expected(chat)[1:])


# the compact head


@pytest.mark.newest
@pytest.mark.parametrize("kind", KINDS)
def test_supervised_positions_are_scored_where_trl_makes_the_loss_and_nothing_is_elsewhere(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = head._score
    monkeypatch.setattr(head, "_score", lambda hidden, *rest: scored.append(len(hidden)) or score(hidden, *rest))
    before = utils._use_triton, utils._ChunkedLogProbFunction
    Run(train_on_responses_only(made(KINDS[kind], "accepts", "8x1")))
    trained = sum(label != -100 for chat in CHATS for label in expected(chat)[1:])
    assert scored == ([] if kind in BYPASSING else [trained])
    assert (utils._use_triton, utils._ChunkedLogProbFunction) == before


@pytest.mark.newest
def test_a_loss_of_ones_own_from_trls_log_probabilities_has_its_own_gradients() -> None:
    class Focal(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, **_: Any) -> Any:
            scores = model(**inputs, fused_lm_head=True)
            return -(scores.log_probs * (1 - scores.log_probs.exp()) ** 2).sum() / scores.label_mask.sum()

    run = Run(train_on_responses_only(made(Focal, "ignores")))
    alone = Run(made(Focal, "ignores", data=labelled(), dataset_kwargs={"skip_prepare_dataset": True}))
    run.agrees(alone.log["loss"], alone.gradients, near=1e-5)


# weights


@pytest.mark.newest
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("kind", "network"),
    [*((kind, network) for kind in TRLS for network in NETWORKS), *((k, "accepts") for k in DELEGATING)],
)
def test_weights_are_exact_where_the_loss_is_trls_own_or_is_handed_on_to_it(
    kind: str, network: str, split: str
) -> None:
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    run = Run(train_on_responses_only(made(KINDS[kind], network, split, evals=data), prompt_weight=PROMPT))
    run.agrees(*plain(WHOLE, "prompt"))
    fresh = train_on_responses_only(made(KINDS[kind], network, split, evals=data), prompt_weight=PROMPT)
    assert fresh.evaluate()["eval_loss"] == pytest.approx(plain(WHOLE, "prompt")[0], rel=2e-6)


@pytest.mark.newest
def test_weights_wait_for_the_word_that_the_number_of_tokens_is_handed_on() -> None:
    trainer = made(Delegates, "ignores")
    match = "this Delegates: trainer.model_accepts_loss_kwargs is False, .* If yours passes num_items_in_batch on"
    refused(trainer, UnsupportedError, match, prompt_weight=PROMPT)
    trainer.model_accepts_loss_kwargs = True
    Run(train_on_responses_only(trainer, prompt_weight=PROMPT)).agrees(*plain(WHOLE, "prompt"))


@pytest.mark.newest
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", BYPASSING)
def test_weights_are_refused_at_the_call_where_the_loss_goes_past_trls(kind: str, network: str) -> None:
    match = (
        rf"do not work with this {BYPASSING[kind].__name__}: its compute_loss \(that of Bypasses\) does not call that "
        r"of TRL's SFTTrainer, .* Let it call super\(\).compute_loss\(...\) of TRL's class, .* or train without weights"
    )
    refused(made(BYPASSING[kind], network), UnsupportedError, match, prompt_weight=PROMPT)
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    before = mask_dataset(data, tokenizer(), policy=Policy(prompt_weight=PROMPT))
    refused(made(BYPASSING[kind], network, data=before), UnsupportedError, match)


@pytest.mark.newest
def test_weights_are_refused_where_the_loss_was_set_on_the_trainer_itself() -> None:
    trainer = made(SFTTrainer, "accepts")
    trainer.compute_loss = trainer.compute_loss  # type: ignore[method-assign]
    refused(trainer, UnsupportedError, r"compute_loss \(one set on the trainer itself\)", prompt_weight=PROMPT)


@pytest.mark.newest
def test_weights_of_a_later_set_are_refused_where_the_loss_goes_past_trls() -> None:
    trainer = train_on_responses_only(made(Bypasses, "accepts"))
    halves = [[0.5] * len(tokenized(chat)) for chat in CHATS]
    with pytest.raises(UnsupportedError, match=r"\(that of Bypasses\) does not call that of TRL's"):
        trainer.evaluate(Dataset.from_list([{"messages": c} for c in CHATS]).add_column("loss_weights", halves))


class Sometimes(SFTTrainer):
    """Calls TRL's for evaluation only."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        if model.training:
            return model(**inputs).loss
        return super().compute_loss(model, inputs, *arguments, **named)


class WithoutLabels(SFTTrainer):
    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        labels = inputs.pop("labels")
        if labels is None:
            return super().compute_loss(model, inputs, *arguments, **named)
        return F.cross_entropy(model(**inputs).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class AnotherModel(SFTTrainer):
    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        return super().compute_loss(self.model, inputs, *arguments, **named)


class Drops(SFTTrainer):
    """As classes from before there was a number of tokens."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, **_: Any) -> Any:
        return super().compute_loss(model, inputs, return_outputs)


@pytest.mark.newest
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (Sometimes, "computed its own loss .* it must always call super"),
        (WithoutLabels, "compute_loss of WithoutLabels did not go through that of TRL's SFTTrainer"),
        (AnotherModel, "compute_loss of AnotherModel did not go through that of TRL's SFTTrainer with the model"),
        (Drops, "compute_loss of Drops calls super.* without the num_items_in_batch"),
    ],
)
def test_a_class_that_does_otherwise_than_its_source_says_is_refused_at_the_first_step(
    kind: type[SFTTrainer], match: str
) -> None:
    trainer = train_on_responses_only(made(kind, "accepts"), prompt_weight=PROMPT)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(UnsupportedError, match=match):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


# the place of TRL's class


@pytest.mark.parametrize("arm", arms(ARMS))
@pytest.mark.parametrize("kind", TRLS)
def test_a_trainer_of_trls_class_is_one_whatever_stands_under_its_name(
    kind: str, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange(monkeypatch, InheritsBypassing)
    run = Run(train_on_responses_only(made(TRLS[kind], "accepts"), **ARMS[arm]))
    run.agrees(*plain(WHOLE, arm))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_class_made_from_trls_source_is_taken_in_its_place(
    split: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = in_its_place()
    assert SFTTrainer not in kind.__mro__
    refused(made(kind, network), UnsupportedError, "needs a trl.SFTTrainer, not UnslothSFTTrainer")
    exchange(monkeypatch, kind)
    trainer = made(kind, network, split)
    refused(trainer, UnsupportedError, r"do not work with this UnslothSFTTrainer: .*that of Trainer", prompt_weight=0.1)
    run = Run(train_on_responses_only(trainer))
    run.agrees(*plain(WHOLE if network == "accepts" else run.batches))
    assert run.trainer.evaluate(messages_dataset(5))["eval_loss"] > 0


@pytest.mark.parametrize("module", [trl, trl.trainer, sft_trainer], ids=lambda module: module.__name__)
def test_one_exchanged_name_is_enough(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SFTTrainer", in_its_place())
    train_on_responses_only(made(in_its_place(), "accepts")).train()


# what is read from classes


def paths(*classes: type) -> list[tuple[tuple[type, ...], type | None]]:
    found = [LossPath.of(kind) for kind in classes]
    return [(path.before, path.trls) for path in found]


def test_the_path_of_a_loss_is_read_from_the_source() -> None:
    assert paths(SFTTrainer, Inherits) == [((), SFTTrainer)] * 2
    assert paths(DelegatesByName) == [((DelegatesByName, Delegates), SFTTrainer)]
    assert paths(Bypasses, InheritsBypassing) == [((Bypasses,), None)] * 2
    assert paths(Trainer, object) == [((Trainer,), None), ((), None)]


@pytest.mark.parametrize("kind", [*KINDS.values(), Trainer], ids=lambda kind: kind.__name__)
def test_the_path_is_the_same_with_the_hook_in_front(kind: type) -> None:
    assert paths(hooked_class(kind)) == paths(kind)


def test_a_function_that_wraps_trls_is_not_trls(monkeypatch: pytest.MonkeyPatch) -> None:
    @wraps(SFTTrainer.compute_loss)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        return Trainer.compute_loss(*arguments, **named)

    assert wrapped.__module__ == SFTTrainer.__module__
    monkeypatch.setattr(SFTTrainer, "compute_loss", wrapped)
    trainer = made(SFTTrainer, "ignores")
    assert not normalizes_by_tokens(trainer)
    run = Run(train_on_responses_only(trainer))
    run.agrees(*plain(run.batches))


def test_where_there_is_no_source_the_names_must_do() -> None:
    scope: dict[str, Any] = {"SFTTrainer": SFTTrainer, "Trainer": Trainer}
    text = "class {0}(SFTTrainer):\n    def compute_loss(self, *a, **k):\n        return {1}.compute_loss(*a, **k)\n"
    exec(text.format("Calls", "super()") + text.format("Goes", "Trainer"), scope)
    assert paths(scope["Calls"]) == [((scope["Calls"],), SFTTrainer)]
    assert paths(scope["Goes"]) == [((scope["Goes"],), None)]


def test_something_that_is_no_function_calls_nothing_on() -> None:
    class Odd(SFTTrainer):
        compute_loss = staticmethod(print)

    assert paths(Odd) == [((Odd,), None)]


def test_the_hook_goes_in_front_of_the_class_and_of_trls_once() -> None:
    kind = hooked_class(DelegatesByName)
    assert hooked_class(kind) is kind
    names = [owner.__name__ for owner in kind.__mro__[:7]]
    assert names == [
        "DelegatesByName",
        "ResponseOnlyMixin",
        "DelegatesByName",
        "Delegates",
        *["SFTTrainer", "_BeforeTrls"],
        "SFTTrainer",
    ]
