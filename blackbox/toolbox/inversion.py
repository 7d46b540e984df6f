"""Inversion of control: a solver that calls its objective becomes one that is told values and returns its next point.

The solver runs in a thread of its own and blocks inside its objective until the value of that point is told. A
deterministic solver is a pure function of the values it was told, so the log of values is its whole state:
`Inversion.point(log)` continues the living thread when it has seen a prefix of that log, and otherwise runs the solver
again from the start and feeds it the log. Threads are therefore only caches, `MAX_LIVE` in a process; the least
recently used one is ended.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import InvalidInput, NonFiniteValue, ReplayMismatch, SolverFailed, SolverStalled
from blackbox.records import Matrix, Vector

Solver: TypeAlias = Callable[[Callable[[Vector], float]], Any]
"""Takes the objective, calls it as often as it likes, from the thread it runs in, and returns its result."""

MAX_LIVE = 64
"""Solver threads alive in this process; beyond it the least recently used one ends and comes back by replay."""

_SAME = 1e-12  # relative: the last bits of a point may depend on the processor; a larger difference means another run


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a run: the solver returned `result`."""

    result: Any


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


class _Abandoned(BaseException):
    """Raised out of the objective to end the solver. Not an Exception: solvers catch those and carry on."""


_Answer: TypeAlias = "Vector | Finished | _Raised"


# -- one thread --------------------------------------------------------------------------------------------------------


class _Run:
    """One run of the solver in a thread. It holds no reference to its Inversion, or neither would ever be collected."""

    def __init__(self, solver: Solver) -> None:
        self.gone = False  # abandoned or over: of no further use
        self.busy = False  # somebody waits for it, so it must not be abandoned; guarded by _guard
        self.values: SimpleQueue[float | None] = SimpleQueue()
        self.answers: SimpleQueue[_Answer] = SimpleQueue()
        # A daemon: an unfinished solver must not keep the process from ending.
        threading.Thread(target=self._work, args=(solver,), name="blackbox-solver", daemon=True).start()

    def _work(self, solver: Solver) -> None:
        try:
            self.answers.put(Finished(solver(self._objective)))
        except _Abandoned:
            pass
        except BaseException as error:  # SystemExit too: the waiting thread must hear of it
            self.answers.put(_Raised(error))

    def _objective(self, x: Vector) -> float:
        if self.gone:  # for a solver that swallowed the first one
            raise _Abandoned
        self.answers.put(np.array(x, dtype=np.float64))  # a copy: solvers reuse their buffers
        value = self.values.get()
        if value is None:
            raise _Abandoned
        return value

    def receive(self, seconds: float) -> _Answer:
        """Return the next point, or how the run ended."""
        try:
            answer = self.answers.get(timeout=seconds)
        except Empty:
            raise SolverStalled(
                f"the solver took more than {seconds:g} s to name its next point",
                hint="it will be run again from its log",
            ) from None
        if not isinstance(answer, np.ndarray):
            self.gone = True
        return answer

    def abandon(self) -> None:
        """End the thread without waiting for it. Takes no lock: the garbage collector calls it at any moment."""
        self.gone = True
        self.values.put(None)


# -- all threads -------------------------------------------------------------------------------------------------------

_guard = threading.Lock()
_runs: OrderedDict[_Run, None] = OrderedDict()  # least recently used first


def live() -> int:
    """Return the number of solver threads that are alive in this process."""
    with _guard:
        return sum(not run.gone for run in _runs)


def _start(solver: Solver) -> _Run:
    """Start a new run, marked busy. Idle ones are abandoned to make room; if MAX_LIVE are busy there is one more."""
    with _guard:
        for run in [run for run in _runs if run.gone]:
            del _runs[run]
        for run in [run for run in _runs if not run.busy][: max(0, len(_runs) + 1 - MAX_LIVE)]:
            run.abandon()
            del _runs[run]
        run = _Run(solver)
        run.busy = True
        _runs[run] = None
        return run


def _engage(run: _Run | None) -> bool:
    """Mark the run as busy and return True, unless it is over; a busy run is not abandoned before `_release`."""
    with _guard:
        if run is None or run.gone:
            return False
        run.busy = True
        _runs.move_to_end(run)
        return True


def _release(run: _Run) -> None:
    with _guard:
        run.busy = False


def _after_fork() -> None:
    """A forked child has the queues of its parent's threads but not the threads; waiting for them would never end."""
    global _guard
    _guard = threading.Lock()
    for run in _runs:
        run.gone = True
    _runs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -- the front ---------------------------------------------------------------------------------------------------------


