"""Cost and gain of a federated round: `python -m tests.benchmarks.bench_federated`; with `differences` by their size.

The synthetic problem of FZooS: N = 5 participants, f_i(x) = 0.1/d (c1_i . z^2 + c2_i . z + 1), z = 20 x - 10, x
in the unit cube, c = 1 + div (share - 1/N) with Dirichlet(1/N) shares, so that participants differ by `div` but the
mean does not: its minimum is -0.025 + 0.1/d. T = 10 local steps, Adam 0.01. Medians over seeds, smallest and largest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np

from blackbox import federation
from blackbox.federation.simulate import Objective, Rehearsal
from blackbox.records import Matrix, Vector
from blackbox.rng import Key, uniform
from blackbox.space import Space
from blackbox.space import Vector as Numbers

N, SEEDS = 5, 5


def problem(dim: int, div: float, seed: int) -> tuple[dict[str, Objective], Vector, float]:
    """Objectives by client, the start, and the smallest mean."""
    chance = np.random.default_rng(seed)
    c1, c2 = (1 + div * (chance.dirichlet(np.full(N, 1 / N), size=dim) - 1 / N) for _ in range(2))

    def private(i: int) -> Objective:
        def f(x: Matrix) -> Vector:
            z = 20 * np.clip(x, 0, 1) - 10
            value: Vector = 0.1 / dim * ((z * z) @ c1[:, i] + z @ c2[:, i] + 1)
            return value

        return f

    return {f"client-{i}": private(i) for i in range(N)}, chance.random(dim), -0.025 + 0.1 / dim


def gaps(
    method: str,
    options: Mapping[str, Any],
    dim: int,
    div: float,
    rounds: int,
    seed: int,
    lost: float = 0.0,
) -> tuple[Rehearsal, list[float]]:
    """A run, and the distance of the mean objective from its minimum after each round.

    `lost` is the probability with which a contribution never arrives, independently in each phase.
    """
    objectives, start, best = problem(dim, div, seed)
    space = Space({"x": Numbers(dim=dim, low=0, high=1, init=start.tolist())})
    coordinator = federation.build(method, space, {**options, "rounds": None}, Key.from_seed(seed))

    def drops(round: int, phase: str, client: str) -> bool:
        return bool(uniform(Key.from_seed(seed).child("lost", phase, client), round, 0, 1)[0] < lost)

    done = federation.rehearse(coordinator, objectives, rounds, lost=drops, secret=b"bench %d" % seed)
    return done, [float(np.mean([f(x[None])[0] for f in objectives.values()])) - best for x in done.path]


def spread(values: list[float]) -> str:
    """Median with smallest and largest."""
    return f"{median(values):.2g} ({min(values):.2g} to {max(values):.2g})"


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedzo": ("fedzo", {}),
    "fedzo, scalars": ("fedzo", {"payload": "scalars"}),
    "fedprox, beta 0.01": ("fedprox", {"beta": 0.01}),
    "scaffold, fresh (I)": ("scaffold", {"control": "fresh"}),
    "scaffold, average (II)": ("scaffold", {}),
    "fzoos, no correction": ("fzoos", {"correction": "none"}),
    "fzoos": ("fzoos", {}),
}


def table(
    names: list[str],
    dim: int,
    marks: tuple[int, ...],
    say: Callable[[str], None],
    lost: float = 0.0,
    div: float = 5.0,
    seeds: int = SEEDS,
) -> list[str]:
    """One row per method: gaps at the given rounds, evaluations and bytes."""
    lines = [
        f"| d = {dim}, div = {div:g}{f', {lost:.0%} of contributions lost' if lost else ''} "
        f"| {' | '.join(f'gap, round {m}' for m in marks)} | evaluations | bytes up per round | down |",
        "| --- " * (len(marks) + 4) + "|",
    ]
    for name in names:
        method, options = METHODS[name]
        runs = [gaps(method, options, dim, div, max(marks), seed, lost) for seed in range(seeds)]
        cells = [spread([gap[m - 1] for _, gap in runs]) for m in marks]
        last = runs[0][0]
        up, down = sum(last.bytes_up.values()), last.state.bytes_down[0]
        if options.get("payload") == "scalars":
            down = last.updates[-1].nbytes
        lines.append(f"| {name} | {' | '.join(cells)} | {last.evaluations[-1]} | {up} | {down} |")
        say(lines[-1])
    return lines


def main() -> list[str]:
    """The lines of the section."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    lossy = ["fedzo", "scaffold, average (II)", "fzoos"]
    lines = table(list(METHODS), 100, (5, 10, 20), say)
    for lost in (0.2, 0.3):
        lines += ["", *table(lossy, 100, (5, 10, 20), say, lost)]
    names = [name for name in METHODS if name not in ("fedzo, scalars", "fzoos, no correction")]
    lines += ["", *table(names, 300, (5, 10, 15, 20), say)]
    return [
        f"{SEEDS} seeds (0 to {SEEDS - 1}), medians (smallest to largest). Gap: mean objective over its minimum, about",
        "3.3 at the start. Evaluations: all five participants, seed 0. Bytes: one participant, encoded; down the raw",
        "vectors, for scalars the last update.",
        "",
        *lines,
    ]


def differences() -> list[str]:
    """Which method leads depends on how much participants differ: gaps by `div`, three seeds."""
    names = ["fedzo", "scaffold, average (II)", "fzoos, no correction", "fzoos"]
    lines: list[str] = []
    for div in (10.0, 1.0, 20.0):
        lines += [*table(names, 100, (5, 10, 20, 30), lambda line: print(line, flush=True), div=div, seeds=3), ""]
    return lines


if __name__ == "__main__":
    print("\n".join(differences() if sys.argv[1:] == ["differences"] else main()))
