"""The archive: replicates, the incumbent under noise, neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackbox.errors import InvalidInput
from blackbox.study.archive import Archive


def test_equal_points_are_replicates_and_their_statistics_are_those_of_a_plain_loop():
    rng = np.random.default_rng(1)
    distinct = rng.normal(size=(7, 3))
    rows = rng.integers(0, 7, size=60)
    values = rng.normal(size=60) + rows
    archive = Archive.of(distinct[rows], values)
    for i, point in enumerate(archive.points):
        own = [values[j] for j in range(60) if (distinct[rows[j]] == point).all()]
        assert archive.n[i] == len(own)
        assert archive.mean[i] == pytest.approx(np.mean(own))
        if len(own) > 1:
            assert archive.stderr[i] == pytest.approx(np.std(own, ddof=1) / np.sqrt(len(own)))


def test_infeasible_points_are_kept_for_neighbours_but_are_never_best():
    archive = Archive.of(np.array([[0.0], [1.0], [2.0]]), np.array([np.nan, 5.0, 4.0]))
    assert archive.best(3) == [2, 1]
    assert archive.nearest([0.1]) == [0]
    assert archive.incumbent() == 2
    assert Archive.of(np.zeros((1, 2)), np.array([np.nan])).incumbent() is None
    assert Archive.of(np.zeros((0, 2)), np.zeros(0)).incumbent() is None


def test_without_noise_the_incumbent_is_the_best_value():
    rng = np.random.default_rng(2)
    values = rng.normal(size=40)
    archive = Archive.of(rng.normal(size=(40, 2)), values)
    assert archive.incumbent() == int(np.argmin(values)) == archive.best()[0]


def test_a_lucky_single_value_does_not_beat_a_replicated_point():
    points = np.array([[0.0]] * 10 + [[1.0]] * 10 + [[2.0]])
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0.0, 1.0, 10), rng.normal(2.0, 1.0, 10), [-0.3 + rng.normal(0.0, 0.01)]])
    archive = Archive.of(points, values)
    assert archive.best()[0] == 2
    assert archive.incumbent() == 0


def test_told_standard_errors_count_where_there_are_no_replicates():
    archive = Archive.of(np.array([[0.0], [1.0]]), np.array([1.0, 0.9]), np.array([0.01, 1.0]))
    assert archive.incumbent() == 0


def test_bad_shapes_and_infinities_are_refused():
    with pytest.raises(InvalidInput, match="n values"):
        Archive.of(np.zeros((2, 1)), np.zeros(3))
    with pytest.raises(InvalidInput, match="finite"):
        Archive.of(np.zeros((1, 1)), np.array([np.inf]))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1e6, 1e6)), min_size=1, max_size=30), st.integers(1, 4))
def test_best_is_sorted_and_nearest_is_the_closest(evaluations, k):
    points = np.array([[float(p)] for p, _ in evaluations])
    archive = Archive.of(points, np.array([v for _, v in evaluations]))
    best = archive.best(k)
    assert list(archive.mean[best]) == sorted(archive.mean)[: len(best)]
    assert abs(archive.points[archive.nearest([2.2])[0], 0] - 2.2) == min(abs(archive.points[:, 0] - 2.2))
