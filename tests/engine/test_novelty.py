"""Novelty is a mean distance; behaviours that cannot be compared have none; an archive is filled by address."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blackbox.records import Results, dense
from blackbox.rng import Key
from blackbox.toolbox.novelty import FARTHEST, behaviours, novelty, remembering

KEY = Key.from_seed(7).stream(0)
NONE = np.empty((0, 0))


def test_novelty_is_the_mean_distance_to_the_nearest() -> None:
    chance = np.random.default_rng(0)
    did = [None if i % 9 == 4 else chance.random(3) for i in range(150)]
    archive = chance.random((40, 3))
    for k in (1, 7, 10_000):
        found = novelty(did, archive, k)
        for i, own in enumerate(did):
            if own is None:
                assert math.isnan(found[i])
                continue
            others = [b for j, b in enumerate(did) if j != i and b is not None] + list(archive)
            nearest = sorted(math.dist(own, b) for b in others)[:k]
            assert found[i] == pytest.approx(sum(nearest) / len(nearest), rel=1e-12)
    assert novelty([np.ones(2)], np.empty((0, 0)), 5).tolist() == [0.0]
    assert novelty([], archive, 5).tolist() == []


def test_behaviours_that_cannot_be_compared_count_as_none() -> None:
    told = ({"behaviour": [1, 1e300]}, {}, {"behaviour": []}, {"behaviour": [1.0]}, {"behaviour": [3.0, -4.0]})
    found = behaviours(told, NONE)
    assert [one is None for one in found] == [False, True, True, True, False]
    assert found[0] is not None
    assert found[0].tolist() == [1.0, FARTHEST], "squares of distances stay finite"
    assert [one is None for one in behaviours(told, np.zeros((3, 1)))] == [True, True, True, False, True]
    assert behaviours((), NONE) == []


def results(steps: list[int], lanes: list[int]) -> Results:
    n = len(lanes)
    return Results(np.array(steps), np.array(lanes), dense(np.zeros((n, 1))), np.zeros((n, 1)))


def test_what_is_remembered_depends_on_addresses_alone() -> None:
    lanes = list(range(400))
    did = [np.array([float(lane)]) if lane % 3 else None for lane in lanes]
    whole = remembering(NONE, results([4] * 400, lanes), did, KEY, 1000, 0.25)
    halves = remembering(NONE, results([4] * 200, lanes[:200]), did[:200], KEY, 1000, 0.25)
    halves = remembering(halves, results([4] * 200, lanes[200:]), did[200:], KEY, 1000, 0.25)
    np.testing.assert_array_equal(whole, halves)
    assert 0.15 < len(whole) / sum(one is not None for one in did) < 0.35
    assert (whole % 3 != 0).all()


def test_an_archive_keeps_its_size_and_takes_new_ones_in() -> None:
    archive = np.zeros((5, 1))
    did = [np.array([1.0 + lane]) for lane in range(50)]
    after = remembering(archive, results([0] * 50, list(range(50))), did, KEY, 5, 1.0)
    assert after.shape == (5, 1)
    assert (after > 0).any()
    assert not archive.any(), "the old one is left alone"
    assert remembering(NONE, results([0], [0]), [np.ones(2)], KEY, 0, 1.0) is NONE
