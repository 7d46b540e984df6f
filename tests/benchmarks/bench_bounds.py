"""Convex functions in a box, wherever the minimum is: `python -m tests.benchmarks.bench_bounds`.

The rule: whatever is known of the minimum (in the middle, on a face, in a corner) and of the start (likewise), and for
every initial step from 0.01 to 0.5 of the range, the gap to the minimum is at most a hundredth of the start's after
200 d evaluations. `--methods` takes any registered methods that treat boxes; `--by` says what a row of the table is.
A run ends when it passes, so that the worst gap of runs that all pass is just below 0.01.

With `--race` the evaluations to a gap of 1e-8 from the middle are counted instead, beside pycma with its own bounds.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from blackbox import recipes
from blackbox.algorithm import build, lookup, resolve_options
from blackbox.records import NOTHING_PENDING, Matrix, Recipes, Results, Vector
from blackbox.registry import Outlook
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.space import Vector as Box
from blackbox.toolbox.evolution import default_popsize

LOW, HIGH = -5.0, 5.0
PLACES = ("middle", "face", "corner")
SIGMAS = (0.01, 0.1, 0.3, 0.5)
"""Initial standard deviations in ranges of the box; a method without the option `sigma` runs with its defaults."""
PASSED = 0.01
BUDGET = 200
"""Evaluations per dimension."""


def weights(dim: int, ratio: float) -> Vector:
    """Return (dim,) numbers from 1 to the ratio, evenly in the logarithm."""
    return ratio ** np.linspace(0, 1, dim)


def beyond(at: Vector) -> Vector:
    """Return a point outside of the box, whose nearest one inside is the given one where that is on the boundary."""
    return np.where(np.abs(at) == HIGH, 1.5 * at, at)


FUNCTIONS: dict[str, Callable[[Matrix, Vector], Vector]] = {
    "sphere": lambda x, at: np.square(x - at).sum(axis=-1),
    "ellipsoid": lambda x, at: np.square(x - at) @ weights(x.shape[-1], 100),
    "sphere + .1 L1": lambda x, at: np.square(x - at).sum(axis=-1) + 0.1 * np.abs(x - at).sum(axis=-1),
    "slope": lambda x, at: np.abs(x - at) @ weights(x.shape[-1], 10),
    "beyond": lambda x, at: np.square(x - beyond(at)).sum(axis=-1) - np.square(beyond(at) - at).sum(),
}
"""Each is zero at its minimum in the box."""
WHERE = {"slope": ("corner",), "beyond": ("face", "corner")}
"""Where the minimum of a function may be: a slope is linear only with its minimum in a corner, and the centre of the
sphere is beyond the box where its minimum is on the boundary."""


@dataclass(frozen=True)
class Case:
    """A function with its minimum and a start, for one method and seed."""

    method: str
    function: str
    dim: int
    start: str
    optimum: str
    sigma: float
    seed: int

    @property
    def minimum(self) -> Vector:
        """(dim,) alternately above and below the middle; on a face in the first coordinate, or in all."""
        inside = np.where(np.arange(self.dim) % 2 == 0, 1.0, -1.0)
        return self._placed(self.optimum, inside, HIGH * inside)

    @property
    def x0(self) -> Vector:
        """(dim,) the start; in a corner, half of its coordinates are those of a minimum in a corner."""
        inside = np.full(self.dim, 2.0 if self.start == "face" else 0.0)
        return self._placed(self.start, inside, np.full(self.dim, LOW))

    def _placed(self, place: str, inside: Vector, corner: Vector) -> Vector:
        on_bound = {"middle": 0, "face": 1, "corner": self.dim}[place]
        return np.where(np.arange(self.dim) < on_bound, corner, inside)

    def value(self, x: Matrix) -> Vector:
        """(n,) values of (n, dim) points, as gaps to the minimum."""
        return np.asarray(FUNCTIONS[self.function](x, self.minimum))


@dataclass(frozen=True)
class Outcome:
    """The best gap over the start's, the evaluations until the run passed or ended, and why it ended."""

    ratio: float
    evaluations: int
    stop: str


