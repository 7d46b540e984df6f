"""The start of a study is its first trial."""

import json

import numpy as np
import pytest

import blackbox
from blackbox.algorithm import ALGORITHMS
from blackbox.study.editing import Study
from tests.engine.studies import Driver, sphere, start

BOX = {"x": {"type": "float", "low": -1, "high": 3}, "n": {"type": "int", "low": 1, "high": 5}}


def trials(d: Driver) -> list:
    return d.store.read(lambda tx: tx.page(d.study.id, 0, 10**6, ()))


def test_the_start_is_evaluated_first_and_counts_for_the_budget_and_the_best_point(store):
    d = start(store, start="evaluate", budget={"evaluations": 20})
    assert (d.row().trials, d.row().queued) == (1, 1)
    lease = d.lease()
    assert (lease.trial.number, lease.trial.source, lease.trial.lane) == (1, "start", -1)
    assert d.point(lease).tolist() == d.study.space.initial.tolist()
    assert d.tell(lease, -3.0).best_so_far
    assert (d.row().used, d.row().best_trial) == (1, 1)
    d.evaluate(19)
    assert (d.row().state, d.row().used, d.row().trials) == ("COMPLETED", 20, 20)
    assert d.replayed_equal() > 0
    d.check_log()


def test_without_an_init_the_start_is_the_middle_of_the_bounds(store):
    d = start(store, "random_search", start="evaluate", space=BOX)
    assert json.loads(d.lease().point.params) == {"x": 1.0, "n": 3}


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS.all()))
def test_every_method_gets_the_lanes_and_values_that_it_gets_without_the_start(store, algorithm):
    simplex = {"x": {"type": "vector", "dim": 3, "region": {"type": "simplex"}}}
    space: dict = {"space": simplex} if algorithm == "zo_frank_wolfe" else {}
    if algorithm == "deep_ga":
        space = {"options": {"popsize": 10, "parents": 5}}
    with_start, without = (
        start(store, algorithm, name=policy, start=policy, **space) for policy in ("evaluate", "skip")
    )
    has_one = with_start.row().trials
    assert has_one == (algorithm != "nelder_mead")
    if has_one:
        lease = with_start.lease()
        at = with_start.study.space.initial
        assert with_start.point(lease) == pytest.approx(at)
        with_start.tell(lease, 0.123)
    for d in (with_start, without):
        d.evaluate(25)
    row = with_start.row()
    assert row.step == without.row().step > 0
    assert with_start.replayed_equal() == row.step
    first, second = (store.read(lambda tx, d=d: tx.steps(d.study.id, 0, 99)) for d in (with_start, without))
    assert [record.digest for record in first] == [record.digest for record in second]
    with_start.check_log()


@pytest.mark.parametrize("algorithm", ["zo_sgd", "zo_adam"])
def test_methods_that_evaluate_the_start_themselves_have_no_trial_of_it(store, algorithm):
    d = start(store, algorithm, start="evaluate", options={"difference": "forward"})
    assert d.row().trials == 0
    assert d.point(d.lease()) == pytest.approx(d.study.space.initial)


def test_a_recipe_of_the_start_is_its_base_without_noise_and_stays_readable_as_the_best_point(store):
    d = start(store, "openai_es", start="evaluate")
    lease = d.lease()
    recipe = d.study.recipe(lease.point)
    assert recipe is not None
    assert recipe.terms == ()
    assert recipe.base is not None
    d.tell(lease, -1.0)
    d.evaluate(200)
    trial, params = d.do(d.reopened().study.best())
    assert trial.number == 1
    assert params["x"] == pytest.approx(np.ones(3))


def test_a_fork_does_not_evaluate_the_start_again(store):
    d = start(store, "random_search", start="evaluate", options={"popsize": 4})
    d.evaluate(9)
    same = Driver(store, Study(d.do(d.study.fork("same", now=d.now))), d.now)
    other = Driver(store, Study(d.do(d.study.fork("other", now=d.now, algorithm={"name": "cma_es"}))), d.now)
    for fork in (same, other):
        assert fork.row().queued == 0
        assert fork.lease().trial.lane >= 0
    assert same.row().used == 9
    same.evaluate(8)
    assert same.replayed_equal() == same.row().step
    same.check_log()


def test_a_budget_of_one_evaluates_the_start_alone():
    seen = []
    result = blackbox.minimize(lambda x: seen.append(x) or sphere(x), [(-1, 3), (0, 1)], "cma_es", 1)
    assert [x.tolist() for x in seen] == [[1.0, 0.5]]
    assert (result.nfev, result.fun, result.x.tolist()) == (1, 1.25, [1.0, 0.5])


def test_no_run_ends_above_its_start():
    for name in ("cma_es", "openai_es", "mezo"):
        result = blackbox.minimize(sphere, [(-5, 5)] * 200, name, 60)
        assert result.fun == 0.0, name
