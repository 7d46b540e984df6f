"""Large candidates travel as recipes: a few hundred bytes, from which the worker builds the engine's very bits."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import Any

import httpx
import numpy as np
import pytest
from blackbox_client import Evaluation, StudyHandle, Trial, Worker, completed, released
from blackbox_server.store import SqlStore

from blackbox.recipes import digest
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from tests.end_to_end.service import Service

DIM = 20_000
POPSIZE = 8
N_STEPS = 5
N_GENOME_STEPS = 30


class Listening(httpx.HTTPTransport):
    """Notes what is asked for; passes everything on to the real server."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        return super().handle_request(request)


def test_a_worker_rebuilds_the_engines_vectors_from_a_few_hundred_bytes(server: Service) -> None:
    listening = Listening()
    study = server.client(transport=listening).create_study(
        start="skip",
        noise="none",
        name="large",
        space={"theta": {"type": "vector", "dim": DIM, "init": 0.5}},
        algorithm={"name": "openai_es", "options": {"popsize": POPSIZE, "sigma": 0.05, "learning_rate": 0.05}},
        budget=POPSIZE * N_STEPS,
    )
    seen: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}
    sizes: list[int] = []

    def objective(params: dict[str, Any], evaluation: Evaluation) -> float:
        theta = params["theta"]
        assert theta.dtype == np.float32
        trial = evaluation.trial
        seen[trial.number] = (trial.step or 0, theta.copy())
        candidate = {name: value for name, value in trial.raw.items() if name != "lease"}
        sizes.append(len(json.dumps(candidate, separators=(",", ":"))))
        return float(np.square(theta.astype(np.float64)).sum())

    began = time.monotonic()
    summary = Worker(study, objective, encoding="seed", with_trial=True, handle_signals=False).run()
    seconds = time.monotonic() - began
    assert (summary.applied, summary.ended) == (POPSIZE * N_STEPS, "study")
    fetched = [path for path in listening.paths if "/bases/" in path]
    assert len(fetched) == len(set(fetched)) == N_STEPS, "each base is fetched once"
    assert max(sizes) < 640

    server.terminate()
    with closing(SqlStore(server.database)) as store:
        engine = perform(store, Study.open(study.id))
        for step in range(N_STEPS):
            _, state = perform(store, engine.state(step))
            numbers = [number for number, (asked_at, _) in seen.items() if asked_at == step]
            assert len(numbers) == POPSIZE
            for number, (point, _) in perform(store, engine.points(numbers)).items():
                assert point.vector is None
                built = engine.vector(point, {state.digest: state.theta.astype("<f4").tobytes()})
                assert built.astype(np.float32).tobytes() == seen[number][1].tobytes()
    print(f"\n{DIM} dimensions: at most {max(sizes)} bytes a candidate, {len(seen)} in {seconds:.2f} s")


@pytest.mark.parametrize("method", ["openai_es", "ars", "pgpe"])
def test_the_same_candidate_as_numbers_is_the_same_vector(server: Service, method: str) -> None:
    """Of pgpe a candidate is made of two vectors: the centre and a factor of the noise."""
    listening = Listening()
    study = server.client(transport=listening).create_study(
        start="skip",
        noise="none",
        name="both",
        space={"theta": {"type": "vector", "dim": 1000, "init": 0.5}},
        algorithm=method,
    )
    for step in range(3):
        key = f"k{step}"
        asked = study.ask(40, idempotency_key=key, encoding="seed")
        as_numbers = study.ask(40, idempotency_key=key, encoding="values")
        for seeded, plain in zip(asked.trials, as_numbers.trials, strict=True):
            assert (seeded.id, seeded.step) == (plain.id, step)
            assert study.arguments(seeded)["theta"].tolist() == plain.params["theta"]
        results = [completed(trial, sum(x * x for x in trial.params["theta"])) for trial in as_numbers.trials]
        assert {outcome.outcome for outcome in study.tell(results).outcomes} == {"applied"}
    fetched = [path for path in listening.paths if "/bases/" in path]
    assert len(fetched) == len(set(fetched)) == 3 * (2 if method == "pgpe" else 1)


