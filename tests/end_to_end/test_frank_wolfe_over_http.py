"""Frank-Wolfe as a user meets it: a region in the study's JSON, a real server, a worker that only returns values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blackbox_client import Worker

from blackbox.space import Space
from tests.benchmarks.bench_frank_wolfe import Job, descent, matching, matrix_completion, sparse_logistic_regression
from tests.end_to_end.service import Service

EVALUATIONS = 500


def searched(server: Service, job: Job, method: str, options: Mapping[str, Any]) -> tuple[list[float], float]:
    """The values that a worker told, in order, and the value of the point that is recommended in the end."""
    region = Space.from_json(dict(job.space)).region
    assert region is not None
    study = server.client().create_study(
        start="skip",
        name=f"{job.name}, {method}",
        space=dict(job.space),
        algorithm={"name": method, "options": dict(options)},
        budget=EVALUATIONS,
        seed=1,
    )
    values: list[float] = []

    def objective(params: dict[str, np.ndarray]) -> float:
        x = np.asarray(params["x"], dtype=np.float64)
        assert region.violation(x) < 1e-6
        values.append(job.value(x))
        return values[-1]

    summary = Worker(study, objective, handle_signals=False).run()
    assert (summary.applied, summary.ended) == (EVALUATIONS, "study")
    assert study.best().value == min(values)
    recommended = np.array(study.best(view="recommended").params["x"])
    assert region.contains(recommended)
    return values, job.value(recommended)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options", "share"),
    [
        (sparse_logistic_regression, {"step_rule": "search"}, 0.8),
        (matrix_completion, {"step_rule": "monotone"}, 0.6),
        (matching, {"certify_every": 20, "certify_pairs": 20}, 0.4),
    ],
    ids=["logistic", "completion", "matching"],
)
def test_three_jobs_in_regions_beside_projected_descent(
    server: Service, make: Callable[[], Job], options: dict[str, object], share: float
) -> None:
    """Both get the same number of values; descent also the best of five rates, tried in process on another seed."""
    job = make()
    values, reached = searched(server, job, "zo_frank_wolfe", options)
    assert min(values) < share * values[0]
    assert reached < share * values[0]
    tuned, times = descent(replace(job, budget=EVALUATIONS))
    values_beside, reached_beside = searched(server, job, "zo_sgd", tuned)
    assert reached_beside < values_beside[0]
    print(
        f"{job.name}, lowest value {job.floor:.4f}: zo_frank_wolfe {values[0]:.4f} -> best {min(values):.4f}, "
        f"recommended {reached:.4f}; zo_sgd, {times:g} times its default rate, {values_beside[0]:.4f} -> best "
        f"{min(values_beside):.4f}, recommended {reached_beside:.4f}"
    )
