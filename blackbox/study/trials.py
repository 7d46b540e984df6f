"""A study: create, ask, tell, advance, replay, fork. Pure logic over a store.

Every operation is a generator of *effects*: it yields `Write(work)`, `Read(work)` or `Compute(work)`, gets the result
sent back, and returns its answer. `perform` drives it in this thread; the service drives the same generators from its
event loop, so that one writer can commit many of them together. Time is an argument; there is no clock here.

How a step closes: `advance` reads the results after the last closed step, tells the algorithm every batch that is
complete (in memory), and swaps the study's row once from step t to t + k together with the step records. The swap is
refused when the row has moved on (step, epoch, upto_seq): the loser reads again. Nothing depends on who advances.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from blackbox.algorithm import Algorithm
from blackbox.errors import NumericalError, StudyNotFound, StudySpecMismatch
from blackbox.records import NOTHING_PENDING, Pending
from blackbox.study import history, leases, log
from blackbox.study.editing import Editing, new_head
from blackbox.study.effects import Compute, Read, Steps, Write
from blackbox.study.evaluators import Breaker, Durations
from blackbox.study.leases import Lease, Outcome, Renewal, Report
from blackbox.study.open_step import PARAMS_STORED_UPTO, Place, Prepared, Turn, place_of
from blackbox.study.reading import SNAPSHOT_STEPS
from blackbox.study.rows import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    FAILED,
    PAUSED,
    PointRow,
    SnapshotRow,
    StepRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
)
from blackbox.study.spec import Resolved, StudySpec, differences, parse_spec, resolve, spec_hash

SNAPSHOT_SECONDS = 0.25
SECONDS_PER_COORDINATE = 1e-8
"""What a first step is expected to take: little at a thousand dimensions, too long for an event loop at a million."""
AT_ONCE_SECONDS = 0.002
"""Steps that take less than this are closed inside the transaction that brought their last result: one of their own
would cost more, and meanwhile every ask would find the step gone that it was made for."""
LEASES_KEPT, NUMBERS_KEPT = 4096, 2**18
"""Leased trials that an open study keeps in memory, the newest ones, and coordinates of their points."""
MEASURED_EVERY = 64
"""Times that steps are closed at once before they are computed outside again, and measured: a method may become slower
as it goes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer to an ask.

    Attributes
    ----------
    leases : what was granted.
    reason : why it is less than requested, or None: parallelism_cap, budget_exhausted, sequential_method,
        all_members_in_flight, worker_backed_off, paused, completed, cancelled, study_failed.
    retry_after : seconds after which asking again may help.
    """

    leases: tuple[Lease, ...]
    requested: int
    reason: str | None
    retry_after: float | None
    row: StudyRow


@dataclass(frozen=True, slots=True)
class Wish:
    """What an ask wants; see `Study.ask`."""

    worker: str = "anonymous"
    count: int = 1
    lease_seconds: float | None = None
    key: str | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """The answer to a tell: an outcome per report, the study's row after it, and what was asked along with it.

    `asked` is None when nothing was asked, or when a step has to close before something can be granted: ask again then.
    """

    outcomes: tuple[Outcome, ...]
    row: StudyRow
    asked: Asked | None = None
    n_closed: int = 0
    """Steps that this tell closed."""


@dataclass(frozen=True, slots=True)
class _Missing:
    """A grant needs points that were not computed yet. Nothing was changed."""

    turn: Turn
    lanes: Sequence[int]
    pending: Pending
    asks: int


@dataclass(frozen=True, slots=True)
class _Moved:
    """What a transaction did that closed steps."""

    row: StudyRow
    turn: Turn
    n_steps: int
    snapshot: bool


@dataclass(frozen=True, slots=True)
class _Heard:
    """The results in the log after the last closed step, with their points.

    Attributes
    ----------
    place : that of the study's row.
    seq : the row's: what was logged later is not here.
    """

    place: Place
    seq: int
    told: list[log.Told]


_STALE = object()
_STALLED = object()


def create(project: str, raw: Mapping[str, Any] | StudySpec, now: float) -> Steps[tuple[StudyHead, bool]]:
    """Create a study, or find the one of the same name and spec.

    Returns
    -------
    The head, and whether it was made by this call.

    Raises
    ------
    StudySpecMismatch
        When a study of this name has another spec; lists the fields.
    InvalidInput
        (and its subclasses) When the spec cannot be used.
    """
    spec = raw if isinstance(raw, StudySpec) else parse_spec(raw)
    wanted = spec_hash(spec)
    resolved, _ = resolve(spec)
    head = new_head(project, resolved, wanted, now)

    def work(tx: Tx) -> tuple[StudyHead, bool]:
        existing = tx.find(project, spec.name)
        if existing is None:
            row = StudyRow(head.id)
            tx.insert_study(head, row)
            leases.log_event(tx, row, "study.created", now, name=spec.name)
            tx.put_study(row)
            return head, True
        if existing.spec_hash == wanted:
            return existing, False
        old = Resolved.model_validate_json(existing.resolved).spec
        raise StudySpecMismatch(
            f'a study named "{spec.name}" exists ({existing.id}) with another spec',
            hint="choose another name, or send the same spec to get that study",
            errors=differences(old, spec),
        )

    made: tuple[StudyHead, bool] = yield Write(work)
    return made


class Study(Editing):
    """One study, opened. Keeps caches only: another instance, here or elsewhere, may work on the same study."""

    def __init__(self, head: StudyHead) -> None:
        super().__init__(head)
        self._turn: Turn | None = None
        self._next: Turn | None = None
        """The step that a transaction of ours opened. The works after it in that transaction see it before it is
        committed; nobody else sees the row it goes with."""
        self._window: tuple[Place, list[log.Told]] | None = None
        """Committed results for `advance`, and the place after which they were told."""
        self._leased: OrderedDict[int, Lease] = OrderedDict()
        """Trials that transactions of ours have leased, with their points: a tell need not read them, and writes them
        on the condition that they are still leased so."""
        self._heard: _Heard | None = None
        """What transactions of ours have told. Like `_next` and `_leased` it is of the newest transaction, which may
        not be committed yet, and is forgotten when one fails."""
        self._durations = Durations()
        self._breaker = Breaker()
        self._tell_seconds: float | None = None
        self._step_seconds = math.inf
        """What one step of the last measurement took."""
        self._lane_seconds: float | None = None
        """What one lane of the last measured ask took."""
        self._at_once = 0
        """Times that steps may be closed at once before the next measurement."""
        self._asking = 0
        """Lanes that the asks under way want."""
        self._since_snapshot = 0.0

    @staticmethod
    def open(study: str) -> Steps[Study]:
        """The study of that id.

        Raises
        ------
        StudyNotFound
        """
        head = yield Read(lambda tx: tx.head(study))
        if head is None:
            raise StudyNotFound(f"there is no study {study}", hint="GET /v1/studies lists yours")
        return Study(head)

    # State ------------------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether enough results are waiting that a step may close. Cheap: no effect, from what was last seen."""
        return self._row is None or self._due(self._row)

    def _due(self, row: StudyRow) -> bool:
        turn = self._turn_at(row)
        return turn is None or 0 < row.waiting >= turn.algorithm.need(turn.state)

    def _turn_at(self, row: StudyRow) -> Turn | None:
        """What is known of the step that is open in this row."""
        place = place_of(row)
        for turn in (self._next, self._turn):
            if turn is not None and turn.place == place:
                return turn
        return None

    def short(self) -> int:
        """Results that the open step still needs beyond those waiting or out. Cheap: from what was last seen."""
        row, cached = self._row, self._cached
        if row is None or cached is None or (cached.epoch, cached.step) != (row.epoch, row.step):
            return 0
        return max(0, self.algorithm(row).need(cached.state) - row.waiting - row.leased)

    def lease_seconds(self, requested: float | None) -> float:
        """How long a lease runs: as requested, as the study says, or three times the 95th percentile seen."""
        limits = self.spec.lease
        if requested is not None:
            return min(requested, limits.max_seconds)
        if limits.default_seconds != "auto":
            return min(limits.default_seconds, limits.max_seconds)
        return min(self._durations.lease_seconds, limits.max_seconds)

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
    ) -> Steps[Asked]:
        """Lease up to `count` trials.

        Parameters
        ----------
        key : an idempotency key. Asking again with it returns those of its leases that are still live.
        resume : give the worker its own live leases first.
        """
        wish = Wish(worker, count, lease_seconds, key, resume)
        self._asking += count
        try:
            while True:
                yield from self._ready_for(wish)
                answer = yield from self._written(lambda tx: self._grant(tx, leases.locked(tx, self.id), wish, now))
                if isinstance(answer, Asked):
                    return self._granted(answer)
                if isinstance(answer, _Missing):
                    yield from self._prepare(answer)
                elif answer is _STALE:
                    yield from self.row()
                else:
                    yield from self._close_empty(now)
        finally:
            self._asking -= count

    def _ready_for(self, wish: Wish) -> Steps[None]:
        """Compute the points that an ask will very likely need: it saves a transaction that only finds them missing."""
        row, state = yield from self._current()
        turn = self._turn_of(row, state)
        if self.kind == "group" and not self.traits.uses_pending and row.state == ACTIVE and not row.queued:
            wanted = [lane for lane in range(row.lanes, row.lanes + wish.count) if lane not in turn.points]
            if wanted and not self._asks_at_once(len(wanted)):
                yield from self._prepare(_Missing(turn, wanted, NOTHING_PENDING, row.asks))

    def _granted(self, asked: Asked) -> Asked:
        """Take note of what an ask's transaction did."""
        self._row = asked.row
        turn = self._turn_at(asked.row)
        if turn is not None and any(lease.trial.step == turn.state.step for lease in asked.leases):
            turn.blobs_stored = True
        return asked

    def _turn_of(self, row: StudyRow, state: Any) -> Turn:
        """The turn of a committed row, which is kept."""
        turn = self._turn_at(row) or Turn(place_of(row), self.algorithm(row), state)
        self._turn = turn
        return turn

    def _asks_at_once(self, n_lanes: int) -> bool:
        """Whether so many points are computed so quickly that it may happen inside a transaction."""
        return self._at_once > 0 and self._lane_seconds is not None and n_lanes * self._lane_seconds < AT_ONCE_SECONDS

    def _prepare(self, missing: _Missing) -> Steps[None]:
        """Compute the points of some lanes into their turn."""
        turn = missing.turn
        # One for every ask under way, or each would find out alone that the one before it has taken what was there.
        lanes = turn.lanes_to_compute(missing.lanes, self._asking)
        if not lanes:
            return  # another ask that missed them was faster
        first = not turn.points

        def work() -> tuple[list[Prepared], Sequence[tuple[str, int, bytes]]]:
            return turn.compute(lanes, missing.pending), turn.vectors() if first else turn.blobs

        def took(seconds: float) -> None:
            self._lane_seconds = seconds / len(lanes)

        prepared, blobs = yield Compute(work, (self._lane_seconds or 0.0) * len(lanes), took)
        turn.blobs = blobs
        if self.traits.uses_pending:
            # A new turn: a transaction in a thread may be granting from the old one.
            turn = replace(turn, points={}, asks=missing.asks)
            if self._next is missing.turn:
                self._next = turn
            if self._turn is missing.turn:
                self._turn = turn
        turn.points.update(zip(lanes, prepared, strict=True))

    @property
    def _expected_seconds(self) -> float:
        """What the next steps are expected to take, as the last ones did."""
        return SECONDS_PER_COORDINATE * self.space.dim if self._tell_seconds is None else self._tell_seconds

    def _tell_took(self, seconds: float) -> None:
        self._tell_seconds = seconds
        self._since_snapshot += seconds

    def _grant(self, tx: Tx, row: StudyRow, wish: Wish, now: float) -> Asked | _Missing | object:
        """One ask inside a transaction. Writes the row with its answer; `_Missing`, `_STALE` and `_STALLED` come before
        it has changed anything."""
        worker, count, key = wish.worker, wish.count, wish.key
        leases.end_if_spent(tx, row, self.spec, now)
        if row.state != ACTIVE:
            tx.put_study(row)
            return Asked((), count, _WORD[row.state], 5.0 if row.state == PAUSED else None, row)
        turn = self._turn_at(row)
        if turn is None and self.kind == "members" and self._turn is not None and self._turn.place[1] == row.epoch:
            turn = self._turn  # a member's next point may come from a state that is a few results old
        if turn is None:
            return _STALE
        if held := self._breaker.holds(worker, now):
            tx.put_study(row)
            return Asked((), count, "worker_backed_off", held, row)
        chosen = leases.claim(
            tx, row, self.spec, self.kind, worker=worker, count=count, now=now, key=key, resume=wish.resume
        )
        lanes: Sequence[int] = ()
        reason = chosen.reason
        if chosen.n_new:
            pending = self._pending(tx, row, turn.state.step)
            lanes = turn.algorithm.lanes(turn.state, pending, chosen.n_new)
            if len(lanes) < chosen.n_new:
                reason = "sequential_method" if self.kind == "sequential" else "all_members_in_flight"
                if not lanes and not (chosen.live or chosen.lapsed or chosen.queued) and row.leased + row.queued == 0:
                    return _STALLED
            old = self.traits.uses_pending and turn.asks != row.asks
            missing = lanes if old else [lane for lane in lanes if lane not in turn.points]
            if missing:
                lacking = _Missing(turn, missing, pending, row.asks)
                if old or not self._add_at_once(lacking):
                    return lacking
        seconds = self.lease_seconds(wish.lease_seconds)
        trials = leases.apply_claim(tx, row, chosen, worker=worker, now=now, seconds=seconds, key=key)
        stored = tx.points(self.id, [trial.number for trial in trials]) if trials else {}
        if lanes:
            trials += self._insert(tx, row, turn, lanes, stored, worker=worker, now=now, seconds=seconds, key=key)
        row.asks += 1
        if chosen.lost:
            leases.end_if_spent(tx, row, self.spec, now)
        tx.put_study(row)
        granted = tuple(
            Lease(trial, stored[trial.number], leases.token(self.head.secret, trial.number, trial.attempt))
            for trial in trials
        )
        self._remember(granted)
        if len(granted) >= count:
            return Asked(granted, count, None, None, row)
        return Asked(granted, count, reason, 1.0, row)

    def _remember(self, granted: Sequence[Lease]) -> None:
        """Keep small trials that were leased: they will be told."""
        if self.space.dim <= PARAMS_STORED_UPTO:
            self._leased.update({lease.trial.number: lease for lease in granted})
            while len(self._leased) > min(LEASES_KEPT, NUMBERS_KEPT // self.space.dim):
                self._leased.popitem(last=False)

    def _add_at_once(self, missing: _Missing) -> bool:
        """Compute points here and now, if the method is quick; an error of its own is raised outside instead."""
        turn, lanes = missing.turn, missing.turn.lanes_to_compute(missing.lanes)
        if not self._asks_at_once(len(lanes)):
            return False
        try:
            if not turn.points:
                turn.blobs = turn.vectors()
            turn.points.update(zip(lanes, turn.compute(lanes, missing.pending), strict=True))
        except Exception:
            return False
        return True

    def _insert(
        self,
        tx: Tx,
        row: StudyRow,
        turn: Turn,
        lanes: Sequence[int],
        stored: dict[int, PointRow],
        *,
        worker: str,
        now: float,
        seconds: float,
        key: str | None,
    ) -> list[TrialRow]:
        """New trials for lanes whose points are in the pool, leased at once."""
        trials, points = [], []
        for lane in lanes:
            row.trials += 1
            ready = turn.points[lane]
            trial = TrialRow(self.id, row.trials, turn.state.step, lane, ready.replicate, asked_at=now)
            leases.lease_to(trial, worker=worker, now=now, seconds=seconds, key=key)
            point = PointRow(self.id, row.trials, ready.vector, ready.recipe, ready.params, ready.note, ready.payload)
            trials.append(trial)
            points.append(point)
            stored[trial.number] = point
        if not turn.blobs_stored:
            for name, place, content in turn.blobs:
                tx.put_blob(self.id, name, place, content)
        tx.insert_trials(trials, points)
        row.leased += len(trials)
        if self.kind == "group":
            row.lanes = max(row.lanes, lanes[-1] + 1)
        return trials

    def _pending(self, tx: Tx, row: StudyRow, step: int) -> Pending:
        """What is queued or leased, as far as the method looks at it."""
        if self.kind == "group" and not self.traits.uses_pending:
            return replace(NOTHING_PENDING, fresh=row.lanes)
        trials = [trial for trial in tx.open_trials(self.id) if trial.lane >= 0]
        trials.sort(key=lambda trial: (trial.step, trial.lane))
        points = None
        note = np.empty((len(trials), 0), dtype=np.int64)
        if self.traits.uses_pending:
            stored = tx.points(self.id, [trial.number for trial in trials])
            points = log.points_of(
                [stored[trial.number] for trial in trials], self.space.dim, self.traits.encoding == "recipe"
            )
            note = points.note
        return Pending(
            np.array([trial.step for trial in trials], dtype=np.int64),
            np.array([trial.lane for trial in trials], dtype=np.int64),
            note,
            points,
            row.lanes,
            tx.lanes_at(self.id, step),
        )

    # Tell -------------------------------------------------------------------------------------------------------------

    def tell(
        self, reports: Sequence[Report], *, now: float, worker: str | None = None, wish: Wish | None = None
    ) -> Steps[Told]:
        """Apply results. Items succeed or fail one by one; see `Outcome`. Durable when it returns.

        Parameters
        ----------
        wish : what to ask in the same transaction, if no step has to close before.
        """
        numbers = [report.trial for report in reports if report.trial is not None]
        if wish is not None:
            self._asking += wish.count
            try:
                yield from self._ready_for(wish)
            finally:
                self._asking -= wish.count

        def work(tx: Tx, known: bool = True) -> tuple[Any, ...]:
            row = leases.locked(tx, self.id)
            heard = self._heard_upto(row)
            leased = {n: self._leased.pop(n) for n in numbers if n in self._leased} if known else {}
            lacks = self.algorithm(row).lacks
            waited, secret = row.waiting, self.head.secret
            desk = leases.Desk(tx, row, self.spec, secret, self.kind, numbers, leased, lacks, worker=worker, now=now)
            outcomes = tuple(desk.settle(report) for report in reports)
            desk.write()
            row.asks += 1
            applied = [desk.trials[o.trial] for o in outcomes if o.outcome == "applied" and o.trial is not None]
            seconds = [now - trial.leased_at for trial in applied if trial.leased_at is not None]
            if heard is not None:
                told = [leased[n] for n, trial in desk.changed.items() if trial.seq is not None and n in leased]
                new = sorted(((lease.trial, lease.point) for lease in told), key=lambda pair: pair[0].seq or 0)
                # Of an injected point, or one that was leased long ago, we do not have the rows at hand.
                heard = [*heard, *new] if len(new) == row.waiting - waited else None
            window, moved, asked = None, None, None
            if self._due(row):
                # Read here what `advance` will want: the rows are at hand, and it need not open a transaction for them.
                window = heard = heard or history.results(tx, self.id, row.upto_seq, history.MAX_SEQ)
                self._hear(row, heard)
                moved = self._move_at_once(tx, row, window, now)
            else:
                self._hear(row, heard)
            if wish is not None and (window is None or moved is not None):
                asked = self._grant(tx, row, wish, now)
            if not isinstance(asked, Asked):
                tx.put_study(row)
            return outcomes, row, seconds, window, moved, asked

        try:
            outcomes, row, seconds, window, moved, asked = yield from self._written(work)
        except leases.LeaseMoved:
            outcomes, row, seconds, window, moved, asked = yield from self._written(partial(work, known=False))
        self._row = row
        if moved is not None:
            self._moved(moved)
        elif window is not None:
            self._window = (place_of(row), window)
        if isinstance(asked, Asked):
            self._granted(asked)
        else:
            asked = None
        if seconds and self.spec.lease.default_seconds == "auto":
            self._durations.learn(seconds)
        if worker is not None:
            reason = self._breaker.learn(worker, outcomes, now)
            if reason is not None:
                yield from self._end(PAUSED, reason, now)
        return Told(outcomes, self._row or row, asked, 0 if moved is None else moved.n_steps)

    def _heard_upto(self, row: StudyRow) -> list[log.Told] | None:
        """All results after the last closed step of this row, if they are known here."""
        heard = self._heard
        return heard.told if heard is not None and (heard.place, heard.seq) == (place_of(row), row.seq) else None

    def _hear(self, row: StudyRow, told: list[log.Told] | None) -> None:
        self._heard = None if told is None else _Heard(place_of(row), row.seq, told)

    def resume(self, *, now: float) -> Steps[StudyRow]:
        """Go on after a pause or a failure (whose last step is told again). Workers that failed may ask again."""
        self._breaker = Breaker()
        return super().resume(now=now)

    # Advance ----------------------------------------------------------------------------------------------------------

    def advance(self, *, now: float) -> Steps[int]:
        """Close every step that can be closed; returns how many.

        A numerical error inside the algorithm marks the study FAILED and keeps the old state: nothing is lost, `resume`
        tells the same batch again.
        """
        total = 0
        while True:
            row, state = yield from self._current()
            algorithm = self.algorithm(row)
            if row.state == FAILED or row.waiting == 0 or row.waiting < algorithm.need(state):
                return total
            window, self._window = self._window, None
            if window is not None and window[0] == place_of(row):
                seen, told = row, window[1]
            else:
                window = None
                seen, told = yield Read(partial(history.waiting, study=self.id, after_seq=row.upto_seq))
            if seen is None:
                raise StudyNotFound(f"study {self.id} was deleted")
            if place_of(seen) != place_of(row):
                self._row = seen
                continue
            try:
                closed: list[log.Closed] = yield Compute(
                    partial(log.advance, algorithm, state, told, self.maximize),
                    self._expected_seconds,
                    self._tell_took,
                )
            except Exception as error:
                yield from self._fail(error, now)
                return total
            if closed and self._tell_seconds is not None:
                self._step_seconds = self._tell_seconds / len(closed)
                self._at_once = MEASURED_EVERY
            if not closed and window is not None and row.waiting > len(told):
                continue  # more was told since
            if not closed:
                self._row = seen
                return total
            if (yield from self._swap(row, algorithm, closed, now)):
                total += len(closed)
            else:
                yield from self.row()

    def _swap(
        self, seen: StudyRow, algorithm: Algorithm[Any, Any], closed: Sequence[log.Closed], now: float
    ) -> Steps[bool]:
        """Move the row from step t to t + k, if it is still at t."""

        def work(tx: Tx) -> _Moved | None:
            row = leases.locked(tx, self.id)
            if place_of(row) != place_of(seen):
                return None
            moved = self._move(tx, row, algorithm, closed, now)
            tx.put_study(row)
            return moved

        moved: _Moved | None = yield from self._written(work)
        if moved is None:
            return False
        self._row = moved.row
        self._moved(moved)
        return True

    def _move_at_once(self, tx: Tx, row: StudyRow, told: Sequence[log.Told], now: float) -> _Moved | None:
        """Close what can be closed in the transaction that brought the results, if the method is quick.

        What the method raises is left for `advance` to meet again: a result that came must be stored.
        """
        turn = self._turn_at(row)
        if turn is None or row.state == FAILED or self._at_once <= 0:
            return None
        if len(told) / turn.algorithm.need(turn.state) * self._step_seconds > AT_ONCE_SECONDS:
            return None
        try:
            closed = log.advance(turn.algorithm, turn.state, told, self.maximize)
        except Exception:
            return None
        if not closed:
            return None
        self._at_once -= 1
        return self._move(tx, row, turn.algorithm, closed, now)

    def _move(
        self, tx: Tx, row: StudyRow, algorithm: Algorithm[Any, Any], closed: Sequence[log.Closed], now: float
    ) -> _Moved:
        """Record closed steps and move the row, which the caller writes."""
        last = closed[-1]
        state, step = last.state, last.step + 1
        heard = self._heard_upto(row)
        records = []
        for item in closed:
            row.seq += 1
            records.append(StepRow(self.id, item.step, item.upto_seq, item.why, item.digest, row.seq, now, item.told))
        tx.insert_steps(records)
        row.step, row.upto_seq, row.lanes = step, last.upto_seq, 0
        row.waiting -= last.consumed
        if self.kind == "group" and row.leased + row.queued:
            oldest = algorithm.oldest(state)
            queued, leased = tx.supersede(self.id, step if row.queued else 0, oldest)
            row.queued -= queued
            row.leased -= leased
            if leased:
                for number in [n for n, lease in self._leased.items() if lease.trial.step < oldest]:
                    del self._leased[number]
        if self.traits.encoding == "recipe":
            self._drop_bases(tx, row)
        snapshot = step // SNAPSHOT_STEPS > closed[0].step // SNAPSHOT_STEPS or self._since_snapshot > SNAPSHOT_SECONDS
        if snapshot:
            tx.insert_snapshot(SnapshotRow(self.id, row.epoch, step, last.encoded))
            tx.keep_snapshots(self.id, row.epoch, history.worth_keeping(tx.snapshot_steps(self.id, row.epoch)))
        stop = algorithm.stopped(state)
        if stop is not None:
            leases.finish(tx, row, COMPLETED, stop.reason, now)
        self._next = Turn(place_of(row), self.algorithm(row), state)
        self._hear(row, None if heard is None else heard[last.consumed :])
        return _Moved(row, self._next, len(closed), snapshot)

    def _written(self, work: Callable[[Tx], Any]) -> Steps[Any]:
        """Run a work that may lease, tell or open a step; of one that was undone nothing is remembered."""

        def guarded(tx: Tx) -> Any:
            try:
                return work(tx)
            except BaseException:
                self._forget()
                raise

        try:
            return (yield Write(guarded, long=self.large))
        except BaseException:  # also when the caller is gone: nobody would hear that the commit failed
            self._forget()
            raise

    def _forget(self) -> None:
        self._next = self._heard = None
        self._leased.clear()

    def _moved(self, moved: _Moved) -> None:
        """Take note of a move that is committed."""
        self._turn = moved.turn
        self._keep(moved.turn.place[1], moved.turn.state.step, moved.turn.state)
        if moved.snapshot:
            self._since_snapshot = 0.0

    def _drop_bases(self, tx: Tx, row: StudyRow) -> None:
        """Forget the vectors of recipes that no open trial, and not the best one, names."""
        steps = {trial.step for trial in tx.open_trials(self.id)}
        best = tx.trial(self.id, row.best_trial) if row.best_trial is not None else None
        if best is not None:
            steps.add(best.step)
        # Those of the step just closed stay for workers that have a lease of it and have not fetched them yet.
        steps |= {row.step - 1, row.step}
        tx.drop_blobs(self.id, row.step - 1, steps | {log.factor_place(step) for step in steps})

    def _close_empty(self, now: float) -> Steps[None]:
        """Close a step in which nothing is out and nothing can be handed out (all its members failed for good)."""
        row, state = yield from self._current()
        yield from self._close(row, state, "stalled", now)

    def close(self, *, now: float, why: str = "closed") -> Steps[int]:
        """Close the open step with what is there (a deadline or quorum decided elsewhere); returns the new step."""
        yield from self.advance(now=now)
        while True:
            row, state = yield from self.state()
            if (yield from self._close(row, state, why, now)):
                return row.step + 1

    def _close(self, row: StudyRow, state: Any, why: str, now: float) -> Steps[bool]:
        """Close the open step with whatever has been told; False when somebody else moved on meanwhile."""
        algorithm = self.algorithm(row)
        told: list[log.Told] = yield Read(lambda tx: history.results(tx, self.id, row.upto_seq, row.seq))
        results = log.batch(algorithm, state, told, self.maximize)
        upto = told[-1][0].seq if told else row.upto_seq
        closed = log.close(algorithm, state, results, upto or 0, len(told), why)
        return (yield from self._swap(row, algorithm, [closed], now))

    def _fail(self, error: Exception, now: float) -> Steps[None]:
        reason = f"{type(error).__name__}: {error}"[:500]
        yield from self._end(FAILED, reason, now)
        if not isinstance(error, ArithmeticError | ValueError | np.linalg.LinAlgError | NumericalError):
            raise error

    # The study's own state --------------------------------------------------------------------------------------------

    # Leases -----------------------------------------------------------------------------------------------------------

    def heartbeat(
        self, tokens: Sequence[str], *, now: float, extend_seconds: float | None = None
    ) -> Steps[list[Renewal]]:
        """Renew leases; see `Renewal`."""
        seconds = self.lease_seconds(extend_seconds)

        def work(tx: Tx) -> list[Renewal]:
            row = leases.locked(tx, self.id)
            return leases.renew(tx, row, self.head.secret, tokens, now=now, seconds=seconds)

        renewals: list[Renewal] = yield Write(work)
        return renewals

    def report(self, token: str, *, step: int | None, value: float | None, now: float) -> Steps[Renewal]:
        """Renew a lease and keep an interim value; see `leases.report`."""
        seconds = self.lease_seconds(None)

        def work(tx: Tx) -> Renewal:
            row = leases.locked(tx, self.id)
            return leases.report(tx, row, self.head.secret, token, step=step, value=value, now=now, seconds=seconds)

        renewal: Renewal = yield Write(work)
        return renewal


_WORD = {PAUSED: "paused", COMPLETED: "completed", CANCELLED: "cancelled", FAILED: "study_failed"}
