"""A study of trials: ask, tell, advance. Pure logic over a store.

Every operation is a generator of *effects* (`study.effects`), so that one writer can commit many of them together. Time
is an argument; there is no clock here.

How a step closes: `advance` reads the results after the last closed step, tells the algorithm every complete batch (in
memory), and swaps the study's row once from step t to t + k together with the step records. The swap fails if the row
has moved on (step, epoch, upto_seq): the loser reads again. Nothing depends on who advances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from blackbox.algorithm import Algorithm
from blackbox.errors import AlgorithmChanged, StudyNotFound
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import NOTHING_PENDING
from blackbox.study import history, ledger, log
from blackbox.study.answers import (
    AskAnswer,
    AskRequest,
    Grant,
    PointsMissing,
    Reused,
    Settled,
    StepsClosed,
    StepUnknown,
    TellAnswer,
)
from blackbox.study.closing import Closer
from blackbox.study.effects import Steps, compute, read, write
from blackbox.study.evaluators import CircuitBreaker
from blackbox.study.granting import Granter
from blackbox.study.known import Known
from blackbox.study.leases import Lease, LeaseChanged
from blackbox.study.leasing import LeasedStudy
from blackbox.study.open_step import OpenStep, PreparedPoint, position_of
from blackbox.study.rows import ACTIVE, FAILED, PAUSED, StudyHead, StudyRow, Tx
from blackbox.study.settling import Report, Settlement

T = TypeVar("T")


class TrialStudy(LeasedStudy):
    """A study whose points are trials: their evaluators ask and tell."""

    def __init__(self, head: StudyHead, slicer: Slicer = WHOLE) -> None:
        super().__init__(head, slicer)
        self._known = Known(self.space.dim)
        self._granter = Granter(self, self._known, self._pace)
        self._closer = Closer(self, self._known, self._pace)
        self._asking = 0
        """Number of lanes requested by the asks in progress."""

    def due(self) -> bool:
        """Whether enough results are waiting for a step to close. Cheap: no effects, uses what was last seen."""
        return not self.stuck and (self._row is None or self._closer.due(self._row))

    def short(self) -> int:
        """Results that the open step needs beyond those waiting or leased. Cheap: uses what was last seen."""
        row, cached = self._row, self._cached
        if row is None or cached is None or (cached.epoch, cached.step) != (row.epoch, row.step):
            return 0
        return max(0, self.algorithm(row).need(cached.state) - row.waiting - row.leased)

    def resume(self, *, now: float) -> Steps[StudyRow]:
        """As `BaseStudy.resume`. Workers that were backed off may ask again."""
        self._granter.breaker = CircuitBreaker()
        return super().resume(now=now)

    # Ask --------------------------------------------------------------------------------------------------------------

    def ask(
        self,
        *,
        now: float,
        worker: str = "anonymous",
        count: int = 1,
        lease_seconds: float | None = None,
        key: str | None = None,
        resume: bool = False,
    ) -> Steps[AskAnswer]:
        """Lease up to `count` trials.

        Parameters
        ----------
        now : seconds since the epoch.
        lease_seconds : duration of the leases. None: the study's default.
        key : an idempotency key. Asking again with it returns those of its leases that are still live.
        resume : grant the worker its own live leases first.

        Raises
        ------
        AlgorithmChanged
            If this release cannot compute the study's state.
        """
        request = AskRequest(worker, count, lease_seconds, key, resume)
        held: tuple[Lease, ...] = ()
        n_reused = 0
        self._asking += count
        try:
            while True:
                yield from self._ready_for(request)
                work = partial(self._grant_locked, request=request, now=now, n_reused=n_reused)
                answer = yield from self._written(work)
                if isinstance(answer, AskAnswer):
                    answer = self._granted(answer)
                    return replace(answer, leases=(*held, *answer.leases), requested=count) if held else answer
                if isinstance(answer, Reused):
                    held += self._granted(answer.granted).leases
                    n_reused += answer.n_reused
                    yield from self.advance(now=now)
                    if len(held) >= count:
                        return replace(answer.granted, leases=held, requested=count, reason=None, retry_after=None)
                    request = replace(request, count=count - len(held), resume=False, more=bool(held))
                elif isinstance(answer, PointsMissing):
                    yield from self._prepare(answer)
                elif isinstance(answer, StepUnknown):
                    yield from self.row()
                else:
                    row, state = yield from self._current()
                    yield from self._close(row, state, "stalled", now)
        finally:
            self._asking -= count

    def _grant_locked(self, tx: Tx, request: AskRequest, now: float, n_reused: int) -> Grant:
        return self._grant(tx, ledger.locked(tx, self.id), request, now, n_reused)

    def _grant(self, tx: Tx, row: StudyRow, request: AskRequest, now: float, n_reused: int = 0) -> Grant:
        """Grant one ask inside a transaction; see `Granter.grant`."""
        return self._granter.grant(tx, row, request, now, n_reused)

    def _granted(self, answer: AskAnswer) -> AskAnswer:
        """Update the caches after an ask was committed."""
        self._row = answer.row
        step = self._known.step_of(answer.row)
        chosen = {lease.trial.step for lease in answer.leases if lease.trial.lane >= 0}
        if step is not None and step.state.step in chosen:
            step.blobs_stored = True
        return answer

    def _ready_for(self, request: AskRequest) -> Steps[None]:
        """Compute the points that an ask will probably need: saves a transaction that only finds them missing."""
        row = self._row or (yield from self.row())
        if row.state != ACTIVE:
            return  # nothing will be granted, so the state is not needed
        yield from self._granter.repeats.catch_up(row)
        state = yield from self._state_at(row, row.step)
        step = self._known.step_of(row) or OpenStep(position_of(row), self.algorithm(row), state)
        self._known.committed = step
        if self.kind == "group" and not self.traits.uses_pending and not row.queued:
            wanted = [lane for lane in range(row.lanes, row.lanes + request.count) if lane not in step.points]
            if wanted and not self._pace.may_ask(len(wanted)):
                yield from self._prepare(PointsMissing(step, wanted, NOTHING_PENDING, row.asks))

    def _prepare(self, missing: PointsMissing) -> Steps[None]:
        """Compute the points of some lanes into their step."""
        step = missing.open_step
        # Points for all asks in progress, or each would find that the one before it took what there was.
        lanes = step.lanes_to_compute(missing.lanes, self._asking)
        if not lanes:
            return  # another ask has computed them meanwhile
        first = not step.points

        def work() -> tuple[list[PreparedPoint], Sequence[tuple[str, int, bytes]]]:
            return step.compute(lanes, missing.pending), step.vectors() if first else step.blobs

        took = partial(self._pace.asked, n_lanes=len(lanes))
        points, blobs = yield from compute(work, self._pace.ask_seconds(len(lanes)), took)
        step.blobs = blobs
        if self.traits.uses_pending:
            # A new object: a transaction in another thread may be granting from the old one.
            step = replace(step, points={}, asks=missing.asks)
            self._known.replace(missing.open_step, step)
        step.points.update(zip(lanes, points, strict=True))

    # Tell -------------------------------------------------------------------------------------------------------------

    def tell(
        self, reports: Sequence[Report], *, now: float, worker: str | None = None, ask: AskRequest | None = None
    ) -> Steps[TellAnswer]:
        """Apply results. Reports succeed or fail one by one; see `Outcome`. Durable when it returns.

        Parameters
        ----------
        now : seconds since the epoch.
        worker : who tells; None: unknown.
        ask : an ask to grant in the same transaction, if no step has to close before.

        Notes
        -----
        If this release cannot compute the study's state, results are stored all the same: they wait in the log.
        """
        numbers = [report.trial for report in reports if report.trial is not None]
        if ask is not None:
            count = ask.count
            self._asking += count
            try:
                yield from self._ready_for(ask)
            except AlgorithmChanged:
                ask = None  # the results must be stored all the same
            finally:
                self._asking -= count

        def work(tx: Tx, remember: bool = True) -> Settled:
            leased = self._known.take_leases(numbers) if remember else {}
            return self._settle(tx, reports, numbers, leased, ask, worker, now)

        try:
            settled = yield from self._written(work)
        except LeaseChanged:
            settled = yield from self._written(partial(work, remember=False))
        self._row = settled.row
        if settled.closed is not None:
            self._moved(settled.closed)
        elif settled.due is not None:
            self._known.keep_results(settled.row, settled.due)
        if settled.asked is not None:
            self._granted(settled.asked)
        if settled.seconds and self.spec.lease.default_seconds == "auto":
            self._granter.durations.learn(settled.seconds)
        if worker is not None:
            reason = self._granter.breaker.learn(worker, settled.outcomes, now)
            if reason is not None:
                yield from self._end(PAUSED, reason, now)
        n_closed = 0 if settled.closed is None else settled.closed.n_steps
        return TellAnswer(settled.outcomes, self._row or settled.row, settled.asked, n_closed)

    def _settle(
        self,
        tx: Tx,
        reports: Sequence[Report],
        numbers: Sequence[int],
        leased: Mapping[int, Lease],
        ask: AskRequest | None,
        worker: str | None,
        now: float,
    ) -> Settled:
        """Settle reports inside a transaction, close a step if that is fast, and grant the ask."""
        row = ledger.locked(tx, self.id)
        results, before = self._known.results(row), row.seq
        lacks = None if self.stored.obstacle else self.algorithm(row).lacks
        rules = (self.spec, self.head.secret, self.kind)
        oldest = partial(self._closer.oldest, row)
        settlement = Settlement(tx, row, *rules, numbers, leased, lacks, oldest, worker=worker, now=now)
        outcomes = tuple(settlement.settle(report) for report in reports)
        settlement.write(look_for_noise=self.resolved.hosted is None)
        row.asks += 1
        new = settlement.logged()
        results = None if results is None or new is None else [*results, *new]
        due, closed, granted = None, None, None
        if self._closer.due(row):
            # Read here what `advance` needs, which saves it a transaction.
            due = results = results or history.results(tx, self.id, row.upto_seq, history.MAX_SEQ)
        self._known.remember_results(row, results)
        if due is not None:
            closed = self._closer.close_at_once(tx, row, due, now)
        self._granter.repeats.feed(row, before, new, 0 if closed is None else closed.n_steps)
        if ask is not None and (due is None or closed is not None):
            granted = self._grant(tx, row, ask, now)
        if isinstance(granted, Reused):
            granted = granted.granted if granted.granted.leases else None
        asked = granted if isinstance(granted, AskAnswer) else None
        if asked is None:
            tx.put_study(row)
        return Settled(outcomes, row, settlement.seconds(outcomes), due, closed, asked)

    # Advance ----------------------------------------------------------------------------------------------------------

    def advance(self, *, now: float) -> Steps[int]:
        """Close every step that can be closed and return how many; 0 if this release cannot compute the state.

        A numerical error inside the algorithm marks the study FAILED and keeps the old state: nothing is lost, `resume`
        tells the same batch again.
        """
        total = 0
        while True:
            try:
                row, state = yield from self._current()
            except AlgorithmChanged:
                return total
            algorithm = self.algorithm(row)
            if row.state == FAILED or row.waiting == 0 or row.waiting < algorithm.need(state):
                return total
            seen: StudyRow | None = row
            left = results = self._known.take_results(row)
            if results is None:
                seen, results = yield from read(partial(history.waiting, study=self.id, after_seq=row.upto_seq))
            if seen is None:
                raise StudyNotFound(f"study {self.id} was deleted")
            if position_of(seen) != position_of(row):
                self._row = seen
                continue
            try:
                closed = yield from compute(
                    partial(log.advance, algorithm, state, results, self.maximize),
                    self._pace.tell_seconds,
                    self._pace.told,
                )
            except Exception as error:
                yield from self._fail(error, now)
                return total
            self._pace.closed(len(closed))
            if not closed and left is not None and row.waiting > len(left):
                continue  # more was told since
            if not closed:
                self._row = seen
                return total
            if (yield from self._swap(row, algorithm, closed, now)):
                total += len(closed)
            else:
                yield from self.row()

    def _swap(
        self, seen: StudyRow, algorithm: Algorithm[Any, Any], closed: Sequence[log.ClosedStep], now: float
    ) -> Steps[bool]:
        """Swap the row from step t to t + k, if it is still at t; returns whether it was."""

        def work(tx: Tx) -> StepsClosed | None:
            row = ledger.locked(tx, self.id)
            if position_of(row) != position_of(seen):
                return None
            if row.seq != seen.seq and not self._closer.stand(tx, row, closed[-1]):
                return None
            moved = self._closer.close(tx, row, algorithm, closed, now)
            tx.put_study(row)
            return moved

        moved = yield from self._written(work)
        if moved is None:
            return False
        self._row = moved.row
        self._moved(moved)
        return True

    def _close(self, row: StudyRow, state: Any, why: str, now: float) -> Steps[bool]:
        """Close the open step with the results so far; False if the study has moved on meanwhile."""
        algorithm = self.algorithm(row)
        told = yield from read(lambda tx: history.results(tx, self.id, row.upto_seq, row.seq))
        results = log.batch(algorithm, state, told, self.maximize)
        upto = told[-1][0].seq if told else row.upto_seq
        closed = log.close(algorithm, state, results, upto or 0, len(told), why)
        return (yield from self._swap(row, algorithm, [closed], now))

    def _written(self, work: Callable[[Tx], T]) -> Steps[T]:
        """Run a work that may lease, tell or open a step; if it is rolled back, forget all it remembered."""

        def guarded(tx: Tx) -> T:
            try:
                return work(tx)
            except BaseException:
                self._known.forget()
                raise

        try:
            return (yield from write(guarded, long=self.large))
        except BaseException:  # also if the caller is gone and would not learn that the commit failed
            self._known.forget()
            raise

    def _moved(self, moved: StepsClosed) -> None:
        """Update the caches after closed steps were committed."""
        opened = moved.open_step
        self._known.committed = opened
        self._keep(opened.epoch, opened.state.step, opened.state)
        if moved.snapshot:
            self._pace.snapshot_stored()
