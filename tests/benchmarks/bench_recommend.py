"""What is recommended under noise, measured in truth: `python -m tests.benchmarks.bench_recommend`.

Noise with a standard deviation of 0.01, 0.1 and 0.5 of the value at the start (the minimum is 0). For each run four
points are compared by their value without noise, over that at the start: the best reading, what the algorithm proposes,
what is recommended (`result.x`), and the truly best of ten random points. Medians and quartiles over functions,
dimensions and seeds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import numpy as np

import blackbox
from blackbox.records import Vector

FUNCTIONS: dict[str, Callable[[Vector], float]] = {
    "sphere": lambda z: float((z**2).sum()),
    "ellipsoid": lambda z: float((10 ** (3 * np.arange(len(z)) / (len(z) - 1)) * z**2).sum()),
    "waves": lambda z: float((z**2).sum() + 3 * (1 - np.cos(2 * np.pi * z)).sum()),
}
DIMS, NOISE, BUDGETS = (2, 5, 10), (0.01, 0.1, 0.5), (30, 100, 500)
ALGORITHMS = ("auto", "random_search", "openai_es")
COLUMNS = ("best reading", "proposed", "recommended", "best of ten")


def one(function: str, dim: int, noise: float, budget: int, algorithm: str, seed: int) -> dict[str, float]:
    """Values in truth of one run, over that at the start, and whether the estimate was within two standard errors."""
    rng = np.random.default_rng([seed, dim, budget])
    goal = rng.uniform(-2.5, 2.5, dim)
    start = FUNCTIONS[function](-goal)

    def truth(x: Vector) -> float:
        return FUNCTIONS[function](x - goal) / start

    result = blackbox.minimize(
        lambda x: truth(x) + noise * float(rng.standard_normal()), [(-5, 5)] * dim, algorithm, budget, seed=seed
    )
    ten = min(truth(x) for x in rng.uniform(-5, 5, (10, dim)))
    points = (result.x_observed, result.proposed, result.x)
    found = dict(zip(COLUMNS, (*(truth(x) for x in points), ten), strict=True))
    if result.stderr is not None:
        found["covered"] = float(abs(truth(result.x) - result.fun) <= 2 * result.stderr)
    return found


def cells(rows: list[dict[str, float]]) -> list[str]:
    """Medians and quartiles of runs, and how often the estimate was within two standard errors of the truth."""
    found = []
    for name in COLUMNS:
        low, middle, high = np.quantile([row[name] for row in rows], (0.25, 0.5, 0.75))
        found.append(f"{middle:.3g} ({low:.2g} to {high:.2g})")
    covered = [row["covered"] for row in rows if "covered" in row]
    return [*found, f"{np.mean(covered):.0%} of {len(covered)}" if covered else ""]


def main() -> None:
    """Print the table, a row as soon as its runs are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each function and dimension")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    parser.add_argument("--algorithms", nargs="*", default=ALGORITHMS)
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    print("| algorithm | budget | noise | " + " | ".join(COLUMNS) + " | in two standard errors |")
    print("|---|---|---|" + "---|" * (len(COLUMNS) + 1))
    for budget, algorithm, noise in itertools.product(given.budgets, given.algorithms, NOISE):
        places = itertools.product(FUNCTIONS, DIMS, seeds)
        rows = [one(function, dim, noise, budget, algorithm, seed) for function, dim, seed in places]
        print(f"| `{algorithm}` | {budget} | {noise:g} | " + " | ".join(cells(rows)) + " |", flush=True)


if __name__ == "__main__":
    main()
