"""Parts of large updates as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from blackbox.backends.ray_cluster.session import Session


class RaySlices:
    """An executor for `recipes.slices.Slicer`: parts of a large update as tasks, spread over the cluster's nodes.

    A part that the cluster loses is computed here: an update never fails for lack of a machine.

    Parameters
    ----------
    address : see `Session`.
    num_cpus : cores that each task requests. 0 lets tasks run beside actors that hold every core.
    """

    def __init__(self, address: str | None = None, *, num_cpus: float = 0) -> None:
        self._session = Session(address)
        self._ray = self._session.ray
        self._task = self._ray.remote(_computed).options(num_cpus=num_cpus, scheduling_strategy="SPREAD", max_retries=2)

    @property
    def n_workers(self) -> int:
        """Number of cores of the cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        """The results of `function` for each item, in order; here if the cluster has been shut down."""
        if not self._ray.is_initialized():  # Ray would start a cluster by itself
            yield from map(function, items)
            return
        sent = self._ray.put(function)
        parts = [(item, self._task.remote(sent, item)) for item in items]
        for item, reference in parts:
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayError:
                result = function(item)
            yield result

    def close(self) -> None:
        """Leave the cluster."""
        self._session.close()


def _computed(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
