"""CMA-ES: a normal distribution that learns its mean, step size and covariance from ranks.

Hansen (2016), The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772; equation numbers are the tutorial's. Where a
rate follows pycma 4.5 instead, its line says so. z = C^(-1/2) y is used rotated, as B^T z = (B^T y) / D: it has the
same length and costs one product less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dsyevd

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.errors import NumericalError
from blackbox.options import Field, Options
from blackbox.records import Matrix, Pending, Points, Results, Stop, Vector, dense
from blackbox.rng import Key, normals
from blackbox.space import Space

TILE = 8  # lanes per product of `ask`: BLAS gives one row alone other last bits than the same row among others
N_HISTORY = 40  # sparse records, of which the stagnation rule compares the older with the newer half
MAX_CONDITION = 1e14  # of C: a reason to stop; eigenvalues below half of it are lifted
MAX_GROWTH = 1e3  # of the largest standard deviation over its start
SIGMA_RANGE = (1e-100, 1e100)  # no objective needs more, and every square stays finite
SCALE_RANGE = (1e-20, 1e20)  # of the largest eigenvalue; outside, the scale moves from C to sigma
TINY = 1e-12  # keeps a step of length zero from being divided by

REASONS = {
    "tolfacupx": "the largest standard deviation grew a thousandfold: the start was too small, or there is no minimum",
    "tolx": "every standard deviation is below tolx",
    "tolfun": "the values of the last step and the best ones of recent steps are within tolfun",
    "tolfunhist": "the best values of recent steps are within tolfunhist",
    "flat": "three quarters of the values were equal, more than tolflatfitness steps in a row",
    "stagnation": "neither the best nor the median value improved over a long window",
    "condition": "the condition number of the covariance exceeds 1e14",
    "no_effect": "a fifth of a standard deviation no longer changes the mean in float64",
}
"""Every reason to stop, in the order in which they are looked for."""


class CmaEsOptions(Options):
    """What a user may tune."""

    popsize: int | None = Field(None, ge=4)
    """Results per step. None: 4 + floor(3 ln d) (eq. 48). Choose at least half the number of workers, or many results
    come more than one step late and are not learned from."""
    sigma: float = Field(0.3, gt=0)
    """Initial standard deviation in internal units: a bounded coordinate is the unit interval."""
    tolx: float = Field(1e-11, ge=0)
    """Stop when every standard deviation is below this, in internal units. 0: never."""
    tolfun: float = Field(1e-11, ge=0)
    """Stop when the values of the last step and the best ones of recent steps differ by less. 0: never."""
    tolfunhist: float = Field(1e-12, ge=0)
    """Stop when the best values of recent steps differ by less. 0: never."""
    tolflatfitness: int = Field(10, ge=1)
    """Stop when three quarters of the values were equal for more than this many steps in a row."""


@dataclass(frozen=True, slots=True)
class CmaEsState:
    """What changes; d is the dimension.

    Attributes
    ----------
    step : steps closed.
    mean, sigma : (d,) centre and step size.
    C : (d, d) covariance; only its lower triangle is read.
    axes, D : (d, d) rows are the eigenvectors of C (B^T in the tutorial), and (d,) roots of its eigenvalues, ascending.
    decomposed : the step at which they were computed.
    ps, pc : (d,) evolution paths of step size and covariance.
    best, value : (d,) the best point told and its value; the start and None before there is one.
    recorded : steps that entered the histories.
    recent : (L, 2) best and worst value of the last steps, newest first.
    history : (N_HISTORY, 2) best and median value of every `stride`-th step, newest first.
    flat : consecutive steps in which three quarters of the values were equal.
    """

    step: int
    mean: Vector
    sigma: float
    C: Matrix
    axes: Matrix
    D: Vector
    decomposed: int
    ps: Vector
    pc: Vector
    best: Vector
    value: float | None
    recorded: int
    recent: Matrix
    history: Matrix
    flat: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Weights and learning rates for k ranked results.

    Attributes
    ----------
    pull : (mu,) weights of the best, sum 1.
    push : (k // 2,) weights of the worst, all negative.
    """

    pull: Vector
    push: Vector
    mueff: float
    c1: float
    cmu: float
    cc: float
    cs: float
    ds: float


