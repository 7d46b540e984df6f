"""Room for probes: every probe around a centre is feasible, and centres stay near."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from blackbox.rng import Key
from blackbox.space import Float, Space, Vector
from blackbox.toolbox.directions import Directions, Family
from blackbox.toolbox.feasible import FARTHEST, Room

KEY = Key.from_seed(5)
REGIONS: list[dict[str, Any]] = [
    {"type": "l1_ball", "radius": 2.0},
    {"type": "l2_ball", "centre": 3.0},
    {"type": "simplex", "radius": 5.0},
    {"type": "box", "lower": -1.0, "upper": 4.0},
]


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("region", REGIONS, ids=lambda region: str(region["type"]))
def test_probes_around_a_vertex_stay_in_the_region(region: dict[str, Any], family: Family) -> None:
    d = 6
    space = Space.from_json({"x": {"type": "vector", "dim": d, "region": region}})
    assert space.region is not None
    directions = Directions(family, KEY, d, d)
    room = Room(space, directions.reach)
    w = space.region.vertex(KEY, 0, 0, d)
    for radius in (1e-6, 1e-2, room.longest):
        centre = room.centre(w, radius)
        assert space.region.contains(centre)
        for u in directions.rows(0, range(4 * d)):
            assert space.region.contains(centre + radius * room.tangent(u))
            assert space.region.contains(centre - radius * room.tangent(u))
    assert np.abs(room.centre(w, 1e-9) - w).max() < 1e-7
    np.testing.assert_array_equal(room.project(w), w)


def test_between_bounds_only_the_border_moves() -> None:
    space = Space({"x": Vector(dim=3, low=-2, high=2), "w": Vector(dim=2), "y": Float(low=0, high=1)})
    room = Room(space, 1.0)
    w = np.array([0.0, 0.5, 1.0, 7.0, -1.0, 0.995])
    np.testing.assert_allclose(room.centre(w, 0.01), [0.01, 0.5, 0.99, 7.0, -1.0, 0.99])
    np.testing.assert_allclose(room.project(w + 0.2), [0.2, 0.7, 1.0, 7.2, -0.8, 1.0])
    assert room.longest == 0.25
    np.testing.assert_array_equal(room.tangent(w), w)


def test_free_coordinates_need_no_room_but_stay_finite() -> None:
    room = Room(Space({"w": Vector(dim=2)}), 4.3)
    w = np.array([1e3, -2.0])
    assert room.centre(w, 5.0) is w
    assert room.longest == np.inf
    np.testing.assert_array_equal(room.project(np.array([1e300, 1.0])), [FARTHEST, 1.0])
