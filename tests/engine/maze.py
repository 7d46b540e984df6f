"""A deceptive maze: the straight way to the goal ends in a sack, and the way out of it leads away from the goal.

A point robot with five rangefinders and a compass that shows the goal walks for 120 steps; its policy is a small
network. The value is how far from the goal it ends, its behaviour is where it ends. All robots of a batch walk at once.
After the hard maze of Lehman and Stanley (2011), doi:10.1162/EVCO_a_00025, drawn anew.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WALLS = np.array(  # x1, y1, x2, y2
    [
        [0.0, 0.0, 1.0, 0.0],
        [1.0, 0.0, 1.0, 1.0],
        [1.0, 1.0, 0.0, 1.0],
        [0.0, 1.0, 0.0, 0.0],
        [0.15, 0.7, 0.85, 0.7],  # the sack: closed towards the goal
        [0.15, 0.2, 0.15, 0.7],
        [0.85, 0.2, 0.85, 0.7],
        [0.15, 0.2, 0.4, 0.2],  # and its mouth is narrow
        [0.6, 0.2, 0.85, 0.2],
    ]
)
START, GOAL = np.array([0.5, 0.35]), np.array([0.5, 0.9])
STEPS, SPEED, TURN = 120, 0.03, 0.5
SENSORS = np.linspace(-0.5, 0.5, 5) * math.pi
INPUTS, HIDDEN = len(SENSORS) + 3, 8
DIM = HIDDEN * INPUTS + 2 * (HIDDEN + 1)
AT_GOAL = 0.05


def walk(weights: NDArray[np.float32] | Floats) -> tuple[Floats, Floats]:
    """Let policies walk.

    Parameters
    ----------
    weights : (n, DIM) of the policies.

    Returns
    -------
    (n,) distances from the goal at the end, and (n, 2) where that was.
    """
    n = len(weights)
    weights = np.asarray(weights, dtype=np.float64)
    first = weights[:, : HIDDEN * INPUTS].reshape(n, HIDDEN, INPUTS)
    second = weights[:, HIDDEN * INPUTS :].reshape(n, 2, HIDDEN + 1)
    place, heading = np.tile(START, (n, 1)), np.full(n, math.pi / 2)
    for _ in range(STEPS):
        to_goal = GOAL - place
        away = np.sqrt((to_goal**2).sum(axis=1))
        there = away < AT_GOAL
        if there.all():
            break
        bearing = np.arctan2(to_goal[:, 1], to_goal[:, 0]) - heading
        seen = free_way(place, heading[:, None] + SENSORS)
        inputs = np.column_stack([seen, np.sin(bearing), np.cos(bearing), np.ones(n)])
        hidden = np.tanh((first * inputs[:, None, :]).sum(axis=2))
        turn, speed = np.tanh((second[:, :, :-1] * hidden[:, None, :]).sum(axis=2) + second[:, :, -1]).T
        heading = np.where(there, heading, heading + TURN * turn)
        length = np.where(there, 0.0, SPEED * (1 + speed) / 2)
        length = np.minimum(length, np.maximum(0.0, free_way(place, heading[:, None])[:, 0] - 0.01))  # walls stop it
        place = place + length[:, None] * np.column_stack([np.cos(heading), np.sin(heading)])
    return np.sqrt(((GOAL - place) ** 2).sum(axis=1)), place


def free_way(place: Floats, angles: Floats) -> Floats:
    """(n, k) distance to the nearest wall from each place (n, 2) in each direction (n, k)."""
    dx, dy = np.cos(angles)[..., None], np.sin(angles)[..., None]
    ax, ay = WALLS[:, 0] - place[:, :1], WALLS[:, 1] - place[:, 1:]
    bx, by = WALLS[:, 2] - WALLS[:, 0], WALLS[:, 3] - WALLS[:, 1]
    cross = dx * by - dy * bx
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (ax * by - ay * bx)[:, None, :] / cross  # along the ray
        s = (ax[:, None, :] * dy - ay[:, None, :] * dx) / cross  # along the wall
    hit = (t >= 0) & (s >= 0) & (s <= 1)
    nearest: Floats = np.where(hit, t, 2.0).min(axis=2)
    return nearest
