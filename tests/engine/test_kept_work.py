"""What a run has found is kept: in its error, in a file, in a copy; and what one bad evaluation costs."""

import copy
import importlib
import io
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from blackbox_server.store import SqlStore

import blackbox
from blackbox.errors import InvalidInput, StoreUnavailable, StudySpecMismatch
from blackbox.minimize import stores
from blackbox.registry import Registry
from blackbox.study.kinds import open_study
from tests.engine import objectives_for_processes as objectives

ROOT = Path(__file__).parents[2]
BOX = [(-5, 5)] * 2


def after(n, error):
    """The square, until the n-th call raises."""
    calls = []

    def f(x):
        calls.append(x)
        if len(calls) == n:
            raise error
        return objectives.square(x)

    return f


@pytest.mark.parametrize("name", [3, ".", b"run.db"])
def test_what_names_no_file_is_a_clear_error(name):
    with pytest.raises(InvalidInput, match=r"open store, got|is a folder"):
        blackbox.minimize(objectives.square, BOX, budget=5, store=name)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), StopIteration(), MemoryError()])
def test_whatever_ends_a_run_has_its_result_so_far_and_says_the_best(error):
    with pytest.raises(type(error)) as caught:
        blackbox.minimize(after(57, error), BOX, "cma_es", 200)
    so_far = caught.value.result
    assert so_far.fun == objectives.square(so_far.x)
    assert so_far.nfev == (57 if isinstance(error, Exception) else 56)  # an interrupt is no result of the point
    (note,) = caught.value.__notes__
    assert f"the best value is {so_far.fun:.6g} at array(" in note
    assert "its `result`" in note


def test_an_error_of_a_callback_keeps_the_result_too():
    def callback(result):
        if result.nfev == 9:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full") as caught:
        blackbox.minimize(objectives.square, BOX, "cma_es", 200, callback=callback)
    assert caught.value.result.nfev == 9


def test_an_exception_that_takes_no_attribute_still_arrives():
    class Strict(Exception):
        __slots__ = ()

        def __setattr__(self, name, value):
            raise TypeError("frozen")

    with pytest.raises(Strict):
        blackbox.minimize(after(3, Strict()), BOX, budget=9)


@pytest.mark.parametrize("how", ["StopIteration", "true"])
def test_a_callback_stops_the_run_as_in_scipy(how):
    def callback(result):
        if result.nfev >= 25 and how == "StopIteration":
            raise StopIteration
        return result.nfev >= 25

    result = blackbox.minimize(objectives.square, BOX, "cma_es", 200, callback=callback)
    assert result.nfev == 25
    assert result.success


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])  # noqa: S301
def test_a_result_can_be_copied_and_pickled_and_its_study_goes_on(copied):
    result = blackbox.minimize(objectives.square, BOX, "cma_es", 40)
    again = copied(result)
    assert (again.x == result.x).all()
    assert (again.fun, again.nfev, again.message) == (result.fun, result.nfev, result.message)
    study, store = again.study, again.store
    blackbox.perform(store, study.edit(budget=study.spec.budget.model_copy(update={"evaluations": 60})))
    more = blackbox.run(
        study, store, blackbox.backends.make("inline", lambda p: objectives.square(np.array([*p.values()])))
    )
    assert more.nfev == 60
    assert more.fun <= result.fun
    assert result.nfev == 40


# One bad evaluation


def test_errors_may_be_points_without_a_value():
    result = blackbox.minimize(objectives.raises_below_zero, BOX, "cma_es", 60, on_error="infeasible")
    assert (result.nfev, result.success) == (60, True)
    assert result.x[0] >= 0
    trials = result.store.read(lambda tx: tx.page(result.study.id, 0, 100, ()))
    bad = [trial for trial in trials if trial.state == "INFEASIBLE"]
    assert bad
    assert all("ValueError: no root of -" in trial.extra for trial in bad)
    assert {trial.state for trial in trials} == {"COMPLETED", "INFEASIBLE"}