def cases(
    methods: Sequence[str],
    functions: Sequence[str],
    dims: Sequence[int],
    starts: Sequence[str],
    optima: Sequence[str],
    sigmas: Sequence[float],
    seeds: int,
) -> Iterator[Case]:
    """Return every combination that means something."""
    for row in product(methods, functions, dims, starts, optima, sigmas, range(seeds)):
        case = Case(*row)
        if case.optimum not in WHERE.get(case.function, PLACES):
            continue
        if case.sigma == sigmas[0] or "sigma" in lookup(case.method).Options.model_fields:
            yield case


def run(
    case: Case, *, per_dim: int = BUDGET, passed: float = PASSED, recommended: bool = False, **options: Any
) -> Outcome:
    """Ask and tell until the gap is so small a part of the start's, the method stops, or the budget is spent.

    The gap is that of the best point told; with `recommended` also of what the method recommends after each step.
    """
    budget = per_dim * case.dim
    space = Space({"x": Box(dim=case.dim, low=LOW, high=HIGH, init=tuple(case.x0.tolist()))})
    if "sigma" in lookup(case.method).Options.model_fields:
        options = {"sigma": case.sigma, **options}
    resolved = resolve_options(case.method, space, options, outlook=Outlook(evaluations=budget))
    method = build(case.method, space, resolved, Key.from_seed(case.seed))
    at_start = float(case.value(case.x0))
    state, used, best, stop = method.init(), 0, at_start, ""
    is_group = method.traits.kind == "group"
    while used < budget:
        if (end := method.stopped(state)) is not None:
            stop = end.reason
            break
        n = method.need(state) if is_group else 1
        lanes = list(range(n)) if is_group else list(method.lanes(state, NOTHING_PENDING, 1))
        points = method.ask(state, lanes, NOTHING_PENDING)
        if isinstance(points, Recipes):
            blobs = method.blobs(state)
            vectors = np.array([recipes.materialise(r, method.key, case.dim, blobs) for r in points.recipes])
        else:
            vectors = points.vectors
        values = case.value(LOW + (HIGH - LOW) * space.fold(np.asarray(vectors, dtype=np.float64)))
        hits = (values[: budget - used] <= passed * at_start).nonzero()[0]
        if len(hits):
            return Outcome(float(values[hits[0]]) / at_start, used + int(hits[0]) + 1, "")
        best = min(best, float(values[: budget - used].min()))
        used += len(lanes)
        state = method.tell(state, Results(np.full(n, state.step), np.array(lanes), points, values[:, None]))
        if recommended:
            deployed = case.value(LOW + (HIGH - LOW) * space.fold(method.recommend(state)))
            best = min(best, float(deployed))
            if best <= passed * at_start:
                break
    return Outcome(best / at_start, min(used, budget), stop)


def table(rows: Sequence[Case], by: Sequence[str], recommended: bool = False) -> list[str]:
    """Rows of a Markdown table: the share of runs that pass, the worst gap over the start's, and evaluations / d."""
    groups: dict[tuple[Any, ...], list[tuple[Case, Outcome]]] = {}
    for case in rows:
        groups.setdefault(tuple(getattr(case, key) for key in by), []).append(
            (case, run(case, recommended=recommended))
        )
    lines = [f"| {' | '.join(by)} | passed | worst gap / start's | median evaluations / d |"]
    lines.append("| --- " * (len(by) + 3) + "|")
    for key, found in groups.items():
        n_passed = sum(outcome.ratio <= PASSED for _, outcome in found)
        worst = max(outcome.ratio for _, outcome in found)
        middle = median(outcome.evaluations / case.dim for case, outcome in found)
        lines.append(f"| {' | '.join(map(str, key))} | {n_passed} of {len(found)} | {worst:.3g} | {middle:.0f} |")
    return lines


