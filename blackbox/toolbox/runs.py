"""Runs of an evolution strategy: their values, when one is over, and the next one.

IPOP: Auger and Hansen (2005), A restart CMA evolution strategy with increasing population size, CEC,
doi:10.1109/CEC.2005.1554902. BIPOP: Hansen (2009), Benchmarking a BI-population CMA-ES on the BBOB-2009 function
testbed, doi:10.1145/1570256.1570333, with the population sizes of pycma 4.5. With lambda_0 the first run's population
size and u, v uniform in [0, 1]::

    ipop    run i has lambda_0 2^i results per step and the first run's sigma
    bipop   large runs as with ipop; a small one comes next while the small ones, the first run among them, have used
            fewer evaluations than the large ones:
            lambda = floor(lambda_0 (2^i)^(u^2)),  i large runs so far,   sigma = sigma_0 10^(-2 v),
            at most as many steps as half of the large runs' evaluations give

A run is over when it converged, diverged or no longer learns: `REASONS`. The rules keep their meaning when the
objective is stretched (but never ask for more than the tolerances as they stand), and when the space is stretched and
sigma with it. One rule of pycma is left out, tolupsigma: a step size that grows while the covariance shrinks does no
harm here, because the methods keep both in range, and the rule would end runs that still improve (sep_cma_es on
Rosenbrock, n = 10, reaches 1e-8 in 9,800 n evaluations; sigma over the longest axis has grown by 1e15 after 1,700 n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from blackbox.options import Field, Options
from blackbox.records import Ints, Matrix, Results, Stop, Vector
from blackbox.rng import Key, uniform
from blackbox.space import Space
from blackbox.toolbox.bounds import Bounds

N_HISTORY = 40  # sparse records, whose older half the stagnation rule compares with the newer one
MAX_CONDITION = 1e14  # of C: a reason to stop; eigenvalues beyond twice this are lifted
MAX_GROWTH = 1e3  # of the largest standard deviation over its start
SPREAD = 2.0  # a restart begins within so many initial standard deviations of the start, where there is no box

REGIMES = ("first", "large", "small")
REASONS = {
    "tolfacupx": "the largest standard deviation grew a thousandfold: the start was too small, or there is no minimum",
    "tolx": "every standard deviation is below tolx of its start",
    "tolfun": "the values of the last step and the best ones of recent steps are within tolfun",
    "tolfunhist": "the best values of recent steps are within tolfunhist",
    "flat": "three quarters of the values were equal, more than tolflatfitness steps in a row",
    "stagnation": "neither the best nor the median value improved over a long window",
    "condition": "the condition number of the covariance exceeds 1e14",
    "no_effect": "a fifth of a standard deviation no longer changes the mean in float64",
    "max_steps": "the run has had its share of steps",
}
"""Every reason why a run is over, in the order in which they are looked for."""


class RunOptions(Options):
    """Options of methods that restart."""

    popsize: int | None = Field(None, ge=4)
    """Results per step. None: 4 + floor(3 ln d) (eq. 48), or the number of workers where that is known and larger:
    below half of it many results come more than one step late and are not learned from. With restarts: of the first
    run."""
    sigma: float | None = Field(None, gt=0)
    """Initial standard deviation in internal units: a bounded coordinate is the unit interval. None: 0.3; in a box of
    d > 10 dimensions 0.3 (10 / d)^0.8, because steps of 0.3 in every coordinate lead far away from the start."""
    tolx: float = Field(1e-11, ge=0)
    """A run is over when every standard deviation is below this part of `sigma`. 0: never."""
    tolfun: float = Field(1e-11, ge=0)
    """A run is over when the values of the last step and the best ones of recent steps differ by less; where no step
    had values that differ by 1, by less than this part of the largest difference in a step. 0: never."""
    tolfunhist: float = Field(1e-12, ge=0)
    """A run is over when the best values of recent steps differ by less; relative as `tolfun`. 0: never."""
    tolflatfitness: int = Field(10, ge=1)
    """A run is over when three quarters of the values were equal for more than this many steps in a row."""
    restarts: Literal["none", "ipop", "bipop"] | None = None
    """The continuation after a run that is over. None: bipop where the study has a budget of evaluations, which is then
    used, else none. none: the study ends, and says why; for whoever pays for every evaluation. ipop: a run from a new
    place with twice the popsize, for objectives with many minima whose good ones are close together. bipop: between
    those, short runs with a small popsize and small steps; the safe choice where nothing is known of the minima."""
    max_restarts: int = Field(9, ge=0, le=20)
    """Doublings of popsize before the study ends; small runs of bipop are not counted."""


class RunResolved(RunOptions):
    """The options with every default filled in."""

    popsize: int
    sigma: float
    restarts: Literal["none", "ipop", "bipop"]


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its place in the sequence and what it started with. Constant until the next one begins.

    Attributes
    ----------
    index : runs before it.
    regime : "first", "large" or "small".
    began : the step at which it began.
    popsize, sigma : results per step and initial step size.
    max_steps : steps after which it ends; 0: never.
    n_large : large runs so far, this one included.
    used_small, used_large : results told to the finished runs of a regime; the first run counts as small.
    champion, record : (d,) recommendation of the finished run with the best value, and that value; the start and None
        before there is one.
    """

    index: int
    regime: str
    began: int
    popsize: int
    sigma: float
    max_steps: int
    n_large: int
    used_small: int
    used_large: int
    champion: Vector
    record: float | None


