"""A study, opened: its row, its state, what people do to it, its past. What every kind of study has."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np

from blackbox import codec
from blackbox.errors import AlgorithmChanged, CodecError, NumericalError, StudyNotFound, StudyStateError
from blackbox.options import Options
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import JSON, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.study import leases, ledger
from blackbox.study.effects import Steps, read, write
from blackbox.study.rows import (
    ACTIVE,
    CANCELLED,
    COMPLETED,
    FAILED,
    PAUSED,
    SnapshotRow,
    StepRow,
    StudyHead,
    StudyRow,
    Tx,
)
from blackbox.study.spec import Budget, LeaseDefaults, Parallelism, Resolved, stored_algorithm

LARGE_DIM = 50_000


class Machine(Protocol):
    """A study's method, or the coordinator of a federated one, as far as its states are read."""

    @property
    def State(self) -> type[Any]: ...
    def recommend(self, state: Any) -> Vector | str: ...
    def metrics(self, state: Any) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class _Cached:
    epoch: int
    step: int
    state: Any


class BaseStudy(ABC):
    """One study, opened. Keeps caches only: another instance, here or elsewhere, may work on the same study.

    Parameters
    ----------
    head : its row that never changes, but for edits made here.
    slicer : who computes the parts of the method's large sums.

    Attributes
    ----------
    resolved, spec : what it stores, and what people wrote.
    space, key : of its points and its noise.
    maximize : whether told values are negated inside.
    stored : what this release has for the method that the study was stored with.
    options : of its method.
    stuck : why the state of the open step cannot be computed, as far as is known; empty where it can.
    """

    def __init__(self, head: StudyHead, slicer: Slicer = WHOLE) -> None:
        self.head = head
        self.slicer = slicer
        self.id = head.id
        self.resolved = Resolved.model_validate_json(head.resolved)
        self.spec = self.resolved.spec
        self.space = Space.from_json(self.spec.space)
        self.key = Key.from_seed(self.spec.seed)
        self.maximize = self.spec.direction == "maximize"
        self.stored = stored_algorithm(self.resolved, self.space)
        self.options = self.stored.options or Options()
        self.stuck = self.stored.obstacle
        self._build()
        self._row: StudyRow | None = None
        self._cached: _Cached | None = None

    @classmethod
    def open(cls, study: str, slicer: Slicer = WHOLE) -> Steps[Self]:
        """The study of that id, which must be of this kind; `kinds.open_study` opens any.

        Raises
        ------
        StudyNotFound
        """
        head = yield from read(lambda tx: tx.head(study))
        if head is None:
            raise StudyNotFound(f"there is no study {study}")
        return cls(head, slicer)

    # What each kind of study does its own way -------------------------------------------------------------------------

    @abstractmethod
    def _build(self) -> None:
        """Make what computes, as attributes, as far as this release can."""

    @abstractmethod
    def machine(self, row: StudyRow, step: int | None = None) -> Machine:
        """What computes a step (default: the open one).

        Raises
        ------
        AlgorithmChanged
            If this release has nothing that does, or not with these options.
        """

    @abstractmethod
    def _state_at(self, row: StudyRow, step: int) -> Steps[Any]:
        """The state at a step, from the cache, a snapshot or a replay of the log."""

    @abstractmethod
    def replay(self) -> Steps[Iterator[tuple[StepRow, str]]]:
        """Every recorded step with the digest that a replay from the beginning gives; equal where nothing is wrong.

        With another revision of the method it ends with the first step whose digest differs.
        """

    @abstractmethod
    def advance(self, *, now: float) -> Steps[int]:
        """Close every step that can be closed; returns how many: none where this release cannot compute the state."""

    @abstractmethod
    def due(self) -> bool:
        """Whether `advance` may find a step to close. Cheap: no effect, from what was last seen."""

    # Row and state ----------------------------------------------------------------------------------------------------

    def row(self) -> Steps[StudyRow]:
        """The committed row."""
        row = yield from read(lambda tx: tx.study(self.id))
        if row is None:
            raise StudyNotFound(f"study {self.id} was deleted")
        self._row = row
        return replace(row)

    @property
    def seen(self) -> StudyRow | None:
        """The committed row as last seen here; others may have moved on."""
        return None if self._row is None else replace(self._row)

    def state(self, at_step: int | None = None) -> Steps[tuple[StudyRow, Any]]:
        """The decoded state at a step (default: the open one), from the cache, a snapshot or a replay of the log.

        Raises
        ------
        AlgorithmChanged
            If this release cannot compute it. With another revision of the method than the study's, a state is believed
            where it is stored, or where the replay gives its digest.
        """
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

    def changed(self, words: str) -> AlgorithmChanged:
        """The error of who needs a state that this release cannot compute."""
        way = "fork it to continue with an algorithm of this release"
        if self.resolved.federated or self.resolved.hosted is not None:
            way = "finish it with the release that began it, or start another one from its recommended point"
        return AlgorithmChanged(
            f"the study cannot go on as it is: {words}", hint=f"everything that is stored can be read; {way}"
        )

    def _newest(self, row: StudyRow, upto_step: int, after_step: int = -1) -> Steps[tuple[SnapshotRow, Any] | None]:
        """The newest snapshot in (after_step, upto_step], and its state. One that this release cannot read is passed
        over: a snapshot is a cache, the log is the truth."""
        while True:
            snapshot = yield from read(partial(_snapshot, study=self.id, epoch=row.epoch, upto_step=upto_step))
            if snapshot is None or snapshot.step <= after_step:
                return None
            try:
                return snapshot, codec.decode(self.machine(row, snapshot.step).State, snapshot.state)
            except CodecError:
                upto_step = snapshot.step - 1
                self._unreadable()

    @abstractmethod
    def _unreadable(self) -> None:
        """Take note that a snapshot could not be read: one that can should follow soon."""

    def _upto_change(self, replayed: Iterator[tuple[StepRow, str]]) -> Iterator[tuple[StepRow, str]]:
        """A replay up to the first step at which another revision computes something else."""
        for record, digest in replayed:
            yield record, digest
            if self.stored.revised and digest != record.digest:
                return

    def _keep(self, epoch: int, step: int, state: Any) -> None:
        self._cached = _Cached(epoch, step, state)

    def recommend(self) -> Steps[tuple[int, dict[str, Any], JSON]]:
        """The open step, the parameters the method would deploy now, and what their evaluation gets beside them."""
        row, state = yield from self.state()
        point = self.machine(row).recommend(state)
        params = json.loads(point) if isinstance(point, str) else self.space.decode(np.asarray(point, np.float64))
        return row.step, params, self._payload(row, state)

    def _payload(self, row: StudyRow, state: Any) -> JSON:
        """What an evaluation of the recommended point gets beside it."""
        return None

    def metrics(self) -> Steps[dict[str, float]]:
        """The method's own numbers at the open step."""
        row, state = yield from self.state()
        return {k: float(v) for k, v in self.machine(row).metrics(state).items() if math.isfinite(v)}

    @property
    def large(self) -> bool:
        """Whether states and vectors are so large that writing them takes longer than an event loop should be held."""
        return self.space.dim > LARGE_DIM

    # Its own state ----------------------------------------------------------------------------------------------------

    def _transition(
        self, state: str, reason: str | None, now: float, allowed: Sequence[str] = (ACTIVE,)
    ) -> Steps[StudyRow]:
        def work(tx: Tx) -> StudyRow:
            row = ledger.locked(tx, self.id)
            if row.state == state:
                return row
            if row.state not in allowed:
                raise StudyStateError(f"the study is {row.state}; this needs {' or '.join(allowed)}")
            row.state, row.reason = state, reason
            if state == CANCELLED:
                for trial in tx.open_trials(self.id):
                    leases.change_trial(tx, row, trial.number, leases.cancel)
            word = "resumed" if state == ACTIVE else state.lower()
            ledger.log_event(tx, row, f"study.{word}", now, reason=reason)
            tx.put_study(row)
            return row

        row = self._row = yield from write(work)
        return row

    def pause(self, *, now: float, reason: str = "by request") -> Steps[StudyRow]:
        """Hand out nothing; take every result."""
        return self._transition(PAUSED, reason, now)

    def resume(self, *, now: float) -> Steps[StudyRow]:
        """Go on after a pause or a failure (whose last step is told again)."""
        return self._transition(ACTIVE, None, now, (PAUSED, FAILED))

    def complete(self, *, now: float) -> Steps[StudyRow]:
        """End the study; results that are out are still taken."""
        return self._transition(COMPLETED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def cancel(self, *, now: float) -> Steps[StudyRow]:
        """End the study and cancel what is out."""
        return self._transition(CANCELLED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def edit(
        self,
        *,
        budget: Budget | None = None,
        labels: dict[str, str] | None = None,
        lease: LeaseDefaults | None = None,
        parallelism: Parallelism | None = None,
    ) -> Steps[StudyHead]:
        """Change the budget, the labels, how long leases run or how many. What is given replaces what was there.

        A completed study whose budget grew is active again. Leases that are out keep their time. The hash stays that of
        the spec as created, so that the script that created the study still finds it.
        """
        asked = {"budget": budget, "labels": labels, "lease": lease, "parallelism": parallelism}
        changes = {name: part for name, part in asked.items() if part is not None}
        spec = self.spec.model_copy(update=changes)
        resolved = self.resolved.model_copy(update={"spec": spec})
        head = replace(self.head, resolved=resolved.model_dump_json())

        def work(tx: Tx) -> StudyRow:
            row = ledger.locked(tx, self.id)
            tx.put_head(head)
            limit = spec.budget.evaluations
            if row.state == COMPLETED and row.reason == "budget" and (limit is None or row.used < limit):
                row.state, row.reason = ACTIVE, None
            tx.put_study(row)
            return row

        self._row = yield from write(work)
        self.head, self.resolved, self.spec = head, resolved, spec
        return head

    def _end(self, state: str, reason: str, now: float) -> Steps[None]:
        """Pause or fail a study from inside an operation. One that has ended meanwhile is left as it is: what was told
        is stored, so the operation must not fail for that."""

        def work(tx: Tx) -> StudyRow:
            row = ledger.locked(tx, self.id)
            ledger.finish(tx, row, state, reason, now)
            tx.put_study(row)
            return row

        self._row = yield from write(work)

    def _fail(self, error: Exception, now: float) -> Steps[None]:
        """Mark the study failed for an error of its method, and raise what is no numerical error."""
        yield from self._end(FAILED, f"{type(error).__name__}: {error}"[:500], now)
        if not isinstance(error, ArithmeticError | ValueError | np.linalg.LinAlgError | NumericalError):
            raise error


def _snapshot(tx: Tx, study: str, epoch: int, upto_step: int) -> SnapshotRow | None:
    return tx.snapshot(study, epoch, upto_step)
