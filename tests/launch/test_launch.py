"""Every launch configuration on two CPU processes: the losses, parameters and files of one process.

``scripts/test_launch.sh`` runs these with DeepSpeed and bitsandbytes installed, a few jobs for each configuration;
``scripts/launches.py`` runs all of them and writes the table of docs/launch.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from launch.compared import FAST, FAST_FAULTY, TOLERANCE, Differences, differences, found, jobs_of
from launch.jobs import Job
from launch.launching import CONFIGURATIONS, launch_jobs

pytestmark = pytest.mark.slow
Launched = Callable[[str], Path]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Launches a configuration with its fast jobs, once: the folder in which every rank left what it has."""

    @cache
    def launch(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        ended = launch_jobs(name, [vars(job) for job in jobs_of(name, fast=True)], folder)
        assert ended.code == 0, ended.output[-6000:]
        return folder

    return launch


def jobs(*, faulty: bool = False) -> list[object]:
    made = []
    for name, configuration in CONFIGURATIONS.items():
        missing = pytest.mark.skipif(
            not configuration.is_installed, reason=f"{configuration.needs} is installed by scripts/test_launch.sh"
        )
        chosen = [job for job in jobs_of(name, fast=True) if job.name.startswith("fault") == faulty]
        made += [pytest.param(name, job, id=f"{name}-{job.name}", marks=missing) for job in chosen]
    return made


def test_every_kind_of_job_is_among_the_fast_ones() -> None:
    names = {job.name for name in CONFIGURATIONS for job in jobs_of(name, fast=True)}
    assert names == {*FAST, *FAST_FAULTY} | {"full-mask-4x1"}


@pytest.mark.parametrize(("name", "job"), jobs())
def test_a_launch_is_what_its_file_says_and_equals_one_process(name: str, job: Job, launched: Launched) -> None:
    configuration, folder = CONFIGURATIONS[name], launched(name)
    ranks = found(folder, job)
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert {rank["kind"] for rank in ranks} == {configuration.kind}
    assert all((rank["sharded"] > 0) == configuration.is_sharded for rank in ranks)
    assert all((rank["library_head"] > 0) == configuration.ours for rank in ranks)
    assert (ranks[0]["own_tokens"] == ranks[1]["own_tokens"]) == (name == "tensor"), "ranks have unequal tokens"
    apart = differences(name, job, folder)
    assert apart.loss < TOLERANCE
    assert apart.parameters < TOLERANCE
    assert apart.evaluation < TOLERANCE
    assert apart.saved == 0


@pytest.mark.parametrize(("name", "job"), jobs())
def test_tokens_are_counted_once(name: str, job: Job, launched: Launched) -> None:
    ranks = found(launched(name), job)
    own = ranks[0]["own_tokens"] + (0 if name == "tensor" else ranks[1]["own_tokens"])
    assert sum(ranks[0]["supervised_tokens"]) * job.accumulation == pytest.approx(own)


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if CONFIGURATIONS[name].resumes])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, launched: Launched) -> None:
    if not CONFIGURATIONS[name].is_installed:
        pytest.skip(f"{CONFIGURATIONS[name].needs} is installed by scripts/test_launch.sh")
    resumed, whole = (torch.load(launched(name) / f"{job}-rank0.pt") for job in ("resumed", "adamw"))
    assert resumed["losses"] == whole["losses"]
    assert all(torch.equal(resumed["parameters"][key], value) for key, value in whole["parameters"].items())


@pytest.mark.parametrize(("name", "job"), jobs(faulty=True))
def test_a_wrong_normalization_is_seen(name: str, job: Job, launched: Launched) -> None:
    """A rank's tokens are dropped from the count, or every rank divides by its own."""
    assert differences(name, job, launched(name)).parameters > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["ddp", "two_nodes"])
def test_a_rank_that_dies_ends_the_others_with_its_error(name: str, tmp_path: Path) -> None:
    ended = launch_jobs(name, [{"name": "dies", "fault": "die"}], tmp_path)
    assert ended.code != 0
    assert "RuntimeError: rank 1 has lost its device" in ended.output
    assert "rank 0: dies is done" not in ended.output
    assert ended.at - (tmp_path / "dies" / "died").stat().st_mtime < 60, "seconds until the last process has ended"


def test_the_largest_of_differences() -> None:
    assert Differences.largest([Differences(1, 0, 5, 0), Differences(0, 3, 4, 0)]) == Differences(1, 3, 5, 0)
