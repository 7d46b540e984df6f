"""Nelder-Mead: a simplex that reflects, expands, contracts and shrinks; needs no more than comparisons of values.

Nelder and Mead (1965), doi:10.1093/comjnl/7.4.308; coefficients for many dimensions: Gao and Han (2012),
doi:10.1007/s10589-010-9329-3. The solver is SciPy's, inverted by `toolbox.inversion`. With the worst vertex x_w
and the centroid x_c of the others::

    reflect   x_c + (x_c - x_w)               expand   x_c + chi (x_c - x_w)
    contract  x_c +- psi (x_c - x_w)          shrink   x_i <- x_best + sigma (x_i - x_best)

    chi, psi, sigma = 2, 1/2, 1/2, or adaptive 1 + 2/d, 3/4 - 1/(2d), 1 - 1/d
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.options import Field, Options
from blackbox.records import Matrix, Pending, Points, Results, Stop, Vector, dense
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.toolbox.inversion import Finished, Inversion
from blackbox.toolbox.values import barrier

FARTHEST = 1e100


class NelderMeadOptions(Options):
    """Options of `nelder_mead`. Lengths are in internal units: the unit cube for bounded parameters."""

    size: float = Field(0.25, gt=0)
    """Edge of the first simplex along each coordinate, from the initial point."""
    adaptive: bool = True
    """Coefficients that depend on the dimension (Gao and Han 2012). The classic ones in two dimensions and below."""
    x_tolerance: float = Field(1e-8, gt=0)
    """Finish when no vertex is farther than this from the best one in any coordinate, and..."""
    f_tolerance: float = Field(1e-8, ge=0)
    """...no value at a vertex differs by more than this from the best one."""


@dataclass(frozen=True, slots=True)
class NelderMeadState:
    """State of `nelder_mead`: the log of k points told to the solver, whose own position follows by replay.

    Attributes
    ----------
    step : batches of results told.
    points : (k, d) the points the solver asked for, in order, within their bounds.
    values : (k,) the values it was told for them.
    failed : (k,) bool, whether that was a barrier value, because the point had none of its own.
    """

    step: int
    points: Matrix
    values: Vector
    failed: NDArray[np.bool_]


@algorithm("nelder_mead", Traits(sequential=True))
class NelderMead(Algorithm[NelderMeadOptions, NelderMeadState]):
    """Local search with a simplex, one evaluation at a time, for few dimensions and values that can only be compared.

    Nelder and Mead (1965), doi:10.1093/comjnl/7.4.308, as in SciPy. The simplex lives in R^d and bounded coordinates
    are reflected into their bounds, so it never flattens against one. A state holds the whole log, and a `tell` copies
    it: O(k d), meant for some thousand evaluations. A state whose thread is gone is continued by replaying the log, at
    about 0.2 ms a point.
    """

    Options = NelderMeadOptions
    State = NelderMeadState

    def __init__(self, space: Space, options: NelderMeadOptions, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        # A partial of constants: a bound method would keep this object alive as long as the solver's thread lives.
        self.solver = Inversion(
            partial(
                solve,
                first_simplex(space, options.size),
                space,
                adaptive=options.adaptive and space.dim > 2,  # d = 1 would shrink to a point at once
                x_tolerance=options.x_tolerance,
                f_tolerance=options.f_tolerance,
            )
        )

    @classmethod
    def memory(cls, options: NelderMeadOptions, space: Space) -> int:
        return 8 * space.dim * (4 * space.dim + 4 * 2000)  # simplex and its copies; a log of some thousand points

    @classmethod
    def evaluates_start(cls, options: NelderMeadOptions) -> bool:
        return True

    def init(self) -> NelderMeadState:
        return NelderMeadState(0, np.empty((0, self.space.dim)), np.empty(0), np.empty(0, dtype=np.bool_))

    def need(self, state: NelderMeadState) -> int:
        return 1

    def ask(self, state: NelderMeadState, lanes: Sequence[int], pending: Pending) -> Points:
        """Return the solver's next point for every lane, for there is only one; once it has finished, the best one."""
        point = self._next(state)
        return dense(np.tile(self.recommend(state) if point is None else point, (len(lanes), 1)))

    def tell(self, state: NelderMeadState, results: Results) -> NelderMeadState:
        rows = zip(results.vectors, results.scalar.tolist(), strict=True) if len(results) else ()
        for vector, value in rows:
            expected = self._next(state)
            if expected is None:
                break
            if not np.array_equal(vector, expected):
                continue  # of another log: it was asked before a result was taken back, or in a fork's parent
            failed = not math.isfinite(value)
            state = replace(
                state,
                points=np.concatenate([state.points, vector[None]]),
                values=np.append(state.values, barrier(state.values[~state.failed]) if failed else value),
                failed=np.append(state.failed, failed),
            )
        return replace(state, step=state.step + 1)

    def recommend(self, state: NelderMeadState) -> Vector:
        if state.failed.all():
            return np.array(self.space.initial)
        best: Vector = state.points[np.argmin(np.where(state.failed, np.inf, state.values))]
        return best

    def metrics(self, state: NelderMeadState) -> Mapping[str, float]:
        """Return `best`, the lowest value, and `simplex`: how far from it the last d + 1 points are, per coordinate."""
        if state.failed.all():
            return {}
        last = state.points[-(self.space.dim + 1) :]
        return {
            "best": float(state.values[~state.failed].min()),
            "simplex": float(np.abs(last - self.recommend(state)).max()),
        }

    def stopped(self, state: NelderMeadState) -> Stop | None:
        answer = self.solver.point(state.values, state.points)
        if not isinstance(answer, Finished):
            return None
        return Stop("converged", str(answer.result.message), {"evaluations": float(len(state.values))})

    def _next(self, state: NelderMeadState) -> Vector | None:
        """Return the (d,) point within the bounds whose value the solver waits for; None once it has finished."""
        answer = self.solver.point(state.values, state.points)
        return None if isinstance(answer, Finished) else answer


def first_simplex(space: Space, size: float) -> Matrix:
    """Return the (d + 1, d) initial simplex: the initial point and one step of `size` along each coordinate.

    Bounded coordinates step to where there is more room, by at most half of it: a vertex that is reflected at a bound
    could fall onto the initial point.
    """
    start = np.array(space.initial)
    inwards = np.where(start <= 0.5, 1.0, -1.0)
    room = np.where(start <= 0.5, 1.0 - start, start)
    steps = np.where(space.bounded, inwards * np.minimum(size, 0.5 * room), size)
    return np.vstack([start, start + np.diag(steps)])


def solve(
    simplex: Matrix,
    space: Space,
    objective: Callable[[Vector], float],
    *,
    adaptive: bool,
    x_tolerance: float,
    f_tolerance: float,
) -> Any:
    """Run SciPy's solver without a limit of its own: the study has the budget.

    The objective gets points within the bounds. Free coordinates end at FARTHEST: an objective that falls for ever
    looks flat there, and the simplex comes to rest instead of overflowing.
    """

    def within(x: Vector) -> float:
        return objective(space.fold(np.clip(x, -FARTHEST, FARTHEST)))

    options = {
        "initial_simplex": simplex,
        "adaptive": adaptive,
        "xatol": x_tolerance,
        "fatol": f_tolerance,
        "maxiter": np.inf,
        "maxfev": np.inf,
    }
    with np.errstate(over="ignore", invalid="ignore"):  # of differences between values of 1e308
        from scipy.optimize import minimize  # half a second to import: not for studies of other methods

        return minimize(within, simplex[0], method="Nelder-Mead", options=options)
