"""Deep GA on CartPole-v1 (gymnasium): evaluations until a generation's elite solves it.

A policy is a network of 4-16-2 (114 weights, tanh); the value is the return of one episode of at most 500 steps, whose
seed is new at every evaluation. Solved: the elite's mean return over 100 fresh episodes is at least 475.

    python -m tests.benchmarks.bench_deep_ga
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import gymnasium
import numpy as np

from blackbox import recipe
from blackbox.algorithm import build, resolve_options
from blackbox.records import NOTHING_PENDING, Results
from blackbox.rng import Key
from blackbox.space import Space, Vector

HIDDEN = 16
DIM = HIDDEN * 5 + 2 * (HIDDEN + 1)
SOLVED = 475.0


def episode(environment: Any, weights: np.ndarray, seed: int) -> float:
    """The return of one episode."""
    first, second = weights[: HIDDEN * 5].reshape(HIDDEN, 5), weights[HIDDEN * 5 :].reshape(2, HIDDEN + 1)
    seen, _ = environment.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        hidden = np.tanh(first[:, :4] @ seen + first[:, 4])
        seen, reward, ended, cut, _ = environment.step(int(np.argmax(second[:, :-1] @ hidden + second[:, -1])))
        total, over = total + float(reward), ended or cut
    return total


def run(seed: int, budget: int, **options: Any) -> tuple[int, float]:
    """Evaluations used until a generation's elite solves the task (or the budget), and its mean return."""
    environment = gymnasium.make("CartPole-v1")
    space = Space({"w": Vector(dim=DIM)})
    method: Any = build("deep_ga", space, resolve_options("deep_ga", space, options), Key.from_seed(seed))
    state, used, mean, cache = method.init(), 0, 0.0, recipe.PrefixCache()
    while used < budget:
        lanes = list(range(method.need(state)))
        points = method.ask(state, lanes, NOTHING_PENDING)
        values = []
        for asked in points.recipes:
            x = recipe.materialise(asked, method.key, DIM, {state.digest: state.base}, cache=cache)
            used += 1
            values.append([-episode(environment, x.astype(float), 1_000_000 * seed + used)])
        steps = np.full(len(lanes), state.step)
        before = state.generation
        state = method.tell(state, Results(steps, np.array(lanes), points, np.array(values)))
        if state.generation > before and state.elite_value <= -SOLVED:
            elite = method.recommend(state)
            mean = float(np.mean([episode(environment, elite, 500_000_000 + i) for i in range(100)]))
            if mean >= SOLVED:
                break
    return used, mean


if __name__ == "__main__":
    began = time.process_time()
    options = {"population": 100, "parents": 10, "sigma": 0.05, "initial_sigma": 0.5}
    for name, more in (("validated", {"validations": 5, "candidates": 5}), ("single values", {})):
        runs = [run(seed, 3000, **options, **more) for seed in range(5)]
        print(f"{name}: {[(used, round(mean)) for used, mean in runs]}, median {median(u for u, _ in runs)}")
        sys.stdout.flush()
    print(f"{time.process_time() - began:.0f} s of CPU")
