"""pycma, the reference implementation of CMA-ES, as a registered method: the peer against which ours is measured.

A `cma.CMAEvolutionStrategy` is a large mutable object, so the state is the log of what it was told and the object is a
cache of the state: an instance keeps a few of them, and what it does not have it rebuilds by telling the log again.
pycma draws from our addressed noise; NumPy's global random state is neither read nor written.
"""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.algorithm import Algorithm, Traits, algorithm
from blackbox.options import Field, Options
from blackbox.records import Ints, Matrix, Pending, Points, Results, Stop, Vector, dense
from blackbox.registry import UNKNOWN, Outlook
from blackbox.rng import Key, normals
from blackbox.space import Space
from blackbox.toolbox.evolution import default_popsize

MAX_EXPONENT = 500  # 2^500 is 3e150, whose square is finite
N_CACHED = 4  # live objects per instance; two replicas of a study and a look back


class PycmaOptions(Options):
    """Options of `pycma`."""

    popsize: int | None = Field(None, ge=4)
    """Results per step. None: 4 + floor(3 ln d), pycma's own default, or the number of workers where that is known and
    larger."""
    sigma: float = Field(0.3, gt=0)
    """Initial standard deviation in internal units: a bounded coordinate is the unit interval."""


class PycmaResolved(PycmaOptions):
    """The options with every default filled in."""

    popsize: int


@dataclass(frozen=True, slots=True)
class PycmaState:
    """State of `pycma`: the log of everything told to it, which grows by a row per result.

    Attributes
    ----------
    step : steps closed.
    opened : the step at which the present generation of pycma began; an earlier one than `step` if rows wait.
    generations : (g, 2) of each generation told, the step at which it began and its number of rows.
    vectors, values : (n, d) and (n,) all rows in the order told, NaN without a value; those that belong to no
        generation yet come last and wait for more.
    digest, previous : hashes of the generations told, and of those before the last one.
    best, value : (d,) the best point told and its value; the start and None before there is one.
    """

    step: int
    opened: int
    generations: Ints
    vectors: Matrix
    values: Vector
    digest: str
    previous: str
    best: Vector
    value: float | None


