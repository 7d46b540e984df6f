"""Observation statistics make the round trip: workers tell sums, all workers of the next step get the same mean."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from blackbox_client import Evaluation, Worker
from blackbox_client.models.bodies import Encoding

from tests.end_to_end.service import Service

N_STEPS = 6


@pytest.mark.parametrize(("method", "options"), [("ars", {"popsize": 6}), ("openai_es", {"popsize": 6})])
def test_all_workers_of_a_step_normalise_by_what_was_seen_before(
    server: Service, method: str, options: dict[str, Any]
) -> None:
    client = server.client()
    study = client.create_study(
        start="skip",
        name="statistics",
        space={"theta": {"type": "vector", "dim": 3, "init": 0.5}},
        algorithm={"name": method, "options": {**options, "observations": 2}},
        budget=6 * N_STEPS,
        noise="none",
    )
    seen: dict[int, list[tuple[dict[str, Any], list[float]]]] = defaultdict(list)

    def objective(params: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
        trial = evaluation.trial
        rows = [float(trial.number), 10.0 + trial.number % 3]
        seen[trial.step or 0].append((trial.payload["observations"], rows))
        sums = {"count": 1, "total": rows, "squares": [x * x for x in rows]}
        return {"value": float(sum(x * x for x in params["theta"])), "sums": sums}

    def work(encoding: Encoding, n_trials: int) -> None:
        own = server.client().study(study.id)
        Worker(own, objective, encoding=encoding, with_trial=True, handle_signals=False, max_trials=n_trials).run()

    for encoding, n_trials in (("seed", 8), ("values", 9), ("seed", 8), ("values", 100)):  # steps of 6 are shared
        work(encoding, n_trials)
    assert sorted(seen) == list(range(N_STEPS))
    for step, rows in seen.items():
        assert all(payload == rows[0][0] for payload, _ in rows), f"workers of step {step} normalise differently"
    assert seen[0][0][0] == {"count": 0.0, "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    assert [trial.raw["extra"]["sums"]["count"] for trial in study.trials()] == [1] * 6 * N_STEPS
    for step in range(1, N_STEPS):
        before = [row for earlier in range(step) for _, row in seen[earlier]]
        assert seen[step][0][0]["count"] == len(before) == 6 * step
        for j in range(2):
            assert seen[step][0][0]["mean"][j] == pytest.approx(sum(row[j] for row in before) / len(before))
    (proposed,) = study.best(view="proposed").items
    assert proposed.payload["observations"]["count"] == 6 * N_STEPS
    (recommended,) = study.best(view="recommended").items
    assert recommended.payload == study.trial(recommended.id).payload, "a point is deployed as it was evaluated"
