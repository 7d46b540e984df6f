"""Small helpers to drive a study in tests: time is a number that the test moves."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from blackbox.study.answers import AskAnswer
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import Compute, Effect, Steps, at_once, drive, in_place, perform
from blackbox.study.leases import Lease
from blackbox.study.rows import Store
from blackbox.study.settling import Outcome, Report

T = TypeVar("T")


def sphere(x: Any) -> float:
    return float(np.square(np.asarray(x, dtype=float)).sum())


class Driver:
    """A study, its store and a clock."""

    measures = False
    """Whether the driver reports, as a service with a clock would, that every computation is fast: then steps close
    in the transaction of the tell."""

    def __init__(self, store: Store, study: Study, now: float = 1000.0) -> None:
        self.store, self.study, self.now = store, study, now

    def ask(self, worker: str = "w", count: int = 1, advance: bool = True, **more: Any) -> AskAnswer:
        if advance and self.study.due():
            self.do(self.study.advance(now=self.now))
        return self.do(self.study.ask(now=self.now, worker=worker, count=count, **more))

    def lease(self, worker: str = "w", **more: Any) -> Lease:
        asked = self.ask(worker, **more)
        assert asked.leases, asked.reason
        return asked.leases[0]

    def tell(self, lease: Lease, value: float | None = None, *, worker: str | None = "w", **more: Any) -> Outcome:
        report = Report(lease.trial.number, lease.token, value=value, **more)
        return self.do(self.study.tell([report], now=self.now, worker=worker)).outcomes[0]

    def do(self, steps: Any) -> Any:
        return measured(self.store, steps) if self.measures else perform(self.store, steps)

    def row(self) -> Any:
        return self.do(self.study.row())

    def trial(self, number: int) -> Any:
        return self.store.read(lambda tx: tx.trial(self.study.id, number))

    def point(self, lease: Lease) -> Any:
        return self.study.vector(lease.point, self.do(self.study.points([lease.trial.number]))[lease.trial.number][1])

    def evaluate(self, n: int, objective: Callable[[Any], float] = sphere, worker: str = "w") -> None:
        """Ask and tell n results, one at a time."""
        for _ in range(n):
            self.now += 1.0
            lease = self.lease(worker)
            self.tell(lease, objective(self.point(lease)), worker=worker)
        self.do(self.study.advance(now=self.now))

    def reopened(self) -> "Driver":
        """The same study seen by another process: nothing cached."""
        return Driver(self.store, self.do(Study.open(self.study.id)), self.now)

    def replayed_equal(self) -> int:
        """Number of steps that replay to the digest in the log; fails at the first that does not."""
        n = 0
        for record, digest in self.do(self.study.replay()):
            assert digest == record.digest, f"step {record.step}"
            n += 1
        return n

    def check_log(self) -> None:
        """The log is gap-free, every seq is used once, and the counters agree with the rows."""
        row = self.row()

        def read(tx: Any) -> Any:
            return (
                [t.seq for t in tx.told(self.study.id, 0, 2**62)]
                + [s.seq for s in tx.steps_logged(self.study.id, 0, 10**6)]
                + [e.seq for e in tx.events(self.study.id, 0, 10**6)]
                + [x.seq for x in tx.late(self.study.id, 0, 10**6)],
                tx.open_trials(self.study.id),
            )

        seqs, open_trials = self.store.read(read)
        assert sorted(seqs) == list(range(1, row.seq + 1))
        assert row.queued == sum(t.state == "QUEUED" for t in open_trials)
        assert row.leased == sum(t.state == "LEASED" for t in open_trials)


def measured(store: Store, steps: Steps[T]) -> T:
    """Drive an operation whose computations take next to no time."""
    answer = in_place(store)

    async def answer_and_say(effect: Effect) -> Any:
        value = await answer(effect)
        if isinstance(effect, Compute) and effect.took is not None:
            effect.took(1e-6)
        return value

    return at_once(drive(steps, answer_and_say))


def start(store: Store, algorithm: str = "cma_es", dim: int = 3, **spec: Any) -> Driver:
    """A new study of an unbounded vector; its start is not a trial, unless the spec says so."""
    raw: dict[str, Any] = {
        "name": "test",
        "start": "skip",
        "space": {"x": {"type": "vector", "dim": dim, "init": 1.0}},
        "algorithm": {"name": algorithm, "options": spec.pop("options", {})},
        **spec,
    }
    head, _ = perform(store, create("default", raw, 1000.0))
    return Driver(store, Study(head))
