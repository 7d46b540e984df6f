"""Policies for simulators: `python -m tests.benchmarks.bench_control [--seeds 5] [word ...]`.

Linear policies of Gymnasium's environments, and one network, started at zero. The value of a point is the mean return
of a few episodes; all points of a step get the same episodes (`eval_seed`). After each step the recommended policy
plays three fresh episodes, and where their mean is at the published threshold, twenty more: the first step at which
these are at the threshold too counts. HalfCheetah has no threshold: its figure is the mean of ten fresh episodes after
320 episodes of training.

With words, only rows run in whose `job method` each of them occurs. `--options` tries other settings than the ones
below, `--first` other seeds than those that figures are given for. Figures go into ACCEPTANCE.md by hand. A new method
is one line of METHODS.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

import numpy as np

import blackbox


@dataclass(frozen=True)
class Job:
    """A simulator and what counts as solved.

    Attributes
    ----------
    environment : of Gymnasium.
    budget : most episodes of training.
    scale : how large weights have to be, roughly; all step sizes are in units of it. 1 for normalised observations.
    threshold : the published return of a solved environment, or None.
    episodes : per evaluation.
    observations : whether methods that can shall normalise observations.
    hidden : units of a layer between observations and outputs; 0: a linear policy.
    methods : the ones that run on it; none are named: all.
    """

    environment: str
    budget: int
    scale: float = 1.0
    threshold: float | None = None
    episodes: int = 1
    observations: bool = False
    hidden: int = 0
    methods: tuple[str, ...] = ()


JOBS = {
    "CartPole": Job("CartPole-v1", 3000, threshold=475.0),
    "Acrobot": Job("Acrobot-v1", 3000, threshold=-100.0),
    "MountainCarContinuous": Job("MountainCarContinuous-v0", 1000, scale=5.0, threshold=90.0, observations=True),
    "LunarLanderContinuous": Job("LunarLanderContinuous-v3", 8000, threshold=200.0, episodes=4),
    "HalfCheetah": Job("HalfCheetah-v5", 320, observations=True, methods=("ars", "openai_es")),
    "CartPole network": Job("CartPole-v1", 3000, threshold=475.0, hidden=16, methods=("deep_ga",)),
}

Options = Callable[[Job], dict[str, Any]]
METHODS: Mapping[str, Options] = {
    # Solved episodes tie, which is no reason to stop here.
    "cma_es": lambda job: {"sigma": job.scale, "tolfun": 0, "tolfunhist": 0, "tolflatfitness": 10_000},
    "openai_es": lambda job: {"popsize": 16, "sigma": 0.5 * job.scale, "learning_rate": 0.25 * job.scale},
    "pgpe": lambda job: {"popsize": 16, "sigma": 0.5 * job.scale},
    "ars": lambda job: {"popsize": 16, "top": 4, "sigma": 0.5 * job.scale, "learning_rate": 0.25 * job.scale},
    "deep_ga": lambda job: REPEATED | {"initial_sigma": job.scale, "sigma": 0.25 * job.scale},
}
REPEATED = {"popsize": 20, "parents": 5, "validations": 3, "candidates": 4}
"""A lucky episode must not make the elite, which is what is recommended."""
SPECIAL: Mapping[tuple[str, str], dict[str, Any]] = {
    ("HalfCheetah", "ars"): {"popsize": 8, "sigma": 0.2, "learning_rate": 0.1},
    ("HalfCheetah", "openai_es"): {"popsize": 16, "sigma": 0.2, "learning_rate": 0.1},
    # Two of 300 random policies get up the hill; nearly all others are worse than doing nothing.
    ("MountainCarContinuous", "deep_ga"): REPEATED | {"popsize": 100, "initial_sigma": 5.0, "sigma": 1.25},
    ("CartPole network", "deep_ga"): {
        "popsize": 100,
        "parents": 10,
        "sigma": 0.05,
        "initial_sigma": 0.5,
        "validations": 5,
        "candidates": 5,
    },
}
"""Settings of a method for one job, where the job is known for them."""
NORMALISING = ("openai_es", "pgpe", "ars")
"""Methods that take statistics of observations."""


@cache
def environment(name: str) -> Any:
    """One simulator per process: building it takes longer than an episode."""
    import gymnasium

    return gymnasium.make(name)


def shape(job: Job) -> tuple[int, int, int]:
    """Numbers in an observation, outputs (scores of discrete actions, or the actions), and weights of the policy."""
    env = environment(job.environment)
    n_in = int(env.observation_space.shape[0])
    n = getattr(env.action_space, "n", None)
    n_out = int(n if n is not None else env.action_space.shape[0])
    weights = job.hidden * (n_in + 1) + n_out * (job.hidden + 1) if job.hidden else n_out * (n_in + 1)
    return n_in, n_out, weights


def policy(job: Job, weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Outputs of an observation; each layer has its weights row by row, a constant last."""
    n_in, n_out, _ = shape(job)
    weights = np.asarray(weights, dtype=np.float64)
    last = weights[job.hidden * (n_in + 1) :].reshape(n_out, -1)
    if not job.hidden:
        return lambda seen: last[:, :-1] @ seen + last[:, -1]
    first = weights[: job.hidden * (n_in + 1)].reshape(job.hidden, n_in + 1)
    return lambda seen: last[:, :-1] @ np.tanh(first[:, :-1] @ seen + first[:, -1]) + last[:, -1]