class Inversion:
    """A callback solver as a function from the values told so far to the next point.

    Parameters
    ----------
    solver : called with the objective, in a thread, any number of times. It must be deterministic, and must not refer
        to the owner of this object, which a living thread would keep alive: pass a function of constants, not a method.
    patience_seconds : how long the solver may think about one point before `point` raises.

    Examples
    --------
    >>> from scipy.optimize import minimize_scalar
    >>> inversion = Inversion(lambda f: minimize_scalar(lambda x: f(np.array([x])), bounds=(0, 4), method="bounded"))
    >>> inversion.point([])
    array([1.52786405])
    >>> inversion.point([2.0]), inversion.point([2.0])
    (array([2.47213595]), array([2.47213595]))
    """

    def __init__(self, solver: Solver, patience_seconds: float = 300.0) -> None:
        self._solver = solver
        self._patience = patience_seconds
        self._lock = threading.Lock()  # one caller at a time: the log and the thread belong together
        self._run: _Run | None = None
        self._finalizer: weakref.finalize[..., Inversion] | None = None  # ends the thread when this object is collected
        # What the newest run was told and what it answered: answer i came after i values. Both outlive the thread, so
        # that asking again, or at an earlier state, starts none.
        self._told: list[float] = []
        self._answers: list[_Answer] = []

    def point(self, told: Sequence[float] | NDArray[np.float64], asked: Matrix | None = None) -> Vector | Finished:
        """Return the point after these values, or how the solver finished: a pure function of the values.

        Parameters
        ----------
        told : (k,) finite values of the first k points, in order. A point without a value gets a barrier value:
            quadratic models and simplices do not survive an infinity.
        asked : (k, d) the points that were evaluated, compared with those of a replay; None: not compared.

        Returns
        -------
        (d,) the next point, a fresh array; or `Finished`.

        Raises
        ------
        NonFiniteValue
            If a value is not finite.
        InvalidInput
            If there are more values than the solver asked for.
        SolverFailed
            If the solver raised. So does every later call with this log.
        SolverStalled
            If it thinks for too long. The next call starts again.
        ReplayMismatch
            If a replayed point is not the one that was evaluated: other options, another version of the solver, or one
            that is not deterministic.
        """
        log = np.asarray(told, dtype=np.float64).reshape(-1)
        if not np.isfinite(log).all():
            first = int(np.argmin(np.isfinite(log)))
            raise NonFiniteValue(
                f"value {first} of the log is {log[first]}", hint="answer a failure with a barrier value"
            )
        values: list[float] = log.tolist()
        with self._lock:
            if not (len(values) < len(self._answers) and values == self._told[: len(values)]):
                self._follow(values, asked)
            answer = self._answers[len(values)]
        if isinstance(answer, _Raised):
            raise SolverFailed(f"the solver failed after {len(values)} values: {answer.error!r}") from answer.error
        return answer if isinstance(answer, Finished) else answer.copy()

    def hibernate(self) -> None:
        """End the thread, if there is one. The next new point is found by replay."""
        with self._lock:
            if self._run is not None:
                self._run.abandon()
                self._run = None

    def _follow(self, values: list[float], asked: Matrix | None) -> None:
        """Bring a run to the end of this log, the living one if it can get there."""
        continues = bool(self._answers) and self._told == values[: len(self._told)]
        if continues and not isinstance(self._answers[-1], np.ndarray):
            raise InvalidInput(f"the solver ended after {len(self._told)} values, the log has {len(values)}")
        run = self._run
        if not (continues and run is not None and _engage(run)):
            run = self._restart()
        try:
            while True:
                n = len(self._answers)
                if n > 0:
                    if n > len(values):
                        break
                    if not isinstance(self._answers[-1], np.ndarray):
                        raise InvalidInput(f"the solver ended after {n - 1} values, the log has {len(values)}")
                    run.values.put(values[n - 1])
                    self._told.append(values[n - 1])
                answer = run.receive(self._patience)
                if asked is not None and n < len(asked):
                    _compare(answer, asked[n], n)
                self._answers.append(answer)
        except InvalidInput:
            raise  # log and run still agree
        except BaseException:  # an interrupt too: what the run has seen is no longer known
            run.abandon()
            self._run, self._told, self._answers = None, [], []
            raise
        finally:
            _release(run)

    def _restart(self) -> _Run:
        if self._run is not None:
            self._run.abandon()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._told, self._answers = [], []
        run = self._run = _start(self._solver)
        self._finalizer = weakref.finalize(self, run.abandon)
        self._finalizer.atexit = False
        return run


def _compare(answer: _Answer, asked: Vector, n: int) -> None:
    """Raise unless the replayed answer is the point that was evaluated."""
    if isinstance(answer, np.ndarray) and answer.shape == asked.shape:
        tolerance = _SAME * np.maximum(1.0, np.abs(asked))
        if bool((np.abs(answer - asked) <= tolerance).all()):
            return
    raise ReplayMismatch(
        f"point {n} of the log is {asked}, the solver run again asks {answer}",
        hint="the solver or its options changed, or it is not deterministic; start a new study from the best point",
    )
