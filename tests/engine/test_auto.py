"""`auto` chooses an algorithm and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import blackbox
from blackbox.algorithms import auto
from blackbox.algorithms.sep_cma_es import MAX_DIM
from blackbox.space import Int, Space
from blackbox.space import Vector as Vectors
from blackbox.study.spec import parse_spec, resolve


def reals(dim: int) -> Space:
    return Space({"x": Vectors(dim=dim, low=0.0, high=1.0)})


def mixed(dim: int) -> Space:
    return Space({"x": Vectors(dim=dim - 1, low=0.0, high=1.0), "k": Int(low=0, high=9)})


@pytest.mark.parametrize(
    ("space", "evaluations", "name", "words"),
    [
        (reals(5), None, "cma_es", "5 continuous-like dimensions, no evaluation limit"),
        (reals(5), 11, "random_search", "fewer than two steps"),
        (reals(5), 4999, "cma_es", "5 continuous-like dimensions, budget 4999"),
        (reals(5), 12, "cma_es", "restarts spend what a run leaves of it"),
        (reals(2000), 10_000, "cma_es", "2000 continuous-like dimensions"),
        (reals(2001), 10_000, "openai_es", "a full covariance would need 0.1 GB"),
        (mixed(2001), 10_000, "sep_cma_es", "not all of them real"),
        (mixed(MAX_DIM + 1), None, "random_search", "not all of them real"),
    ],
)
def test_it_chooses_by_dimension_kind_and_budget(space: Space, evaluations: int | None, name: str, words: str) -> None:
    chosen, reason = auto.choose(space, evaluations)
    assert chosen == name
    assert words in reason
    assert blackbox.registry()[name]


def test_its_limit_is_that_of_the_method() -> None:
    assert auto.SEPARABLE_LIMIT == MAX_DIM


@pytest.mark.parametrize("name", ["auto", "cma_es", "sep_cma_es"])
@pytest.mark.parametrize(
    ("evaluations", "written", "restarts"),
    [(None, {}, "none"), (500, {}, "bipop"), (500, {"restarts": "none"}, "none")],
)
def test_restarts_use_a_given_budget_unless_who_pays_per_evaluation_says_none(
    name: str, evaluations: int | None, written: dict[str, str], restarts: str
) -> None:
    if name == "auto" and written:
        name = "cma_es"  # auto takes no options
    budget = {} if evaluations is None else {"budget": {"evaluations": evaluations}}
    space = {"x": {"type": "vector", "dim": 2}}
    spec = parse_spec({"name": "a", "space": space, "algorithm": {"name": name, "options": written}, **budget})
    resolved, _ = resolve(spec)
    assert resolved.options["restarts"] == restarts


def test_a_population_has_a_result_for_every_worker_where_they_are_known() -> None:
    raw = {"name": "a", "space": {"x": {"type": "vector", "dim": 2}}, "parallelism": {"workers": 40}}
    assert resolve(parse_spec(raw))[0].options["popsize"] == 40


@pytest.mark.parametrize("name", ["auto", "sep_cma_es"])
def test_a_given_budget_is_used(name: str) -> None:
    def rastrigin(x: Any) -> float:
        return float((x**2 - 10 * np.cos(2 * np.pi * x) + 10).sum())

    def plateau(x: Any) -> float:
        return float(np.round(np.abs(x).sum()))

    for objective in (rastrigin, plateau):
        result = blackbox.minimize(objective, [(-5, 5)] * 3, name, 2000, seed=0)
        assert result.nfev == 2000, result.message


def test_what_one_run_leaves_of_the_budget_finds_the_better_valley() -> None:
    def two_valleys(x: Any) -> float:
        return min(sum((x - 0.8) ** 2) + 0.01, 3 * sum((x - 0.1) ** 2))

    space = {"x": {"type": "vector", "dim": 3, "low": 0, "high": 1, "init": 0.8}}
    chosen = blackbox.minimize(two_valleys, space, "auto", 6000, seed=1, target=1e-6)
    once = blackbox.minimize(two_valleys, space, "cma_es", 6000, seed=1, target=1e-6, options={"restarts": "none"})
    assert chosen.fun <= 1e-6
    assert once.fun == pytest.approx(0.01)
