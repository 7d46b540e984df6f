"""The part that every kind of opened study has: its row, its state, its transitions and its past."""

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
from blackbox.algorithm import VALUE_METRICS
from blackbox.errors import AlgorithmChanged, CodecError, NumericalError, StudyNotFound, StudyStateError
from blackbox.options import Options
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import JSON, Notice, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.study import leases, ledger
from blackbox.study.effects import Steps, read, write
from blackbox.study.health import Tally, notices
from blackbox.study.recommending import PROPOSED, Recommendation
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
    """The methods of an algorithm, or of the coordinator of a federated study, that only read its state."""

    @property
    def State(self) -> type[Any]:
        """The class of its states."""

    def recommend(self, state: Any) -> Vector | str:
        """The point to deploy: (d,) internal coordinates, or canonical JSON of a structured point."""

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Numbers to plot, by name."""


@dataclass(frozen=True, slots=True)
class _Cached:
    epoch: int
    step: int
    state: Any


class BaseStudy(ABC):
    """One opened study. It keeps caches only: any number of instances, here or elsewhere, may share one study.

    Parameters
    ----------
    head : the row of the study that never changes, except by `edit`.
    slicer : computes the parts of the algorithm's large sums.

    Attributes
    ----------
    resolved : the resolved spec, as it is stored.
    spec : the spec as people wrote it.
    space, key : the search space, and the key of all noise.
    maximize : whether told values are negated inside.
    stored : the stored algorithm and options as this release reads them.
    options : resolved options of the algorithm.
    stuck : why the state of the open step cannot be computed, as far as is known; empty if it can.
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

    # Defined by each kind of study ------------------------------------------------------------------------------------

    @abstractmethod
    def _build(self) -> None:
        """Set the attributes that compute (algorithm or coordinator), as far as this release has them."""

    @abstractmethod
    def machine(self, row: StudyRow, step: int | None = None) -> Machine:
        """The algorithm or coordinator in charge of a step (default: the open one).

        Raises
        ------
        AlgorithmChanged
            If this release lacks it, or it does not take the stored options.
        """

    @abstractmethod
    def _state_at(self, row: StudyRow, step: int) -> Steps[Any]:
        """The state at a step, from the cache, a snapshot or a replay of the log."""

    @abstractmethod
    def replay(self) -> Steps[Iterator[tuple[StepRow, str]]]:
        """Every recorded step with the digest that a replay from the beginning computes; equal to the recorded one.

        If the revision of the algorithm has changed, the replay ends with the first step whose digest differs.
        """

    @abstractmethod
    def advance(self, *, now: float) -> Steps[int]:
        """Close every step that can be closed and return how many; 0 if this release cannot compute the state."""

    @abstractmethod
    def due(self) -> bool:
        """Whether `advance` may find a step to close. Cheap: it has no effects and uses only what was last seen."""

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
            If this release cannot compute it. With another revision of the algorithm than the study's, a state is
            trusted if it is stored, or if the replay gives the recorded digest.
        """
        row = yield from self.row()
        state = yield from self._state_at(row, row.step if at_step is None else at_step)
        return row, state

    def _current(self) -> Steps[tuple[StudyRow, Any]]:
        """Row and state as last seen here; reads only if nothing was seen yet or the cached state is older."""
        row = self._row
        if row is None:
            row = yield from self.row()
        state = yield from self._state_at(row, row.step)
        return row, state

    def changed(self, words: str) -> AlgorithmChanged:
        """The error for an operation that needs a state which this release cannot compute; `words` say why."""
        way = "fork it to continue with an algorithm of this release"
        if self.resolved.federated or self.resolved.hosted is not None:
            way = "finish it with the release that began it, or start another one from its recommended point"
        return AlgorithmChanged(
            f"the study cannot go on as it is: {words}", hint=f"everything that is stored can be read; {way}"
        )

    def _newest(self, row: StudyRow, upto_step: int, after_step: int = -1) -> Steps[tuple[SnapshotRow, Any] | None]:
        """The newest snapshot in (after_step, upto_step] with its state. Snapshots that this release cannot read are
        skipped: a snapshot is a cache, the log is the truth."""
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
        """Note that a snapshot could not be read, so that a readable one is stored soon."""

    def _upto_change(self, replayed: Iterator[tuple[StepRow, str]]) -> Iterator[tuple[StepRow, str]]:
        """A replay up to the first step at which another revision computes something else."""
        for record, digest in replayed:
            yield record, digest
            if self.stored.revised and digest != record.digest:
                return

    def _keep(self, epoch: int, step: int, state: Any) -> None:
        self._cached = _Cached(epoch, step, state)

    def propose(self) -> Steps[Recommendation]:
        """The point that the algorithm itself would deploy, such as the mean of its distribution.

        It has not necessarily been evaluated, so nothing is promised of it; `recommend` is what to use.
        """
        row, state = yield from self.state()
        point = self.machine(row).recommend(state)
        params = json.loads(point) if isinstance(point, str) else self.space.decode(np.asarray(point, np.float64))
        return Recommendation(row.step, params, self._payload(row, state), PROPOSED)

    def recommend(self) -> Steps[Recommendation]:
        """The point to deploy now: by default what the algorithm proposes; `RecordedStudy.recommend` knows values."""
        return self.propose()

    def _payload(self, row: StudyRow, state: Any) -> JSON:
        """The payload for an evaluation of the proposed point."""
        return None

    def metrics(self) -> Steps[dict[str, float]]:
        """The algorithm's own finite metrics at the open step, by name; values of the objective as they were told."""
        row, state = yield from self.state()
        found = {k: float(v) for k, v in self.machine(row).metrics(state).items() if math.isfinite(v)}
        return {k: -v if self.maximize and k in VALUE_METRICS else v for k, v in found.items()}

    def health(self, *, now: float) -> Steps[list[Notice]]:
        """What the owner of the study should know; [] if all is well."""
        row = yield from self.row()
        return notices(row, maximize=self.maximize, created_at=self.head.created_at, now=now)

    @property
    def large(self) -> bool:
        """Whether writing its states and vectors takes longer than an event loop may be blocked."""
        return self.space.dim > LARGE_DIM

    # Transitions of the study's own state -----------------------------------------------------------------------------

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
            if state == ACTIVE:
                tally = Tally.take(row)
                tally.forgiven()
                tally.store(row)
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
        """Grant no leases until `resume`; results are still taken.

        Raises
        ------
        StudyStateError
            If the study is not ACTIVE (nor PAUSED already).
        """
        return self._transition(PAUSED, reason, now)

    def resume(self, *, now: float) -> Steps[StudyRow]:
        """Make a paused or failed study active again. After a failure its last step is told again.

        Raises
        ------
        StudyStateError
            If the study has ended.
        """
        return self._transition(ACTIVE, None, now, (PAUSED, FAILED))

    def complete(self, *, now: float) -> Steps[StudyRow]:
        """End the study; results of leased trials are still taken.

        Raises
        ------
        StudyStateError
            If the study was cancelled.
        """
        return self._transition(COMPLETED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def cancel(self, *, now: float) -> Steps[StudyRow]:
        """End the study and cancel its open trials.

        Raises
        ------
        StudyStateError
            If the study was completed.
        """
        return self._transition(CANCELLED, "by request", now, (ACTIVE, PAUSED, FAILED))

    def edit(
        self,
        *,
        budget: Budget | None = None,
        labels: dict[str, str] | None = None,
        lease: LeaseDefaults | None = None,
        parallelism: Parallelism | None = None,
    ) -> Steps[StudyHead]:
        """Replace the budget, the labels, the lease defaults or the limit on parallel leases.

        A completed study whose budget grew becomes active again. Existing leases keep their deadline. The hash stays
        that of the spec as created, so that the script that created the study still finds it.

        Returns
        -------
        The new head.
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
        """Pause or fail a study from inside an operation. A study that has ended meanwhile is left as it is: results
        are stored, so the operation must not fail because of that."""

        def work(tx: Tx) -> StudyRow:
            row = ledger.locked(tx, self.id)
            ledger.finish(tx, row, state, reason, now)
            tx.put_study(row)
            return row

        self._row = yield from write(work)

    def _fail(self, error: Exception, now: float) -> Steps[None]:
        """Mark the study FAILED after an error of its algorithm; raise the error again unless it is numerical."""
        yield from self._end(FAILED, f"{type(error).__name__}: {error}"[:500], now)
        if not isinstance(error, ArithmeticError | ValueError | np.linalg.LinAlgError | NumericalError):
            raise error


def _snapshot(tx: Tx, study: str, epoch: int, upto_step: int) -> SnapshotRow | None:
    return tx.snapshot(study, epoch, upto_step)
