"""The in-process study with `ask` and `tell`."""

import copy
import doctest
import math
import pickle
import sys

import numpy as np
import pytest

import blackbox
from blackbox import Optimizer
from blackbox.errors import InvalidInput, InvalidSpace, StoreUnavailable, StudySpecMismatch
from blackbox.minimize import front, optimizer
from tests.engine import objectives_for_processes as objectives

BOX = [(-5, 5)] * 2
NAMED = {"x": {"type": "float", "low": -5, "high": 5}, "kind": {"type": "categorical", "choices": ["a", "b"]}}


def loop(study, n, objective=objectives.square):
    """Evaluate until the study has finished."""
    while not study.finished:
        for candidate in study.ask(n):
            study.tell(candidate, objective(candidate.x))
    return study.result()


@pytest.mark.parametrize("method", ["cma_es", "openai_es", "cbo", "nelder_mead", "auto"])
def test_a_loop_of_ones_own_finds_what_minimize_finds(method):
    result = loop(Optimizer(BOX, method, 120, seed=7), 1)
    same = blackbox.minimize(objectives.square, BOX, method, 120, seed=7)
    assert (result.x == same.x).all()
    assert (result.fun, result.nfev, result.nit, result.message) == (same.fun, same.nfev, same.nit, same.message)


def test_several_candidates_may_be_in_hand_and_told_in_any_order():
    study = Optimizer(BOX, "cma_es", 60, options={"popsize": 8})
    first = study.ask(8)
    assert len({candidate.number for candidate in first}) == 8
    assert {candidate.trial.step for candidate in first} == {0}
    second = study.ask(2)  # of the same step, whose values are not there yet
    for candidate in (*second, *reversed(first)):
        study.tell(candidate, objectives.square(candidate.x))
    assert study.result().nfev == 10
    assert study.result().nit == 1
    assert study.best[1] == min(objectives.square(candidate.x) for candidate in (*first, *second))


def test_candidates_have_parameters_by_name_and_a_context():
    (candidate,) = Optimizer(NAMED, "random_search").ask()
    assert candidate.x is not candidate.params
    assert candidate.x == candidate.params
    assert set(candidate.params) == {"x", "kind"}
    assert (candidate.number, candidate.trial.step) == (1, 0)
    (candidate,) = Optimizer({"v": blackbox.Vector(dim=3)}, "cma_es").ask()
    assert candidate.x.shape == candidate.params["v"].shape == (3,)


def test_many_are_told_at_once_and_a_wrong_number_of_values_is_refused():
    study = Optimizer(BOX, "cma_es", 60)
    candidates = study.ask(5)
    with pytest.raises(InvalidInput, match="5 points were told with 2 values"):
        study.tell(candidates, [1.0, 2.0])
    with pytest.raises(InvalidInput, match="must return a number"):
        study.tell(candidates, [1.0, 2.0, 3.0, 4.0, "five"])
    assert study.result().nfev == 0
    study.tell(candidates, np.arange(5.0))
    assert study.result().nfev == 5
    assert study.best[1] == 0.0


def test_points_of_ones_own_count_for_the_best_and_must_fit_the_space():
    study = Optimizer(BOX, "cma_es", 60)
    study.tell([0.5, 0.5], 0.5)
    study.tell(np.array([0.25, 0.0]), {"value": 0.0625})
    study.tell({"x0": 3.0, "x1": 3.0}, math.nan)
    study.tell(np.array([[1.0, 1.0], [2.0, 2.0]]), [2.0, 8.0])
    assert study.best[1] == 0.0625
    assert (study.best[0] == [0.25, 0.0]).all()
    for bad in ([9.0, 0.0], {"x0": 1.0}):
        with pytest.raises(InvalidSpace):
            study.tell(bad, 1.0)
    with pytest.raises(InvalidInput, match="an array of 2 numbers"):
        study.tell([1.0], 1.0)
    with pytest.raises(InvalidInput, match="parameters by name, got str"):
        Optimizer(NAMED).tell("far", 1.0)


def test_a_failed_candidate_teaches_nothing_and_one_without_a_value_is_infeasible():
    study = Optimizer(BOX, "random_search", options={"popsize": 4})
    failed, infeasible, told, released = study.ask(4)
    study.tell(failed, ValueError("no route to the robot"))
    study.tell(infeasible, math.nan)
    study.tell(told, 1.0)
    study.release([released])
    states = [trial.state for trial in study.store.read(lambda tx: tx.page(study.study.id, 0, 100, ()))]
    assert states == ["FAILED", "INFEASIBLE", "COMPLETED", "QUEUED"]
    (again,) = study.ask()
    assert (again.x == released.x).all()
    study.release(again)
    assert (study.ask()[0].x == released.x).all()


def test_a_spent_budget_names_no_more_candidates():
    study = Optimizer(BOX, "random_search", 3)
    candidates = study.ask(10)
    assert len(candidates) == 3
    assert study.ask() == []
    assert not study.finished
    study.tell(candidates, [3.0, 2.0, 1.0])
    assert study.finished
    assert study.ask() == []
    with pytest.raises(InvalidInput, match="n must be at least 1, got 0"):
        study.ask(0)


def test_what_is_in_hand_when_a_process_ends_is_asked_again_from_the_file(tmp_path):
    path = tmp_path / "run.db"
    with Optimizer(BOX, "cma_es", 40, store=path, name="robot") as study:
        study.tell(study.ask(3), [3.0, 2.0, 1.0])
        lost = study.ask(2)
        with pytest.raises(StoreUnavailable, match="in use"):
            Optimizer(BOX, "cma_es", 40, store=path, name="robot")
    with Optimizer(BOX, "cma_es", 40, store=path, name="robot") as again:
        assert again.best[1] == 1.0
        assert [candidate.number for candidate in again.ask(2)] == [candidate.number for candidate in lost]
        again.tell(lost[0], 0.5)  # whoever had it in hand may still tell it
        assert again.best[1] == 0.5
    with pytest.raises(StudySpecMismatch, match=r"direction: .*'minimize', got 'maximize'"):
        Optimizer(BOX, "cma_es", 40, store=path, name="robot", direction="maximize")
    result = blackbox.minimize(objectives.square, BOX, "cma_es", 40, store=path, name="robot")  # and so does `minimize`
    assert result.nfev == 40


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda study: pickle.loads(pickle.dumps(study))])  # noqa: S301
def test_an_optimizer_in_memory_can_be_copied_and_goes_on_alike(copied):
    study = Optimizer(BOX, "cma_es", 60)
    study.tell(study.ask(5), np.arange(5.0))
    again = copied(study)
    assert (loop(again, 1).x == loop(study, 1).x).all()


def test_the_number_of_workers_is_part_of_the_study_for_default_populations():
    assert Optimizer(BOX, "cma_es", workers=40).study.spec.parallelism.workers == 40
    assert Optimizer(BOX, "cma_es").study.spec.parallelism.workers is None


def test_examples_run():
    for module in (sys.modules[front.__name__], sys.modules[optimizer.__name__]):
        assert doctest.testmod(module).attempted > 2
        assert doctest.testmod(module).failed == 0
