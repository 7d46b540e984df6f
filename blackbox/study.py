"""A study: create, ask, tell, advance, replay, fork. Pure logic over a store.

Every operation is a generator of *effects*: it yields `Write(work)`, `Read(work)` or `Compute(work)`, gets the result
sent back, and returns its answer. `perform` drives it in this thread; the service drives the same generators from its
event loop, so that one writer can commit many of them together. Time is an argument; there is no clock here.

How a step closes: `advance` reads the results after the last closed step, tells the algorithm every batch that is
complete (in memory), and swaps the study's row once from step t to t + k together with the step records. The swap is
refused when the row has moved on (step, epoch, upto_seq): the loser reads again. Nothing depends on who advances.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blackbox import codec, history, leases, log
from blackbox.algorithm import Algorithm, Traits, build, lookup
from blackbox.archive import Archive
from blackbox.effects import Compute, Read, Steps, Write
from blackbox.errors import (
    Conflict,
    IncompatibleProblem,
    InvalidInput,
    NumericalError,
    StudyNotFound,
    StudySpecMismatch,
    StudyStateError,
    TooLarge,
    TrialNotFound,
)
from blackbox.leases import Lease, Outcome, Renewal, Report
from blackbox.options import Options, parse_options
from blackbox.recipe import PrefixCache, materialise
from blackbox.recipe import to_json as recipe_to_json
from blackbox.records import JSON, NOTHING_PENDING, Pending, Recipe, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.spec import Budget, Resolved, StudySpec, canonical, differences, parse_spec, resolve, spec_hash
from blackbox.store import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    FAILED,
    OPEN_STATES,
    PAUSED,
    QUEUED,
    PointRow,
    SnapshotRow,
    StepRow,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
)

T = TypeVar("T")

PARAMS_STORED_UPTO = 1000
"""Decoded parameters are stored with a trial up to this dimension; above, they are decoded when somebody reads them."""
MAX_REBUILT_BYTES = 2**30
PREFIX_BYTES = 2**26
"""What an open study keeps of points whose children it builds."""
SNAPSHOT_SECONDS = 0.25
SNAPSHOT_STEPS = 256
FIRST_LEASE_SECONDS = 600.0
SECONDS_PER_COORDINATE = 1e-8
"""What a first step is expected to take: little at a thousand dimensions, too long for an event loop at a million."""
FAILURES_UNTIL_BACKOFF = 20
BACKOFF_SECONDS = 30.0
AT_ONCE_SECONDS = 0.002
"""Steps that take less than this are closed inside the transaction that brought their last result: one of their own
would cost more, and meanwhile every ask would find the step gone that it was made for."""
LANES_AHEAD = 256
AHEAD_NUMBERS = 2**16
"""Coordinates that may be computed for asks that may come."""
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
class _Prepared:
    """A lane's point, ready to be stored."""

    vector: bytes | None
    recipe: str | None
    params: str | None
    note: bytes
    payload: str | None
    replicate: int


@dataclass(slots=True)
class _Turn:
    """An open step as this instance knows it: its place in the log, its state, and the points computed so far.

    Points are pure in (state, lane), so they may be kept until the step closes.
    """

    place: tuple[int, int, int]
    algorithm: Algorithm[Any, Any]
    state: Any
    asks: int = -1
    """For methods whose asks depend on what is in flight: the counter these points were computed at."""
    points: dict[int, _Prepared] = field(default_factory=dict)
    blobs: Sequence[tuple[str, int, bytes]] = ()
    """Digest, place and content of the vectors that the recipes name."""
    blobs_stored: bool = False


@dataclass(frozen=True, slots=True)
class _Missing:
    """A grant needs points that were not computed yet. Nothing was changed."""

    turn: _Turn
    lanes: Sequence[int]
    pending: Pending
    asks: int


@dataclass(frozen=True, slots=True)
class _Moved:
    """What a transaction did that closed steps."""

    row: StudyRow
    turn: _Turn
    n_steps: int
    snapshot: bool


@dataclass(frozen=True, slots=True)
class _Cached:
    epoch: int
    step: int
    state: Any


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


def new_head(project: str, resolved: Resolved, hashed: str, now: float, parent: str | None = None) -> StudyHead:
    """A study that nobody has stored yet, with an id and a secret of its own."""
    study, secret = _identifier(now, secrets.token_bytes(10)), secrets.token_bytes(16)
    return StudyHead(study, project, resolved.spec.name, resolved.model_dump_json(), hashed, secret, now, parent)


def _identifier(now: float, random: bytes) -> str:
    """`st_` and 18 characters of lower-case base32hex: 8 of time in milliseconds (so ids sort by age), 10 of chance."""
    digits = "0123456789abcdefghijklmnopqrstuv"
    number = (int(now * 1000) & (2**40 - 1)) << 50 | int.from_bytes(random, "big") & (2**50 - 1)
    return "st_" + "".join(digits[number >> 5 * i & 31] for i in reversed(range(18)))