def test_an_interrupted_first_call_leaves_no_algorithm_unknown(monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    fresh = Registry("algorithm", "blackbox.algorithms")
    monkeypatch.setattr(importlib, "import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh.all()
    with pytest.raises(KeyboardInterrupt):  # it tries again, and does not answer that there is nothing
        fresh.all()


def test_a_run_without_a_value_says_why():
    result = blackbox.minimize(lambda x: 1 / 0, BOX, "cma_es", 12, on_error="infeasible")
    assert (result.nfev, result.success) == (12, False)
    last = "the last: ZeroDivisionError: division by zero"
    assert result.message == f"completed: budget; no evaluation gave a value, {last}"
    assert "the last: value was nan" in blackbox.minimize(lambda x: np.nan, BOX, budget=12).message


def test_what_an_error_does_is_one_of_two_words():
    with pytest.raises(InvalidInput, match="on_error must be one of raise, infeasible, got 'ignore'"):
        blackbox.minimize(objectives.square, BOX, on_error="ignore")


def test_an_objective_that_returns_nonsense_or_exits_ends_the_run_whatever_is_said_of_errors():
    with pytest.raises(InvalidInput, match="must return a number"):
        blackbox.minimize(lambda x: "far", BOX, on_error="infeasible")
    with pytest.raises(RuntimeError, match=r"sys\.exit"):
        blackbox.minimize(objectives.quits, BOX, on_error="infeasible")


@pytest.mark.slow
def test_an_evaluation_that_hangs_costs_its_time_and_its_trial():
    result = blackbox.minimize(
        objectives.hangs_below_zero,
        [(-1, 5)],
        "random_search",
        12,
        backend="processes",
        n_workers=1,
        timeout_seconds=0.2,
        seed=3,
    )
    trials = result.store.read(lambda tx: tx.page(result.study.id, 0, 100, ()))
    failed = [trial for trial in trials if trial.state == "FAILED"]
    assert 1 <= len(failed) < 12
    assert all('"type": "TimedOut"' in trial.extra and trial.failures == 1 for trial in failed)
    assert result.x[0] >= 0


def test_a_deadline_lets_no_evaluation_begin():
    result = blackbox.minimize(objectives.square, BOX, "cma_es", 50)
    study, store = result.study, result.store
    blackbox.perform(store, study.edit(budget=study.spec.budget.model_copy(update={"evaluations": 80})))
    backend = blackbox.backends.make("inline", lambda p: 1.0)
    now = 2e9
    clock = iter(now + i for i in range(1000))
    more = blackbox.run(study, store, backend, clock=lambda: next(clock), deadline=now + 20)
    assert 50 < more.nfev < 60
    assert more.message == "active: deadline"
    assert blackbox.minimize(objectives.square, BOX, budget=10, deadline_seconds=0.0).nfev == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_line_on_a_terminal_and_ten_elsewhere(monkeypatch):
    lines = []
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        blackbox.minimize(objectives.square, BOX, "cma_es", 40, progress=True)
        lines.append(stream.getvalue())
    assert lines[0].startswith("\r1/40 evaluations, best ")
    assert lines[0].count("\n") == 1
    assert lines[0].endswith("s\n")
    assert [line.split()[0] for line in lines[1].splitlines()[::5]] == ["1/40", "20/40", "40/40"]


# In a file


def interrupted(calls, n):
    """The square; the n-th call is an interrupt."""

    def f(x):
        calls.append(tuple(x))
        if len(calls) == n:
            raise KeyboardInterrupt
        return objectives.square(x)

    return f


@pytest.mark.parametrize("method", ["cma_es", "cbo", "nelder_mead"])
def test_the_same_call_goes_on_where_an_interrupt_stopped_it(tmp_path, method):
    calls = []
    f = interrupted(calls, 30)
    whole = blackbox.minimize(objectives.square, BOX, method, 60)
    with pytest.raises(KeyboardInterrupt) as caught:
        blackbox.minimize(f, BOX, method, 60, store=tmp_path / "run.db")
    assert (caught.value.result.nfev, caught.value.result.store) == (29, None)
    result = blackbox.minimize(f, BOX, method, 60, store=tmp_path / "run.db")
    assert (result.fun, result.nfev) == (whole.fun, whole.nfev)
    assert (result.x == whole.x).all()
    assert len(calls) == whole.nfev + 1
    assert calls[29] == calls[30]
    assert blackbox.minimize(after(1, ValueError()), BOX, method, 60, store=tmp_path / "run.db").fun == result.fun
    pickle.dumps(result)


DIES = """
import os, sys, blackbox
from tests.engine.objectives_for_processes import square
n = 0
def f(x):
    global n
    n += 1
    if n == 30:
        os._exit(9)
    return square(x)
blackbox.minimize(f, [(-5, 5)] * 2, "cma_es", 60, store=sys.argv[1])
"""


@pytest.mark.slow
def test_a_run_goes_on_after_its_process_was_killed(tmp_path):
    path = str(tmp_path / "run.db")
    assert subprocess.run([sys.executable, "-c", DIES, path], cwd=ROOT, timeout=100).returncode == 9
    calls = []
    result = blackbox.minimize(interrupted(calls, 0), BOX, "cma_es", 60, store="sqlite:///" + path)
    whole = blackbox.minimize(objectives.square, BOX, "cma_es", 60)
    assert len(calls) == 31
    assert (result.x == whole.x).all()
    assert result.nfev == 60


def test_a_run_goes_on_with_another_budget_or_number_of_workers_but_not_with_another_problem(tmp_path):
    path = tmp_path / "run.db"
    first = blackbox.minimize(objectives.square, BOX, "random_search", 5, store=path, name="a")
    assert blackbox.minimize(objectives.square, BOX, "random_search", 5, store=path, name="b").nfev == first.nfev
    same = blackbox.minimize(
        objectives.square, BOX, "random_search", 5, store=path, name="a", backend="processes", n_workers=2
    )
    assert same.fun == first.fun
    whole = blackbox.minimize(objectives.square, BOX, "random_search", 9)
    for _ in range(2):
        more = blackbox.minimize(objectives.square, BOX, "random_search", 9, store=path, name="a")
        assert (more.nfev, more.fun, more.message) == (9, whole.fun, "completed: budget")
    assert blackbox.minimize(objectives.square, BOX, "random_search", 3, store=path, name="a").nfev == 9
    with pytest.raises(StudySpecMismatch, match=r"seed: the existing study has .*0.*, got .*1.*; give another name"):
        blackbox.minimize(objectives.square, BOX, "random_search", 5, store=path, name="a", seed=1)


def test_a_paused_study_of_a_file_goes_on(tmp_path):
    path = tmp_path / "run.db"
    with pytest.raises(ValueError, match="no"):
        blackbox.minimize(after(3, ValueError("no")), BOX, "random_search", 6, store=path)
    store = SqlStore(path)
    study = blackbox.perform(store, open_study(store.read(lambda tx: tx.find("default", "minimize")).id))
    blackbox.perform(store, study.pause(now=2e9))
    store.close()
    assert blackbox.minimize(objectives.square, BOX, "random_search", 6, store=path).nfev == 6


def test_a_store_that_is_open_stays_open(tmp_path):
    store = SqlStore(tmp_path / "run.db")
    result = blackbox.minimize(objectives.square, BOX, "random_search", 6, store=store)
    assert result.store is store
    assert blackbox.perform(store, result.study.row()).used == 6
    store.close()


def test_the_service_opens_the_file_of_a_run_and_nobody_else_while_it_lasts(tmp_path):
    path = tmp_path / "run.db"

    def f(x):
        with pytest.raises(StoreUnavailable, match="in use"):
            SqlStore(path)
        return 1.0

    blackbox.minimize(f, BOX, "random_search", 3, store=path, name="mine")
    store = SqlStore(path)
    head = store.read(lambda tx: tx.find("default", "mine"))
    study = blackbox.perform(store, open_study(head.id))
    assert blackbox.perform(store, study.row()).used == 3
    store.close()
    with pytest.raises(InvalidInput, match=r"no store for postgresql: .* sqlite"):
        blackbox.minimize(f, BOX, store="postgresql://here/db")


def test_without_the_services_packages_a_file_says_what_to_install(monkeypatch):
    monkeypatch.setattr(stores, "entry_points", lambda group: ())
    with pytest.raises(InvalidInput, match=r"pip install 'blackbox-zoo\[server\]'"):
        blackbox.minimize(objectives.square, BOX, store="run.db")
    absent = metadata.EntryPoint("sqlite", "absent_module:Store", "blackbox.stores")
    monkeypatch.setattr(stores, "entry_points", lambda group: (absent,))
    with pytest.raises(InvalidInput, match=r"absent_module.*pip install 'blackbox-zoo\[server\]'"):
        blackbox.minimize(objectives.square, BOX, store="run.db")
