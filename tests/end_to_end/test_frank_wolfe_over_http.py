"""Frank-Wolfe as a user meets it: a region in the study's JSON, a real server, a worker that only returns values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from blackbox_client import Worker

from blackbox.space import Space
from tests.benchmarks.bench_frank_wolfe import Job, matching, matrix_completion, sparse_logistic_regression
from tests.end_to_end.service import Service


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options", "share"),
    [
        (sparse_logistic_regression, {}, 0.8),
        (matrix_completion, {"step_rule": "monotone"}, 0.6),
        (matching, {"certify_every": 20, "certify_pairs": 20}, 0.4),
    ],
    ids=["logistic", "completion", "matching"],
)
def test_three_jobs_in_regions(
    server: Service, make: Callable[[], Job], options: dict[str, object], share: float
) -> None:
    job = make()
    space = Space.from_json(dict(job.space))
    region = space.region
    assert region is not None
    study = server.client().create_study(
        name=job.name,
        space=dict(job.space),
        algorithm={"name": "zo_frank_wolfe", "options": options},
        budget=500,
        seed=1,
    )
    values: list[float] = []

    def objective(params: dict[str, np.ndarray]) -> float:
        x = np.asarray(params["x"], dtype=np.float64)
        assert region.violation(x) < 1e-6
        values.append(job.value(x))
        return values[-1]

    summary = Worker(study, objective, handle_signals=False).run()
    assert (summary.applied, summary.ended) == (500, "study")
    assert study.best().value == min(values)
    assert region.contains(np.array(study.best(view="recommended").params["x"]))
    assert min(values) < share * values[0]
    print(f"{job.name}: {values[0]:.4f} -> {min(values):.4f} of {job.floor:.4f}")
