"""Cost of CBO, and of asynchrony: `python -m tests.benchmarks.bench_cbo`.

The problem is Rastrigin in ten dimensions, shifted off the centre, target f < 1; one core, numbers are medians over
seeds with the smallest and the largest in brackets.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from blackbox.algorithms.cbo import Cbo, CboOptions
from blackbox.records import NOTHING_PENDING, Matrix, Pending, Points, Results, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.space import Vector as Numbers

DIM, N_SEEDS, CAP = 10, 5, 60_000
ROTATION = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0]

Objective = Callable[[Matrix], Vector]


def rastrigin(x: Matrix) -> Vector:
    value: Vector = (10 + x * x - 10 * np.cos(2 * np.pi * x)).sum(axis=-1)
    return value


def shifted(x: Matrix) -> Vector:
    return rastrigin(6 * x - 4.5)


def rotated(x: Matrix) -> Vector:
    return rastrigin((6 * x - 4.5) @ ROTATION)


def make(seed: int) -> Cbo:
    options = CboOptions(popsize=40, drift=0.01, noise=1.01, schedule="multiply", alpha=30.0, tolerance=0)
    return Cbo(Space({"x": Numbers(dim=DIM, low=-3, high=3)}), options, Key.from_seed(seed))


def results(step: list[int], lane: list[int], points: Points, f: Objective) -> Results:
    return Results(np.array(step), np.array(lane), points, f(points.vectors)[:, None])


def sweeps(seed: int, f: Objective) -> float:
    """Evaluations to the target when all members are told at once."""
    method, lanes = make(seed), list(range(40))
    state = method.init()
    while state.value is None or state.value >= 1:
        if state.told >= CAP:
            return math.inf
        points = method.ask(state, lanes, NOTHING_PENDING)
        state = method.tell(state, results([state.step] * 40, lanes, points, f))
    return state.told


def in_flight(seed: int, f: Objective, n_flying: int) -> float:
    """Asks to the target when so many evaluations are out at any time and return in random order."""
    method, chance, flights, n = make(seed), random.Random(seed), list[tuple[int, int, Points]](), 0
    state = method.init()
    while n < CAP:
        while len(flights) < n_flying:
            busy = np.array(sorted(flight[1] for flight in flights), dtype=np.int64)
            pending = Pending(np.zeros_like(busy), busy, np.empty((len(busy), 0), dtype=np.int64), None, 0)
            (lane,) = method.lanes(state, pending, 1)
            flights.append((state.step, lane, method.ask(state, [lane], pending)))
            n += 1
        step, lane, points = flights.pop(chance.randrange(len(flights)))
        state = method.tell(state, results([step], [lane], points, f))
        if state.value is not None and state.value < 1:
            return n
    return math.inf


def evaluations() -> list[str]:
    ways: list[tuple[str, Callable[[int], float]]] = [
        ("all 40 at once", lambda seed: sweeps(seed, shifted)),
        ("one at a time", lambda seed: in_flight(seed, shifted, 1)),
        ("30 of 40 in flight", lambda seed: in_flight(seed, shifted, 30)),
        ("all at once, rotated function", lambda seed: sweeps(seed, rotated)),
    ]
    rows = []
    for name, run in ways:
        counts = [run(seed) for seed in range(N_SEEDS)]
        reached = f"{sum(map(math.isfinite, counts))} of {N_SEEDS} reach it"
        rows.append(f"| {name} | {median(counts):.0f} [{min(counts):.0f}, {max(counts):.0f}] evaluations | {reached} |")
    return rows


def costs() -> list[str]:
    """Microseconds of ask and tell."""
    rows = []
    for d, members, batch in ((4, 100, 100), (20, 40, 1), (1000, 100, 1)):
        for schedule in ("multiply", "ess"):
            options = CboOptions(popsize=members, schedule=schedule)
            method, lanes = Cbo(Space({"x": Numbers(dim=d)}), options, Key.from_seed(1)), list(range(batch))
            state = method.init()
            everybody = list(range(members))
            first = method.ask(state, everybody, NOTHING_PENDING)
            state = method.tell(state, results([0] * members, everybody, first, rastrigin))
            asking, telling = list[float](), list[float]()
            for _ in range(300):
                began = time.perf_counter()
                points = method.ask(state, lanes, NOTHING_PENDING)
                asking.append(time.perf_counter() - began)
                told = results([state.step] * batch, lanes, points, rastrigin)
                began = time.perf_counter()
                state = method.tell(state, told)
                telling.append(time.perf_counter() - began)
            what = f"d = {d}, {members} members, {batch} at a time, {schedule}"
            rows.append(f"| {what} | ask {median(asking) * 1e6:.0f} us | tell {median(telling) * 1e6:.0f} us |")
    return rows


def main() -> list[str]:
    """Markdown rows: what, measured, beside what."""
    return ["| cbo | measured | beside |", "|---|---|---|", *costs(), *evaluations()]


if __name__ == "__main__":
    print("\n".join(main()))
