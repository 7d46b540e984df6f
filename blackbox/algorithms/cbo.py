"""Consensus-based optimisation: members drift to a weighted mean of all and diffuse with their distance from it.

Pinnau, Totzeck, Tse, Martin (2017), arXiv:1604.05648; anisotropic noise: Carrillo, Jin, Li, Zhu (2021),
arXiv:1909.09249; truncated noise: Fornasier, Richtárik, Riedl, Sun (2024), arXiv:2310.16610; schedules of alpha: Bailo
et al. (2024), arXiv:2403.14470 (CBXPy). With positions x_i of the members, their values E_i and Gaussian xi_i::

    w_i = exp(-alpha (E_i - min E)) / sum,   c = sum w_i x_i                 the consensus
    x_i <- x_i - kappa (x_i - c) + s S(x_i - c) xi_i                         a move

    S(D) = diag(min(|D_k|, R)) (anisotropic) or min(|D|, R) I (isotropic)

The papers write kappa = lambda dt and s = sigma sqrt(dt). A run depends on dt, lambda and sigma only through these two,
so they are the options. With c fixed, the logarithm of a distance changes per move by

=============  ====================================================================================================
anisotropic    E log|1 - kappa + s z|: contracts for any s up to about 1.5, while the mean square already grows beyond
               s^2 = 2 kappa: heavy-tailed jumps around a collapsing cloud
isotropic      about -kappa + s^2 (d - 2) / 2: s^2 (d - 2) < 2 kappa, or the cloud explodes; truncation lifts that
=============  ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from scipy.optimize import brentq

from blackbox.algorithm import Algorithm, Traits, algorithm, idle_members
from blackbox.options import Field, Options, Renamed
from blackbox.records import Ints, Matrix, Pending, Points, Results, Stop, Vector, dense
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key, normal, normals, uniform
from blackbox.space import Space

FARTHEST = 1e100  # free coordinates stay below it, so that an unstable choice of options keeps finite squares
HUGE = float(np.finfo(np.float64).max)


class CboOptions(Options):
    """Options of `cbo`. Lengths are in internal units: the unit cube for bounded parameters."""

    popsize: int | None = Field(None, ge=2)
    """Members N, and so the largest number of evaluations in flight. A step closes at every result, so N results are
    one sweep of all members. None: 20 + d, at most 100, or as many as there are workers."""
    diffusion: Literal["anisotropic", "isotropic"] = "anisotropic"
    """anisotropic: each coordinate diffuses with its own distance from the consensus; for any dimension, but made for
    separable functions. isotropic: all with the norm of the distance; invariant to rotation, for few dimensions."""
    drift: float = Field(0.2, gt=0, le=1)
    """kappa = lambda dt, the part of the way to the consensus that one move takes."""
    noise: float | None = Field(None, ge=0)
    """s = sigma sqrt(dt), the standard deviation of a move over the distance from the consensus. None: 0.85 for
    anisotropic diffusion, 0.8 sqrt(2 drift / d) for isotropic."""
    truncation: float | None = Field(None, gt=0)
    """R, the distance beyond which noise grows no further; allows more noise without divergence. None: no limit."""
    schedule: Literal["ess", "multiply"] = "ess"
    """ess: alpha is such that a share `ess` of the members carries the weight; the scale of the objective does not
    matter. multiply: alpha starts at `alpha` and grows by `alpha_factor` per N results, in units of 1 / objective."""
    ess: float = Field(0.1, gt=0, le=1)
    """For schedule=ess: effective sample size of the weights over the number of evaluated members."""
    alpha: float = Field(1.0, gt=0)
    """For schedule=multiply: first alpha."""
    alpha_factor: float = Field(1.05, ge=1)
    """For schedule=multiply: growth per N results. 1 keeps alpha constant."""
    alpha_max: float = Field(1e5, gt=0)
    """For schedule=multiply: largest alpha."""
    spread: float = Field(1.0, gt=0)
    """Standard deviation of the starts around the initial point, for coordinates without bounds. Bounded coordinates
    start uniformly, whatever their initial value."""
    tolerance: float = Field(1e-9, ge=0)
    """Stop when no coordinate of a member is farther from the consensus than this (beyond 1: relatively). 0: never."""
    recommends: Literal["best", "consensus"] = "best"
    """best: the best point told. consensus: the weighted mean of the members, which averages out noisy values."""

    renamed: ClassVar[Mapping[str, Renamed]] = {"members": Renamed("popsize", since="0.2")}


class CboResolved(CboOptions):
    """The options with every default filled in."""

    popsize: int
    noise: float


@dataclass(frozen=True, slots=True)
class CboState:
    """State of `cbo` between two steps: N members in d dimensions.

    Attributes
    ----------
    step : batches of results told.
    told : results told.
    x : (N, d) confirmed position of each member; without one, where it starts.
    values : (N,) E, the objective there; 0 without a confirmed position.
    asked_at : (N,) the step at which the confirmed position was asked; -1 without one.
    told_at : (N,) the step at which the member's last result was told; -1 before.
    consensus : (d,) c over the confirmed positions; the initial point before there is one.
    alpha : the alpha of these weights; 0 before.
    best, value : (d,) the best point told and its value; the initial point and None before there is one.
    """

    step: int
    told: int
    x: Matrix
    values: Vector
    asked_at: Ints
    told_at: Ints
    consensus: Vector
    alpha: float
    best: Vector
    value: float | None


# -- weights -----------------------------------------------------------------------------------------------------------


def weights(values: Vector, alpha: float) -> Vector:
    """Return the softmin weights exp(-alpha (E_i - min E)), normalised.

    Parameters
    ----------
    values : (n,) E, n >= 1. +inf gets no weight, unless all are +inf: then all weigh the same.
    alpha : inverse temperature, >= 0 and finite.

    Returns
    -------
    (n,) float64, non-negative, sums to one.
    """
    low = values.min()
    if low == math.inf or alpha == 0:
        w: Vector = (values < math.inf if low < math.inf else np.ones(len(values))).astype(np.float64)
    else:
        with np.errstate(over="ignore"):
            w = np.exp(-alpha * _gaps(values))
    w /= w.sum()
    return w


def effective_size(w: Vector) -> float:
    """Return Kish's effective sample size (sum w)^2 / sum w^2 of (n,) weights, between 1 and n."""
    return float(w.sum() ** 2 / np.square(w).sum())


