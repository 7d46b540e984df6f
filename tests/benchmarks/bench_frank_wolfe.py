"""Frank-Wolfe on three jobs in a region, beside projected descent: `python -m tests.benchmarks bench_frank_wolfe`.

The objective is seen as values only. All methods get the same number of evaluations through `minimize`; projected
zeroth-order descent gets the best of five learning rates, chosen on seed 0, Frank-Wolfe its defaults. Figures are
medians of three seeds with the smallest and the largest in brackets, of the point that the method recommends.

`python -m tests.benchmarks.bench_frank_wolfe coverage`: how often a certificate holds the true gap.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

import blackbox
from blackbox.algorithm import lookup, resolve_options
from blackbox.toolbox.frank_wolfe.certificates import widened

Array = NDArray[np.float64]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """A problem in a region.

    Attributes
    ----------
    name : of the job.
    space : JSON of the space: one vector `x`.
    value : what is minimised.
    budget : evaluations.
    quality : what the user wants of the point, name to number.
    floor : the lowest value there is, for orientation.
    """

    name: str
    space: Mapping[str, Mapping[str, Any]]
    value: Callable[[Array], float]
    budget: int
    quality: Callable[[Array], dict[str, float]]
    floor: float


def sparse_logistic_regression() -> Job:
    """Breast cancer from 30 features of cell nuclei, weights in an L1 ball: few features are to be used."""
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    signs = 2.0 * labels - 1.0
    order = np.random.default_rng(0).permutation(len(signs))
    train, test = order[:400], order[400:]

    def value(x: Array) -> float:
        return float(np.logaddexp(0, -signs[train] * (features[train] @ x)).mean())

    def quality(x: Array) -> dict[str, float]:
        right = np.sign(features[test] @ x) == signs[test]
        return {"test accuracy": float(right.mean()), "features used": float((np.abs(x) > 1e-3 * 5).sum())}

    region = {"type": "l1_ball", "radius": 5.0}

    def gradient(x: Array) -> Array:
        slope: Array = -(signs[train] / (1 + np.exp(signs[train] * (features[train] @ x)))) @ features[train] / 400
        return slope

    space = {"x": {"type": "vector", "dim": 30, "region": region}}
    return Job(
        "sparse logistic regression, L1 ball, d = 30", space, value, 3000, quality, exact(space, value, gradient)
    )


def matrix_completion() -> Job:
    """A 12 x 10 matrix of rank 2 of which 70 % of the entries are seen, in the nuclear norm ball of its norm."""
    chance, shape = np.random.default_rng(1), (12, 10)
    whole = chance.normal(size=(12, 2)) @ chance.normal(size=(2, 10)) / np.sqrt(2)
    seen = chance.random(shape) < 0.7

    def value(x: Array) -> float:
        return float(np.square((x.reshape(shape) - whole)[seen]).mean())

    def quality(x: Array) -> dict[str, float]:
        off = x.reshape(shape) - whole
        rank = np.linalg.svd(x.reshape(shape), compute_uv=False)
        return {
            "error of hidden entries": float(np.sqrt(np.square(off[~seen]).mean() / np.square(whole[~seen]).mean())),
            "singular values above 1 %": float((rank > 0.01 * rank[0]).sum()),
        }

    radius = float(np.linalg.svd(whole, compute_uv=False).sum())
    region = {"type": "nuclear_ball", "rows": 12, "cols": 10, "radius": radius}
    return Job(
        "matrix completion, nuclear norm ball, d = 120",
        {"x": {"type": "vector", "dim": 120, "region": region}},
        value,
        4000,
        quality,
        0.0,
    )


def matching() -> Job:
    """Which node of one network is which of another: ||A P - P B||^2 over doubly stochastic P, then rounded."""
    n, chance = 8, np.random.default_rng(2)
    a = chance.normal(size=(n, n))
    a = (a + a.T) / np.sqrt(8 * n)
    nodes = chance.permutation(n)
    truth = np.eye(n)[nodes]
    b = truth.T @ a @ truth

    def value(x: Array) -> float:
        p = x.reshape(n, n)
        return float(np.square(a @ p - p @ b).sum())

    def quality(x: Array) -> dict[str, float]:
        _, found = scipy.optimize.linear_sum_assignment(-x.reshape(n, n))
        return {"nodes matched": float((found == truth.argmax(axis=1)).mean())}

    space = {"x": {"type": "vector", "dim": n * n, "region": {"type": "birkhoff", "order": n}}}
    return Job("network matching, Birkhoff polytope, d = 64", space, value, 4000, quality, 0.0)


def exact(space: Any, value: Callable[[Array], float], gradient: Callable[[Array], Array]) -> float:
    """The lowest value, by projected descent with exact gradients."""
    whole = blackbox.Space.from_json(space)
    region, x = whole.region, whole.initial
    assert region is not None
    for _ in range(3000):
        x = region.project(x - 0.3 * gradient(x))
    return value(x)


JOBS = (sparse_logistic_regression, matrix_completion, matching)
RATES = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Learning rates of projected descent, in multiples of its default."""


def run(job: Job, method: str, seed: int, options: Mapping[str, Any]) -> tuple[float, dict[str, float], float]:
    """Value and quality of the recommended point, and milliseconds of processor time per evaluation."""
    began = time.process_time()
    result = blackbox.minimize(job.value, job.space, method, job.budget, options=options, seed=seed)
    spent = 1e3 * (time.process_time() - began) / job.budget
    return job.value(result.recommended), job.quality(result.recommended), spent


