"""`blackbox worker --ray`: a fleet on a cluster that works for a service, and leaves as it should."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blackbox_client import StudyHandle, Trial

from blackbox.backends import Unbuilt
from blackbox.cli import fleet
from tests.end_to_end.service import Command, Service, blackbox, until

JOB = """
import os, pathlib, time

import numpy as np

HERE = pathlib.Path(__file__).parent

def evaluate(params):
    (HERE / f"started-{time.monotonic_ns()}-{os.getpid()}").touch()
    time.sleep(0.2)
    return float((np.asarray(params["theta"]) ** 2).mean())
"""
LINE = {"x": {"type": "float", "low": -1, "high": 1}}
SPACE = {"theta": {"type": "vector", "dim": 2000, "init": 1.0}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ray_job.py").write_text(JOB)
    return tmp_path


def create(server: Service, budget: int) -> StudyHandle:
    return server.client().create_study(
        start="skip",
        name=f"fleet of {budget}",
        space=SPACE,
        budget=budget,
        algorithm={"name": "openai_es", "options": {"popsize": 8}},
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fleet_evaluates_recipes_on_its_actors_and_drains_on_sigterm(server: Service, folder: Path) -> None:
    study = create(server, 10_000)
    job = ("worker", study.id, "ray_job:evaluate", "--url", server.url, "--ray", "local", "--concurrency", "2")

    def started() -> list[str]:
        return [path.name for path in folder.glob("started-*")]

    with Command(folder, *job, "--encoding", "seed", script=True) as worker:
        until(lambda: len({name.rpartition("-")[2] for name in started()}) == 2, "evaluations on both actors", worker)
        n = len(started())
        until(lambda: len(started()) > n + 8, "a step", worker)
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0, worker.err
    (counts,) = re.findall(r"(\d+) applied, (\d+) late, 0 failed, .*ended: stopped", worker.out)
    n_applied, n_late = map(int, counts)
    assert n_applied + n_late == len(started())
    progress = study.refresh()
    assert (progress.state, progress.budget.used, progress.budget.late) == ("ACTIVE", n_applied + n_late, n_late)
    assert progress.budget.leased == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fleet_grows_and_shrinks_with_its_cluster(server: Service, tmp_path: Path) -> None:
    study = server.client().create_study(
        start="skip", name="grows", space=LINE, algorithm="random_search", budget=10_000
    )
    worked = tmp_path / "worked"
    worked.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "tests.end_to_end.growing_fleet"]
    command += [server.url, study.id, str(worked)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])
    assert told.returncode == 0, told.stderr[-3000:]
    found = json.loads(told.stdout.splitlines()[-1])
    print(found)
    assert found["capacities"] == [1, 2, 1]
    assert found["nodes"] == 2
    assert (found["failed"], found["released"], found["ended"]) == (0, 0, "study")  # the other actor took it over
    assert found["applied"] + found["late"] == found["evaluated"]
    progress = study.refresh()
    assert (progress.budget.leased, progress.budget.used) == (0, found["evaluated"])


def test_what_is_wrong_is_said_before_a_cluster_is_started(server: Service, folder: Path) -> None:
    study = create(server, 8)
    dead = blackbox(folder, "worker", study.id, "ray_job:evaluate", "--url", server.url, "--ray", "127.0.0.1:1")
    assert dead.ended() == 2
    assert "expected the head of a Ray cluster at 127.0.0.1:1" in dead.err
    none = blackbox(folder, "worker", "st_none", "ray_job:evaluate", "--url", server.url, "--ray", "local")
    assert none.ended() == 2
    assert "st_none" in none.err


def test_what_is_built_on_an_actor_is_the_trials_point(server: Service) -> None:
    study = create(server, 8)
    trial: Trial = study.ask(1, encoding="seed").trials[0]
    unbuilt = fleet.FleetStudy(study.client, study.id).arguments(trial)
    assert isinstance(unbuilt, Unbuilt)
    built: dict[str, Any] = unbuilt.source.build(unbuilt.recipe)
    assert list(built) == ["theta"]
    assert np.array_equal(built["theta"], study.arguments(trial)["theta"])


def test_leases_go_back_when_no_machine_is_left_and_fail_when_the_point_is_to_blame(server: Service) -> None:
    from blackbox.backends import WorkerLost

    study = create(server, 4)  # an attempt that fails is an evaluation, too
    calls = threading.Lock()
    n_calls = 0

    def flaky(point: Any) -> float:
        nonlocal n_calls
        with calls:
            n_calls += 1
            if n_calls <= 2:
                raise WorkerLost("no actor could start within 0 s")
            if n_calls == 3:
                raise WorkerLost("6 actors died of this point", suspect=True)
        return float(n_calls)

    summary = fleet.work(study.client, study.id, flaky, name=None, concurrency=1, seed_encoded=False)
    assert (summary.applied, summary.released, summary.requeued) == (3, 2, 1)
