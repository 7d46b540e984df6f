"""`blackbox worker --ray`: one holder of leases, and actors on a Ray cluster that evaluate for it.

This process alone talks to the service: it asks, renews, tells and drains like any worker, with one lane per actor, as
many as the cluster's nodes hold at the time. The cluster gets points and gives values, so its nodes need no way to the
service and never see its key; a lost node costs nobody an attempt, because the lease is here and the point goes to the
next actor. If this process dies, its leases lapse and other workers take them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from blackbox_client import Client, StudyHandle, Worker
from blackbox_client.models import Result, Trial
from blackbox_client.recipes import Blob, rebuild
from blackbox_client.worker import Summary
from numpy.typing import NDArray

from blackbox.backends import Unbuilt, WorkerLost


@dataclass(frozen=True, slots=True, eq=False)
class Ingredients:
    """The vectors that all seed-encoded trials of a step share: sent to each node once, used on its actors."""

    vector: str
    base: Blob | None
    factors: dict[str, Blob]

    def build(self, trial: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
        """The parameters of a trial: its vector (d,), by name."""
        return {self.vector: rebuild(trial, self.base, factors=self.factors)}


class FleetStudy(StudyHandle):
    """A study whose seed-encoded candidates are rebuilt on the actors that evaluate them."""

    def arguments(self, trial: Trial) -> Any:
        """The parameters of a trial, or what an actor builds them from."""
        candidate = trial.candidate
        if candidate is None:
            return super().arguments(trial)
        base, factors = self.ingredients(candidate)
        return Unbuilt(
            candidate.raw,
            " ".join([candidate.base_sha256, *sorted(factors)]),
            Ingredients(self.name_of_vector(), base, factors),
        )


def work(
    client: Client,
    study: str,
    fleet: Callable[[Any], Any],
    *,
    name: str | None,
    concurrency: int | Callable[[], int],
    seed_encoded: bool,
) -> Summary:
    """Evaluate a study on a fleet (`ray_cluster.Fleet`) until it ends, with as many lanes as `concurrency` says."""

    def evaluate(point: Any) -> Any:
        try:
            return fleet(point)
        except WorkerLost as lost:
            if lost.suspect:
                raise
            return Result(status="released")  # no machine for it now; perhaps another worker has one

    return Worker(
        FleetStudy(client, study),
        evaluate,
        name=name,
        concurrency=concurrency,
        encoding="seed" if seed_encoded else "values",
        executor="thread",
    ).run()
