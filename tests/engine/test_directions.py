"""Directions: one convention for all families, the table of second moments, and addresses."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from blackbox.errors import InvalidInput
from blackbox.rng import Key, normal
from blackbox.toolbox.directions import Directions, Family, default_family

KEY = Key.from_seed(11)
FAMILIES: tuple[Family, ...] = get_args(Family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_direction_depends_on_its_address_alone(family: Family) -> None:
    u = Directions(family, KEY, 7, 3)
    batch = u.rows(4, [0, 9, 2, 30, 2, 8])
    assert batch.shape == (6, 7)
    for row, index in zip(batch, [0, 9, 2, 30, 2, 8], strict=True):
        assert Directions(family, KEY, 7, 3).rows(4, [index]).tobytes() == row.tobytes()
    assert not np.array_equal(batch[:1], u.rows(5, [0]))
    assert not np.array_equal(batch, Directions(family, KEY.stream(1), 7, 3).rows(4, [0, 9, 2, 30, 2, 8]))
    assert u.rows(4, []).shape == (0, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_directions_have_the_second_moment_of_the_unit_sphere(family: Family) -> None:
    d = 6
    u = np.concatenate([Directions(family, KEY, d, 2).rows(step, range(4)) for step in range(5000)])
    np.testing.assert_allclose(u.T @ u / len(u), np.eye(d) / d, atol=0.006)
    np.testing.assert_allclose(u.mean(axis=0), 0, atol=0.01)
    norms = np.linalg.norm(u, axis=1)
    if family == "normal":
        assert np.square(norms).mean() == pytest.approx(1, abs=0.02)
    else:
        np.testing.assert_allclose(norms, 1, rtol=1e-12)
    assert norms.max() <= Directions(family, KEY, d).reach * (1 + 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("q", [1, 5, 20])
def test_gradients_have_the_tabled_second_moment(family: Family, q: int) -> None:
    """d = 20, 4000 draws (20000 of one direction: its squares vary most), within 5 %; and the mean is the gradient."""
    d, n = 20, 4000 if q > 1 else 20_000
    slope = np.random.default_rng(0).normal(size=d)
    slope /= np.linalg.norm(slope)
    u = Directions(family, KEY, d, q)
    g = np.empty((n, d))
    for step in range(n):
        rows = u.rows(step, range(q))
        g[step] = d / q * (rows @ slope) @ rows
    table = {"normal": 1 + (d + 1) / q, "sphere": 1 + (d - 1) / q, "rademacher": 1 + (d - 1) / q}
    assert u.second_moment(q) == pytest.approx(table.get(family, d / q))
    second = float(np.square(g).sum(axis=1).mean())
    assert second == pytest.approx(u.second_moment(q), rel=0.05)
    error = math.sqrt(max(second - 1, 0) / n)  # of the mean, in the norm
    assert np.linalg.norm(g.mean(axis=0) - slope) <= 2 * error + 1e-12


def test_more_directions_than_a_frame_or_a_sweep_holds() -> None:
    d, slope = 4, np.array([0.5, -0.5, 0.1, 0.7])
    slope /= np.linalg.norm(slope)
    for family, frame, q in (("orthogonal", 3, 8), ("orthogonal", 4, 6), ("coordinate", 1, 4), ("coordinate", 1, 7)):
        u = Directions(family, KEY, d, frame)  # type: ignore[arg-type]
        moments = [
            np.square(d / q * (rows @ slope) @ rows).sum() for rows in (u.rows(t, range(q)) for t in range(2000))
        ]
        assert np.mean(moments) == pytest.approx(u.second_moment(q), rel=0.03)


def test_normal_and_sphere_are_the_noise_of_their_address() -> None:
    z = normal(KEY, 3, 5, 9).astype(float)
    np.testing.assert_allclose(Directions("normal", KEY, 9).rows(3, [5])[0], z / 3, rtol=1e-15)
    np.testing.assert_allclose(Directions("sphere", KEY, 9).rows(3, [5])[0], z / math.hypot(*z), rtol=1e-14)


def test_a_sweep_moves_every_coordinate_once_and_the_next_one_back() -> None:
    where, sign = Directions("coordinate", KEY, 5).coordinates(2, range(12))
    assert sorted(where[:5]) == sorted(where[5:10]) == list(range(5))
    signs = dict(zip(where[:5].tolist(), sign[:5].tolist(), strict=True))
    assert {j: -s for j, s in signs.items()} == dict(zip(where[5:10].tolist(), sign[5:10].tolist(), strict=True))
    assert set(sign.tolist()) == {-1.0, 1.0}


def test_rows_of_a_frame_are_orthonormal_and_frames_differ() -> None:
    u = Directions("orthogonal", KEY, 6, 4).rows(0, range(8))
    np.testing.assert_allclose(u[:4] @ u[:4].T, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(u[4:] @ u[4:].T, np.eye(4), atol=1e-14)
    assert np.abs(u[:4] @ u[4:].T).max() > 0.1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one of orthogonal, sphere"):
        Directions("gauss", KEY, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="1 to d=3 directions, got 4"):
        Directions("orthogonal", KEY, 3, 4)
    assert default_family(1) == "normal"
    assert default_family(2) == "orthogonal"
