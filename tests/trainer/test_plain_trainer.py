"""``transformers.Trainer`` and classes made from it: masked as by TRL's, at the loss, in evaluation and in predictions.

The reference runs a float64 copy of the model over one unpadded conversation after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from support.plain_trainer import CHATS, PAD, build_plain, token_rows
from support.reference_loss import Gradients
from support.tiny import expected, model, rendered, tokenized, tokenizer
from torch.utils.data import BatchSampler
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    default_data_collator,
)

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.doctor import diagnose
from sft_mask.errors import DataError, LabelsChangedError, UnsupportedError
from sft_mask.preview import preview_rows

pytestmark = pytest.mark.usefixtures("in_tmp_path")

WANTED = [expected(talk) for talk in CHATS]


def labels_of(dataset: Any) -> list[list[int]]:
    return [list(map(int, row["labels"])) for row in dataset]


def padded(labels: list[int], size: int, left: bool) -> list[int]:
    rest = [-100] * (size - len(labels))
    return rest + labels if left else labels + rest


# labels


@pytest.mark.parametrize("labels", [False, True], ids=["no labels", "labels are a copy"])
@pytest.mark.parametrize("messages", [False, True], ids=["ids only", "messages"])
def test_rows_get_the_labels_that_character_offsets_give(messages: bool, labels: bool) -> None:
    trainer = train_on_responses_only(build_plain(token_rows(messages=messages, labels=labels)))
    assert labels_of(trainer.train_dataset) == WANTED


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("messages", [False, True], ids=["ids only", "messages"])
def test_rows_that_were_padded_before_are_masked_where_they_are_padded(messages: bool, left: bool) -> None:
    rows = token_rows(messages=messages, labels=True, pad_to=300, left=left)
    trainer = train_on_responses_only(build_plain(rows, collator=default_data_collator))
    assert labels_of(trainer.train_dataset) == [padded(labels, 300, left) for labels in WANTED]
    assert diagnose(trainer).healthy


def test_labels_that_were_ignored_stay_ignored() -> None:
    rows = token_rows(labels=True).map(lambda row: {"labels": [-100] * 12 + row["labels"][12:]})
    trainer = train_on_responses_only(build_plain(rows))
    assert labels_of(trainer.train_dataset) == [[-100] * 12 + row[12:] for row in WANTED]


def test_a_stream_is_masked_while_it_is_read() -> None:
    trainer = train_on_responses_only(build_plain(token_rows().to_iterable_dataset()))
    assert labels_of(trainer.train_dataset) == WANTED


def test_markers_are_given_where_there_is_no_template() -> None:
    bare = tokenizer().__class__(
        tokenizer_object=tokenizer().backend_tokenizer, eos_token="<|im_end|>", pad_token="<pad>"
    )
    trainer = build_plain(token_rows(messages=False), processing_class=bare)
    train_on_responses_only(trainer, "<|im_start|>user\n", "<|im_start|>assistant\n")
    assert labels_of(trainer.train_dataset) == WANTED


def test_a_tokenizer_is_given_where_the_trainer_has_none() -> None:
    trainer = build_plain(processing_class=None)
    with pytest.raises(UnsupportedError, match=r"no processing_class\. Give its tokenizer: train_on_resp.*tokenizer="):
        train_on_responses_only(trainer)
    train_on_responses_only(trainer, tokenizer=tokenizer())
    assert labels_of(trainer.train_dataset) == WANTED
    assert preview_rows(trainer)[0].trained_tokens == sum(label != -100 for label in WANTED[0])
    trainer.model.generation_config.eos_token_id = tokenizer().eos_token_id  # a trainer without a tokenizer does not
    assert diagnose(trainer).healthy


def test_mask_dataset_comes_before_as_well() -> None:
    trainer = train_on_responses_only(build_plain(mask_dataset(token_rows(), tokenizer())))
    assert labels_of(trainer.train_dataset) == WANTED
    assert trainer.mask_report.splits["train"].rows_masked_before == len(CHATS)


def test_a_second_call_starts_from_the_rows_as_they_were() -> None:
    trainer = train_on_responses_only(build_plain(evals=token_rows()), policy=Policy(turns="last"))
    train_on_responses_only(trainer)
    assert labels_of(trainer.train_dataset) == labels_of(trainer.eval_dataset) == WANTED


# the loss


def reference(rows: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    alone = model().double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        ids, labels = torch.tensor([tokenized(CHATS[row])]), torch.tensor(WANTED[row])
        logits = alone(input_ids=ids, use_cache=False).logits[0]
        total = total + F.cross_entropy(logits[:-1], labels[1:], reduction="sum")
        count += int((labels[1:] != -100).sum())
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}


class Bypasses(Trainer):
    """Computes its loss from the logits, with the labels of the batch."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch
        return (loss, {"logits": logits}) if return_outputs else loss


