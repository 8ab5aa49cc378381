"""What trackers hold after a training, read back from their own files: trackio, tensorboard, wandb and mlflow."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import tracked
from support.tiny import chats
from support.tracked import EVERY, ROWS, STEPS, TRACKERS, environment

from sft_mask.tracking.trackers import Tracker

SAMPLED = [step for step in range(STEPS + 1) if step % EVERY == 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training for each tracker."""
    made = tmp_path_factory.mktemp("tracked")
    command = [sys.executable, tracked.__file__, str(made)]
    root = Path(__file__).parents[2]
    paths = f"{root}:{root / 'tests'}"
    env = {**environment(made), "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=made, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return made


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    """What each training returned."""
    return dict(json.loads((folder / "made.json").read_text("utf-8")))


def first_answers() -> list[str]:
    """The last words of the assistant in the rows that are shown; only these are trained."""
    return [str(talk[-1]["content"]) for talk in chats(24)[:ROWS]]


def holds_the_rows(text: str, opened: str, closed: str) -> bool:
    return all(f"{opened}{answer}<|im_end|>{closed}" in text for answer in first_answers())


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_tracker_is_given_the_same_log(trained: dict[str, Any], tracker: str) -> None:
    log = trained[tracker]["log"]
    assert [entry["step"] for entry in log if "samples/stop_rate" in entry] == SAMPLED
    losses = [entry for entry in log if "loss" in entry]
    assert len(losses) == STEPS, "sampling must not swallow the log of its step"
    assert all("loss_end_of_turn" in entry and "supervised_tokens" in entry for entry in losses)


@pytest.fixture(scope="module")
def database(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(next((folder / "trackio").glob("*.db")))


def test_trackio_configuration_holds_settings_and_numbers(
    database: sqlite3.Connection, trained: dict[str, Any]
) -> None:
    (config,) = (json.loads(row[0]) for row in database.execute("select config from configs"))
    assert config["mask"]["policy"]["turns"] == "last"
    assert config["mask"]["markers"]["stops"] == ["<|im_end|>"]
    counts = trained["trackio"]["report"]["splits"]["train"]
    assert config["mask"]["train"]["share"] == counts["share"] > 0
    assert config["mask"]["train"]["rows"] == 24
    assert config["mask"]["eval"]["trained_tokens"] > 0
    assert "loss_type" in config, "the trainer's own configuration stays"


def test_trackio_rows_and_samples_are_pages_without_scripts(database: sqlite3.Connection, folder: Path) -> None:
    metrics = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by id")]
    (rows,) = (entry["mask/rows"] for entry in metrics if "mask/rows" in entry)
    page = next(folder.glob(f"trackio/**/{Path(rows['file_path']).name}")).read_text("utf-8")
    assert holds_the_rows(page.replace("&lt;", "<").replace("&gt;", ">"), "<mark>", "</mark>")
    samples = [entry["samples"] for entry in metrics if "samples" in entry]
    assert len(samples) == len(SAMPLED)
    first = next(folder.glob(f"trackio/**/{Path(samples[0]['file_path']).name}")).read_text("utf-8")
    assert "cat &lt;b&gt;dog&lt;/b&gt;" in first
    assert "<script" not in page + first
    assert [entry["train/samples/stop_rate"] for entry in metrics if "train/samples/stop_rate" in entry]


@pytest.fixture(scope="module")
def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(next(folder.glob("tensorboard/**/events.out*")).parent))
    accumulator.Reload()
    return accumulator


def texts_of(events: Any, name: str) -> list[tuple[int, str]]:
    found = events.Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def test_tensorboard_report_and_rows_are_texts(events: Any, trained: dict[str, Any]) -> None:
    ((_, report),) = texts_of(events, "mask/report")
    assert "    markers: '<|im_start|>user\\n' → '<|im_start|>assistant\\n'" in report
    ((step, rows),) = texts_of(events, "mask/rows")
    assert step == 0
    assert holds_the_rows(rows, "⟦", "⟧")
    share = trained["tensorboard"]["report"]["splits"]["train"]["share"]
    assert events.Scalars("mask/train/share")[0].value == pytest.approx(share)


def test_tensorboard_nothing_in_a_text_is_markup(events: Any) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    ((_, rows),) = texts_of(events, "mask/rows")
    assert str(markdown_to_safe_html(rows)).count("&lt;|im_start|&gt;") == rows.count("<|im_start|>") > 0


def test_tensorboard_samples_are_texts_at_their_steps(events: Any) -> None:
    samples = texts_of(events, "samples")
    assert [step for step, _ in samples] == SAMPLED
    assert all("    cat <b>dog</b>" in text and "    walk" in text for _, text in samples)
    assert [event.step for event in events.Scalars("train/samples/mean_length")] == SAMPLED
    assert len(events.Scalars("train/loss_words")) == STEPS


def test_wandb_configuration_and_summary(trained: dict[str, Any]) -> None:
    made = trained["wandb"]
    assert made["config"]["policy"]["turns"] == "last"
    assert made["config"]["markers"]["response"] == "<|im_start|>assistant\n"
    assert made["summary"]["mask/train/share"] == made["report"]["splits"]["train"]["share"]
    assert "train/samples/stop_rate" in made["summary"]


def test_wandb_rows_and_samples_are_tables(folder: Path) -> None:
    (rows,) = (json.loads(path.read_text("utf-8")) for path in folder.glob("wandb/**/mask/rows_*.table.json"))
    assert rows["columns"] == ["row", "trained", "tokens", "text"]
    assert len(rows["data"]) == ROWS
    assert holds_the_rows("\n".join(row[3] for row in rows["data"]), "⟦", "⟧")
    samples = [json.loads(path.read_text("utf-8")) for path in folder.glob("wandb/**/samples_*.table.json")]
    assert sorted(table["data"][0][0] for table in samples) == SAMPLED
    assert samples[0]["columns"] == ["step", "stopped", "tokens", "prompt", "answer"]


def test_mlflow_parameters_and_metrics(folder: Path, trained: dict[str, Any]) -> None:
    (policy,) = folder.glob("mlflow/**/params/mask/policy")
    assert "'turns': 'last'" in policy.read_text("utf-8")
    (share,) = folder.glob("mlflow/**/metrics/mask/train/share")
    given = trained["mlflow"]["report"]["splits"]["train"]["share"]
    assert float(share.read_text("utf-8").split()[1]) == pytest.approx(given)
    (rate,) = folder.glob("mlflow/**/metrics/samples/stop_rate")
    assert len(rate.read_text("utf-8").splitlines()) == len(SAMPLED)


def test_mlflow_rows_and_samples_are_files(folder: Path) -> None:
    (rows,) = folder.glob("mlflow/**/artifacts/mask/rows_0.html")
    assert holds_the_rows(rows.read_text("utf-8").replace("&lt;", "<").replace("&gt;", ">"), "<mark>", "</mark>")
    samples = list(folder.glob("mlflow/**/artifacts/samples_*.html"))
    assert len(samples) == len(SAMPLED)


class Failing(Tracker):
    def settings(self, *_: object) -> None:
        raise self.run

    def table(self, *_: object) -> None:
        raise self.run


@pytest.mark.parametrize("error", [OSError("disk full"), KeyError("its own")])
def test_a_tracker_that_fails_is_warned_about(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    Failing(error, (KeyError,)).safely(lambda each: each.settings({}, {}, ""))
    assert [record.message for record in caplog.records] == [f"Failing could not log: {type(error).__name__}: {error}"]


def test_a_mistake_in_the_call_is_not_hidden() -> None:
    with pytest.raises(TypeError):
        Failing(TypeError("ours")).safely(lambda each: each.table("", [], "", 0))
