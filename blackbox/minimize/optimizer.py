"""A study in process for loops of one's own: `Optimizer`, with `ask` and `tell`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from blackbox.backends import Trial
from blackbox.errors import InvalidInput
from blackbox.minimize.driving import (
    LEASE_SECONDS,
    WORKER,
    evaluation_of,
    failure,
    name_of,
    params_of,
    report_of,
)
from blackbox.minimize.problem import Bounds, array_of, space_of, spec_of
from blackbox.minimize.result import summary
from blackbox.minimize.stores import StoreLike, opened, study_in
from blackbox.minimize.told import told_by
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.space import Parameter, Space
from blackbox.study.effects import perform
from blackbox.study.reading import plain
from blackbox.study.rows import ACTIVE
from blackbox.study.settling import Report

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A point to be evaluated.

    Attributes
    ----------
    params : its parameters by name.
    x : the point as `minimize` would give it to an objective: a (d,) array where the space is a list of bounds or one
        vector, else `params`.
    trial : number, step, eval_seed and payload of its trial.
    """

    params: dict[str, Any]
    x: Any
    trial: Trial
    token: str = field(repr=False)

    @property
    def number(self) -> int:
        """Number of its trial, from 1."""
        return self.trial.number


class Optimizer:
    """An optimization whose loop is yours: it names points, you evaluate them wherever you like and tell the values.

    Any number of candidates may be in hand, and they are told in any order. Nothing runs in the background;
    one thread at a time may call it.

    Parameters
    ----------
    space, algorithm, options, seed, direction, target, store, name, noise, slicer : see `minimize`.
    budget : number of evaluations. None: no end by itself.
    workers : how many candidates will be in hand at a time, if known: default populations are at least as large.

    Raises
    ------
    InvalidInput, StudySpecMismatch
        See `minimize`.

    Examples
    --------
    >>> optimizer = Optimizer([(-5, 5), (-5, 5)], "cma_es", budget=200)
    >>> while not optimizer.finished:
    ...     for candidate in optimizer.ask(4):
    ...         optimizer.tell(candidate, float((candidate.x**2).sum()))
    >>> x, value = optimizer.best
    >>> bool(value < 1e-3), optimizer.result().nfev
    (True, 200)

    A point of one's own:

    >>> optimizer = Optimizer({"lr": {"type": "float", "low": 1e-4, "high": 1.0, "scale": "log"}})
    >>> optimizer.tell({"lr": 0.01}, 0.25)
    >>> optimizer.best
    ({'lr': 0.01}, 0.25)
    """

    def __init__(
        self,
        space: Space | Mapping[str, Parameter] | Mapping[str, Mapping[str, Any]] | Bounds,
        algorithm: str = "auto",
        budget: int | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        seed: int | str = 0,
        direction: str = "minimize",
        target: float | None = None,
        workers: int | None = None,
        store: StoreLike = None,
        name: str = "minimize",
        noise: str = "auto",
        slicer: Slicer = WHOLE,
    ) -> None:
        whole = space_of(space)
        self._as_array = not isinstance(space, Space | Mapping) or whole.is_single_vector
        self._point: Callable[[dict[str, Any]], Any] = array_of if self._as_array else dict
        spec = spec_of(
            whole,
            algorithm,
            budget,
            name=name,
            options=options,
            direction=direction,
            target=target,
            seed=seed,
            noise=noise,
            workers=workers,
        )
        self.store = opened(store)
        self._closes = self.store is not store
        try:
            self.study = study_in(self.store, spec, time.time(), WORKER, slicer)
        except BaseException:
            self.close()
            raise

    # Ask and tell -----------------------------------------------------------------------------------------------------

    def ask(self, n: int = 1) -> list[Candidate]:
        """Up to `n` candidates.

        Fewer, or none, if the study has ended, the budget is in hand already, or the algorithm names no further point
        before it is told the values of those in hand. Those of a process that is no more, which `store` has kept, come
        first.
        """
        if n < 1:
            raise InvalidInput(f"n must be at least 1, got {n}")
        study = self.study
        self._advance()
        asked = perform(self.store, study.ask(now=time.time(), worker=WORKER, count=n, lease_seconds=LEASE_SECONDS))
        candidates = []
        for lease in asked.leases:
            params = params_of(self.store, study, lease.trial.number, lease.point)
            candidates.append(Candidate(params, self._point(params), evaluation_of(study, lease).trial, lease.token))
        return candidates

    def tell(self, point: Any, value: Any) -> None:
        """Tell what came of a candidate, or of a point of one's own; or of several at once.

        Parameters
        ----------
        point : a `Candidate`; or a point as `Candidate.x` or `Candidate.params` has it, which nobody asked for. It may
            be the best one; the algorithm learns from it if it can. Or a list of these.
        value : what an objective of `minimize` returns; or the exception that it raised: then nothing is learned. For a
            list of points a list of values.

        Raises
        ------
        InvalidInput
            If a point does not fit the space, or a value is none. Nothing was told then.
        """
        many = isinstance(point, list | tuple) and not (self._as_array and all(map(np.isscalar, point)))
        many = many or (isinstance(point, np.ndarray) and point.ndim == 2)
        points, values = (list(point), list(value)) if many else ([point], [value])
        if len(points) != len(values):
            raise InvalidInput(f"{len(points)} points were told with {len(values)} values", hint="one value per point")
        reports = [self._report(each, told) for each, told in zip(points, values, strict=True)]
        answer = perform(self.store, self.study.tell(reports, now=time.time(), worker=WORKER))
        for outcome in answer.outcomes:
            if outcome.error is not None:
                raise outcome.error
        self._advance()

    def _report(self, point: Any, value: Any) -> Report:
        if isinstance(point, Candidate):
            if isinstance(value, BaseException):
                facts = failure(name_of(value), str(value))
                return Report(point.number, point.token, "failed", extra=facts, retryable=False)
            return report_of(point.number, point.token, value)
        number, side = told_by(value)
        params = point if isinstance(point, Mapping) else self._named(point)
        vector = self.study.space.encode(params).astype("<f8").tobytes()
        finite = math.isfinite(number)
        return Report(
            status="completed" if finite else "infeasible",
            value=number if finite else None,
            extra=side,
            vector=vector,
            params=json.dumps(plain(params)),
            source="told",
        )

    def _named(self, point: Any) -> dict[str, Any]:
        """The parameters of a point that was given as an array."""
        names = list(self.study.space)
        if self._as_array and np.ndim(point) == 1:
            if self.study.space.is_single_vector:
                return {names[0]: np.asarray(point, dtype=np.float64)}
            if len(point) == len(names):
                return dict(zip(names, map(float, point), strict=True))
        wanted = f"an array of {self.study.space.dim} numbers, or " if self._as_array else ""
        raise InvalidInput(f"a point is a candidate, {wanted}parameters by name, got {type(point).__name__}")

    def release(self, candidates: Candidate | Sequence[Candidate]) -> None:
        """Give a candidate back that will not be evaluated, or several: their points are asked again."""
        candidates = [candidates] if isinstance(candidates, Candidate) else candidates
        reports = [Report(each.number, each.token, "released") for each in candidates]
        perform(self.store, self.study.tell(reports, now=time.time(), worker=WORKER))

    def _advance(self) -> None:
        if self.study.due():
            perform(self.store, self.study.advance(now=time.time()))

    # What is known ----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether no more candidates will come: the budget is spent, the target reached, or the algorithm has ended."""
        return perform(self.store, self.study.row()).state != ACTIVE

    @property
    def best(self) -> tuple[Any, float] | None:
        """The best point told, as `Candidate.x` has it, and its value; None before the first value."""
        best = perform(self.store, self.study.best())
        if best is None or best[0].value is None:
            return None
        return self._point(best[1]), best[0].value

    @property
    def recommended(self) -> Any:
        """The point to deploy now, as `Candidate.x` has it; see `x` and `recommended` of `minimize`."""
        return self._point(perform(self.store, self.study.recommend()).params)

    def result(self) -> OptimizeResult:
        """The result so far, as `minimize` returns it."""
        return summary(self.study, self.store, self._point)

    def close(self) -> None:
        """Close the file of `store`, if it was opened here. Candidates in hand are asked again after it is opened."""
        if self._closes:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
