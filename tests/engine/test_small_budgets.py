"""Budgets of a few evaluations: neither the start nor the search for noise takes more than was given."""

import math

import pytest

import blackbox
from blackbox.space import Float

METHODS = ("auto", "cma_es", "random_search", "nelder_mead", "mezo", "cbo")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 3, 5, 30])
def test_a_small_budget_is_used_to_the_last_evaluation_and_the_best_of_it_is_the_result(method, budget):
    values = []

    def objective(params):
        values.append((params["x"] - 0.2) ** 2 + abs(params["y"]))
        return values[-1]

    space = {"x": Float(low=-1, high=1, init=0.5), "y": Float(low=-1, high=1, init=0.5)}
    result = blackbox.minimize(objective, space, method, budget, seed=1)
    assert len(values) == result.nfev == budget
    assert values[0] == pytest.approx(0.3**2 + 0.5)  # of the start
    assert result.fun == min(values)
    assert math.isfinite(result.x["x"])
    assert (result.x["x"] - 0.2) ** 2 + abs(result.x["y"]) == min(values)