def play(
    job: Job, weights: np.ndarray, seed: int, seen: Mapping[str, Any] | None
) -> tuple[float, int, np.ndarray, np.ndarray]:
    """One episode of a policy: its return, and count, sum and sum of squares of its observations."""
    env, outputs = environment(job.environment), policy(job, weights)
    mean, std = (0.0, 1.0) if seen is None else (np.array(seen["mean"]), np.array(seen["std"]))
    discrete = hasattr(env.action_space, "n")
    observation, _ = env.reset(seed=seed)
    score, count, over = 0.0, 0, False
    total, squares = np.zeros(len(observation)), np.zeros(len(observation))
    while not over:
        count += 1
        total += observation
        squares += np.square(observation, dtype=np.float64)
        out = outputs((observation - mean) / std)
        action = int(out.argmax()) if discrete else np.clip(out, env.action_space.low, env.action_space.high)
        observation, reward, terminated, truncated, _ = env.step(action)
        score += float(reward)
        over = terminated or truncated
    return score, count, total, squares


def test_return(job: Job, weights: np.ndarray, payload: Any, first: int, n: int) -> float:
    """Mean return of n episodes that no training has seen."""
    seen = None if payload is None else payload["observations"]
    return float(np.mean([play(job, weights, 2**30 + first + i, seen)[0] for i in range(n)]))


@dataclass(frozen=True)
class Outcome:
    """What one run came to: episodes of training until the threshold (infinite: never), the last test return."""

    job: str
    method: str
    seed: int
    episodes: float
    score: float
    seconds: float


def train(job_name: str, method: str, seed: int, settings: Mapping[str, Any] | None = None) -> Outcome:
    """One run, in this process; with other settings than the ones above if some are given."""
    job = JOBS[job_name]
    n_in, _, dim = shape(job)
    normalises = job.observations and method in NORMALISING
    usual = METHODS[method](replace(job, scale=1.0) if normalises else job)
    options = {**(settings or SPECIAL.get((job_name, method)) or usual)}
    if normalises:
        options |= {"observations": n_in}
    began, checked = time.process_time(), 0
    solved, score = math.inf, -math.inf

    def objective(weights: np.ndarray, evaluation: Any) -> dict[str, Any]:
        payload = evaluation.trial.payload
        seen = None if payload is None else payload["observations"]
        first = (evaluation.trial.eval_seed + 1000 * seed) % 2**29
        plays = [play(job, weights, first + i, seen) for i in range(job.episodes)]
        told: dict[str, Any] = {"value": float(np.mean([p[0] for p in plays]))}
        if normalises:
            count, total, squares = (sum(p[i] for p in plays) for i in (1, 2, 3))
            told["sums"] = {"count": count, "total": total, "squares": squares}
        return told

    def look(result: Any) -> bool:
        nonlocal checked, solved, score
        if job.threshold is None or result.nit == checked:
            return False
        checked, fresh = result.nit, 1000 * result.nit
        score = test_return(job, result.recommended, result.payload, fresh, 3)
        if score >= job.threshold:
            score = test_return(job, result.recommended, result.payload, fresh + 100, 20)
            if score >= job.threshold:
                solved = job.episodes * result.nfev
        return math.isfinite(solved)

    result = blackbox.minimize(
        objective,
        {"w": {"type": "vector", "dim": dim, "init": 0.0}},
        method,
        budget=job.budget // job.episodes,
        options=options,
        direction="maximize",
        seed=seed,
        callback=look,
        with_trial=True,
    )
    if job.threshold is None:
        score = test_return(job, result.recommended, result.payload, 0, 10)
    return Outcome(job_name, method, seed, solved, score, time.process_time() - began)


def row(outcomes: list[Outcome]) -> str:
    """One line of the table."""
    job = JOBS[outcomes[0].job]
    seconds = median(o.seconds for o in outcomes)
    if job.threshold is None:
        scores = sorted(o.score for o in outcomes)
        figure = f"{median(scores):.0f} [{scores[0]:.0f}, {scores[-1]:.0f}] after {job.budget} episodes"
    else:
        counts = sorted(o.episodes for o in outcomes)
        reached = sum(map(math.isfinite, counts))
        figure = f"{median(counts):.0f} [{counts[0]:.0f}, {counts[-1]:.0f}] episodes, {reached} of {len(counts)}"
    return f"| {outcomes[0].job} | {outcomes[0].method} | {figure} | {seconds:.0f} s |"


def main(
    words: list[str] | None = None,
    n_seeds: int = 5,
    first_seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    n_processes: int = 1,
) -> list[str]:
    """Markdown rows: job, method, episodes to the threshold (or return), processor seconds of a run."""
    chosen = [
        (name, method)
        for name, job in JOBS.items()
        for method in job.methods or METHODS
        if all(word in f"{name} {method}" for word in words or ())
    ]
    seeds, rows = range(first_seed, first_seed + n_seeds), []
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        runs = {pair: [pool.submit(train, *pair, seed, settings) for seed in seeds] for pair in chosen}
        for pair in chosen:
            outcomes = [run.result() for run in runs[pair]]
            print(*(json.dumps(vars(o)) for o in outcomes), sep="\n", flush=True)
            rows.append(row(outcomes))
            print(rows[-1], flush=True)
    return ["| job | method | median [least, most] | processor time |", "|---|---|---|---|", *rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--options", type=json.loads)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    print("\n".join(main(given.words, given.seeds, given.first, given.options, given.processes)))