# Beside pycma ---------------------------------------------------------------------------------------------------------


def pycma(case: Case, target: float, most: int) -> int:
    """Return the evaluations that pycma with its own treatment of bounds needs to a gap; `most` if it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cma
    noise = np.random.default_rng(case.seed)
    options = {"seed": math.nan, "randn": lambda *shape: noise.standard_normal(shape), "signals_filename": ""}
    options |= {"bounds": [0, 1], "verbose": -9, "verb_log": 0, "popsize": default_popsize(case.dim)}
    es = cma.CMAEvolutionStrategy((case.x0 - LOW) / (HIGH - LOW), case.sigma, options)
    used = 0
    while used < most and not es.stop():
        vectors = es.ask()
        values = case.value(LOW + (HIGH - LOW) * np.array(vectors))
        hits = (values <= target).nonzero()[0]
        if len(hits):
            return used + int(hits[0]) + 1
        used += len(vectors)
        es.tell(vectors, values.tolist())
    return most


def race(rows: Sequence[Case], target: float = 1e-8, per_dim: int = 2000) -> list[str]:
    """Rows of a Markdown table: evaluations to a gap, beside pycma's; a run that does not get there counts as most."""
    groups: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for case in rows:
        key = (case.method, case.function, case.dim, case.start, case.optimum, case.sigma)
        start = float(case.value(case.x0))
        ours = run(case, per_dim=per_dim, passed=target / start)
        most = per_dim * case.dim
        theirs = pycma(case, target, most)
        groups.setdefault(key, []).append((ours.evaluations if ours.ratio <= target / start else most, theirs))
    lines = ["| method | function | d | start | minimum | sigma | median (quartiles) | pycma | ratio |"]
    lines.append("| --- " * 9 + "|")
    for key, found in groups.items():
        ours, theirs = ([pair[i] for pair in found] for i in (0, 1))
        cells = [
            f"{median(side):.0f} ({quantiles(side, n=4)[0]:.0f} to {quantiles(side, n=4)[2]:.0f})"
            for side in (ours, theirs)
        ]
        ratio = median(ours) / median(theirs)
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} | {ratio:.2f} |")
    return lines


def main(
    methods: Sequence[str] = ("cma_es", "sep_cma_es"),
    functions: Sequence[str] = tuple(FUNCTIONS),
    dims: Sequence[int] = (2, 5, 20),
    starts: Sequence[str] = PLACES,
    optima: Sequence[str] = PLACES,
    sigmas: Sequence[float] = SIGMAS,
    seeds: int = 30,
    by: Sequence[str] = ("method", "function", "dim"),
    beside_pycma: bool = False,
    recommended: bool = False,
) -> list[str]:
    """Rows of a Markdown table."""
    rows = list(cases(methods, functions, dims, starts, optima, sigmas, seeds))
    return race(rows) if beside_pycma else table(rows, by, recommended)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Convex functions in a box")
    parser.add_argument("--methods", nargs="*", default=("cma_es", "sep_cma_es"))
    parser.add_argument("--functions", nargs="*", default=tuple(FUNCTIONS))
    parser.add_argument("--dims", nargs="*", type=int, default=(2, 5, 20))
    parser.add_argument("--starts", nargs="*", default=PLACES)
    parser.add_argument("--optima", nargs="*", default=PLACES)
    parser.add_argument("--sigmas", nargs="*", type=float, default=SIGMAS)
    parser.add_argument("--seeds", type=int, default=30, help="runs of each case, seeds 0, 1, ...")
    parser.add_argument("--by", nargs="*", default=("method", "function", "dim"), help="fields of a case")
    parser.add_argument("--race", dest="beside_pycma", action="store_true", help="evaluations to 1e-8, beside pycma")
    parser.add_argument("--recommended", action="store_true", help="count the points that a method recommends too")
    began = time.process_time()
    print("\n".join(main(**vars(parser.parse_args()))))
    print(f"[{time.process_time() - began:.0f} s]")
