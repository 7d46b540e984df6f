"""Evaluations on BBOB beside the published ones: `python -m tests.benchmarks.bench_bbob`.

The functions are those of `cma.bbobbenchmarks`, 15 instances of each, in ten dimensions: as in the BBOB workshops, a
run starts uniformly in [-4, 4]^d with a step size of 2 in a space without bounds and restarts until the value is within
1e-8 of the minimum. ERT is the evaluations of all instances over the number of those that got there; its spread is that
of the single instances. `--help` says how to run other functions, dimensions and methods.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from blackbox.algorithm import build, resolve_options
from blackbox.records import NOTHING_PENDING, Results, Vector, dense
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.space import Vector as FreeVector

TARGET = 1e-8
PUBLISHED = {1: 148, 2: 457, 8: 629, 9: 551, 10: 450, 11: 345, 12: 1010, 13: 902, 14: 418}
"""ERT / d of IPOP-aCMA-ES (BBOB-2010) for d = 10, by function, from the data that COCO publishes."""
TITLES = {
    1: "sphere", 2: "ellipsoid, separable", 8: "Rosenbrock", 9: "Rosenbrock, rotated", 10: "ellipsoid", 11: "discus",
    12: "bent cigar", 13: "sharp ridge", 14: "different powers", 15: "Rastrigin", 17: "Schaffer",
    21: "Gallagher, 101 peaks",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One instance: whether the target was reached, the evaluations until then or until the end, and the AOCC.

    The area over the convergence curve is the mean, over the evaluations of the budget, of the part of the targets from
    1e2 to 1e-8, evenly in the logarithm, that the best value so far has reached.
    """

    reached: bool
    evaluations: int
    runs: int
    aocc: float


def reached_part(gaps: Vector) -> Vector:
    """Return (n,) parts of the targets from 1e2 to 1e-8 that gaps to the minimum have reached."""
    return (2 - np.log10(np.clip(gaps, TARGET, 1e2))) / 10


def solve(
    number: int, instance: int, dim: int, budget: int, name: str, options: Mapping[str, Any], box: bool = False
) -> Outcome:
    """A method on an instance of a function; the instance is also the seed.

    Parameters
    ----------
    box : search in [-5, 5]^d instead of a space without bounds; `sigma` is then in units of the box.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cma import bbobbenchmarks
    function = getattr(bbobbenchmarks, f"F{number}")(instance)
    start = np.random.default_rng(instance).uniform(-4, 4, dim)
    bounds = {"low": -5.0, "high": 5.0} if box else {}
    space = Space({"x": FreeVector(dim=dim, init=tuple(start.tolist()), **bounds)})
    method = build(name, space, resolve_options(name, space, options), Key.from_seed(instance))
    state, used, target = method.init(), 0, function.fopt + TARGET
    best, area = math.inf, 0.0
    while used < budget and method.stopped(state) is None:
        lanes = np.arange(method.need(state))
        points = method.ask(state, range(len(lanes)), NOTHING_PENDING)
        where = np.array([space.decode(x)["x"] for x in points.vectors]) if box else points.vectors
        values = np.asarray(function.evaluate(where))
        gaps = np.minimum(np.minimum.accumulate(values) - function.fopt, best)
        hits = (values[: budget - used] <= target).nonzero()[0]
        if len(hits):
            evaluations = used + int(hits[0]) + 1
            area += float(reached_part(gaps[: int(hits[0])]).sum()) + budget - evaluations + 1
            return Outcome(True, evaluations, state.run.index + 1, area / budget)
        area += float(reached_part(gaps[: budget - used]).sum())
        best = float(gaps[-1])
        used += len(lanes)
        state = method.tell(
            state, Results(np.full(len(lanes), state.step), lanes, dense(points.vectors), values[:, None])
        )
    area += max(0, budget - used) * float(reached_part(np.array(best)))
    return Outcome(False, used, state.run.index + 1, area / budget)


def expected(outcomes: list[Outcome]) -> float:
    """ERT: all evaluations over the number of instances that reached the target."""
    n_reached = sum(o.reached for o in outcomes)
    return sum(o.evaluations for o in outcomes) / n_reached if n_reached else math.inf


def main(
    functions: Sequence[int] = tuple(PUBLISHED),
    dim: int = 10,
    instances: int = 15,
    budget: int = 10_000,
    name: str = "cma_es",
    restarts: Sequence[str] = ("ipop", "bipop"),
    box: bool = False,
) -> list[str]:
    """Rows of a Markdown table; `budget` is in evaluations per dimension and instance."""
    rows = [
        "| function | "
        + " | ".join(f"{kind}: ERT / d, quartiles, reached, runs" for kind in restarts)
        + " | published | ratio |",
        "|---" * (len(restarts) + 3) + "|",
    ]
    for number in functions:
        cells, ratios = [], []
        known = PUBLISHED.get(number, math.nan) if dim == 10 else math.nan
        for kind in restarts:
            options = {"sigma": 0.2 if box else 2.0, "restarts": kind}
            began = time.process_time()
            outcomes = [solve(number, i + 1, dim, budget * dim, name, options, box) for i in range(instances)]
            ert = expected(outcomes) / dim
            low, _, high = quantiles((o.evaluations / dim for o in outcomes), n=4)
            n_reached, runs = sum(o.reached for o in outcomes), sum(o.runs for o in outcomes) / len(outcomes)
            cells.append(f"{ert:.0f}, {low:.0f} to {high:.0f}, {n_reached} of {instances}, {runs:.1f}")
            ratios.append(f"{ert / known:.2f}")
            areas = sum(o.aocc for o in outcomes) / len(outcomes)
            print(f"f{number} {kind} {cells[-1]}, AOCC {areas:.3f} [{time.process_time() - began:.1f} s]", flush=True)
        rows.append(f"| f{number} {TITLES.get(number, '')} | {' | '.join(cells)} | {known:g} | {', '.join(ratios)} |")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ERT on BBOB functions")
    parser.add_argument("functions", type=int, nargs="*", default=tuple(PUBLISHED), help="numbers, 1 to 24")
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--instances", type=int, default=15)
    parser.add_argument("--budget", type=int, default=10_000, help="evaluations per dimension and instance")
    parser.add_argument("--name", default="cma_es", help="cma_es or sep_cma_es")
    parser.add_argument("--restarts", nargs="*", default=("ipop", "bipop"), help="none, ipop, bipop")
    parser.add_argument("--box", action="store_true", help="search in [-5, 5]^d")
    print("\n".join(main(**vars(parser.parse_args()))))