def alpha_of_size(values: Vector, size: float) -> float:
    """Find the alpha whose weights have the given effective sample size.

    Parameters
    ----------
    values : (n,) finite E.
    size : in (0, n].

    Returns
    -------
    alpha in units of 1 / E. 0 when all values are equal; where ties at the minimum outnumber `size`, large enough that
    only they count.

    Notes
    -----
    The effective size falls from n to the number of minimisers as alpha grows. Its logarithm is solved for log alpha,
    because sensible alphas span decades (CBXPy bisects alpha itself, in steps too coarse for a small one). Brent's
    method needs a third of the evaluations of a bisection. E is shifted by its minimum and divided by its interquartile
    range, so that neither its unit nor a few terrible values move the bracket.
    """
    gaps = np.minimum(_gaps(values), HUGE)
    ordered = np.sort(gaps)
    n = len(ordered)
    scale = float(ordered[(3 * n) // 4] - ordered[n // 4]) or float(ordered[-1])
    if scale < 1e-280:
        return 0.0
    with np.errstate(over="ignore"):
        gaps /= scale

        def excess(log_alpha: float) -> float:
            w = np.exp(-math.exp(log_alpha) * gaps)
            return math.log(effective_size(w) / size)

        low, high = math.log(1e-12), math.log(1e12)
        if excess(low) <= 0:
            log_alpha = low
        elif excess(high) >= 0:
            log_alpha = high
        else:
            log_alpha = float(brentq(excess, low, high, xtol=1e-10))
    return math.exp(log_alpha) / scale


def _gaps(values: Vector) -> Vector:
    """(n,) E_i - min E; +inf and what overflows are +inf."""
    with np.errstate(over="ignore"):
        gaps: Vector = values - values.min()
    return gaps


# -- the method --------------------------------------------------------------------------------------------------------


@algorithm("cbo", Traits(members=True, parameters=frozenset({"float", "int", "categorical"})))
class Cbo(Algorithm[CboResolved, CboState]):
    """Global search by members that wait for none: each moves as soon as its value is in, towards the newest consensus.

    Pinnau et al. (2017), arXiv:1604.05648, with anisotropic (arXiv:1909.09249) and truncated noise (arXiv:2310.16610).
    Lanes are members. A batch of all N results is one synchronous sweep of the papers; smaller ones are the
    asynchronous method, which needs as many evaluations. Noise is addressed by (step, member): a member whose
    evaluation was lost stays where it was and is asked elsewhere. Anisotropic noise is at home on separable functions;
    on rotated ones it fails where `cma_es` does not.
    """

    Options = CboOptions
    Resolved = CboResolved
    State = CboState

    def __init__(self, space: Space, options: CboResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.n_members = options.popsize
        self.s = options.noise
        self.starts = self.noise.child("start")  # apart from the moves, so that no draw serves twice
        self.has_bounds, self.has_free = bool(space.bounded.any()), not space.bounded.all()

    @classmethod
    def resolve(cls, options: CboOptions, space: Space, outlook: Outlook = UNKNOWN) -> CboResolved:
        d = space.dim
        popsize = outlook.popsize(default_popsize(d))
        return options.with_defaults(CboResolved, popsize=popsize, noise=default_noise(options, d))

    @classmethod
    def memory(cls, options: CboResolved, space: Space) -> int:
        return 8 * options.popsize * (8 * space.dim + 16)

    def init(self) -> CboState:
        d, n = self.space.dim, self.n_members
        nowhere = np.full(n, -1, dtype=np.int64)
        return CboState(
            step=0,
            told=0,
            x=np.array([self._start(member, 0) for member in range(n)]).reshape(n, d),
            values=np.zeros(n),
            asked_at=nowhere,
            told_at=nowhere.copy(),
            consensus=np.array(self.space.initial),
            alpha=0.0,
            best=np.array(self.space.initial),
            value=None,
        )

    def need(self, state: CboState) -> int:
        return 1

    def lanes(self, state: CboState, pending: Pending, n: int) -> Sequence[int]:
        return idle_members(state.told_at, pending, n)

    def ask(self, state: CboState, lanes: Sequence[int], pending: Pending) -> Points:
        members = np.asarray(lanes, dtype=np.int64)
        x = state.x[members]
        starts = state.asked_at[members] < 0
        away = x - state.consensus  # D_i
        if self.options.diffusion == "anisotropic":
            reach = np.abs(away)
        else:
            reach = np.sqrt(np.square(away).sum(axis=1, keepdims=True))
        if self.options.truncation is not None:
            reach = np.minimum(reach, self.options.truncation)
        xi = normals(self.noise, state.step, members, self.space.dim)
        move = self.s * reach * xi - self.options.drift * away
        if starts.any():
            move[starts] = 0.0
        return dense(self._inside(x + move))

    def tell(self, state: CboState, results: Results) -> CboState:
        if not len(results):
            return replace(state, step=state.step + 1)
        values, member, vectors, asked = results.scalar, results.lane, self._inside(results.vectors), results.step
        told_at, best, value = state.told_at.copy(), state.best, state.value
        told_at[member] = state.step

        finite = np.isfinite(values)
        failed: set[int] = set() if finite.all() else set(member[~finite].tolist())
        if failed:
            values, member, vectors, asked = values[finite], member[finite], vectors[finite], asked[finite]
        if len(values):
            first = int(values.argmin())
            if value is None or values[first] < value:
                best, value = results.vectors[finite][first].copy(), float(values[first])

        # A late result of an earlier move counts for the best point but does not throw its member back. Rows are sorted
        # by step, so of several moves of one member the last one stays.
        late = asked < state.asked_at[member]
        if late.any():
            values, member, vectors, asked = values[~late], member[~late], vectors[~late], asked[~late]
        x, E, asked_at = state.x.copy(), state.values.copy(), state.asked_at.copy()
        x[member], E[member], asked_at[member] = vectors, values, asked
        for i in failed:
            if asked_at[i] < 0:  # its start has no value, so it gets another one
                x[i] = self._start(i, state.step + 1)

        told, consensus, alpha = state.told + len(results), state.consensus, state.alpha
        confirmed = asked_at >= 0
        n_confirmed = int(np.count_nonzero(confirmed))
        if n_confirmed:
            among, places = (E, x) if n_confirmed == self.n_members else (E[confirmed], x[confirmed])
            alpha = self._alpha(among, told)
            # Summed member by member; in a BLAS product the order would depend on the processor.
            consensus = (weights(among, alpha)[:, None] * places).sum(axis=0)
        return CboState(state.step + 1, told, x, E, asked_at, told_at, consensus, alpha, best, value)

    def recommend(self, state: CboState) -> Vector:
        return state.best if self.options.recommends == "best" else state.consensus

    def metrics(self, state: CboState) -> Mapping[str, float]:
        confirmed = state.asked_at >= 0
        if state.value is None or not confirmed.any():
            return {"alpha": state.alpha}
        E = state.values[confirmed]
        return {
            "best": state.value,
            "spread": self._spread(state),
            "alpha": state.alpha,
            "ess": effective_size(weights(E, state.alpha)),
        }

    def stopped(self, state: CboState) -> Stop | None:
        tolerance = self.options.tolerance
        if tolerance == 0 or (state.asked_at < 0).any():
            return None
        spread = self._spread(state)
        if spread > tolerance:
            return None
        detail = f"no member is farther than {spread:.3g} from the consensus (tolerance {tolerance:g}), so none moves"
        return Stop("collapsed", detail, {"spread": spread})

    # -- pieces

    def _alpha(self, values: Vector, told: int) -> float:
        """alpha for finite `values`, after `told` results."""
        o = self.options
        if o.schedule == "ess":
            return alpha_of_size(values, o.ess * len(values))
        # Counted in results, not in tells, or the asynchronous method would cool N times too fast. The first N are the
        # starts: the first moves are made with `alpha` itself.
        sweeps = max(0, told - self.n_members) / self.n_members
        return math.exp(min(math.log(o.alpha_max), math.log(o.alpha) + sweeps * math.log(o.alpha_factor)))

    def _spread(self, state: CboState) -> float:
        """Largest distance of a confirmed coordinate from the consensus; beyond 1, relative to the consensus."""
        c = state.consensus
        away = np.abs(state.x[state.asked_at >= 0] - c) / np.maximum(1.0, np.abs(c))
        return float(away.max(initial=0.0))

    def _start(self, member: int, step: int) -> Vector:
        """Draw the (d,) start of a member: uniform within bounds, else normal around the initial point."""
        space, d = self.space, self.space.dim
        in_box = uniform(self.starts, step, member, d) if self.has_bounds else np.zeros(d)
        if not self.has_free:
            return in_box
        return np.where(
            space.bounded, in_box, space.initial + self.options.spread * normal(self.starts, step, member, d)
        )

    def _inside(self, x: Matrix) -> Matrix:
        """Positions reflected into the bounds, which keeps the scale of the noise at a bound; free ones limited."""
        if self.has_free:
            x = np.minimum(np.maximum(x, -FARTHEST), FARTHEST)
        return self.space.fold(x) if self.has_bounds else x


def default_popsize(d: int) -> int:
    """Return 20 + d, at most 100: fewer collapse too early, more get too few moves each from some thousand results."""
    return min(20 + d, 100)


def default_noise(options: CboOptions, d: int) -> float:
    """Return the best noise on sphere, Ackley, Rastrigin and Rosenbrock, d = 2 to 20: the most that still contracts."""
    return 0.85 if options.diffusion == "anisotropic" else 0.8 * math.sqrt(2 * options.drift / d)
