"""Metrics of the service for Prometheus. The values of labels come from fixed lists, never from clients."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class _Served:
    """Histogram of answered requests by route and status. Plain numbers: a request costs one dictionary look-up."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], list[float]] = {}

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request that took so many seconds."""
        row = self.rows.get((route, status))
        if row is None:
            row = self.rows[route, status] = [0.0] * (len(_SECONDS) + 2)
        row[bisect_left(_SECONDS, seconds)] += 1
        row[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """The histogram, as the registry wants it."""
        family = HistogramMetricFamily(
            "blackbox_request_seconds", "Time to the answer, waiting included", labels=["route", "status"]
        )
        for (route, status), row in sorted(self.rows.items()):
            sums = itertools.accumulate(row[:-1])
            names = [*map(str, _SECONDS), "+Inf"]
            family.add_metric([route, str(status)], list(zip(names, sums, strict=True)), sum_value=row[-1])
        yield family


class ServerTiming:
    """Seconds that a request spent in algorithms and in the store, for its header Server-Timing."""

    __slots__ = ("algo", "db")

    def __init__(self) -> None:
        self.algo = 0.0
        self.db = 0.0


timing: ContextVar[ServerTiming] = ContextVar("timing")


class Metrics:
    """The metrics of one server. Each has its own registry, so that one process can run several servers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._served = _Served()
        self.answered = self._served.count
        self.registry.register(self._served)
        self.leased = Counter("blackbox_trials_leased", "Leases given by ask", registry=self.registry)
        self._told = Counter("blackbox_results", "Told results by outcome", ["outcome"], registry=self.registry)
        self.steps = Counter("blackbox_steps", "Closed steps", registry=self.registry)
        self.advance_seconds = Histogram(
            "blackbox_advance_seconds", "Time to close steps", buckets=_SECONDS, registry=self.registry
        )
        self.open_studies = Gauge("blackbox_open_studies", "Studies kept open", registry=self.registry)
        self.waiting = Gauge("blackbox_waiting", "Held asks and reads of events", registry=self.registry)
        self._outcomes: dict[str, Counter] = {}

    def told(self, outcome: str, n: int) -> None:
        """Count told results. The counter of an outcome is looked up once, because that costs more than counting."""
        child = self._outcomes.get(outcome)
        if child is None:
            child = self._outcomes[outcome] = self._told.labels(outcome)
        child.inc(n)

    def text(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
