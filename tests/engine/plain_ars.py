"""Augmented random search V2-t as its paper writes it, in plain loops over a log of episodes.

Mania, Guy, Recht (2018), arXiv:1803.07055, algorithm 2; rewards are maximised. It shares no line with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import pstdev

Episode = tuple[float, list[list[float]]]
"""Its return and the observations it went through."""


def follow(
    log: Sequence[Sequence[Episode]], dim: int, noise: Callable[[int, int], Sequence[float]], alpha: float, top: int
) -> Iterator[tuple[list[float], list[float], list[float]]]:
    """The weights, and mean and standard deviation of observations, before each step of the log and after the last.

    Parameters
    ----------
    log : of each step 2N episodes; 2i and 2i + 1 are those of theta + nu delta_i and theta - nu delta_i.
    noise : (step, i) -> (dim,) delta_i.
    alpha, top : step size and number of directions that count (b).
    """
    m = len(log[0][0][1][0])
    theta, n, mean, scatter = [0.0] * dim, 0, [0.0] * m, [0.0] * m
    yield theta, mean, [1.0] * m
    for t, episodes in enumerate(log):
        pairs = [(episodes[i][0], episodes[i + 1][0], i // 2) for i in range(0, len(episodes), 2)]
        pairs = sorted(pairs, key=lambda pair: -max(pair[0], pair[1]))[:top]
        spread = pstdev([reward for plus, minus, _ in pairs for reward in (plus, minus)])
        step = [0.0] * dim
        for plus, minus, i in pairs:
            for j, delta in enumerate(noise(t, i)):
                step[j] += (plus - minus) * delta
        theta = [x + alpha / (top * spread) * s for x, s in zip(theta, step, strict=True)]
        mean, scatter = list(mean), list(scatter)
        for _, observations in episodes:
            for seen in observations:  # Welford's updates
                n += 1
                for j, x in enumerate(seen):
                    before = x - mean[j]
                    mean[j] += before / n
                    scatter[j] += before * (x - mean[j])
        yield theta, mean, [math.sqrt(s / n) for s in scatter]
