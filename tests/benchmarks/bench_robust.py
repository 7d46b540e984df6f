"""What must not throw a method off: outliers, other units, and starts that show nothing.

`python -m tests.benchmarks.bench_robust` prints the tables of ACCEPTANCE.md. What counts is the point that a method
proposes at the end, in truth, over the value at the start: 1 is no progress.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import blackbox
from blackbox.records import Vector

DIM, BUDGET = 5, 2000
SPACES = {"free": {"v": blackbox.Vector(dim=DIM, init=0.0)}, "box": {"v": blackbox.Vector(dim=DIM, low=-5, high=5)}}
OUTLIERS = {"none": None, "1e10": 1e10, "-1e10": -1e10, "NaN": math.nan}
METHODS = ("ars", "openai_es", "pgpe", "mezo", "zo_sgd", "zo_adam", "cma_es", "sep_cma_es")


def final(objective: Callable[[Vector], float], truth: Callable[[Vector], float], space: Any, **run: Any) -> float:
    """Value in truth of what a method proposes at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = blackbox.minimize(objective, space, noise="none", **run)
    return truth(np.asarray(result.proposed))


def sphere(space: str, outlier: float | None, at: int, unit: float, method: str, seed: int) -> float:
    """One run on a sphere one unit a coordinate away from the start, with a wrong value at one evaluation."""
    calls = 0

    def truth(x: Vector) -> float:
        return float(np.square(x - 1).sum()) / DIM

    def objective(x: Vector) -> float:
        nonlocal calls
        calls += 1
        return outlier if outlier is not None and calls == at else unit * truth(x)

    return final(objective, truth, SPACES[space], algorithm=method, budget=BUDGET, seed=seed)


def network(method: str, seed: int) -> float:
    """One run of a network with one hidden layer from zero weights, where every mirrored pair ties."""
    rng = np.random.default_rng(seed)
    inputs, labels = rng.normal(size=(64, 9)), rng.integers(0, 2, 64) * 2.0 - 1.0

    def loss(w: Vector) -> float:
        hidden = np.tanh(inputs @ w[:144].reshape(9, 16))
        return float(np.logaddexp(0, -labels * (hidden @ w[144:])).mean()) / math.log(2)

    return final(loss, loss, {"w": blackbox.Vector(dim=160)}, algorithm=method, budget=BUDGET, seed=seed)


def corner(method: str, dim: int, seed: int) -> float:
    """One run from the lower corner of a box, with the minimum in the middle."""

    def truth(x: Vector) -> float:
        return float(np.square(x - 0.5).sum()) / (0.25 * dim)

    space = {"v": blackbox.Vector(dim=dim, low=0, high=1, init=0.0)}
    return final(truth, truth, space, algorithm=method, budget=200 * dim, seed=seed)


def row(name: str, cells: Sequence[Sequence[float]]) -> str:
    """A row of a Markdown table: median (worst) of each cell."""
    return f"| `{name}` | " + " | ".join(f"{np.median(cell):.1e} ({max(cell):.1e})" for cell in cells) + " |"


def head(first: str, names: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]


def main(methods: Sequence[str] = METHODS, seeds: int = 10) -> None:
    """Print the three tables, a row as soon as its runs are done."""
    for space in SPACES:
        print(f"Outliers and units, {space}:\n", *head("method", [*OUTLIERS, "x 1e-6", "x 1e6"]), sep="\n", flush=True)
        for method in methods:
            cells = [
                [sphere(space, value, (2, 100)[seed % 2], 1.0, method, seed) for seed in range(seeds)]
                for value in OUTLIERS.values()
            ]
            cells += [[sphere(space, None, 0, unit, method, seed) for seed in range(seeds)] for unit in (1e-6, 1e6)]
            print(row(method, cells), flush=True)
        print()
    print("Starts:\n", *head("method", ["network of zeros", "corner, d = 2", "corner, d = 20"]), sep="\n", flush=True)
    for method in methods:
        cells = [[network(method, seed) for seed in range(seeds)]]
        cells += [[corner(method, dim, seed) for seed in range(seeds)] for dim in (2, 20)]
        print(row(method, cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=METHODS, help="registered methods that take boxes")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each cell, seeds 0, 1, ...")
    main(**vars(parser.parse_args()))