@cache
def _cma() -> Any:
    """Import the package when it is first needed: it takes a second, and warns where there is no matplotlib."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cma
    return cma


class _Live:
    """A pycma object that has been told some generations and asked for the next."""

    def __init__(self, start: Vector, sigma: float, popsize: int, noise: Key, bounded: NDArray[np.bool_]) -> None:
        self.popsize = popsize
        self.noise = noise
        self.address = (0, 0)  # step and first lane of what pycma draws next
        self.stop: dict[str, Any] = {}
        self.exponent: int | None = None  # values are told in units of 2^exponent
        options = {
            "bounds": [[side if b else None for b in bounded] if bounded.any() else None for side in (0.0, 1.0)],
            "popsize": popsize,
            "seed": math.nan,  # any number would seed NumPy's global state
            "randn": self._randn,
            "CMA_mirrors": 0,  # popsize < 6 would mirror lanes, which then were no function of their own noise
            "signals_filename": "",  # else `stop` reads a file of the working directory; None is not understood
            "verbose": -9,
            "verb_log": 0,
        }
        if len(start) == 1:  # pycma's limit on standard deviations, a third of the range, raises in one dimension
            options["maxstd_boundrange"] = math.inf
        self._low, self._high = np.where(bounded, 0.0, -np.inf), np.where(bounded, 1.0, np.inf)
        self.es = _cma().CMAEvolutionStrategy(start, sigma, options)
        self._open(0)

    def tell(self, vectors: Matrix, values: Vector, next_step: int) -> None:
        """Tell a generation and open the next one."""
        if self.stop:
            return  # pycma promises nothing after its own stop; the distribution stays as it is
        finite = np.isfinite(values)
        if self.exponent is None:
            self.exponent = _exponent(values[finite])
        with np.errstate(over="ignore"):  # a huge value after small ones is limited below
            scaled = values if self.exponent is None else np.ldexp(values, -self.exponent)
        told = np.clip(scaled, -1e300, 1e300)  # pycma takes differences
        told[~finite] = np.nextafter(told[finite].max(), np.inf)  # no value ranks last; pycma would make it the median
        inside = np.clip(vectors, self._low, self._high)  # pycma refuses what rounding has put beyond a bound
        self.es.tell(list(inside), told.tolist())
        self.stop = dict(self.es.stop())  # once per generation, because it counts
        self._open(next_step)

    def block(self, step: int, number: int) -> Matrix:
        """Return the (popsize, d) points of the lanes [number * popsize, (number + 1) * popsize) of a step."""
        if (step, number) == (self.opened, 0):
            return self.own
        # Lanes beyond those that pycma asked for come from its distribution behind its back; `tell` takes such points.
        self.address = (step, number * self.popsize)
        y = self.es.sigma_vec * np.asarray(self.es.sm.sample(self.popsize))
        return self._outside(self.es.mean + self.es.sigma * y)

    def favourite(self) -> Vector:
        """Return the (d,) mean."""
        mean: Vector = self._outside([self.es.mean])[0]
        return mean

    def _open(self, step: int) -> None:
        self.opened = step
        self.address = (step, 0)
        self.own: Matrix = np.array(self.es.ask(self.popsize))

    def _outside(self, genotypes: Any) -> Matrix:
        """pycma rescales ill-conditioned coordinates, so its inner points are not always ours."""
        return np.array([self.es.gp.pheno(x, copy=True) for x in genotypes])

    def _randn(self, n: int, d: int) -> NDArray[np.float64]:
        step, lane = self.address
        return normals(self.noise, step, range(lane, lane + n), d).astype(np.float64)


def _exponent(values: Vector) -> int | None:
    """Return the exponent of a unit in which the values of a generation differ by about 1; None if all are equal.

    pycma's tolerances are absolute, so values of 1e-18 would all be the same to it, and differences of values beyond
    1e300 are infinite. Values that differ by more than 1 but not by that much are told as they are, exponent 0.
    """
    half = float(values.max() / 2 - values.min() / 2)  # their difference may be infinite
    if half == 0.0:
        return None
    exponent = math.frexp(half)[1]
    return exponent if exponent < 0 or exponent > MAX_EXPONENT else 0


@algorithm("pycma", Traits(parameters=frozenset({"float", "int", "categorical"}), max_dim=299))
class Pycma(Algorithm[PycmaResolved, PycmaState]):
    """pycma's CMA-ES behind our interface; slower than `cma_es`, and its state grows with every result.

    Hansen, Akimoto and Baudis, CMA-ES/pycma on GitHub, Zenodo, doi:10.5281/zenodo.2559634. pycma needs popsize // 2
    values at once; a step that closed with fewer leaves its rows waiting, and pycma is told them with those of the
    next step: the distribution has not moved, so they are as good as new. From dimension 300 on pycma uses NumPy's
    global random state, which is why such spaces are refused.
    """

    revision = 2  # 2026-11: pycma's own bounds; values that differ by < 1 or > 1e150 are told in a unit of their own
    Options = PycmaOptions
    Resolved = PycmaResolved
    State = PycmaState

    def __init__(self, space: Space, options: PycmaResolved, key: Key, stream: int = 0) -> None:
        super().__init__(space, options, key, stream)
        self.popsize = options.popsize
        self.fewest = max(3, self.popsize // 2)  # below, pycma's `tell` raises
        self._lives: OrderedDict[str, _Live] = OrderedDict()
        self._lock = threading.RLock()

    @classmethod
    def resolve(cls, options: PycmaOptions, space: Space, outlook: Outlook = UNKNOWN) -> PycmaResolved:
        return options.with_defaults(PycmaResolved, popsize=outlook.popsize(default_popsize(space.dim)))

    @classmethod
    def memory(cls, options: PycmaResolved, space: Space) -> int:
        log = 8 * (space.dim + 1) * 10_000
        return N_CACHED * (8 * 6 * space.dim**2 + 1_000_000) + 3 * log

    def init(self) -> PycmaState:
        d = self.space.dim
        return PycmaState(
            step=0,
            opened=0,
            generations=np.empty((0, 2), dtype=np.int64),
            vectors=np.empty((0, d)),
            values=np.empty(0),
            digest="",
            previous="",
            best=np.array(self.space.initial),
            value=None,
        )

    def need(self, state: PycmaState) -> int:
        return self.popsize

    def ask(self, state: PycmaState, lanes: Sequence[int], pending: Pending) -> Points:
        blocks = {lane // self.popsize for lane in lanes}
        with self._lock:
            live = self._live(state)
            points = {number: live.block(state.step, number) for number in blocks}
        rows = [points[lane // self.popsize][lane % self.popsize] for lane in lanes]
        return dense(np.array(rows).reshape(len(rows), self.space.dim))

    def tell(self, state: PycmaState, results: Results) -> PycmaState:
        after = replace(state, step=state.step + 1)
        if len(results) == 0:
            return after
        scalar = np.where(np.isfinite(results.scalar), results.scalar, np.nan)
        vectors, values = np.concatenate([state.vectors, results.vectors]), np.concatenate([state.values, scalar])
        after = replace(after, vectors=vectors, values=values)
        if not np.isnan(scalar).all():
            i = int(np.nanargmin(scalar))
            if state.value is None or scalar[i] < state.value:
                after = replace(after, best=results.vectors[i].copy(), value=float(scalar[i]))
        told = int(state.generations[:, 1].sum())
        if np.isfinite(values[told:]).sum() < self.fewest:
            return after  # the rows wait
        generation = np.array([[state.opened, len(values) - told]])
        header = f"{state.digest} {state.opened} {len(values) - told} {after.step}"
        parts = (header.encode(), vectors[told:].tobytes(), values[told:].tobytes())
        return replace(
            after,
            opened=after.step,
            generations=np.concatenate([state.generations, generation]),
            digest=hashlib.sha256(b"".join(parts)).hexdigest(),
            previous=state.digest,
        )

    def recommend(self, state: PycmaState) -> Vector:
        # As in cma_es: the mean, but not before the distribution has contracted somewhere.
        with self._lock:
            live = self._live(state)
            return live.favourite() if 2 * self._longest(live) < self.options.sigma else state.best

    def metrics(self, state: PycmaState) -> Mapping[str, float]:
        with self._lock:
            live = self._live(state)
            found = {} if state.value is None else {"best": state.value}
            return found | {
                "sigma": float(live.es.sigma),
                "axis_ratio": float(live.es.D.max() / live.es.D.min()),
                "std_max": self._longest(live),
            }

    def stopped(self, state: PycmaState) -> Stop | None:
        with self._lock:
            stop = self._live(state).stop
        if not stop:
            return None
        return Stop(next(iter(stop)), "pycma: " + ", ".join(f"{name} {limit}" for name, limit in stop.items()))

    def _longest(self, live: _Live) -> float:
        return float(live.es.sigma * live.es.D.max())

    def _live(self, state: PycmaState) -> _Live:
        """Return the object that was told exactly the generations of the state."""
        live = self._lives.pop(state.digest, None)
        if live is None:
            first = len(state.generations) - 1
            live = self._lives.pop(state.previous, None) if first >= 0 else None
            if live is None:  # replay from the start
                start, bounded = self.space.initial, self.space.bounded
                live, first = _Live(start, self.options.sigma, self.popsize, self.noise, bounded), 0
            steps, ends = state.generations[:, 0].tolist(), state.generations[:, 1].cumsum().tolist()
            for i in range(first, len(ends)):
                rows = slice(ends[i - 1] if i else 0, ends[i])
                live.tell(state.vectors[rows], state.values[rows], [*steps, state.opened][i + 1])
        self._lives[state.digest] = live
        while len(self._lives) > N_CACHED:
            self._lives.popitem(last=False)
        return live