@lru_cache(maxsize=4096)
def rates(d: int, k: int, mu: int) -> Rates:
    """The rates for dimension d, k >= 2 ranked results, and the mu <= k / 2 best of them pulling the mean.

    Cached, because a study sees few different (k, mu). A step that closed with fewer results gets the rates of that
    population size.
    """
    raw = math.log((k + 1) / 2) - np.log(np.arange(1, k + 1))  # eq. 49
    up, down = raw[:mu], raw[(k + 1) // 2 :]
    mueff, mueff_down = float(up.sum() ** 2 / (up @ up)), float(down.sum() ** 2 / (down @ down))
    c1 = min(1.0, k / 6) * 2 / ((d + 1.3) ** 2 + mueff)  # eq. 57, k / 6 as in pycma
    cmu = min(1 - c1, 2 * (1 / 4 + mueff - 2 + 1 / mueff) / ((d + 2) ** 2 + mueff))  # eq. 58, 1 / 4 as in pycma
    alpha = min(1 + c1 / cmu, 1 + 2 * mueff_down / (mueff + 2), (1 - c1 - cmu) / (d * cmu))  # eq. 50-52
    cc = (4 + mueff / d) / (d + 4 + 2 * mueff / d)  # eq. 56
    cs = min(0.5, (mueff + 2) / (d + mueff + 3))  # eq. 55 as in pycma
    inner = max(1.0, 3 * (1 - 2 ** (-d / 9)))  # pycma, issue 231: for mueff much larger than d
    ds = 1 + cs + 2 * max(0.0, inner * math.sqrt((mueff - 1) / (d + 1)) - 1)  # eq. 55 as in pycma
    return Rates(up / up.sum(), -alpha * down / down.sum(), mueff, c1, cmu, cc, cs, ds)  # eq. 53


def default_popsize(d: int) -> int:
    """4 + floor(3 ln d), eq. 48."""
    return 4 + int(3 * math.log(d))


@algorithm("cma_es", Traits(injects=True, parameters=frozenset({"real", "integer", "choice"})))
class CmaEs(Algorithm[CmaEsOptions, CmaEsState]):
    """Covariance matrix adaptation with negative weights: the default up to about two thousand dimensions.

    Hansen (2016), arXiv:1604.00772. Results of the step before are learned from too, re-encoded in the current
    distribution and clipped; still older ones carry directions of a distribution that is gone, and make it diverge.
    Points that the method did not choose are treated alike and never push (Hansen 2011, arXiv:1110.4181).
    """

    Options = CmaEsOptions
    State = CmaEsState

    def __init__(self, space: Space, options: CmaEsOptions, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        d = space.dim
        self.popsize = options.popsize or default_popsize(d)
        self.chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))  # E|N(0, I)|
        self.longest = math.sqrt(d) + 2 * d / (d + 2)  # |z| that a foreign point may have, arXiv:1110.4181
        self.n_recent = 10 + math.ceil(30 * d / self.popsize)
        self.stride = max(1, round((100 + 100 * d**1.5 / self.popsize) / N_HISTORY))  # window: tolstagnation of pycma

    @classmethod
    def resolve(cls, options: CmaEsOptions, space: Space) -> CmaEsOptions:
        return options.with_defaults(popsize=default_popsize(space.dim))

    @classmethod
    def memory(cls, options: CmaEsOptions, space: Space) -> int:
        d, k = space.dim, options.popsize or default_popsize(space.dim)
        return 8 * d * (9 * d + 6 * k + 100)  # C, axes, their successors, and what LAPACK works in

    def init(self) -> CmaEsState:
        d, start = self.space.dim, np.array(self.space.initial)
        return CmaEsState(
            step=0,
            mean=start,
            sigma=self.options.sigma,
            C=np.eye(d),
            axes=np.eye(d),
            D=np.ones(d),
            decomposed=0,
            ps=np.zeros(d),
            pc=np.zeros(d),
            best=start,
            value=None,
            recorded=0,
            recent=np.zeros((self.n_recent, 2)),
            history=np.zeros((N_HISTORY, 2)),
            flat=0,
        )

    def need(self, state: CmaEsState) -> int:
        return self.popsize

    def oldest(self, state: CmaEsState) -> int:
        return max(0, state.step - 1)

    def ask(self, state: CmaEsState, lanes: Sequence[int], pending: Pending) -> Points:
        d = self.space.dim
        tiles = sorted({lane // TILE for lane in lanes})
        row = {tile: TILE * (i - tile) for i, tile in enumerate(tiles)}  # what to add to a lane of the tile
        z = normals(self.noise, state.step, [lane for t in tiles for lane in range(TILE * t, TILE * t + TILE)], d)
        y = z.reshape(-1, TILE, d).astype(np.float64)
        y *= state.D
        x = (y @ state.axes).reshape(-1, d)  # eq. 39, a product per tile
        x *= state.sigma
        x += state.mean  # eq. 40
        return dense(x.take([lane + row[lane // TILE] for lane in lanes], axis=0))

    def tell(self, state: CmaEsState, results: Results) -> CmaEsState:
        d, k, step = self.space.dim, len(results), state.step + 1
        values = results.scalar
        n_values = sum(map(math.isfinite, values.tolist()))
        if n_values < k:
            values = np.where(np.isfinite(values), values, np.inf)  # no value ranks last
        order = values.argsort(kind="stable")  # ties in order of lanes, which know nothing of the points: no drift
        ranked = values.take(order).tolist()
        best, value = state.best, state.value
        if n_values and (value is None or ranked[0] < value):
            best, value = results.vectors[order[0]].copy(), ranked[0]
        if n_values == 0 or k < 2:  # no ranking, nothing to learn from
            return replace(state, step=step, best=best, value=value)

        r = rates(d, k, min(n_values, k // 2))
        steps = np.empty((k + 1, d))  # pc and the ranked y: rank one and rank mu become one product
        y = np.subtract(results.vectors.take(order, axis=0), state.mean, out=steps[1:])
        push, mu = r.push, len(r.pull)
        if results.step[0] < state.step or results.lane[0] < 0:  # sorted, so the first row tells of foreign ones
            push = np.where(results.lane.take(order[-len(push) :]) < 0, 0.0, push)
            self._clip(state, y, (results.step.take(order) < state.step) | (results.lane.take(order) < 0))
        y /= state.sigma
        z = y.dot(state.axes.T)
        z /= state.D

        yw = r.pull.dot(y[:mu])  # eq. 41
        zw = r.pull.dot(z[:mu]).dot(state.axes)
        mean = state.mean + state.sigma * yw  # eq. 42
        ps = (1 - r.cs) * state.ps + math.sqrt(r.cs * (2 - r.cs) * r.mueff) * zw  # eq. 43
        length = math.sqrt(ps.dot(ps))
        sigma = state.sigma * math.exp(min(1.0, r.cs / r.ds * (length / self.chi - 1)))  # eq. 44
        h = length**2 / d / (1 - (1 - r.cs) ** (2 * step)) < 2 + 4 / (d + 1)  # a long path would inflate C
        pc = (1 - r.cc) * state.pc  # eq. 45
        if h:
            pc += math.sqrt(r.cc * (2 - r.cc) * r.mueff) * yw
        steps[0] = pc
        factors = np.zeros(k + 1)
        factors[0] = r.c1
        factors[1 : mu + 1] = r.cmu * r.pull
        worst = z[-len(push) :]
        factors[-len(push) :] = (r.cmu * d) * push / (np.vecdot(worst, worst) + TINY)  # eq. 46
        c1a = r.c1 if h else r.c1 * (1 - r.cc * (2 - r.cc))
        C = (1 - c1a - r.cmu * (1 + float(push.sum()))) * state.C  # eq. 47
        C += (steps.T * factors).dot(steps)

        axes, D, decomposed = state.axes, state.D, state.decomposed
        if step - decomposed >= 1 / (2 * d * (r.c1 + r.cmu)):  # pycma: 10; 1, 2, 4 and 10 take the same evaluations
            C, axes, D, scale = decompose(C)
            decomposed = step
            if scale != 1.0:
                pc, sigma = pc / scale, sigma * scale
        sigma = min(max(sigma, SIGMA_RANGE[0]), SIGMA_RANGE[1])

        recent = np.empty_like(state.recent)
        recent[1:] = state.recent[:-1]
        recent[0] = ranked[0], ranked[n_values - 1]
        history = state.history
        if state.recorded % self.stride == 0:
            history = np.concatenate([[[ranked[0], ranked[n_values // 2]]], history[:-1]])
        flat = state.flat + 1 if ranked[0] == ranked[3 * k // 4] else 0
        recorded = state.recorded + 1
        return CmaEsState(
            step, mean, sigma, C, axes, D, decomposed, ps, pc, best, value, recorded, recent, history, flat
        )

    def _clip(self, state: CmaEsState, deltas: Matrix, foreign: NDArray[np.bool_]) -> None:
        """Shorten x - mean of the foreign rows, in place, to a length that the distribution could have drawn."""
        limit = 1e100 * state.sigma  # whatever was injected, squares stay finite
        y = np.clip(deltas[foreign], -limit, limit)
        z = (y / state.sigma).dot(state.axes.T) / state.D
        deltas[foreign] = y * np.minimum(1.0, self.longest / np.sqrt(np.vecdot(z, z) + TINY))[:, None]

    def recommend(self, state: CmaEsState) -> Vector:
        # The mean averages what it is made of and beats it, but not before the distribution has contracted somewhere.
        return state.mean if 2 * state.sigma * state.D[-1] < self.options.sigma else state.best

    def metrics(self, state: CmaEsState) -> Mapping[str, float]:
        shortest, longest = float(state.D[0]), float(state.D[-1])
        found = {} if state.value is None else {"best": state.value}
        if state.recorded:
            found |= {"step_best": float(state.recent[0, 0]), "step_worst": float(state.recent[0, 1])}
        return found | {
            "sigma": state.sigma,
            "axis_ratio": longest / shortest,
            "std_min": state.sigma * shortest,
            "std_max": state.sigma * longest,
        }

    def stopped(self, state: CmaEsState) -> Stop | None:
        o = self.options
        stds = state.sigma * np.sqrt(np.diag(state.C))
        bests = state.recent[: state.recorded, 0].tolist()
        spread = max(bests) - min(bests) if bests else math.inf
        spread_with_worst = max(*bests, float(state.recent[0, 1])) - min(bests) if bests else math.inf
        holds = {
            "tolfacupx": state.sigma * state.D[-1] > MAX_GROWTH * o.sigma,
            "tolx": stds.max() < o.tolx and state.sigma * np.abs(state.pc).max() < o.tolx,
            "tolfun": spread_with_worst < o.tolfun,
            "tolfunhist": state.recorded >= self.n_recent and spread < o.tolfunhist,
            "flat": state.flat > o.tolflatfitness,
            "stagnation": state.recorded > self.stride * N_HISTORY and not _improving(state.history),
            "condition": state.D[-1] ** 2 > MAX_CONDITION * state.D[0] ** 2,
            "no_effect": (state.mean == state.mean + 0.2 * stds).any(),
        }
        for reason, detail in REASONS.items():
            if holds[reason]:
                return Stop(reason, detail, dict(self.metrics(state)))
        return None


def decompose(C: Matrix) -> tuple[Matrix, Matrix, Vector, float]:
    """C = B diag(D^2) B^T, with its condition number and scale kept in range.

    Returns
    -------
    C, axes, D, scale : `axes` is B^T; `scale` has moved out of the standard deviations, and is 1 as a rule.
    """
    eigenvalues, B, info = dsyevd(C, lower=1)  # half the time of numpy.linalg.eigh for small d; B is in Fortran order
    if info:
        raise NumericalError(f"the eigendecomposition of the covariance failed (LAPACK dsyevd, info={info})")
    largest = max(float(eigenvalues[-1]), SIGMA_RANGE[0])
    lift = largest / (2 * MAX_CONDITION) - float(eigenvalues[0])
    if lift > 0:
        C, eigenvalues = C + lift * np.eye(len(C)), eigenvalues + lift
    if SCALE_RANGE[0] < largest < SCALE_RANGE[1]:
        return C, B.T, np.sqrt(eigenvalues), 1.0
    return C / largest, B.T, np.sqrt(eigenvalues / largest), math.sqrt(largest)


def _improving(history: Matrix) -> bool:
    """Whether the newer half of the best or median values is better than the older half, in the median."""
    half = N_HISTORY // 2
    newer, older = np.sort(history[:half], axis=0)[half // 2], np.sort(history[half:], axis=0)[half // 2]
    return bool((newer < older).any())