def row(job: Job, label: str, method: str, options: Mapping[str, Any]) -> str:
    found = [run(job, method, seed, options) for seed in SEEDS]
    values = [value for value, _, _ in found]
    numbers = {name: median(quality[name] for _, quality, _ in found) for name in found[0][1]}
    words = ", ".join(f"{name} {number:.3g}" for name, number in numbers.items())
    cost = median(spent for _, _, spent in found)
    return f"| {label} | {median(values):.2e} [{min(values):.1e}, {max(values):.1e}] | {words} | {cost:.2f} ms |"


def descent(job: Job) -> tuple[Mapping[str, Any], float]:
    """Options of projected descent with the best of a few learning rates, and that rate in multiples of its default."""
    resolved: Any = resolve_options("zo_sgd", blackbox.Space.from_json(dict(job.space)), {})
    default = resolved.learning_rate(0)
    tried = [({"learning_rate": times * default, "radius": 1e-4}, times) for times in RATES]
    return min(tried, key=lambda pair: run(job, "zo_sgd", 0, pair[0])[0])


def main() -> list[str]:
    lines = [
        "Values of the recommended point, three seeds; descent has the best of five rates, Frank-Wolfe no tuning.",
        "",
    ]
    for make in JOBS:
        job = make()
        lines += [f"**{job.name}**, {job.budget} evaluations, lowest value {job.floor:.3g}", ""]
        lines += ["| method | value | | processor time per evaluation |", "| --- | --- | --- | --- |"]
        for label, options in (
            ("zo_frank_wolfe", {}),
            ("zo_frank_wolfe, jaguar and monotone", {"scheme": "jaguar", "step_rule": "monotone"}),
            ("zo_frank_wolfe, vertices", {"scheme": "vertices"}),
            ("zo_frank_wolfe, search", {"step_rule": "search"}),
            ("zo_frank_wolfe, jaguar and search", {"scheme": "jaguar", "step_rule": "search"}),
        ):
            lines.append(row(job, label, "zo_frank_wolfe", options))
            print(lines[-1], flush=True)
        options, times = descent(job)
        lines.append(row(job, f"zo_sgd, projected, {times:g} times its default rate", "zo_sgd", options))
        print(lines[-1], flush=True)
        lines.append("")
    return lines


REGIONS: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
    "l1_ball": lambda d: {"type": "l1_ball", "radius": 1},
    "l2_ball": lambda d: {"type": "l2_ball", "radius": 1},
    "box": lambda d: {"type": "box", "lower": -1, "upper": 1},
    "simplex": lambda d: {"type": "simplex"},
    "unit_simplex": lambda d: {"type": "unit_simplex"},
    "nuclear_ball": lambda d: {"type": "nuclear_ball", "rows": 5, "cols": d // 5, "radius": 1},
}


def coverage(runs: int = 200, dims: Sequence[int] = (5, 20, 50, 100), pairs: int = 50) -> list[str]:
    """The share of certificates that hold the true gap, as measured and widened by two standard errors.

    Least squares, after 20 exact steps from the start; a new problem and new directions for each seed. `noisy`: the
    noise of a value is as large as the difference of a typical pair.
    """
    lines = [
        "| region | d | values | bracket holds the gap | widened | upper end holds it | widened |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, make in REGIONS.items():
        for d in dims:
            space = blackbox.Space.from_json({"x": {"type": "vector", "dim": d, "region": dict(make(d))}})
            for noisy in (False, True):
                found = np.array([_holds(space, d, seed, pairs, noisy) for seed in range(runs)])
                shares = " | ".join(f"{share:.1%}" for share in found.mean(axis=0))
                lines.append(f"| `{name}` | {d} | {'noisy' if noisy else 'exact'} | {shares} |")
                print(lines[-1], flush=True)
    return lines


def _holds(space: blackbox.Space, d: int, seed: int, pairs: int, noisy: bool) -> tuple[bool, bool, bool, bool]:
    options = resolve_options("zo_frank_wolfe", space, {"certify_every": 1, "certify_pairs": pairs})
    method: Any = lookup("zo_frank_wolfe")(space, options, blackbox.Key.from_seed(seed))
    draw = np.random.default_rng(seed)
    matrix, target = draw.normal(size=(2 * d, d)) / np.sqrt(2 * d), draw.normal(size=2 * d) / np.sqrt(2 * d)
    value: Callable[[Array], Array] = lambda x: 0.5 * np.square(x @ matrix.T - target).sum(axis=1)  # noqa: E731
    slope: Callable[[Array], Array] = lambda x: matrix.T @ (matrix @ x - target)  # noqa: E731
    w = method.init().w
    for t in range(20):
        w = w + 2 / (t + 8) * (method.region.lmo(slope(w)) - w)
    gradient, radius = slope(w), method._radius(method.init())
    gap = float(gradient @ (w - method.region.lmo(gradient)))
    points = method.certificate.plan(w, 0, np.arange(2 * pairs), radius)
    noise = radius * np.linalg.norm(gradient) / np.sqrt(d) if noisy else 0.0
    values = value(points.vectors) + noise * draw.normal(size=2 * pairs)
    low, up, low_error, up_error = method.certificate.reduce(w, 0, points.note, values, radius)
    wide_low, wide_up = widened(low, up, low_error, up_error)
    slack = 1e-6 * max(1.0, abs(gap))  # curvature over the length of a probe
    return (
        low - slack <= gap <= up + slack,
        wide_low - slack <= gap <= wide_up + slack,
        gap <= up + slack,
        gap <= wide_up + slack,
    )


if __name__ == "__main__":
    print("\n".join(coverage() if sys.argv[1:] == ["coverage"] else main()))
