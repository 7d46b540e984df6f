"""Inversion: a callback solver as a function of the values it was told, and what becomes of its threads."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from blackbox.errors import InvalidInput, NonFiniteValue, ReplayMismatch, SolverFailed, SolverStalled
from blackbox.records import Vector
from blackbox.toolbox import inversion
from blackbox.toolbox.inversion import Finished, Inversion
from blackbox.toolbox.values import barrier

F = Callable[[Vector], float]


def rosenbrock(x: Vector) -> float:
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def solver(method: str, maxfev: int = 60, d: int = 3) -> Callable[[F], Any]:
    limit = "maxiter" if method == "COBYLA" else "maxfev"
    return lambda f: minimize(f, np.full(d, -0.5), method=method, options={limit: maxfev})


def drive(front: Inversion, f: F = rosenbrock) -> tuple[list[Vector], list[float], Any]:
    """Points, values and result of a whole run."""
    points, values = list[Vector](), list[float]()
    while not isinstance(answer := front.point(values), Finished):
        points.append(answer)
        values.append(f(answer))
    return points, values, answer.result


def eventually(holds: Callable[[], bool]) -> bool:
    """True if the condition holds within some seconds: a thread that was told to end needs a moment."""
    for _ in range(1000):
        if holds():
            return True
        time.sleep(0.005)
    return False


def n_threads() -> int:
    return sum(thread.name == "blackbox-solver" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    """Every thread that a test started ends with its Inversion."""
    before = n_threads()
    yield
    if n_threads() > before:
        gc.collect()
    assert eventually(lambda: n_threads() <= before)


@pytest.mark.parametrize("method", ["Nelder-Mead", "Powell", "COBYLA", "COBYQA"])
def test_it_asks_what_the_solver_asks_its_callback(method: str) -> None:
    called: list[Vector] = []

    def recorded(x: Vector) -> float:
        called.append(np.array(x))
        return rosenbrock(x)

    result = solver(method)(recorded)
    points, _, inverted = drive(Inversion(solver(method)))
    assert np.array(points).tobytes() == np.array(called).tobytes()
    assert inverted.fun == result.fun


def test_asking_again_wakes_nobody_and_gives_a_copy() -> None:
    others = inversion.live()  # of tests before this one in the same process
    front = Inversion(solver("Nelder-Mead"))
    first = front.point([])
    assert isinstance(first, np.ndarray)
    first[:] = 9
    front.point([1.0])
    front.hibernate()
    assert inversion.live() <= others
    again = front.point([])
    assert isinstance(again, np.ndarray)
    assert again.tolist() == [-0.5] * 3
    assert inversion.live() <= others


@pytest.mark.parametrize("method", ["Nelder-Mead", "COBYQA"])
def test_any_log_gives_the_same_point_in_any_order_of_asking(method: str) -> None:
    points, values, _ = drive(Inversion(solver(method, 40)))
    front = Inversion(solver(method, 40))
    for k in (30, 3, 31, 0, 17):  # forwards, backwards, forwards again
        answer = front.point(np.array(values[:k]))
        assert isinstance(answer, np.ndarray)
        assert answer.tobytes() == points[k].tobytes()


def test_another_log_ends_the_thread_and_replays() -> None:
    points, values, _ = drive(Inversion(solver("Nelder-Mead")))
    front = Inversion(solver("Nelder-Mead"))
    front.point(values[:20])
    other = front.point([*values[:10], -1.0, 5.0])
    assert eventually(lambda: n_threads() == inversion.live() == 1)
    back = front.point(values[:20])
    assert isinstance(other, np.ndarray)
    assert isinstance(back, np.ndarray)
    assert other.tobytes() != points[12].tobytes()
    assert back.tobytes() == points[20].tobytes()


def test_an_abandoned_solver_runs_its_cleanup_and_cannot_swallow_the_end() -> None:
    events: list[str] = []

    def stubborn(f: F) -> None:
        try:
            while True:
                try:
                    f(np.zeros(1))
                except Exception:
                    events.append("swallowed")
        finally:
            events.append("cleanup")

    front = Inversion(stubborn)
    front.point([1.0, 2.0])
    front.hibernate()
    assert eventually(lambda: events == ["cleanup"])


def test_the_least_recently_used_idle_thread_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "MAX_LIVE", 3)
    points, values, _ = drive(Inversion(solver("Nelder-Mead", 30)))
    fronts = [Inversion(solver("Nelder-Mead", 30)) for _ in range(8)]
    for k in range(20):
        for front in fronts:
            answer = front.point(values[:k])
            assert isinstance(answer, np.ndarray)
            assert answer.tobytes() == points[k].tobytes()
            assert inversion.live() <= 3
    assert eventually(lambda: n_threads() <= 3)


def test_many_callers_at_once_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "MAX_LIVE", 2)
    points, values, _ = drive(Inversion(solver("Nelder-Mead", 40)))
    fronts = [Inversion(solver("Nelder-Mead", 40)) for _ in range(3)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for k in np.random.default_rng(seed).integers(0, 40, 60):
            answer = fronts[k % 3].point(values[:k])
            if not (isinstance(answer, np.ndarray) and answer.tobytes() == points[k].tobytes()):
                wrong.append(int(k))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_a_failing_solver_is_an_error_at_every_ask_of_that_log() -> None:
    def fails(f: F) -> None:
        f(np.zeros(1))
        raise ZeroDivisionError("a bad solver")

    front = Inversion(fails)
    assert isinstance(front.point([]), np.ndarray)
    for _ in range(2):
        with pytest.raises(SolverFailed, match="bad solver") as error:
            front.point([1.0])
        assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert isinstance(front.point([]), np.ndarray)
    with pytest.raises(InvalidInput, match="ended after 1 values, the log has 2"):
        front.point([1.0, 2.0])


def test_more_values_than_the_solver_asked_for_are_refused() -> None:
    _, values, _ = drive(front := Inversion(solver("Nelder-Mead", 10)))
    with pytest.raises(InvalidInput, match=f"ended after {len(values)} values"):
        front.point([*values, 1.0])
    with pytest.raises(InvalidInput, match=f"ended after {len(values)} values"):
        Inversion(solver("Nelder-Mead", 10)).point([*values, 1.0])
    assert isinstance(front.point(values), Finished)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteValue, match="value 1 of the log"):
        Inversion(solver("Nelder-Mead")).point([1.0, bad])


@pytest.mark.parametrize("method", ["Nelder-Mead", "Powell", "COBYLA", "COBYQA"])
def test_solvers_survive_a_barrier_value_every_seventh_time(method: str) -> None:
    seen: list[float] = []

    def every_seventh(x: Vector) -> float:
        seen.append(rosenbrock(x) if len(seen) % 7 != 6 else np.nan)
        return seen[-1] if np.isfinite(seen[-1]) else barrier(np.array(seen))

    points, _, _ = drive(Inversion(solver(method, 100)), every_seventh)
    assert np.isfinite(points).all()
    assert np.nanmin(seen) < rosenbrock(np.full(3, -0.5)) / 3


def test_a_solver_that_thinks_for_too_long_is_an_error_and_not_a_hang() -> None:
    let_go = threading.Event()

    def slow(f: F) -> None:
        f(np.zeros(1))
        let_go.wait()
        f(np.ones(1))

    front = Inversion(slow, patience_seconds=0.05)
    with pytest.raises(SolverStalled, match=r"more than 0\.05 s"):
        front.point([1.0])
    let_go.set()
    answer = front.point([1.0])
    assert isinstance(answer, np.ndarray)
    assert answer.tolist() == [1.0]


def test_a_solver_that_is_not_deterministic_is_found_out_at_replay() -> None:
    calls = iter(range(100))

    def restless(f: F) -> None:
        start = float(next(calls))
        f(np.array([start]))
        f(np.array([start + 0.5]))

    front = Inversion(restless)
    first, second = front.point([]), front.point([1.0])
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    with pytest.raises(ReplayMismatch, match="point 0 of the log"):
        Inversion(restless).point([1.0, 2.0], np.array([first, second]))


def test_the_thread_dies_with_its_inversion() -> None:
    front = Inversion(solver("COBYQA"))
    front.point([])
    gone, before = weakref.ref(front), n_threads()
    del front
    gc.collect()
    assert gone() is None
    assert eventually(lambda: n_threads() == before - 1)
    assert inversion.live() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_replays_instead_of_waiting_for_a_thread_it_does_not_have() -> None:
    points, values, _ = drive(Inversion(solver("Nelder-Mead")))
    front = Inversion(solver("Nelder-Mead"), patience_seconds=20)
    front.point(values[:5])
    child = os.fork()
    if child == 0:
        answer = front.point(values[:6])
        os._exit(0 if isinstance(answer, np.ndarray) and answer.tobytes() == points[6].tobytes() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