@dataclass(frozen=True, slots=True)
class Values:
    """Summary of the values of the present run.

    Attributes
    ----------
    best, value : (d,) the best point told, the newest of equal ones, and its value; the start and None before there is
        one.
    told : results of the recorded steps.
    recorded : steps that entered the histories.
    recent : (L, 2) best and worst value of the last steps, newest first.
    history : (N_HISTORY, 2) best and median value of every so many steps, newest first.
    flat : consecutive steps in which three quarters of the values were equal.
    scale : largest difference of two values in one step, at most 1.
    """

    best: Vector
    value: float | None
    told: int
    recorded: int
    recent: Matrix
    history: Matrix
    flat: int
    scale: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Properties of a distribution that decide whether a run is over.

    Attributes
    ----------
    mean, sigma, pc : as in the state, in the inner coordinates of `bounds.Bounds`.
    spread : (d,) roots of the diagonal of C.
    shortest, longest : roots of the extreme eigenvalues of C.
    """

    mean: Vector
    sigma: float
    pc: Vector
    spread: Vector
    shortest: float
    longest: float


class Runs:
    """The sequence of runs that options and space ask for. Holds constants only.

    Parameters
    ----------
    noise : source of new starts and of the sizes of small runs.
    """

    def __init__(self, space: Space, options: RunResolved, noise: Key) -> None:
        self.space = space
        self.options = options
        self.noise = noise
        self.bounds = Bounds(space)

    def first(self) -> Run:
        """Return the first run."""
        start, popsize, sigma = np.array(self.space.initial), self.options.popsize, self.options.sigma
        return Run(0, "first", 0, popsize, sigma, self._max_steps(popsize), 0, 0, 0, start, None)

    def start(self, run: Run) -> Vector:
        """Return the (d,) start of a run: first the initial point, then points drawn uniformly from the box.

        Where there is no box, within `SPREAD` initial standard deviations of the initial point.
        """
        space = self.space
        if run.index == 0:
            return np.array(space.initial)
        u = uniform(self.noise, run.began, 0, space.dim)
        return np.where(space.bounded, u, space.initial + SPREAD * self.options.sigma * (2 * u - 1))

    def blank(self, run: Run, start: Vector) -> Values:
        """Return the summary before the first value."""
        length = 10 + math.ceil(30 * self.space.dim / run.popsize)
        return Values(start, None, 0, 0, np.zeros((length, 2)), np.zeros((N_HISTORY, 2)), 0, 0.0)

    def stride(self, run: Run) -> int:
        """Return the steps between two records of the history, which then covers pycma's window tolstagnation."""
        return max(1, round((100 + 100 * self.space.dim * math.sqrt(self.space.dim) / run.popsize) / N_HISTORY))

    def tell(self, run: Run, values: Values, results: Results, ranking: tuple[Ints, list[float], int]) -> Values:
        """Return the summary with a step's values, ranked by `evolution.rank`; a step without any leaves no record."""
        order, ranked, n_values = ranking
        best, value = values.best, values.value
        if n_values and (value is None or ranked[0] <= value):  # the newest of equals: learned most
            best, value = results.vectors[order[0]].copy(), ranked[0]
        if n_values == 0 or len(ranked) < 2:
            return replace(values, best=best, value=value)
        low, high = ranked[0], ranked[n_values - 1]
        recent = np.empty_like(values.recent)
        recent[1:] = values.recent[:-1]
        recent[0] = low, high
        history = values.history
        if values.recorded % self.stride(run) == 0:
            history = np.concatenate([[[low, ranked[n_values // 2]]], history[:-1]])
        flat = values.flat + 1 if low == ranked[3 * len(ranked) // 4] else 0
        scale = max(values.scale, min(1.0, high - low))
        return Values(best, value, values.told + len(ranked), values.recorded + 1, recent, history, flat, scale)

    def over(self, run: Run, values: Values, shape: Shape) -> str | None:
        """Return why the run is over, or None."""
        o = self.options
        stds = shape.sigma * shape.spread
        spread = spread_with_worst = math.inf
        if values.recorded:
            bests = values.recent[: values.recorded, 0]
            low, high = float(bests.min()), float(bests.max())
            spread, spread_with_worst = high - low, max(high, float(values.recent[0, 1])) - low
        holds = {
            "tolfacupx": shape.sigma * shape.longest > MAX_GROWTH * run.sigma,
            "tolx": max(stds.max(), shape.sigma * np.abs(shape.pc).max()) < o.tolx * o.sigma,
            "tolfun": spread_with_worst < o.tolfun * values.scale,
            "tolfunhist": values.recorded >= len(values.recent) and spread < o.tolfunhist * values.scale,
            "flat": values.flat > o.tolflatfitness,
            "stagnation": values.recorded > self.stride(run) * N_HISTORY and not improving(values.history),
            "condition": shape.longest**2 > MAX_CONDITION * shape.shortest**2,
            "no_effect": (shape.mean == shape.mean + 0.2 * stds).any(),
            "max_steps": 0 < run.max_steps <= values.recorded,
        }
        return next((reason for reason in REASONS if holds[reason]), None)

    def following(self, run: Run, values: Values, shape: Shape, step: int) -> Run | None:
        """Return the run that begins at a step; None while the present one goes on, and after the last."""
        o = self.options
        if o.restarts == "none" or self.over(run, values, shape) is None:
            return None
        small, large = run.used_small, run.used_large
        if run.regime == "large":
            large += values.told
        else:
            small += values.told
        champion, record = run.champion, run.record
        if values.value is not None and (record is None or values.value <= record):
            champion, record = self.favourite(run, values, shape), values.value
        if o.restarts == "bipop" and small < large:
            u, v = uniform(self.noise, step, 1, 2).tolist()
            popsize = int(o.popsize * 2.0 ** (run.n_large * u * u))
            regime, sigma, n_large = "small", o.sigma * 10 ** (-2 * v), run.n_large
            max_steps = max(1, min(self._max_steps(popsize), large // (2 * popsize)))
        else:
            regime, sigma, n_large = "large", o.sigma, run.n_large + 1
            popsize = o.popsize * 2**n_large
            max_steps = self._max_steps(popsize)
        if n_large > o.max_restarts:
            return None
        return Run(run.index + 1, regime, step, popsize, sigma, max_steps, n_large, small, large, champion, record)

    def favourite(self, run: Run, values: Values, shape: Shape) -> Vector:
        """Return the (d,) recommendation of a run.

        The mean averages over points and beats each of them, but not before the distribution has contracted somewhere.
        """
        return self.bounds.outer(shape.mean) if 2 * shape.sigma * shape.longest < run.sigma else values.best

    def recommend(self, run: Run, values: Values, shape: Shape) -> Vector:
        """Return the (d,) recommendation of the run with the best value."""
        if run.record is not None and (values.value is None or run.record < values.value):
            return run.champion
        return self.favourite(run, values, shape)

    def metrics(self, run: Run, values: Values, shape: Shape) -> dict[str, float]:
        """Return the metrics of a step; `regime` is 0 for the first run, 1 for a large, 2 for a small one."""
        found: dict[str, float] = {}
        told = [value for value in (run.record, values.value) if value is not None]
        if told:
            found["best"] = min(told)
        if values.recorded:
            found |= {"step_best": float(values.recent[0, 0]), "step_worst": float(values.recent[0, 1])}
        if self.options.restarts != "none":
            found |= {"run": run.index, "regime": REGIMES.index(run.regime), "popsize": run.popsize}
        return found | {
            "sigma": shape.sigma,
            "axis_ratio": shape.longest / shape.shortest,
            "std_min": shape.sigma * shape.shortest,
            "std_max": shape.sigma * shape.longest,
        }

    def stopped(self, run: Run, values: Values, shape: Shape) -> Stop | None:
        """Return why there is nothing more to gain, or None; with restarts only once the last run is over."""
        reason = self.over(run, values, shape)
        if reason is None:
            return None
        last = f"; it was the last of {run.index + 1} runs" if self.options.restarts != "none" else ""
        return Stop(reason, REASONS[reason] + last, self.metrics(run, values, shape))

    def _max_steps(self, popsize: int) -> int:
        """Return pycma's limit on the steps of a run; 0, no limit, where no other run can follow."""
        if self.options.restarts == "none":
            return 0
        return int(100 + 150 * (self.space.dim + 3) ** 2 / math.sqrt(popsize))


def largest_popsize(options: RunResolved) -> int:
    """Return the results per step of the last large run."""
    return options.popsize if options.restarts == "none" else options.popsize * 2**options.max_restarts


def improving(history: Matrix) -> bool:
    """Return whether the newer half of the best or median values is better than the older half, in the median."""
    half = N_HISTORY // 2
    newer, older = np.sort(history[:half], axis=0)[half // 2], np.sort(history[half:], axis=0)[half // 2]
    return bool((newer < older).any())
