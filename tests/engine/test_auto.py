"""`auto` chooses an algorithm and says why."""

from __future__ import annotations

from typing import Any

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
        (reals(5), 5000, "cma_es", "restarts spend the rest"),
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


@pytest.mark.parametrize(("evaluations", "restarts"), [(None, "none"), (1999, "none"), (2000, "bipop")])
def test_a_large_budget_restarts_and_the_resolved_options_say_so(evaluations: int | None, restarts: str) -> None:
    budget = {} if evaluations is None else {"budget": {"evaluations": evaluations}}
    spec = parse_spec({"name": "a", "space": {"x": {"type": "vector", "dim": 2}}, **budget})
    resolved, _ = resolve(spec)
    assert (resolved.algorithm, resolved.options["restarts"]) == ("cma_es", restarts)
    assert ("restarts" in resolved.reason) == (restarts == "bipop")


def test_a_method_that_was_named_gets_no_options_of_auto() -> None:
    spec = parse_spec(
        {
            "name": "a",
            "space": {"x": {"type": "vector", "dim": 2}},
            "algorithm": {"name": "cma_es"},
            "budget": {"evaluations": 10**6},
        }
    )
    assert resolve(spec)[0].options["restarts"] == "none"


def test_what_one_run_leaves_of_the_budget_finds_the_better_valley() -> None:
    def two_valleys(x: Any) -> float:
        return min(sum((x - 0.8) ** 2) + 0.01, 3 * sum((x - 0.1) ** 2))

    space = {"x": {"type": "vector", "dim": 3, "low": 0, "high": 1, "init": 0.8}}
    chosen, named = (blackbox.minimize(two_valleys, space, name, 6000, target=1e-6) for name in ("auto", "cma_es"))
    assert chosen.fun <= 1e-6
    assert named.fun == pytest.approx(0.01)