@pytest.mark.slow
def test_genomes_travel_over_new_bases_and_a_late_worker_is_still_served(server: Service) -> None:
    """deep_ga: a base serves several steps and is fetched once, also by a worker whose lease is one step old."""
    listening = Listening()
    study = server.client(transport=listening).create_study(
        start="skip",
        noise="none",
        name="genomes",
        space={"theta": {"type": "vector", "dim": DIM, "init": 0.5}},
        algorithm={"name": "deep_ga", "options": {"popsize": 6, "parents": 2, "rebase_terms": 3, "sigma": 0.001}},
    )
    seen: dict[int, tuple[int, int, np.ndarray[Any, Any]]] = {}
    n_late = 0

    def look(theirs: StudyHandle, trial: Trial) -> np.ndarray[Any, Any]:
        theta: np.ndarray[Any, Any] = theirs.arguments(trial)["theta"]
        assert trial.candidate is not None
        seen[trial.number] = (trial.step or 0, len(trial.candidate.ops), theta)
        return theta

    for _ in range(N_GENOME_STEPS):
        (held,) = study.ask(1, worker="late", encoding="seed").trials
        told = []
        for trial in study.ask(6, encoding="seed").trials:
            theta = look(study, trial)
            value = float(np.square(theta.astype(np.float64)).sum())
            told.append(completed(trial, value, behaviour=theta[:2], sums={"count": 1}))
        assert study.tell(told).applied == 6
        (newest,) = study.ask(1, worker="next", encoding="seed").trials
        assert held.candidate is not None
        assert newest.candidate is not None
        n_late += held.candidate.base_sha256 != newest.candidate.base_sha256
        with server.client() as another:  # it has nothing yet, and the base of its lease may not be the newest any more
            look(another.study(study.id), held)
        study.tell([released(held), released(newest)])
    steps = {step for step, _, _ in seen.values()}
    fetched = [path for path in listening.paths if "/bases/" in path]
    assert len(fetched) == len(set(fetched)), "a base is fetched once"
    assert 3 <= len(fetched) < N_GENOME_STEPS / 2, "a base serves several steps"
    assert n_late >= 3

    server.terminate()
    with closing(SqlStore(server.database)) as store:
        engine = perform(store, Study.open(study.id))
        bases = {step: perform(store, engine.state(step))[1] for step in sorted(steps)}
        for number, (point, _) in perform(store, engine.points(list(seen))).items():
            step, _, theta = seen[number]
            base = bases[step].base.astype("<f4")
            built = engine.vector(point, {digest(base): base.tobytes()})
            assert built.astype(np.float32).tobytes() == theta.tobytes()
        trial = store.read(lambda tx: tx.trial(study.id, 2))
        assert trial is not None
        extra = json.loads(trial.extra or "{}")
        assert (len(extra["behaviour"]), extra["sums"]) == (2, {"count": 1})
    print(f"\n{len(steps)} steps on {len(fetched)} bases, at most {max(ops for _, ops, _ in seen.values())} terms")


def test_trials_whose_vectors_are_gone_are_listed_as_recipes(server: Service) -> None:
    study = server.client().create_study(
        start="skip",
        noise="none",
        name="past",
        space={"theta": {"type": "vector", "dim": 5}},
        algorithm={"name": "openai_es", "options": {"popsize": 4}},
    )
    for step in range(4):
        study.tell([completed(trial, float(step + i)) for i, trial in enumerate(study.ask(4).trials)])
    listed = list(study.trials())
    assert len(listed) == 16
    past = listed[5]
    assert past.step == 1
    assert past.params == {}
    assert past.raw["recipe"]["ops"][0]["lane"] == 0
    assert study.trial(past.id).raw["recipe"] == past.raw["recipe"]
    assert len(listed[0].params["theta"]) == 5, "the base of the best one is kept"
