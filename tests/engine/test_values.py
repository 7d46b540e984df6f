"""Ranks and utilities depend on the order of values only; what has no value comes last."""

from __future__ import annotations

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from blackbox.toolbox.values import barrier, centred_ranks, lower, lowest_and_median, order, ranks, shared, utilities

quick = settings(deadline=None, max_examples=100)
nan, inf = math.nan, math.inf
values = st.lists(st.one_of(st.floats(), st.sampled_from([0.0, 1.0, nan, inf, -inf])), min_size=2, max_size=12)


def beats(a: float, b: float) -> bool:
    """The order of values by its definition."""
    return (not math.isnan(a) and math.isnan(b)) or a < b


def plain_ranks(v: list[float]) -> list[float]:
    """The mean of the places that a value's ties occupy."""
    better = [sum(beats(b, a) for b in v) for a in v]
    worse = [sum(beats(a, b) for b in v) for a in v]
    return [(lo + len(v) - 1 - hi) / 2 for lo, hi in zip(better, worse, strict=True)]


@quick
@given(values)
def test_ranks_count_the_better_values_and_share_ties(v: list[float]) -> None:
    np.testing.assert_allclose(ranks(np.array(v)), plain_ranks(v))


@quick
@given(values)
def test_order_is_from_best_to_worst_and_stable(v: list[float]) -> None:
    found = order(np.array(v)).tolist()
    assert sorted(found) == list(range(len(v)))
    for i, j in pairwise(found):
        assert not beats(v[j], v[i])
        if not beats(v[i], v[j]):
            assert i < j


@quick
@given(values)
def test_centred_ranks_are_affine_in_ranks_and_sum_to_zero(v: list[float]) -> None:
    centred = centred_ranks(np.array(v))
    np.testing.assert_allclose(centred, np.array(plain_ranks(v)) / (len(v) - 1) - 0.5, atol=1e-15)
    assert centred.sum() == pytest.approx(0, abs=1e-14)


@quick
@given(values)
def test_utilities_sum_to_zero_and_never_prefer_the_worse(v: list[float]) -> None:
    u = utilities(np.array(v))
    assert u.sum() == pytest.approx(0, abs=1e-14)
    for i, a in enumerate(v):
        for j, b in enumerate(v):
            if beats(a, b):
                assert u[i] >= u[j] - 1e-15


def test_finite_values_rank_as_scipy_ranks_them() -> None:
    v = np.random.default_rng(1).integers(0, 40, 100).astype(float)
    np.testing.assert_array_equal(ranks(v), rankdata(v) - 1)


def test_nan_ranks_behind_infinity_and_all_nan_tie() -> None:
    np.testing.assert_array_equal(ranks(np.array([nan, inf, 1.0, nan, -inf])), [3.5, 2, 1, 3.5, 0])
    np.testing.assert_array_equal(order(np.array([nan, inf, 1.0, nan, -inf])), [4, 2, 1, 0, 3])


def test_best_value_gets_minus_one_half() -> None:
    np.testing.assert_array_equal(centred_ranks(np.array([3.0, 1.0, 2.0])), [0.5, -0.5, 0.0])


@pytest.mark.parametrize("flat", [0.0, nan, inf])
def test_a_flat_objective_gives_zero_weights(flat: float) -> None:
    np.testing.assert_allclose(centred_ranks(np.full(7, flat)), 0, atol=1e-16)
    np.testing.assert_allclose(utilities(np.full(7, flat)), 0, atol=1e-16)


def test_utilities_follow_the_formula_of_wierstra() -> None:
    n = 6
    raw = [max(0.0, math.log(n / 2 + 1) - math.log(k)) for k in range(1, n + 1)]
    expected = [r / sum(raw) - 1 / n for r in raw]
    np.testing.assert_allclose(utilities(np.arange(6.0)), expected)


def test_ties_share_the_mean_of_any_table() -> None:
    np.testing.assert_allclose(shared(np.array([2.0, 1.0, 2.0, 0.0]), np.array([8.0, 4.0, 2.0, 1.0])), [1.5, 4, 1.5, 8])


def test_fewer_than_two_values_are_refused() -> None:
    for function in (centred_ranks, utilities):
        with pytest.raises(ValueError, match="at least 2 values, got 1"):
            function(np.array([1.0]))
    assert ranks(np.array([])).shape == (0,)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ([1.0, 5.0, 3.0], 9.0),
        ([1.0, 5.0, nan, inf, -inf], 9.0),
        ([-7.0], 0.0),
        ([0.2], 1.2),
        ([5.0, 5.0], 10.0),
        ([], 1e10),
        ([nan, inf], 1e10),
        ([-1e308, 1e308], sys.float_info.max),
    ],
)
def test_barrier_is_the_maximum_plus_the_range(observed: list[float], expected: float) -> None:
    assert barrier(np.array(observed)) == pytest.approx(expected)


@quick
@given(values)
def test_barrier_is_finite_and_not_better_than_anything_finite(v: list[float]) -> None:
    b = barrier(np.array(v))
    assert math.isfinite(b)
    assert all(b >= a for a in v if math.isfinite(a) and abs(a) < 1e10)


def test_the_median_of_an_even_number_is_the_upper_one_and_only_finite_values_count() -> None:
    assert lowest_and_median(np.array([4.0, nan, 1.0, inf, 3.0, -inf, 2.0])) == (1.0, 3.0)
    assert lowest_and_median(np.array([5.0, 7.0, 6.0])) == (5.0, 6.0)
    assert lowest_and_median(np.array([nan, inf])) is None
    assert lowest_and_median(np.empty(0)) is None


def test_the_first_value_is_the_lowest_so_far() -> None:
    assert (lower(None, 3.0), lower(2.0, 3.0), lower(4.0, 3.0)) == (3.0, 2.0, 3.0)
