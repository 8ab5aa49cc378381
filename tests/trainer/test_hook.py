"""The hook in ``compute_loss``: what it catches, what it counts, and that the loss is the mask's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from support.tiny import build, chats, expected, messages_dataset, model, tokenized
from transformers import TrainerCallback
from trl import SFTTrainer

from sft_mask import train_on_responses_only
from sft_mask.constants import IGNORE_INDEX
from sft_mask.data.accounting.stats import SplitStats
from sft_mask.data.splits import SplitMasker
from sft_mask.errors import DataError, LabelsChangedError
from sft_mask.report import SplitReport
from sft_mask.trainer.checks import check_labels
from sft_mask.trainer.hook import MaskState, ResponseOnlyMixin, _weight_of_step, hooked_class, without_repeats

CHATS = chats(8, seed=4)


def batch(ids: list[list[int]], labels: list[list[int]]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


# the check


def test_labels_of_the_mask_pass() -> None:
    check_labels(batch([[1, 2, 3], [4, 5, 0]], [[-100, 2, 3], [-100, 5, -100]]))


def test_a_batch_without_labels_is_caught() -> None:
    with pytest.raises(LabelsChangedError, match="without labels: the data collator drops them"):
        check_labels({"input_ids": torch.tensor([[1]])})


def test_shifted_labels_are_caught_with_their_place() -> None:
    with pytest.raises(
        LabelsChangedError, match=r"Row 1 of a batch trains label 3 at position 0, where the token is 4"
    ):
        check_labels(batch([[1, 2], [4, 3]], [[-100, 2], [3, -100]]))


def test_the_report_follows_the_counts() -> None:
    growing = MaskState(SplitMasker(DataError("no markers")), {"train": SplitStats()}, [])
    assert growing.report().splits["train"].rows == 0
    growing.stats["train"].add(SplitReport(rows=3))
    assert growing.report().splits["train"].rows == 3


# the class


def test_the_mixin_is_put_in_front_once_and_hides_behind_the_name() -> None:
    kind = hooked_class(SFTTrainer)
    assert hooked_class(kind) is kind
    assert kind.__mro__[1:3] == (ResponseOnlyMixin, SFTTrainer)
    assert (kind.__name__, kind.__module__) == (SFTTrainer.__name__, SFTTrainer.__module__)


def test_trl_computes_the_loss_once_a_batch_from_untouched_inputs(tmp_path: Path) -> None:
    calls: list[Any] = []

    class Watching(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None
        ) -> Any:
            calls.append((sorted(inputs), num_items_in_batch))
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    trainer = train_on_responses_only(build(tmp_path, kind=Watching, max_steps=3))
    forwards: list[int] = []
    trainer.model.register_forward_hook(lambda *_: forwards.append(1))
    trainer.train()
    assert len(calls) == len(forwards) == 3
    assert all(names == ["attention_mask", "input_ids", "labels"] for names, _ in calls)
    assert all(int(items) > 0 for _, items in calls)


# the value


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append({name: weight.grad.clone() for name, weight in model.named_parameters()})


def reference() -> tuple[float, dict[str, torch.Tensor]]:
    """Mean cross-entropy over the trained tokens, conversation by conversation, without padding."""
    alone = model()
    losses, count = [], 0
    for messages in CHATS:
        labels = torch.tensor(expected(messages))
        logits = alone(input_ids=torch.tensor([tokenized(messages)])).logits[0]
        losses.append(F.cross_entropy(logits[:-1], labels[1:], reduction="sum"))
        count += int((labels[1:] != -100).sum())
    loss = torch.stack(losses).sum() / count
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {
        name: weight.grad for name, weight in alone.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"per_device_train_batch_size": 8}, id="1x8"),
        pytest.param({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, id="4x2"),
        pytest.param({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, id="2x4"),
        pytest.param({"per_device_train_batch_size": 8, "pad_to_multiple_of": 64}, id="padded"),
        pytest.param({"per_device_train_batch_size": 8, "padding_free": True, "max_length": None}, id="padding-free"),
        pytest.param({"per_device_train_batch_size": 8, "packing": True, "max_length": 200}, id="packed"),
        pytest.param({"per_device_train_batch_size": 8, "gradient_checkpointing": True}, id="checkpointed"),
    ],
)
def test_loss_and_gradients_are_those_of_the_reference_for_any_split(options: dict[str, Any], tmp_path: Path) -> None:
    data = Dataset.from_list([{"messages": messages} for messages in CHATS])
    trainer = build(tmp_path, data, max_steps=1, max_grad_norm=0.0, **options)
    assert trainer.args.world_size == 1
    gradients = Gradients()
    trainer.add_callback(gradients)
    train_on_responses_only(trainer).train()
    loss, wanted = reference()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["loss"] == pytest.approx(loss, rel=1e-6)
    (given,) = gradients.steps
    assert given.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-7)


def test_prompts_have_no_gradient_of_their_own(tmp_path: Path) -> None:
    """Ids that are never trained are only pushed down a little: their rows of the head have small gradients."""
    data = Dataset.from_list([{"messages": messages} for messages in CHATS])
    trainer = build(tmp_path, data, max_steps=1, per_device_train_batch_size=8, max_grad_norm=0.0)
    gradients = Gradients()
    trainer.add_callback(gradients)
    train_on_responses_only(trainer).train()
    trained = {label for messages in CHATS for label in expected(messages) if label != -100}
    prompts = {token for messages in CHATS for token in tokenized(messages)} - trained
    norms = gradients.steps[0]["lm_head.weight"].norm(dim=1)
    assert prompts
    assert float(norms[sorted(prompts)].max()) < float(norms[sorted(trained)].min())


def test_eval_metrics_have_the_eval_prefix(tmp_path: Path) -> None:
    trainer = train_on_responses_only(build(tmp_path, evals=messages_dataset(6)))
    metrics = trainer.evaluate()
    assert {"eval_supervised_tokens", "eval_supervised_share"} <= set(metrics)
    assert "supervised_tokens" not in metrics


def test_the_weight_of_a_step_is_that_of_all_its_batches_on_all_ranks() -> None:
    half = 7 | (0x3F000000 ^ 0x3F800000) << 32  # the id 7 with the weight 0.5; 9 is a plain id
    batches = [{"labels": torch.tensor([[9, 9, half, IGNORE_INDEX]])}, {"labels": torch.tensor([[IGNORE_INDEX, half]])}]

    def gather(own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([10.0])])

    args = SimpleNamespace(device="cpu", average_tokens_across_devices=True, world_size=2)
    sizes = {f"get_{kind}_size": lambda: 1 for kind in ("tp", "cp", "sp")}
    trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(gather=gather), **sizes)
    assert float(_weight_of_step(trainer, batches)) == 12.0
    args.average_tokens_across_devices = False
    assert float(_weight_of_step(trainer, batches)) == 2.0


@pytest.mark.parametrize(("rank", "kept"), [(0, [True, True]), (1, [True, False])])
def test_rows_that_fill_up_the_last_batch_of_an_evaluation_do_not_count(rank: int, kept: list[bool]) -> None:
    progress = SimpleNamespace(end_of_dataloader=True, remainder=3)
    ranks = SimpleNamespace(num_processes=2, process_index=rank, gradient_state=progress)
    inputs = {"labels": torch.full((2, 4), 5), "attention_mask": torch.ones(2, 4)}
    labels = without_repeats(inputs, ranks)["labels"]
    assert [bool((row == 5).all()) for row in labels] == kept
    assert [bool((row == IGNORE_INDEX).all()) for row in labels] == [not one for one in kept]


def test_a_split_of_the_trainer_is_known_and_its_twin_is_not() -> None:
    split, before = (
        Dataset.from_dict({"input_ids": [tokenized(chats(1, seed=8)[0])]}),
        Dataset.from_dict({"input_ids": [tokenized(chats(1, seed=8)[0])]}),
    )
    state = MaskState(SplitMasker(DataError()), {"train": SplitStats()}, [(split, before)])
    assert state.is_ours(split)
    assert not state.is_ours(before)
