"""The demo's job: a linear policy for Swimmer-v5, a rigid-body simulation by MuJoCo (`gymnasium[mujoco]`).

18 parameters: 2 torques from 8 observations and a constant. One episode of 1000 steps is one evaluation; the value is
its return, to be maximised. The published threshold of a solved swimmer is 325 (Mania et al. 2018, arXiv:1803.07055).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SPACE = {"policy": {"type": "vector", "dim": 18, "init": 0.0}}
THRESHOLD = 325.0


@cache
def _environment() -> Any:
    """One simulator per process: building it takes longer than an episode."""
    import gymnasium

    return gymnasium.make("Swimmer-v5")


def episode(params: dict[str, Any]) -> float:
    """Return of one episode. The start is the same for every candidate, so that differences are the policies'."""
    weights = np.asarray(params["policy"], dtype=np.float64).reshape(2, 9)
    environment = _environment()
    observation, _ = environment.reset(seed=0)
    total, over = 0.0, False
    while not over:
        action = np.clip(weights[:, :8] @ observation + weights[:, 8], -1.0, 1.0)
        observation, reward, terminated, truncated, _ = environment.step(action)
        total += float(reward)
        over = terminated or truncated
    return total
