"""Two real processes: the same mask, the same files, the same loss and the same gradients as one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from tiny import build, chats, expected, tokenized
from transformers import TrainerCallback

from sft_mask import train_on_responses_only

CHATS = chats(8, seed=4)
STEPS = 2


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


def worker(data: Path, out: Path) -> None:
    """What each rank runs."""
    rank = int(os.environ["RANK"])
    found = {
        "2x4": summary(*run(data, out, 4)),
        "2x2x2": summary(*run(data, out, 2, accumulation=2)),
    }
    stream = load_from_disk(str(data)).to_iterable_dataset()
    trainer = build(out, stream, max_steps=1, dataset_kwargs={"skip_prepare_dataset": True})
    train_on_responses_only(trainer).train()
    found["stream"] = {"step": trainer.state.global_step}
    (out / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("distributed")
    rows = [{"input_ids": tokenized(messages), "messages": messages} for messages in CHATS]
    Dataset.from_list(rows).save_to_disk(str(folder / "data"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    paths = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, *launch, __file__, str(folder / "data"), str(folder)],
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


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]))
