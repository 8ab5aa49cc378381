"""Run as a script: one short training for each tracker, in a folder of its own; prints what wandb has in this process.

Trackers read their folders from the environment when they are imported, so they have a process of their own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from support.tiny import build, messages_dataset

TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow")
QUESTIONS = ["cat <b>dog</b>", [{"role": "system", "content": "be"}, {"role": "user", "content": "walk"}]]
ROWS, EVERY, STEPS = 3, 2, 4


def environment(folder: Path) -> dict[str, str]:
    """Of the process: every tracker writes into the folder, and none needs a network."""
    return {
        **os.environ,
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder / "wandb"),
        "MLFLOW_TRACKING_URI": (folder / "mlflow" / "store").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def train(folder: Path, tracker: str) -> dict[str, Any]:
    """Trains with one tracker, as ``report_to`` names it; returns the log, and of wandb what it holds."""
    from sft_mask import LogMask, Policy, SampleAnswers, train_on_responses_only

    options = {"max_steps": STEPS, "report_to": [tracker], "logging_first_step": True}
    trainer = build(folder / tracker / "out", messages_dataset(24), messages_dataset(4, seed=1), **options)
    train_on_responses_only(trainer, policy=Policy(turns="last"))
    trainer.add_callback(SampleAnswers(trainer, QUESTIONS, every=EVERY, max_new_tokens=5))
    trainer.add_callback(LogMask(trainer, rows=ROWS))
    trainer.train()
    found: dict[str, Any] = {"log": trainer.state.log_history, "report": trainer.mask_report.to_dict()}
    if tracker == "wandb":
        import wandb

        assert wandb.run is not None
        found |= {"config": wandb.run.config["mask"], "summary": dict(wandb.run.summary)}
        wandb.finish()
    return json.loads(json.dumps(found, default=str))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name in TRACKERS:
        (place / name).mkdir()
    made = {name: train(place, name) for name in TRACKERS}
    (place / "made.json").write_text(json.dumps(made), encoding="utf-8")