class Study:
    """One study, opened. Keeps caches only: another instance, here or elsewhere, may work on the same study."""

    def __init__(self, head: StudyHead) -> None:
        self.head = head
        self.id = head.id
        self.resolved = Resolved.model_validate_json(head.resolved)
        self.spec = self.resolved.spec
        self.space = Space.from_json(self.spec.space)
        self.key = Key.from_seed(self.spec.seed)
        self.maximize = self.spec.direction == "maximize"
        self._vectors = [name for name, parameter in self.space.items() if parameter.type == "vector"]
        self.options, self.traits = self._method()
        self.kind = self.traits.kind
        self.prefixes = PrefixCache(PREFIX_BYTES)
        self._algorithms: list[tuple[int, Algorithm[Any, Any]]] = []
        self._lineage = ""
        self._row: StudyRow | None = None
        self._cached: _Cached | None = None
        self._turn: _Turn | None = None
        self._next: _Turn | None = None
        """The step that a transaction of ours opened. The works after it in that transaction see it before it is
        committed; nobody else sees the row it goes with."""
        self._window: tuple[tuple[int, int, int], list[log.Told]] | None = None
        self._durations: deque[float] = deque(maxlen=200)
        self._auto_seconds = FIRST_LEASE_SECONDS
        self._streaks: dict[str, int] = {}
        self._backed_off: dict[str, float] = {}
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

    def _method(self) -> tuple[Options, Traits]:
        cls = lookup(self.resolved.algorithm)
        return parse_options(cls.Options, self.resolved.options), cls.traits

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

    def algorithm(self, row: StudyRow, step: int | None = None) -> Algorithm[Any, Any]:
        """The instance in charge of a step (default: the open one)."""
        if self._lineage != row.lineage:
            self._lineage = row.lineage
            self._algorithms = [
                (first, build(self.resolved.algorithm, self.space, self.options, self.key, stream))
                for first, stream in json.loads(row.lineage)
            ]
        return log.algorithm_at(self._algorithms, row.step if step is None else step)

    def row(self) -> Steps[StudyRow]:
        """The committed row."""
        row: StudyRow | None = yield Read(lambda tx: tx.study(self.id))
        if row is None:
            raise StudyNotFound(f"study {self.id} was deleted")
        self._row = row
        return replace(row)

    def due(self) -> bool:
        """Whether enough results are waiting that a step may close. Cheap: no effect, from what was last seen."""
        return self._row is None or self._due(self._row)

    def _due(self, row: StudyRow) -> bool:
        turn = self._turn_at(row)
        return turn is None or 0 < row.waiting >= turn.algorithm.need(turn.state)

    def _turn_at(self, row: StudyRow) -> _Turn | None:
        """What is known of the step that is open in this row."""
        place = _place(row)
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

    @property
    def seen(self) -> StudyRow | None:
        """The committed row as last seen here; others may have moved on."""
        return None if self._row is None else replace(self._row)

    def state(self, at_step: int | None = None) -> Steps[tuple[StudyRow, Any]]:
        """The decoded state at a step (default: the open one), from the cache, a snapshot or a replay of the log."""
        row = yield from self.row()
        state = yield from self._state_at(row, row.step if at_step is None else at_step)
        return row, state

    def _current(self) -> Steps[tuple[StudyRow, Any]]:
        """Row and state as last seen here; reads only when nothing was seen yet or the cache is behind."""
        row = self._row
        if row is None:
            row = yield from self.row()
        state = yield from self._state_at(row, row.step)
        return row, state

    def _state_at(self, row: StudyRow, step: int) -> Steps[Any]:
        cached = self._cached
        if cached is not None and (cached.epoch, cached.step) == (row.epoch, step):
            return cached.state
        if not 0 <= step <= row.step:
            raise InvalidInput(f"step must be between 0 and {row.step}, got {step}")
        behind = cached if cached is not None and cached.epoch == row.epoch and cached.step < step else None
        start, state = (behind.step, behind.state) if behind else (-1, None)
        snapshot: SnapshotRow | None = yield Read(lambda tx: tx.snapshot(self.id, row.epoch, step))
        if snapshot is not None and snapshot.step > start:
            algorithm = self.algorithm(row, snapshot.step)
            start, state = snapshot.step, codec.decode(algorithm.State, snapshot.state)
        if start < 0:
            start, state = 0, self.algorithm(row, 0).init()
        while start < step:
            until = min(step, start + SNAPSHOT_STEPS)
            records, told = yield Read(partial(history.stretch, study=self.id, first=start, before=until))
            for record, after, _ in log.replay(self._algorithms, state, records, told, self.maximize):
                state, start = after, record.step + 1
            if start < until:
                raise Conflict(f"the log of {self.id} ends at step {start}, its row says {row.step}")
        if step == row.step:
            self._keep(row.epoch, step, state)
        return state

    def _keep(self, epoch: int, step: int, state: Any) -> None:
        self._cached = _Cached(epoch, step, state)

    def lease_seconds(self, requested: float | None) -> float:
        """How long a lease runs: as requested, as the study says, or three times the 95th percentile seen."""
        limits = self.spec.lease
        if requested is not None:
            return min(requested, limits.max_seconds)
        if limits.default_seconds != "auto":
            return min(limits.default_seconds, limits.max_seconds)
        return min(self._auto_seconds, limits.max_seconds)

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
                answer = yield Write(lambda tx: self._grant(tx, leases.locked(tx, self.id), wish, now))
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

    def _turn_of(self, row: StudyRow, state: Any) -> _Turn:
        """The turn of a committed row, which is kept."""
        turn = self._turn_at(row) or _Turn(_place(row), self.algorithm(row), state)
        self._turn = turn
        return turn

    def _asks_at_once(self, n_lanes: int) -> bool:
        """Whether so many points are computed so quickly that it may happen inside a transaction."""
        return self._at_once > 0 and self._lane_seconds is not None and n_lanes * self._lane_seconds < AT_ONCE_SECONDS

    def _prepare(self, missing: _Missing) -> Steps[None]:
        """Compute the points of some lanes into their turn."""
        turn = missing.turn
        # One for every ask under way, or each would find out alone that the one before it has taken what was there.
        lanes = self._lanes_to_compute(missing, self._asking)
        if not lanes:
            return  # another ask that missed them was faster
        first = not turn.points

        def work() -> tuple[list[_Prepared], Sequence[tuple[str, int, bytes]]]:
            return self._computed(turn, lanes, missing.pending), self._blobs(turn) if first else turn.blobs

        def took(seconds: float) -> None:
            self._lane_seconds = seconds / len(lanes)

        prepared, blobs = yield Compute(work, (self._lane_seconds or 0.0) * len(lanes), took)
        turn.blobs = blobs
        if self.traits.uses_pending:
            # A new turn: the writer's thread may be granting from the old one.
            turn = replace(turn, points={}, asks=missing.asks)
            if self._next is missing.turn:
                self._next = turn
            if self._turn is missing.turn:
                self._turn = turn
        turn.points.update(zip(lanes, prepared, strict=True))

    def _lanes_to_compute(self, missing: _Missing, ahead: int = 0) -> list[int]:
        """The missing lanes, their neighbours in a tile, and so many ahead where others will want them."""
        lanes = list(missing.lanes)
        if self.kind != "group" or self.traits.uses_pending:
            return lanes
        more = min(ahead, LANES_AHEAD, AHEAD_NUMBERS // self.space.dim)
        # Whole tiles, because a dense method computes them at once anyway.
        stop = -(-(lanes[-1] + 1 + more) // 8) * 8
        return [lane for lane in range(lanes[0] // 8 * 8, stop) if lane not in missing.turn.points]

    def _computed(self, turn: _Turn, lanes: Sequence[int], pending: Pending) -> list[_Prepared]:
        return self._ready(turn.algorithm.ask(turn.state, lanes, pending))

    def _blobs(self, turn: _Turn) -> Sequence[tuple[str, int, bytes]]:
        """The vectors that the turn's recipes name, with the place at which each is stored."""
        step, factors = turn.state.step, 0 if turn.algorithm.base(turn.state) is None else 1  # where they begin
        return [
            (name, step if i < factors else log.factor_place(step), content)
            for i, (name, content) in enumerate(_contents(turn.algorithm.blobs(turn.state)).items())
        ]

    @property
    def _expected_seconds(self) -> float:
        """What the next steps are expected to take, as the last ones did."""
        return SECONDS_PER_COORDINATE * self.space.dim if self._tell_seconds is None else self._tell_seconds

    def _tell_took(self, seconds: float) -> None:
        self._tell_seconds = seconds
        self._since_snapshot += seconds

    def _ready(self, points: Any) -> list[_Prepared]:
        """Points as bytes and JSON."""
        ready = []
        for i in range(len(points)):
            vector = None if points.vectors is None else points.vectors[i]
            recipe = None if points.recipes is None else canonical(recipe_to_json(points.recipes[i]))
            params = None
            if vector is not None and self.space.dim <= PARAMS_STORED_UPTO:
                params = json.dumps(_plain(self.space.decode(vector)))
            ready.append(
                _Prepared(
                    None if vector is None else vector.astype("<f8", copy=False).tobytes(),
                    recipe,
                    params,
                    points.note[i].astype("<i8", copy=False).tobytes(),
                    json.dumps(points.payload[i]) if points.payload else None,
                    points.replicates[i] if points.replicates else 0,
                )
            )
        return ready

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
        if self._backed_off.get(worker, 0.0) > now:
            tx.put_study(row)
            return Asked((), count, "worker_backed_off", self._backed_off[worker] - now, row)
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
        if len(granted) >= count:
            return Asked(granted, count, None, None, row)
        return Asked(granted, count, reason, 1.0, row)

    def _add_at_once(self, missing: _Missing) -> bool:
        """Compute points here and now, if the method is quick; an error of its own is raised outside instead."""
        turn, lanes = missing.turn, self._lanes_to_compute(missing)
        if not self._asks_at_once(len(lanes)):
            return False
        try:
            if not turn.points:
                turn.blobs = self._blobs(turn)
            turn.points.update(zip(lanes, self._computed(turn, lanes, missing.pending), strict=True))
        except Exception:
            return False
        return True

    def _insert(
        self,
        tx: Tx,
        row: StudyRow,
        turn: _Turn,
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

        def work(tx: Tx) -> tuple[Any, ...]:
            row = leases.locked(tx, self.id)
            lacks = self.algorithm(row).lacks
            desk = leases.Desk(tx, row, self.spec, self.head.secret, self.kind, numbers, lacks, worker=worker, now=now)
            outcomes = tuple(desk.settle(report) for report in reports)
            desk.write()
            row.asks += 1
            applied = [desk.trials[o.trial] for o in outcomes if o.outcome == "applied" and o.trial is not None]
            seconds = [now - trial.leased_at for trial in applied if trial.leased_at is not None]
            window, moved, asked = None, None, None
            if self._due(row):
                # Read here what `advance` will want: the rows are at hand, and it need not open a transaction for them.
                window = history.results(tx, self.id, row.upto_seq, history.MAX_SEQ)
                moved = self._move_at_once(tx, row, window, now)
            if wish is not None and (window is None or moved is not None):
                asked = self._grant(tx, row, wish, now)
            if not isinstance(asked, Asked):
                tx.put_study(row)
            return outcomes, row, seconds, window, moved, asked

        outcomes, row, seconds, window, moved, asked = yield from self._written(work)
        self._row = row
        if moved is not None:
            self._moved(moved)
        elif window is not None:
            self._window = (_place(row), window)
        if isinstance(asked, Asked):
            self._granted(asked)
        else:
            asked = None
        if seconds and self.spec.lease.default_seconds == "auto":
            self._durations.extend(seconds)
            if 5 <= len(self._durations) <= 20 or row.seq % 16 == 0:
                self._auto_seconds = max(60.0, 3.0 * float(np.quantile(self._durations, 0.95)))
        if worker is not None:
            yield from self._breaker(worker, outcomes, now)
        return Told(outcomes, self._row or row, asked, 0 if moved is None else moved.n_steps)

    def _breaker(self, worker: str, outcomes: Sequence[Outcome], now: float) -> Steps[None]:
        """Back off a worker that fails many times in a row; pause the study when no other one does better."""
        failed = sum(o.outcome == "requeued" or o.state == FAILED for o in outcomes)
        if any(o.outcome == "applied" and o.state != FAILED for o in outcomes):
            self._streaks[worker] = 0
            self._backed_off.pop(worker, None)
            return
        if not failed:
            return
        self._streaks[worker] = self._streaks.get(worker, 0) + failed
        if self._streaks[worker] < FAILURES_UNTIL_BACKOFF:
            return
        self._backed_off[worker] = now + BACKOFF_SECONDS
        failing = [name for name, streak in self._streaks.items() if streak >= FAILURES_UNTIL_BACKOFF]
        if len(failing) >= 2 or len(failing) == len(self._streaks):
            reason = f"{', '.join(sorted(failing))} failed {FAILURES_UNTIL_BACKOFF} times in a row"
            yield from self._end(PAUSED, reason, now)

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
            if window is not None and window[0] == _place(row):
                seen, told = row, window[1]
            else:
                window = None
                seen, told = yield Read(partial(history.waiting, study=self.id, after_seq=row.upto_seq))
            if seen is None:
                raise StudyNotFound(f"study {self.id} was deleted")
            if _place(seen) != _place(row):
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
            if _place(row) != _place(seen):
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
        records = []
        for item in closed:
            row.seq += 1
            records.append(StepRow(self.id, item.step, item.upto_seq, item.why, item.digest, row.seq, now, item.told))
        tx.insert_steps(records)
        row.step, row.upto_seq, row.lanes = step, last.upto_seq, 0
        row.waiting -= last.consumed
        if self.kind == "group" and row.leased + row.queued:
            queued, leased = tx.supersede(self.id, step, algorithm.oldest(state))
            row.queued -= queued
            row.leased -= leased
        if self.traits.encoding == "recipe":
            self._drop_bases(tx, row)
        snapshot = step // SNAPSHOT_STEPS > closed[0].step // SNAPSHOT_STEPS or self._since_snapshot > SNAPSHOT_SECONDS
        if snapshot:
            tx.insert_snapshot(SnapshotRow(self.id, row.epoch, step, last.encoded))
            tx.keep_snapshots(self.id, row.epoch, history.worth_keeping(tx.snapshot_steps(self.id, row.epoch)))
        stop = algorithm.stopped(state)
        if stop is not None:
            leases.finish(tx, row, COMPLETED, stop.reason, now)
        self._next = _Turn(_place(row), self.algorithm(row), state)
        return _Moved(row, self._next, len(closed), snapshot)

    def _written(self, work: Callable[[Tx], Any]) -> Steps[Any]:
        """Run a work that may open a step; of one that was undone nothing is remembered."""
        try:
            return (yield Write(work))
        except Exception:
            self._next = None
            raise

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

    def _end(self, state: str, reason: str, now: float) -> Steps[None]:
        """Pause or fail a study from inside an operation. One that has ended meanwhile is left as it is: what was told
        is stored, so the operation must not fail for that."""

        def work(tx: Tx) -> StudyRow:
            row = leases.locked(tx, self.id)
            leases.finish(tx, row, state, reason, now)
            tx.put_study(row)
            return row

        self._row = yield Write(work)

    def _transition(
        self, state: str, reason: str | None, now: float, allowed: Sequence[str] = (ACTIVE,)
    ) -> Steps[StudyRow]:
        def work(tx: Tx) -> StudyRow:
            row = leases.locked(tx, self.id)
            if row.state == state:
                return row
            if row.state not in allowed:
                raise StudyStateError(
                    f"the study is {row.state}; this needs {' or '.join(allowed)}",
                    hint="GET the study to see its state and reason",
                )
            row.state, row.reason = state, reason
            if state == CANCELLED:
                for trial in tx.open_trials(self.id):
                    leases.change_trial(tx, row, trial.number, _cancelled)
            word = "resumed" if state == ACTIVE else state.lower()
            leases.log_event(tx, row, f"study.{word}", now, reason=reason)
            tx.put_study(row)
            return row

        self._row = yield Write(work)
        assert self._row is not None
        return self._row

    def pause(self, *, now: float, reason: str = "by request") -> Steps[StudyRow]:
        """Hand out nothing; take every result."""
        return self._transition(PAUSED, reason, now)

    def resume(self, *, now: float) -> Steps[StudyRow]:
        """Go on after a pause or a failure (whose last step is told again)."""
        self._streaks.clear()
        self._backed_off.clear()
        return self._transition(ACTIVE, None, now, (PAUSED, FAILED))

    def complete(self, *, now: float) -> Steps[StudyRow]:
        """End the study; results that are out are still taken."""
        return self._transition(COMPLETED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def cancel(self, *, now: float) -> Steps[StudyRow]:
        """End the study and cancel what is out."""
        return self._transition(CANCELLED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def edit(self, *, budget: Budget | None = None, labels: dict[str, str] | None = None) -> Steps[StudyHead]:
        """Change the budget or the labels. A completed study whose budget grew is active again.

        The hash stays that of the spec as created, so that the script that created the study still finds it.
        """
        changes: dict[str, Any] = {}
        if budget is not None:
            changes["budget"] = budget
        if labels is not None:
            changes["labels"] = labels
        spec = self.spec.model_copy(update=changes)
        resolved = self.resolved.model_copy(update={"spec": spec})
        head = replace(self.head, resolved=resolved.model_dump_json())

        def work(tx: Tx) -> StudyRow:
            row = leases.locked(tx, self.id)
            tx.put_head(head)
            limit = spec.budget.evaluations
            if row.state == COMPLETED and row.reason == "budget" and (limit is None or row.used < limit):
                row.state, row.reason = ACTIVE, None
            tx.put_study(row)
            return row

        self._row = yield Write(work)
        self.head, self.resolved, self.spec = head, resolved, spec
        return head

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

    def enqueue(self, params: Sequence[Mapping[str, Any]], *, now: float) -> Steps[list[int]]:
        """Put given points in the queue; they are handed out before anything else. Returns their numbers."""
        vectors = [self.space.encode(item).astype("<f8").tobytes() for item in params]
        texts = [json.dumps(_plain(item)) for item in params]

        def work(tx: Tx) -> tuple[StudyRow, list[int]]:
            row = leases.locked(tx, self.id)
            if row.state not in (ACTIVE, PAUSED):
                raise StudyStateError(f"the study is {row.state}; points can be enqueued while it is ACTIVE or PAUSED")
            trials, points = [], []
            for vector, text in zip(vectors, texts, strict=True):
                row.trials += 1
                trials.append(TrialRow(self.id, row.trials, row.step, -row.trials, asked_at=now, source="enqueued"))
                points.append(PointRow(self.id, row.trials, vector, None, text))
            if trials:
                tx.insert_trials(trials, points)
            row.queued += len(trials)
            tx.put_study(row)
            return row, [trial.number for trial in trials]

        self._row, numbers = yield Write(work)
        return list(numbers)

    def cancel_trial(self, number: int, *, now: float) -> Steps[TrialRow]:
        """Withdraw an open trial; its holder is told to abandon it at the next heartbeat."""

        def change(trial: TrialRow) -> None:
            if trial.state not in OPEN_STATES:
                raise StudyStateError(f"t_{number} is {trial.state}; only queued or leased trials can be cancelled")
            _cancelled(trial)

        return self._change(number, change)

    def requeue_trial(self, number: int, *, now: float) -> Steps[TrialRow]:
        """Run a trial again that is leased, lost, failed or withdrawn, and has no value."""

        def change(trial: TrialRow) -> None:
            if trial.value is not None or trial.seq is not None:
                raise StudyStateError(
                    f"t_{number} is {trial.state} and has a result in the log",
                    hint="enqueue its params to evaluate the same point again",
                )
            trial.state, trial.until, trial.worker, trial.ask_key = QUEUED, None, None, None

        return self._change(number, change)

    def _change(self, number: int, change: Callable[[TrialRow], None]) -> Steps[TrialRow]:
        def work(tx: Tx) -> tuple[StudyRow, TrialRow]:
            row = leases.locked(tx, self.id)
            trial = leases.change_trial(tx, row, number, change)
            row.asks += 1
            tx.put_study(row)
            return row, trial

        self._row, trial = yield Write(work)
        return trial  # type: ignore[no-any-return]

    # History ----------------------------------------------------------------------------------------------------------

    def invalidate(self, *, trial: int | None = None, worker: str | None = None, now: float) -> Steps[int]:
        """Take back one result, or all of a worker: the state becomes that of a replay without them.

        Snapshots after the first of them are deleted, the epoch grows, and the digests of the recorded steps are
        written anew. Points that the results once influenced stay, as points. Returns how many were taken back.
        """

        def work(tx: Tx) -> tuple[StudyRow, int]:
            row = leases.locked(tx, self.id)
            rows = tx.told_by(self.id, worker) if worker is not None else [tx.trial(self.id, trial or 0)]
            if rows == [None]:
                raise TrialNotFound(f"study {self.id} has no trial t_{trial}; its newest is t_{row.trials}")
            taken = [r for r in rows if r is not None and r.seq is not None and not r.invalid]
            if not taken:
                if worker is None:
                    raise StudyStateError(f"t_{trial} has no result to take back")
                return row, 0
            for item in taken:
                item.invalid = True
                tx.put_trial(item)
            first = min(item.seq or 0 for item in taken)
            safe = next((s.step for s in tx.steps(self.id, 0, row.step) if s.upto_seq >= first), row.step)
            kept = [
                tx.snapshot(self.id, row.epoch, step) for step in tx.snapshot_steps(self.id, row.epoch) if step <= safe
            ]
            row.epoch += 1
            row.used = max(0, row.used - sum(item.lane >= 0 or item.source == "enqueued" for item in taken))
            for snapshot in kept:
                if snapshot is not None:
                    tx.insert_snapshot(replace(snapshot, epoch=row.epoch))
            tx.keep_snapshots(self.id, row.epoch, tx.snapshot_steps(self.id, row.epoch))
            tx.put_digests(self.id, [(step, None) for step in range(safe, row.step)])
            best = tx.best(self.id, self.maximize)
            row.best_trial, row.best_value = (best.number, best.value) if best else (None, None)
            numbers = [item.number for item in taken]
            leases.log_event(tx, row, "trials.invalidated", now, trials=numbers, worker=worker, epoch=row.epoch)
            tx.put_study(row)
            return row, len(taken)

        self._row, count = yield Write(work)
        if count:
            yield from self._redigest()
        return int(count)

    def _redigest(self) -> Steps[None]:
        """Write the digests of the steps whose history was rewritten."""
        row = yield from self.row()
        digests: list[tuple[int, str | None]] = []
        records: list[StepRow] = yield Read(lambda tx: tx.steps(self.id, 0, row.step))
        first = next((record.step for record in records if record.digest is None), None)
        if first is None:
            return
        for record, _, digest in (yield from self._replayed(row, first)):
            digests.append((record.step, digest))

        def work(tx: Tx) -> bool:
            current = leases.locked(tx, self.id)
            if current.epoch != row.epoch:
                return False
            tx.put_digests(self.id, digests)
            return True

        yield Write(work)

    def _replayed(self, row: StudyRow, first: int) -> Steps[list[tuple[StepRow, Any, str]]]:
        state = yield from self._state_at(row, first)
        records, told = yield Read(lambda tx: history.stretch(tx, self.id, first, row.step))
        self.algorithm(row)
        return list(log.replay(self._algorithms, state, records, told, self.maximize))

    def replay(self) -> Steps[Iterator[tuple[StepRow, str]]]:
        """Every recorded step with the digest that a replay from the beginning gives; equal where nothing is wrong."""
        row = yield from self.row()
        records, told = yield Read(lambda tx: history.stretch(tx, self.id, 0, row.step))
        state = self.algorithm(row, 0).init()
        replayed = log.replay(self._algorithms, state, records, told, self.maximize)
        return ((record, digest) for record, _, digest in replayed)

    def fork(
        self, name: str, *, now: float, step: int | None = None, algorithm: Mapping[str, Any] | None = None
    ) -> Steps[StudyHead]:
        """A new study that shares this one's past up to a step.

        The same algorithm keeps state, noise key and log, and continues with a noise stream of its own. Another
        algorithm starts fresh: the parent's results enter as points it did not choose (lane < 0).
        """
        row = yield from self.row()
        at = row.step if step is None else step
        if not 0 <= at <= row.step:
            raise InvalidInput(f"step must be between 0 and {row.step}, got {at}", hint="leave it out to fork now")
        changes: dict[str, Any] = {"name": name}
        if algorithm is not None:
            changes["algorithm"] = algorithm
        spec = parse_spec({**self.spec.model_dump(mode="json"), **changes})
        resolved = self.resolved.model_copy(update={"spec": spec}) if algorithm is None else resolve(spec)[0]
        head = new_head(self.head.project, resolved, spec_hash(spec), now, parent=self.id)
        stream = 1 + int.from_bytes(hashlib.sha256(head.id.encode()).digest()[:4], "little")
        rebuilt: dict[int, bytes] = {}
        if algorithm is not None and self.traits.encoding == "recipe":
            rebuilt = yield from self._rebuilt(row)

        def work(tx: Tx) -> StudyHead:
            if tx.find(head.project, name) is not None:
                raise StudySpecMismatch(f'a study named "{name}" exists', hint="choose another name")
            history.copy(tx, self.id, head, at, None if algorithm is not None else stream, row, self.maximize, rebuilt)
            return head

        made: StudyHead = yield Write(work)
        return made

    def _rebuilt(self, row: StudyRow) -> Steps[dict[int, bytes]]:
        """Internal points of all told recipes, by number. Their bases are long dropped; a replay makes them again."""
        records, told = yield Read(partial(history.stretch, study=self.id, first=0, before=row.step))
        everything: list[log.Told] = yield Read(partial(history.results, study=self.id, after_seq=0, upto_seq=row.seq))
        if (size := len(everything) * self.space.dim * 8) > MAX_REBUILT_BYTES:
            raise TooLarge(
                f"{len(everything)} told points of {self.space.dim} dimensions are {size / 1e9:.1f} GB as numbers",
                hint="fork with the same algorithm: then they stay recipes",
            )
        waiting: dict[int, list[log.Told]] = {}
        for trial, point in everything:
            waiting.setdefault(trial.step, []).append((trial, point))
        vectors: dict[int, bytes] = {}

        def take(step: int, state: Any) -> None:
            blobs = _contents(self.algorithm(row, step).blobs(state)) if step in waiting else {}
            for trial, point in waiting.pop(step, ()):
                vectors[trial.number] = self.vector(point, blobs).astype("<f8").tobytes()

        state = self.algorithm(row, 0).init()
        take(0, state)
        for record, after, _ in log.replay(self._algorithms, state, records, told, self.maximize):
            take(record.step + 1, after)
        return vectors

    # Reading ----------------------------------------------------------------------------------------------------------

    def archive(self) -> Steps[tuple[Archive, list[int]]]:
        """All told points with what is known of their values, and the number of the first trial of each.

        Values are minimised (negated where the study maximises); values told late for a trial are replicates. Scans the
        whole history.

        Raises
        ------
        IncompatibleProblem
            For a study whose points are recipes: they are not kept as numbers.
        """
        if self.traits.encoding == "recipe":
            raise IncompatibleProblem(
                f"the points of {self.resolved.algorithm} are recipes, which are not compared as numbers",
                hint="the best trial and the recommended point are there all the same",
            )
        row = yield from self.row()
        told: list[log.Told] = yield Read(partial(history.results, study=self.id, after_seq=0, upto_seq=row.seq))
        late = yield Read(lambda tx: tx.late(self.id, 0, history.MAX_SEQ))
        vectors = {trial.number: point.vector for trial, point in told}
        rows = [
            (trial.number, trial.value, trial.extra) for trial, _ in told if not trial.invalid and trial.state != FAILED
        ]
        rows += [(item.number, item.value, item.extra) for item in late if item.number in vectors]
        sign = -1.0 if self.maximize else 1.0
        values = np.array([np.nan if value is None else sign * value for _, value, _ in rows])
        errors = np.array([history.stderr(extra) for _, _, extra in rows])
        points = np.array([np.frombuffer(vectors[n] or b"", dtype="<f8") for n, _, _ in rows])
        archive = Archive.of(points.reshape(len(rows), self.space.dim), values, errors)
        return archive, [rows[i][0] for i in archive.first]

    def params(self, point: PointRow, blobs: Mapping[str, bytes] | None = None) -> dict[str, Any]:
        """The parameters a trial asks, decoded (vectors as arrays); `blobs` has by digest what a recipe is made of."""
        if point.params is not None:
            params: dict[str, Any] = json.loads(point.params)
            for name in self._vectors:
                params[name] = np.asarray(params[name], dtype=np.float64)
            return params
        return self.space.decode(self.vector(point, blobs))

    def vector(self, point: PointRow, blobs: Mapping[str, bytes] | None = None) -> Vector:
        """(d,) float64 internal point of a trial."""
        if point.vector is not None:
            return np.frombuffer(point.vector, dtype="<f8").copy()
        recipe = log.points_of([point], self.space.dim, True).recipes
        assert recipe is not None
        vectors = {name: np.frombuffer(content, dtype="<f4") for name, content in (blobs or {}).items()}
        return materialise(recipe[0], self.key, self.space.dim, vectors, cache=self.prefixes).astype(np.float64)

    def recipe(self, point: PointRow) -> Recipe | None:
        """The recipe of a point, if it is one."""
        if point.recipe is None:
            return None
        recipes = log.points_of([point], self.space.dim, True).recipes
        return recipes[0] if recipes else None

    def points(self, numbers: Sequence[int]) -> Steps[dict[int, tuple[PointRow, dict[str, bytes]]]]:
        """Points of trials, each with those vectors by digest that its recipe is made of and that are still kept."""

        def work(tx: Tx) -> dict[int, tuple[PointRow, dict[str, bytes]]]:
            found = {}
            for number, point in tx.points(self.id, numbers).items():
                blobs = {name: tx.blob(self.id, name) for name in log.named(point)}
                found[number] = point, {name: blob for name, blob in blobs.items() if blob is not None}
            return found

        points: dict[int, tuple[PointRow, dict[str, bytes]]] = yield Read(work)
        return points

    def best(self) -> Steps[tuple[TrialRow, dict[str, Any]] | None]:
        """The best told trial and its parameters; None before the first value."""
        row = yield from self.row()
        if row.best_trial is None:
            return None
        number = row.best_trial
        trial: TrialRow = yield Read(lambda tx: tx.trial(self.id, number))
        point, blobs = (yield from self.points([number]))[number]
        if len(blobs) < len(log.named(point)):
            # A late result became the best one after its step's vectors were dropped: the log still has that state.
            state = yield from self._state_at(row, trial.step)
            blobs |= _contents(self.algorithm(row, trial.step).blobs(state))
        return trial, self.params(point, blobs)

    def recommend(self) -> Steps[tuple[int, dict[str, Any], JSON]]:
        """The open step, the parameters the method would deploy now, and what their evaluation gets beside them."""
        row, state = yield from self.state()
        algorithm = self.algorithm(row)
        params = self.space.decode(np.asarray(algorithm.recommend(state), dtype=np.float64))
        return row.step, params, algorithm.payload(state)

    def metrics(self) -> Steps[dict[str, float]]:
        """The method's own numbers at the open step."""
        row, state = yield from self.state()
        return {k: float(v) for k, v in self.algorithm(row).metrics(state).items() if math.isfinite(v)}

    def eval_seed(self, trial: TrialRow) -> str:
        """A seed for common random numbers: equal for all lanes of one step and replicate of a method of steps."""
        step = trial.step if self.kind == "group" and trial.lane >= 0 else 0
        name = f"{self.key.hex()}/{step}" + (f"/{trial.replicate}" if trial.replicate else "")
        return str(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little"))

    @cached_property
    def seed_encodable(self) -> bool:
        """Whether candidates can travel as recipes: one unbounded vector, whose internal point is the point itself."""
        return self.traits.encoding == "recipe" and self.space.is_single_vector and self.space.domain == "free"


_WORD = {PAUSED: "paused", COMPLETED: "completed", CANCELLED: "cancelled", FAILED: "study_failed"}


def _cancelled(trial: TrialRow) -> None:
    trial.state, trial.until = CANCELLED, None


def _contents(vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    """Vectors as they are stored and served."""
    return {name: np.ascontiguousarray(vector, dtype="<f4").tobytes() for name, vector in vectors.items()}


def _place(row: StudyRow) -> tuple[int, int, int]:
    """What a swap compares."""
    return row.step, row.epoch, row.upto_seq


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in params.items()}
