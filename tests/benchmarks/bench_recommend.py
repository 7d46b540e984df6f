"""What is recommended under noise, measured in truth: `python -m tests.benchmarks.bench_recommend`.

Noise with a standard deviation of 0.01, 0.1 and 0.5 of the value at the start (the minimum is 0). For each run four
points are compared by their value without noise, over that at the start: the best reading, what the algorithm proposes,
what is recommended (`result.x`), and the truly best of ten random points. Medians and quartiles over functions,
dimensions and seeds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator

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


def runs(seeds: int) -> Iterator[tuple[tuple[str, int, float], dict[str, float]]]:
    """All runs, by algorithm, budget and noise."""
    for algorithm in ALGORITHMS:
        for budget in BUDGETS:
            for noise in NOISE:
                for function in FUNCTIONS:
                    for dim in DIMS:
                        for seed in range(seeds):
                            yield (algorithm, budget, noise), one(function, dim, noise, budget, algorithm, seed)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    found: dict[tuple[str, int, float], list[dict[str, float]]] = defaultdict(list)
    for key, values in runs(parser.parse_args().seeds):
        found[key].append(values)
    print("| algorithm | budget | noise | " + " | ".join(COLUMNS) + " | in two standard errors |")
    print("|---|---|---|" + "---|" * (len(COLUMNS) + 1))
    for (algorithm, budget, noise), rows in found.items():
        cells = []
        for name in COLUMNS:
            low, middle, high = np.quantile([row[name] for row in rows], (0.25, 0.5, 0.75))
            cells.append(f"{middle:.3g} ({low:.2g} to {high:.2g})")
        covered = [row["covered"] for row in rows if "covered" in row]
        cells.append(f"{np.mean(covered):.0%} of {len(covered)}" if covered else "")
        print(f"| `{algorithm}` | {budget} | {noise:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
