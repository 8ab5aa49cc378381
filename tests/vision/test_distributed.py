"""Two real processes that train on images: the same loss as one, and the same masks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.vision_rows import dataset, rows
from support.vision_trainer import trainer_of

from sft_mask import train_on_responses_only

FAMILIES = ("smolvlm", "qwen3_vl", "gemma3", "llava")


def run(name: str, out: Path, batch_size: int, **options: Any) -> dict[str, Any]:
    """Four rows in each of two steps, then three raw rows evaluated and predicted."""
    trainer = trainer_of(name, out, per_device_train_batch_size=batch_size, max_grad_norm=0.0, **options)
    train_on_responses_only(trainer).train()
    raw = dataset(rows()[:3])
    return {
        "processes": trainer.accelerator.num_processes,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "eval_loss": trainer.evaluate(raw)["eval_loss"],
        "predicted": (trainer.predict(raw).label_ids != -100).sum(1).tolist(),
        "rows": trainer.mask_report.splits["train"].rows,
    }


def stream(out: Path) -> int:
    """A stream on two ranks, each of which reads its own part of it."""
    given = dataset(rows() * 2).to_iterable_dataset()
    trainer = trainer_of("smolvlm", out, given, accelerator_config={"dispatch_batches": False})
    train_on_responses_only(trainer).train()
    return int(trainer.state.global_step)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, *launch, __file__, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_two_ranks_train_and_evaluate_as_one(name: str, ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    one = run(name, tmp_path, 4)
    assert [rank[name]["processes"] for rank in ranks] == [2, 2]
    for rank in ranks:
        assert rank[name]["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert rank[name]["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
        assert rank[name]["predicted"] == one["predicted"]
        assert rank[name]["rows"] == 4, "of this rank's rows in two steps"


@pytest.mark.slow
def test_a_stream_trains_on_two_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stream"] for rank in ranks] == [2, 2]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found: dict[str, Any] = {name: run(name, out, 2) for name in FAMILIES}
    found["stream"] = stream(out)
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
