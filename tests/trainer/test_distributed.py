"""Two real processes: the same mask, the same files, the same loss and the same gradients as one process.

All of it in one launch. Every kind of weight goes through every split of eight rows over two ranks, against the plain
float64 loop that :mod:`test_exactness` holds a single process to.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, load_from_disk
from support.kept_tables import KeptTables
from support.marks import slow_but
from support.reference_loss import CHATS as FLAGGED
from support.reference_loss import MODELS, PLAIN_SGD, POLICIES, distance, network, reference, weights
from support.tiny import STOP, Messages, build, chats, expected, tokenized, tokenizer
from transformers import TrainerCallback

from sft_mask import LogMask, SampleAnswers, train_on_responses_only

CHATS = chats(8, seed=4)
STEPS = 2
END = tokenizer().convert_tokens_to_ids(STOP)
SPLITS = {"2x2x2": (2, 2), "2x1x4": (1, 4), "2x4x1": (4, 1)}
"""Ranks x rows x accumulation."""
ARMS = ("mask", "prompt", "messages", "turn", "sequence")
CASES = list(product(MODELS, ARMS, SPLITS))
FAST = [("llama", arm, "2x2x2") for arm in ("mask", "prompt", "turn")]


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        named = model.named_parameters()
        self.steps.append({name.removeprefix("module."): weight.grad.clone() for name, weight in named})


def run(data: Path, out: Path, batch_size: int, accumulation: int = 1) -> tuple[Any, Gradients]:
    """All eight rows in each step, however they are split."""
    trainer = build(
        out,
        load_from_disk(str(data)),
        evals=load_from_disk(str(data)),
        max_steps=STEPS,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    gradients = Gradients()
    trainer.add_callback(gradients)
    train_on_responses_only(trainer).train()
    return trainer, gradients


def collectives(mask: bool, arm: str, out: Path) -> int:
    """How often this rank speaks to the other in two steps of four batches each, logged once at the end."""
    spoken = []

    def counted(operation: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            spoken.append(operation.__name__)
            return operation(*arguments, **named)

        return run

    trainer, _ = weighed_run(arm, "2x1x4", out, mask=mask, logging_steps=STEPS)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier"):
            patched.setattr(torch.distributed, name, counted(getattr(torch.distributed, name)))
        trainer.train()
    return len(spoken)


def logged_run(out: Path, *, callbacks: bool, everywhere: bool = True) -> dict[str, Any]:
    """What one rank has after training with the mask and answers in its log; ``everywhere``, or on the main process."""
    trainer, _ = weighed_run("mask", "2x2x2", out, logging_steps=1)
    kept = KeptTables([])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sft_mask.tracking.log_mask.trackers_of", lambda _: [kept])
        patched.setattr("sft_mask.tracking.sample_answers.trackers_of", lambda _: [kept])
        if callbacks and (everywhere or trainer.is_world_process_zero()):
            trainer.add_callback(LogMask(trainer))
            trainer.add_callback(SampleAnswers(trainer, ["walk"], every=1, max_new_tokens=4))
        trainer.train()
    return {
        "parameters": {key: value.detach() for key, value in trainer.model.named_parameters()},
        "losses": [entry for entry in trainer.state.log_history if "loss" in entry],
        "sampled": [entry["step"] for entry in trainer.state.log_history if "samples/stop_rate" in entry],
        "tables": [step for step, _ in kept.tables("samples")],
    }


def weighed_run(
    arm: str, split: str, out: Path, *, name: str = "llama", mask: bool = True, **options: Any
) -> tuple[Any, Gradients]:
    size, accumulation = SPLITS[split]
    data = Dataset.from_list([{"messages": messages} for messages in FLAGGED])
    trainer = build(
        out,
        data,
        evals=data.select(range(7)),
        network=copy.deepcopy(network(name)),
        max_steps=STEPS,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        gradient_accumulation_steps=accumulation,
        **PLAIN_SGD,
        **options,
    )
    gradients = Gradients()
    trainer.add_callback(gradients)
    if mask:
        train_on_responses_only(trainer, policy=POLICIES[arm])
    return trainer, gradients


def weighted(name: str, arm: str, split: str, out: Path) -> dict[str, Any]:
    """What one rank has after two steps, and what it says of seven rows, of which ``accelerate`` repeats one."""
    trainer, gradients = weighed_run(arm, split, out, name=name)
    trainer.train()
    evaluated = trainer.evaluate()
    return {
        "processes": trainer.accelerator.num_processes,
        "eval_loss": evaluated["eval_loss"],
        "eval_supervised_tokens": evaluated["eval_supervised_tokens"],
        "batches": -(-7 // (trainer.accelerator.num_processes * SPLITS[split][0])),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "gradients": gradients.steps,
        "parameters": {key: value.detach() for key, value in trainer.model.named_parameters()},
    }


def summary(trainer: Any, gradients: Gradients) -> dict[str, Any]:
    return {
        "processes": trainer.accelerator.num_processes,
        "fingerprint": trainer.train_dataset._fingerprint,
        "eval_fingerprint": trainer.eval_dataset._fingerprint,
        "labels": list(trainer.train_dataset["labels"]),
        "report": str(trainer.mask_report),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "gradients": [{name: grad.tolist() for name, grad in step.items()} for step in gradients.steps],
    }


def worker(data: Path, out: Path, cases: list[tuple[str, str, str]]) -> None:
    """What each rank runs."""
    gc.freeze()  # each `train()` collects garbage, and what was imported is none
    rank = int(os.environ["RANK"])
    found = {
        "2x4": summary(*run(data, out, 4)),
        "2x2x2": summary(*run(data, out, 2, accumulation=2)),
    }
    stream = load_from_disk(str(data)).to_iterable_dataset()
    trainer = build(out, stream, max_steps=1, dataset_kwargs={"skip_prepare_dataset": True})
    train_on_responses_only(trainer).train()
    found["stream"] = {"step": trainer.state.global_step}
    found["collectives"] = {
        "without": collectives(False, "mask", out),
        "mask": collectives(True, "mask", out),
        "prompt": collectives(True, "prompt", out),
    }
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    logged = {
        "plain": logged_run(out, callbacks=False),
        "everywhere": logged_run(out, callbacks=True),
        "main": logged_run(out, callbacks=True, everywhere=False),
    }
    torch.save(logged, out / f"logged-rank{rank}.pt")
    for name, arm, split in cases:
        torch.save(weighted(name, arm, split, out), out / f"{name}-{arm}-{split}-rank{rank}.pt")


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One launch: of every case if slow tests of this file were chosen, of the fast ones otherwise."""
    is_slow = any(item.path == request.path and item.get_closest_marker("slow") for item in request.session.items)
    folder = tmp_path_factory.mktemp("distributed")
    rows = [{"input_ids": tokenized(messages), "messages": messages} for messages in CHATS]
    Dataset.from_list(rows).save_to_disk(str(folder / "data"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    paths = os.pathsep.join(
        [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, *launch, __file__, str(folder / "data"), str(folder), json.dumps(CASES if is_slow else FAST)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    files = sorted(path.name for path in (folder / "data").glob("cache-sft-mask-*"))
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return {"ranks": ranks, "files": files, "one": summary(*run(folder / "data", folder / "one", 8)), "folder": folder}


def test_two_processes_were_running(results: dict[str, Any]) -> None:
    assert [rank["2x4"]["processes"] for rank in results["ranks"]] == [2, 2]
    assert results["one"]["processes"] == 1


def test_fingerprints_and_labels_are_equal_on_both_ranks_and_in_one_process(results: dict[str, Any]) -> None:
    for key in ("fingerprint", "eval_fingerprint", "labels", "report"):
        values = [results["one"][key], *(rank[split][key] for rank in results["ranks"] for split in ("2x4", "2x2x2"))]
        assert all(value == values[0] for value in values), key
    assert results["one"]["labels"] == [expected(messages) for messages in CHATS]


def test_the_labels_were_written_once(results: dict[str, Any]) -> None:
    assert [Path(name).suffix for name in results["files"]] == [".arrow", ".json"]


@pytest.mark.parametrize("split", ["2x4", "2x2x2"])
def test_loss_and_gradients_are_those_of_one_process(split: str, results: dict[str, Any]) -> None:
    one, first = results["one"], results["ranks"][0][split]
    assert len(one["log"]) == len(first["log"]) == STEPS
    for alone, together in zip(one["log"], first["log"], strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    for rank in results["ranks"]:
        for alone, together in zip(one["gradients"], rank[split]["gradients"], strict=True):
            assert alone.keys() == together.keys()
            for name, gradient in alone.items():
                given = torch.tensor(together[name])
                torch.testing.assert_close(given, torch.tensor(gradient), rtol=1e-4, atol=1e-6)


def test_supervised_tokens_are_those_of_all_ranks(results: dict[str, Any]) -> None:
    trained = sum(label != -100 for messages in CHATS for label in expected(messages))
    assert [entry["supervised_tokens"] for entry in results["one"]["log"]] == [trained] * STEPS
    assert [entry["supervised_tokens"] for entry in results["ranks"][0]["2x4"]["log"]] == [trained] * STEPS


def test_a_stream_trains_on_two_ranks(results: dict[str, Any]) -> None:
    assert [rank["stream"]["step"] for rank in results["ranks"]] == [1, 1]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("case", slow_but(FAST, CASES), ids="-".join)
def test_loss_gradients_and_parameters_are_those_of_the_reference(
    case: tuple[str, str, str], rank: int, results: dict[str, Any]
) -> None:
    name, arm, split = case
    found = torch.load(results["folder"] / f"{name}-{arm}-{split}-rank{rank}.pt")
    losses, gradients, parameters = reference(name, arm)
    assert found["processes"] == 2
    if rank == 0:
        assert found["losses"] == pytest.approx(losses, rel=1e-6)
    for given, wanted in zip(found["gradients"], gradients, strict=True):
        assert distance(given, wanted) < 1e-6
    assert distance(found["parameters"], parameters) < 1e-6


def test_ranks_speak_once_a_log_and_with_weights_once_a_step_more_than_without_a_mask(results: dict[str, Any]) -> None:
    for rank in results["ranks"]:
        spoken = rank["collectives"]
        assert spoken["without"] > 0
        assert spoken["mask"] == spoken["without"] + 1
        assert spoken["prompt"] == spoken["without"] + 1 + STEPS


@pytest.mark.parametrize("where", ["everywhere", "main"])
def test_the_main_process_samples_and_the_other_trains_on_as_without(where: str, results: dict[str, Any]) -> None:
    first, second = (torch.load(results["folder"] / f"logged-rank{rank}.pt") for rank in (0, 1))
    assert first[where]["sampled"] == first[where]["tables"] == [0, 1, 2]
    assert second[where]["sampled"] == second[where]["tables"] == []
    for rank in (first, second):
        assert distance(rank[where]["parameters"], rank["plain"]["parameters"]) == 0


def test_losses_by_group_are_those_of_all_ranks_and_make_up_the_loss(results: dict[str, Any]) -> None:
    first, second = (torch.load(results["folder"] / f"logged-rank{rank}.pt")["everywhere"] for rank in (0, 1))
    labels = [label for chat in FLAGGED for label in expected(plain_words(chat))[1:] if label != -100]
    ends = labels.count(END)
    words = len(labels) - ends
    for entry, other in zip(first["losses"], second["losses"], strict=True):
        mean = (entry["loss_end_of_turn"] * ends + entry["loss_words"] * words) / (ends + words)
        assert entry["loss"] == pytest.approx(mean, rel=1e-6)
        assert other["loss_words"] == entry["loss_words"]


def plain_words(chat: Messages) -> Messages:
    return [{"role": message["role"], "content": message["content"]} for message in chat]


def plain_eval(arm: str) -> tuple[float, int]:
    """Loss over seven rows after training, and how many of their tokens are trained."""
    alone, total, weight, trained = copy.deepcopy(network("llama")).double(), 0.0, 0.0, 0
    alone.load_state_dict(reference("llama", arm)[2], strict=False)
    for messages in FLAGGED[:7]:
        ids = torch.tensor([tokenized([{"role": m["role"], "content": m["content"]} for m in messages])])
        counts = torch.tensor(weights(messages, arm), dtype=torch.float64)[1:]
        with torch.no_grad():
            logits = alone(input_ids=ids, use_cache=False).logits[0]
        total += float((counts * F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")).sum())
        weight += float(counts.sum())
        trained += int((counts > 0).sum())
    return total / weight, trained


@pytest.mark.parametrize("case", slow_but(FAST, [case for case in CASES if case[0] == "llama"]), ids="-".join)
def test_rows_that_are_repeated_for_a_rank_do_not_count_in_an_evaluation(
    case: tuple[str, str, str], results: dict[str, Any]
) -> None:
    name, arm, split = case
    loss, trained = plain_eval(arm)
    for rank in (0, 1):
        found = torch.load(results["folder"] / f"{name}-{arm}-{split}-rank{rank}.pt")
        assert found["eval_loss"] == pytest.approx(loss, rel=1e-6)
        assert found["eval_supervised_tokens"] * found["batches"] == pytest.approx(trained)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
