"""Cost of a step of CMA-ES beside pycma's: `python -m tests.benchmarks.bench_cma`.

Both optimize the same rotated ellipsoid with the same population size. They take turns within one run, a block of
steps each, because the speed of a shared machine changes by the minute. CPU time of ask and tell only; medians
over the blocks, and the ratio is the median of the blocks' ratios. `encode` is the state to bytes, which our service
adds per step and pycma does not have.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from blackbox import codec
from blackbox.algorithm import build, resolve_options
from blackbox.records import NOTHING_PENDING, Matrix, Results, Vector, dense
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.space import Vector as FreeVector

N_BLOCKS = 25
N_STEPS = 20
"""Generations per block."""


@dataclass(frozen=True)
class Objective:
    """A test function without bounds and where its runs start."""

    function: Callable[[int], Callable[[Matrix], Vector]]
    """dim -> the function of (n, dim) points."""
    x0: float
    sigma: float


def _rotated_ellipsoid(dim: int) -> Callable[[Matrix], Vector]:
    rotation = np.linalg.qr(np.random.default_rng(dim).standard_normal((dim, dim)))[0]
    scales = 10.0 ** (6 * np.arange(dim) / (dim - 1))
    return lambda x: np.square(x @ rotation) @ scales


def _rosenbrock(x: Matrix) -> Vector:
    return (100 * np.square(x[:, 1:] - np.square(x[:, :-1])) + np.square(1 - x[:, :-1])).sum(axis=1)


OBJECTIVES = {
    "sphere": Objective(lambda dim: lambda x: np.square(x).sum(axis=1), 3.0, 2.0),
    "ellipsoid": Objective(_rotated_ellipsoid, 3.0, 2.0),
    "rosenbrock": Objective(lambda dim: _rosenbrock, 0.0, 0.5),
}


def pycma(objective: Objective, dim: int, seed: int) -> Any:
    """pycma with its defaults, quiet, and with a generator of its own in place of NumPy's global one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cma
    noise = np.random.default_rng(seed)
    options = {"seed": math.nan, "randn": lambda *shape: noise.standard_normal(shape), "signals_filename": ""}
    return cma.CMAEvolutionStrategy([objective.x0] * dim, objective.sigma, {**options, "verbose": -9, "verb_log": 0})


def seconds(dim: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of CPU per step of ours, pycma's and of `codec.encode`, in each block."""
    objective = OBJECTIVES["ellipsoid"]
    f = objective.function(dim)
    space = Space({"x": FreeVector(dim=dim, init=objective.x0)})
    method = build("cma_es", space, resolve_options("cma_es", space, {"sigma": objective.sigma}), Key.from_seed(1))
    state, es = method.init(), pycma(objective, dim, 1)
    lanes = range(method.need(state))
    clock = time.process_time
    ours, theirs, encode = [0.0] * N_BLOCKS, [0.0] * N_BLOCKS, [0.0] * N_BLOCKS
    for block in range(N_BLOCKS):
        for _ in range(N_STEPS):
            began = clock()
            points = method.ask(state, lanes, NOTHING_PENDING)
            ours[block] += clock() - began
            values = f(points.vectors)[:, None]
            results = Results(np.full(len(lanes), state.step), np.arange(len(lanes)), dense(points.vectors), values)
            began = clock()
            state = method.tell(state, results)
            ours[block] += clock() - began
        for _ in range(N_STEPS):
            began = clock()
            vectors = es.ask()
            theirs[block] += clock() - began
            values = f(np.array(vectors)).tolist()
            began = clock()
            es.tell(vectors, values)
            theirs[block] += clock() - began
        began = clock()
        for _ in range(N_STEPS):
            codec.encode(state)
        encode[block] += clock() - began
    per_step = [[block / N_STEPS for block in row] for row in (ours, theirs, encode)]
    return per_step[0], per_step[1], per_step[2]


def main() -> list[str]:
    """Rows of a Markdown table."""
    rows = ["| d | ask + tell | encode | pycma ask + tell | pycma / ours |", "|---|---|---|---|---|"]
    for dim in (5, 10, 20):
        ours, theirs, encode = seconds(dim)
        ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
        micro = [f"{median(row) * 1e6:.0f} us" for row in (ours, encode, theirs)]
        rows.append(f"| {dim} | {micro[0]} | {micro[1]} | {micro[2]} | {ratio:.1f} |")
    return rows


if __name__ == "__main__":
    print("\n".join(main()))
