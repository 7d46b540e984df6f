"""Cost of the oracles of regions: `python -m tests.benchmarks.bench_regions`.

Each linear minimisation beside what it cannot do without: a pass over the memory of g, a sort, or the bare call of the
solver that it needs; and projections that are not formulas beside the oracle of their set. CPU time, the median of
repeated calls in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
from scipy import linalg
from scipy.optimize import linear_sum_assignment, linprog

from blackbox.regions import (
    Birkhoff,
    Box,
    CappedSimplex,
    GroupBall,
    KSparsePolytope,
    L1Ball,
    L2Ball,
    NuclearBall,
    Permutahedron,
    Polytope,
    Region,
    Simplex,
    SpectralBall,
    Spectraplex,
    Transportation,
)

LARGE = 100_000
REPEATS = 7


def in_turns(*work: Callable[[], object]) -> list[float]:
    """Median CPU seconds of each."""
    times: list[list[float]] = [[] for _ in work]
    for _ in range(REPEATS):
        for i, call in enumerate(work):
            started = time.process_time()
            call()
            times[i].append(time.process_time() - started)
    return [median(row) for row in times]


def main() -> list[str]:
    random = np.random.default_rng(0)
    g = random.normal(size=LARGE)
    rows = random.normal(size=(100, 100))
    square = random.normal(size=(300, 300))
    cost = random.normal(size=(200, 200))
    plan = random.normal(size=60 * 60)
    symmetric = (square + square.T) / 2

    def read() -> object:
        return np.abs(g).max()

    def programme() -> object:
        return linprog(g[:100], A_ub=rows, b_ub=np.ones(100), bounds=(-1, 1), method="highs-ds")

    polytope = Polytope(a_ub=rows.tolist(), b_ub=np.ones(100), lower=-1.0, upper=1.0)
    transport = Transportation(supply=(1.0,) * 60, demand=(1.0,) * 60)
    values = tuple(np.linspace(0, 1, LARGE))
    cases: list[tuple[str, Region, np.ndarray, str, Callable[[], object]]] = [
        ("simplex, d = 1e5", Simplex(), g, "max abs(g)", read),
        ("L1 ball, d = 1e5", L1Ball(), g, "max abs(g)", read),
        ("L2 ball, d = 1e5", L2Ball(), g, "max abs(g)", read),
        ("box, d = 1e5", Box(), g, "max abs(g)", read),
        ("groups of 10, d = 1e5", GroupBall(groups=10), g, "max abs(g)", read),
        ("k-sparse, k = 100, d = 1e5", KSparsePolytope(k=100), g, "np.partition", lambda: np.partition(g, 100)),
        ("capped simplex, d = 1e5", CappedSimplex(total=100.0), g, "np.argsort", lambda: np.argsort(g, kind="stable")),
        ("permutahedron, d = 1e5", Permutahedron(values=values), g, "np.argsort", lambda: np.argsort(g, kind="stable")),
        (
            "Birkhoff 200 x 200",
            Birkhoff(order=200),
            cost.ravel(),
            "SciPy's assignment",
            lambda: linear_sum_assignment(cost),
        ),
        (
            "nuclear ball 300 x 300",
            NuclearBall(rows=300, cols=300),
            square.ravel(),
            "dense SVD",
            lambda: linalg.svd(square),
        ),
        (
            "spectral ball 300 x 300",
            SpectralBall(rows=300, cols=300),
            square.ravel(),
            "dense SVD",
            lambda: linalg.svd(square),
        ),
        (
            "spectraplex 300 x 300",
            Spectraplex(order=300),
            square.ravel(),
            "lowest pair by eigh",
            lambda: linalg.eigh(symmetric, subset_by_index=(0, 0)),
        ),
        ("polytope, 100 rows, d = 100", polytope, g[:100], "bare linprog", programme),
        ("transportation 60 x 60", transport, plan, "bare linprog", lambda: transport._constraints.minimise(plan)),
    ]
    lines = ["| oracle | time | beside | its time | ratio |", "| --- | --- | --- | --- | --- |"]
    for name, region, direction, peer, work in cases:
        region.lmo(direction)
        ours, bare = in_turns(lambda region=region, direction=direction: region.lmo(direction), work)  # type: ignore[misc]
        lines.append(f"| {name} | {ours * 1e3:.2f} ms | {peer} | {bare * 1e3:.2f} ms | {ours / bare:.1f} |")
    lines += ["", "| projection | time | beside | its time | ratio |", "| --- | --- | --- | --- | --- |"]
    for order in (8, 30, 100, 300):
        birkhoff, noise = Birkhoff(order=order), random.normal(size=order**2)
        point = birkhoff.project(noise)
        for name, x in (("near by", point + 0.1 / order * random.normal(size=order**2)), ("normal", noise)):
            ours, bare = in_turns(
                lambda birkhoff=birkhoff, x=x: birkhoff.project(x),  # type: ignore[misc]
                lambda birkhoff=birkhoff, x=x: birkhoff.lmo(x),  # type: ignore[misc]
            )
            size = f"Birkhoff {order} x {order}, {name}"
            lines.append(f"| {size} | {ours * 1e3:.2f} ms | its oracle | {bare * 1e3:.2f} ms | {ours / bare:.1f} |")
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
