"""Finite tables: `python -m tests.benchmarks.bench_tables [--seeds 5] [--budget 300]`.

What a method makes of a budget that is smaller than the table: how many calls are made, how many of them at different
points, and the rank of the best value found among all values of the table (1 is the minimum). Figures go into
ACCEPTANCE.md by hand.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import zlib
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import blackbox
from blackbox.space import Categorical, Int

Table = tuple[Callable[[dict[str, Any]], float], Mapping[str, list[Any]]]


def kinks(p: dict[str, Any]) -> float:
    """A bowl with a ridge, of which one of four kinds is best."""
    return 0.5 * (p["a"] - 7) ** 2 + abs(p["b"] - 3) + 2 * (p["c"] != "v2") + 0.3 * (p["a"] * p["b"] % 5)


def noise(p: dict[str, Any]) -> float:
    """Slopes with a fixed random number at every point."""
    number = zlib.crc32(repr((p["m"], p["n"], p["k"])).encode()) % 1000 / 1000
    return abs(p["m"] - 12) / 5 + abs(p["n"] - 5) / 3 + 0.5 * (p["k"] != "b") - 0.3 * number


def waves(p: dict[str, Any]) -> float:
    """A bowl with waves along two parameters."""
    bowl = sum((p[name] - best) ** 2 for name, best in zip("wxyz", (1, 4, 2, 3), strict=True))
    return bowl + 3 * math.cos(2 * p["w"] + p["x"])


TABLES: dict[int, Table] = {
    400: (kinks, {"a": list(range(10)), "b": list(range(10)), "c": ["v0", "v1", "v2", "v3"]}),
    900: (noise, {"m": list(range(20)), "n": list(range(15)), "k": ["a", "b", "c"]}),
    1296: (waves, {name: list(range(6)) for name in "wxyz"}),
}
METHODS = ("auto", "cma_es", "cbo", "random_search")


def run(table: Table, method: str, seed: int, budget: int) -> tuple[int, int, int, float]:
    """Calls, different points, rank of the best, and CPU seconds of one run."""
    objective, values = table
    every = sorted(objective(dict(zip(values, point, strict=True))) for point in itertools.product(*values.values()))
    space = {
        name: Int(low=min(each), high=max(each)) if isinstance(each[0], int) else Categorical(choices=each)
        for name, each in values.items()
    }
    seen: list[tuple[Any, ...]] = []

    def counted(params: dict[str, Any]) -> float:
        seen.append(tuple(params.values()))
        return objective(params)

    began = time.process_time()
    result = blackbox.minimize(counted, space, method, budget, seed=seed)
    seconds = time.process_time() - began
    return len(seen), len(set(seen)), 1 + sum(value < result.fun for value in every), seconds


def main() -> None:
    """Print one line per table and method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=300)
    chosen = parser.parse_args()
    print("points  method          calls                different points      rank of the best    CPU s (median)")
    for size, table in TABLES.items():
        for method in METHODS:
            runs = [run(table, method, seed, chosen.budget) for seed in range(chosen.seeds)]
            calls, points, ranks = (" ".join(f"{each[i]}" for each in runs) for i in range(3))
            seconds = median(each[3] for each in runs)
            print(f"{size:<7} {method:<15} {calls:<20} {points:<21} {ranks:<19} {seconds:.2f}", flush=True)


if __name__ == "__main__":
    main()
