"""The scale of an objective: sizes of slopes, their median and their sum; outliers early and late."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest

from blackbox.toolbox.estimators import differences
from blackbox.toolbox.scales import NO_SCALE, WINDOW, Scale


def after(sizes: list[float]) -> Scale:
    scale = NO_SCALE
    for size in sizes:
        scale = scale.plus(np.array([size, -size]))
    return scale


def test_the_rate_is_that_of_adagrad_by_the_formula() -> None:
    sizes = [1.0 + math.sin(3 * t) / 2 for t in range(40)]
    moment = 3.0
    for n in (1, 5, WINDOW, 40):
        middle = median(sizes[:n][-WINDOW:])
        total = sum(size**2 for size in sizes[:n])
        expected = 1 / math.sqrt(moment * (moment * middle**2 + total))
        assert after(sizes[:n]).rate(moment) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("at", [0, 1, 20, 39])
def test_one_outlier_costs_at_most_a_tenth_of_the_rate_of_a_hundred_steps(at: int) -> None:
    sizes = [1.0] * 100
    calm = after(sizes).rate(2.0)
    sizes[at] = 1e10
    assert 0.7 * calm < after(sizes).rate(2.0) < calm


@pytest.mark.parametrize("unit", [1e-150, 1e-6, 1e6, 1e100])
def test_the_unit_of_the_objective_cancels(unit: float) -> None:
    sizes = [0.5 + (t % 7) for t in range(30)]
    assert unit * after([unit * size for size in sizes]).rate(4.0) == pytest.approx(after(sizes).rate(4.0), rel=1e-9)


def test_slopes_of_zero_say_nothing_about_the_scale() -> None:
    scale = after([2.0])
    assert scale.plus(np.zeros(3)) is scale
    assert scale.plus(np.empty(0)) is scale
    assert NO_SCALE.rate(1.0) == 0.0


def test_a_slope_is_clipped_against_those_of_the_steps_before() -> None:
    note = np.array([[0, 1], [0, -1]])
    values = np.array([1e10, 0.0])
    assert differences(note, values, 0.5, clip=10.0).slope.tolist() == [1e10], "alone it is what is usual"
    assert differences(note, values, 0.5, clip=10.0, usual=[1.0, 2.0, 3.0, 4.0]).slope.tolist() == [30.0]
    assert differences(note, -values, 0.5, clip=10.0, usual=[1.0, 2.0, 3.0, 4.0]).slope.tolist() == [-30.0]
    assert differences(note, values, 0.5, usual=[1.0, 2.0, 3.0, 4.0]).slope.tolist() == [1e10]