@pytest.mark.parametrize("kind", [Trainer, Bypasses])
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4)])
def test_loss_and_gradients_are_those_of_the_masked_tokens(kind: Any, size: int, accumulation: int) -> None:
    rows = token_rows().select(range(8))
    options = {"max_steps": 1, "max_grad_norm": 0.0, "gradient_accumulation_steps": accumulation}
    trainer = build_plain(rows, kind=kind, per_device_train_batch_size=size, **options)
    train_on_responses_only(trainer)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    loss, wanted = reference(list(range(8)))
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["loss"] == pytest.approx(loss, rel=2e-6)
    trained = sum(label != -100 for row in WANTED[:8] for label in row[1:])
    assert entry["supervised_tokens"] == trained / accumulation
    (found,) = gradients.steps
    for name, gradient in wanted.items():
        assert torch.allclose(found[name].double(), gradient, atol=2e-6)


def test_labels_that_changed_are_caught_at_the_loss() -> None:
    class Shifts(DataCollatorForSeq2Seq):
        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            batch = super().__call__(features, return_tensors)
            return {**batch, "labels": batch["labels"].roll(1, 1)} if self.broken else batch  # type: ignore[attr-defined]

    collator = Shifts(tokenizer())
    collator.broken = False  # type: ignore[attr-defined]
    trainer = train_on_responses_only(build_plain(collator=collator))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    loader = trainer.get_train_dataloader()
    collator.broken = True  # type: ignore[attr-defined]
    trainer.get_train_dataloader = lambda: loader
    with pytest.raises(LabelsChangedError, match="the labels are not aligned with input_ids"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


# evaluation and predictions


def test_evaluation_and_predictions_are_masked_alike_for_raw_data_too() -> None:
    trainer = train_on_responses_only(build_plain(evals={"a": token_rows(), "b": token_rows(CHATS[:6])}))
    loss, _ = reference(list(range(len(CHATS))))
    raw = token_rows(labels=True)
    assert trainer.evaluate()["eval_a_loss"] == pytest.approx(loss, rel=2e-6)
    assert trainer.evaluate(raw)["eval_loss"] == pytest.approx(loss, rel=2e-6)
    assert trainer.evaluate({"later": raw})["eval_later_loss"] == pytest.approx(loss, rel=2e-6)
    predicted = trainer.predict(raw)
    assert predicted.metrics["test_loss"] == pytest.approx(loss, rel=2e-6)
    assert int(np.sum(predicted.label_ids != -100)) == sum(label != -100 for row in WANTED for label in row)
    assert "labels" in raw.column_names
    assert all(-100 not in row for row in raw["labels"])


def test_report_preview_and_doctor_know_the_trainer() -> None:
    trainer = train_on_responses_only(build_plain(evals=token_rows(CHATS[:8])))
    report = trainer.mask_report
    assert report.splits["train"].trained_tokens == sum(label != -100 for row in WANTED for label in row)
    assert report.splits["eval"].rows == 8
    assert preview_rows(trainer)[3].trained_tokens == sum(label != -100 for label in WANTED[3])
    trainer.train()
    assert diagnose(trainer).healthy


# refusals


WEIGHTS: dict[str, dict[str, Any]] = {
    "prompt weight": {"prompt_weight": 0.1},
    "reduction": {"reduction": "turn"},
    "roles": {"policy": Policy(roles={"assistant": 0.5})},
}


@pytest.mark.parametrize("asked", WEIGHTS)
@pytest.mark.filterwarnings("ignore:`label_smoothing_factor`:FutureWarning")
def test_weights_are_refused_by_the_name_of_the_class(asked: str) -> None:
    match = (
        r"weights do not work with a Trainer: it trains with the loss .* Use trl.SFTTrainer, or train without weights"
    )
    for trainer in (build_plain(), build_plain(label_smoothing_factor=0.1)):
        with pytest.raises(UnsupportedError, match=match):
            train_on_responses_only(trainer, **WEIGHTS[asked])
        assert type(trainer) is Trainer
        assert "labels" not in trainer.train_dataset.column_names


def test_weights_that_came_with_the_rows_are_refused_too() -> None:
    rows = token_rows()
    weighted = rows.add_column("loss_weights", [[0.5] * len(ids) for ids in rows["input_ids"]])
    with pytest.raises(UnsupportedError, match="Token weights do not work with a Trainer"):
        train_on_responses_only(build_plain(weighted))
    with pytest.raises(UnsupportedError, match="Token weights do not work with a Trainer"):
        train_on_responses_only(build_plain(mask_dataset(rows, tokenizer(), policy=Policy(prompt_weight=0.1))))
    trainer = train_on_responses_only(build_plain())
    with pytest.raises(UnsupportedError, match="Token weights do not work with a Trainer"):
        trainer.evaluate(weighted)


@pytest.mark.parametrize(
    "collator",
    [None, DataCollatorForLanguageModeling(tokenizer(), mlm=False)],
    ids=["the trainer's own", "makes labels"],
)
def test_a_collator_that_keeps_no_labels_is_refused_with_one_that_does(collator: Any) -> None:
    trainer = build_plain(collator=collator)
    with pytest.raises(
        LabelsChangedError, match=r"DataCollator.*trainer\.data_collator = transformers\.DataCollatorForS"
    ):
        train_on_responses_only(trainer)
    assert "labels" not in trainer.train_dataset.column_names
    trainer.data_collator = DataCollatorForSeq2Seq(trainer.processing_class)
    train_on_responses_only(trainer).train()
    assert labels_of(trainer.train_dataset) == WANTED


def test_a_list_of_rows_is_refused_with_the_line_that_makes_a_dataset() -> None:
    trainer = build_plain([dict(row) for row in token_rows()])
    with pytest.raises(DataError, match=r"train dataset is a list, .* Make it one: (.*)") as caught:
        train_on_responses_only(trainer)
    import datasets

    exec(str(caught.value).split("Make it one: ")[1], {"trainer": trainer, "datasets": datasets})
    assert labels_of(train_on_responses_only(trainer).train_dataset) == WANTED


def test_a_dict_of_splits_is_refused_with_its_names() -> None:
    trainer = build_plain(token_rows())
    trainer.train_dataset = DatasetDict({"train": token_rows(), "rest": token_rows()})
    with pytest.raises(DataError, match=r"Choose one: trainer.train_dataset = trainer.train_dataset\['train'\] or"):
        train_on_responses_only(trainer)


def test_rows_of_text_are_refused_with_what_tokenizes_them() -> None:
    trainer = build_plain(Dataset.from_list([{"text": rendered(talk)} for talk in CHATS]))
    with pytest.raises(DataError, match=r"no input_ids column in the train dataset .*call mask_dataset\(dataset, tok"):
        train_on_responses_only(trainer)
    trainer.train_dataset = mask_dataset(trainer.train_dataset, tokenizer())
    appended = [[*labels, -100] for labels in WANTED]  # the EOS, as SFTTrainer appends it to a text
    assert labels_of(train_on_responses_only(trainer).train_dataset) == appended


def test_a_model_that_takes_no_labels_is_refused() -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    with pytest.raises(
        LabelsChangedError, match=r"forward of the trainer's Bare takes no labels.* Let forward take labels"
    ):
        train_on_responses_only(build_plain(network=Bare()))


# packing trainers, as Axolotl's


class Packs(BatchSampler):
    """Batches of rows that share a bin, the longest first."""

    def __init__(self, rows: Any, length: int = 256) -> None:
        self.bins: list[list[int]] = []
        free: list[int] = []
        for at in sorted(range(len(rows)), key=lambda at: -len(rows[at]["input_ids"])):
            size = len(rows[at]["input_ids"])
            fits = next((number for number, left in enumerate(free) if left >= size), None)
            if fits is None:
                self.bins, free, fits = [*self.bins, []], [*free, length], len(free)
            self.bins[fits].append(at)
            free[fits] -= size

    def __iter__(self) -> Any:
        return iter([[bin_] for bin_ in self.bins])

    def __len__(self) -> int:
        return len(self.bins)


class Bins(DataCollatorForSeq2Seq):
    """Joins the rows of a bin; its attention mask numbers them."""

    numbered: bool = True

    def __call__(self, features: Any, return_tensors: Any = None) -> Any:
        bins = features if isinstance(features[0], list) else [features]
        made = []
        for rows in bins:
            row = {
                name: [each for part in rows for each in part[name]] for name in ("input_ids", "labels", "position_ids")
            }
            numbers = [
                number + 1 if self.numbered else 1 for number, part in enumerate(rows) for _ in part["input_ids"]
            ]
            made.append({**row, "attention_mask": numbers})
        return {**super().__call__([{k: v for k, v in row.items() if k != "position_ids"} for row in made], "pt")}


class Axolotls(Trainer):
    """What matters here of AxolotlTrainer: its own samplers, dataloaders, counters; the loss is left to Trainer's."""

    def __init__(self, *given: Any, eval_data_collator: Any = None, **named: Any) -> None:
        self.eval_data_collator = eval_data_collator
        super().__init__(*given, **named)
        self.seen_trainable = 0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        if model.training:
            self.seen_trainable += int((inputs["labels"] != -100).sum())
        inputs["attention_mask"] = (inputs["attention_mask"] != 0).long()
        return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    def evaluate(self, *given: Any, **named: Any) -> Any:
        return super().evaluate(*given, **named)

    def _loader(self, rows: Any) -> Any:
        columns = [name for name in rows.column_names if name in ("input_ids", "labels", "position_ids")]
        bare = rows.select_columns(columns)
        sampler = Packs(bare)
        loader = torch.utils.data.DataLoader(
            [bare[at] for at in range(len(bare))],
            batch_sampler=[rows for bin_ in sampler for rows in bin_],
            collate_fn=self.eval_data_collator or self.data_collator,
        )
        return self.accelerator.prepare(loader)

    def get_train_dataloader(self) -> Any:
        return self._loader(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self._loader(self.eval_dataset if eval_dataset is None else eval_dataset)


def axolotl_rows() -> Dataset:
    rows = [{"input_ids": tokenized(talk), "position_ids": [*range(len(tokenized(talk)))]} for talk in CHATS]
    return Dataset.from_list([{**row, "labels": row["input_ids"]} for row in rows])


def test_a_trainer_that_packs_while_it_collates_trains_what_its_rows_train() -> None:
    trainer = build_plain(
        axolotl_rows(), axolotl_rows(), kind=Axolotls, collator=Bins(tokenizer()), max_steps=-1, num_train_epochs=1
    )
    train_on_responses_only(trainer)
    assert labels_of(trainer.train_dataset) == WANTED
    assert diagnose(trainer).healthy
    trainer.train()
    assert trainer.seen_trainable == sum(label != -100 for row in WANTED for label in row)
    metrics = trainer.evaluate()
    shares = sum(label != -100 for row in WANTED for label in row) / sum(map(len, WANTED))
    assert metrics["eval_supervised_share"] == pytest.approx(shares)


def test_documents_of_a_flattening_collator_keep_their_labels() -> None:
    trainer = train_on_responses_only(build_plain(evals=token_rows(), collator=DataCollatorWithFlattening()))
    assert diagnose(trainer).healthy
    assert trainer.evaluate()["eval_loss"] == pytest.approx(reference(list(range(len(CHATS))))[0], rel=1e-5)
    assert PAD not in trainer.train_dataset[0]["input_ids"]
