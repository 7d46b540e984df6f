"""`minimize`, `run` and the backends they evaluate on."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

import blackbox
from blackbox import backends
from blackbox.algorithms.random_search import RandomSearch
from blackbox.backends import WorkerLost
from blackbox.backends.inline import Inline
from blackbox.errors import InvalidInput, InvalidSpace
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore
from tests.engine import objectives_for_processes as objectives


def test_bounds_give_the_objective_an_array():
    seen = []

    def f(x):
        seen.append(x)
        return float(((x - 0.5) ** 2).sum())

    result = blackbox.minimize(f, [(-1, 1), (0, 10)], budget=400, target=1e-8)
    assert all(isinstance(x, np.ndarray) and x.shape == (2,) for x in seen)
    assert all(-1 <= x[0] <= 1 and 0 <= x[1] <= 10 for x in seen)
    assert result.success
    assert result.fun <= 1e-8
    assert result.nfev == len(seen) < 400
    assert np.allclose(result.x, 0.5, atol=1e-3)
    assert np.allclose(result.recommended, 0.5, atol=1e-2)
    assert result.message == "completed: target"


def test_named_parameters_give_the_objective_a_dict():
    space = {
        "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "scale": "log"},
        "layers": {"type": "int", "low": 1, "high": 8},
        "act": {"type": "categorical", "choices": ["relu", "gelu", "tanh"]},
    }

    def f(p):
        return abs(np.log10(p["lr"]) + 3) + abs(p["layers"] - 3) + (p["act"] != "gelu")

    result = blackbox.minimize(f, space, budget=400, seed=2)
    assert (result.x["layers"], result.x["act"]) == (3, "gelu")
    assert result.fun < 0.1


def test_an_unknown_argument_is_refused_with_the_nearest_one():
    with pytest.raises(InvalidInput, match=r"no argument 'method'; say algorithm=\"cma_es\""):
        blackbox.minimize(objectives.square, [(-5, 5)], method="cma_es")
    with pytest.raises(InvalidInput, match=r"no argument 'budgett'; did you mean \"budget\""):
        blackbox.minimize(objectives.square, [(-5, 5)], budgett=3)


def test_equal_arguments_give_equal_results():
    runs = [blackbox.minimize(objectives.square, [(-5, 6)] * 4, budget=100, seed="s") for _ in range(2)]
    assert runs[0].fun == runs[1].fun
    assert (runs[0].x == runs[1].x).all()
    assert blackbox.minimize(objectives.square, [(-5, 6)] * 4, budget=100, seed="t").fun != runs[0].fun


def test_maximize():
    result = blackbox.minimize(lambda x: 3.0 - objectives.square(x), [(-5, 5)] * 2, direction="maximize", budget=200)
    assert result.fun == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("method", ["random_search", "cma_es", "pycma", "openai_es", "cbo", "nelder_mead"])
def test_every_method_runs_through_the_same_door(method):
    start = objectives.square(np.full(3, 2.0))
    space = {"x": blackbox.Vector(dim=3, low=-4.0, high=4.0, init=2.0)}
    result = blackbox.minimize(objectives.square, space, method, budget=300, seed=3)
    assert result.algorithm == method
    assert result.fun < start / 2


def test_nan_is_a_point_that_cannot_be_evaluated():
    result = blackbox.minimize(lambda x: float("nan") if x[0] < 0 else objectives.square(x), [(-5, 5)] * 2, budget=300)
    assert result.x[0] >= 0
    assert result.fun < 0.01


def test_an_exception_of_the_objective_is_raised_and_recorded():
    with pytest.raises(ValueError, match="cannot do this one"):
        blackbox.minimize(objectives.raises, [(-5, 5)], budget=10)


def test_a_callback_can_stop_the_run():
    result = blackbox.minimize(objectives.square, [(-5, 5)] * 2, budget=1000, callback=lambda r: r.nfev >= 25)
    assert 25 <= result.nfev <= 26


@pytest.mark.parametrize("space", [5, "x", [(1, 2, 3)], [(5, -5)], {}])
def test_a_space_that_is_none_is_refused(space):
    with pytest.raises(InvalidSpace):
        blackbox.minimize(objectives.square, space, budget=10)


def test_an_unknown_backend_is_refused():
    with pytest.raises(InvalidInput, match="processes"):
        blackbox.minimize(objectives.square, [(-5, 5)], backend="process", budget=10)


def test_processes_find_the_same_minimum():
    result = blackbox.minimize(objectives.square, [(-5, 5)] * 3, backend="processes", n_workers=2, budget=250)
    assert result.fun < 1e-3
    assert result.nfev == 250


@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_an_objective_may_be_named(backend):
    name = "tests.engine.objectives_for_processes:square"
    result = blackbox.minimize(name, [(-5, 5)] * 2, backend=backend, n_workers=1, budget=20)
    assert result.nfev == 20
    with pytest.raises(InvalidInput, match="no function 'absent'"):
        blackbox.minimize(name.replace("square", "absent"), [(-5, 5)], backend=backend, n_workers=1, budget=5)
    with pytest.raises(InvalidInput, match="module:function"):
        blackbox.minimize("square", [(-5, 5)], backend=backend, n_workers=1, budget=5)


def test_a_backend_may_be_made_by_a_function():
    made = []

    def make(fn):
        made.append(Inline(fn))
        return made[-1]

    assert blackbox.minimize(objectives.square, [(-5, 5)], backend=make, budget=7).nfev == 7
    assert len(made) == 1


class Queueing(Inline):
    """One worker with room for three more calls behind the one in hand; answers the oldest first."""

    def __init__(self, objective):
        super().__init__(objective)
        self.out = []
        self.most = 0

    @property
    def free(self):
        return int(not self.out)

    @property
    def ahead(self):
        return 4 - max(1, len(self.out))

    def submit(self, ticket, point):
        self.out.append((ticket, point))
        self.most = max(self.most, len(self.out))

    def wait(self):
        if not self.out:
            return []
        super().submit(*self.out.pop(0))
        return super().wait()


@pytest.mark.parametrize(("method", "most"), [("cma_es", 4), ("cbo", 1), ("nelder_mead", 1)])
def test_calls_wait_behind_others_only_as_far_as_the_open_step_needs_them(method, most):
    queue = Queueing(objectives.square)
    result = blackbox.minimize(objectives.square, [(-5, 5)] * 3, method, backend=lambda fn: queue, budget=60)
    assert queue.most == most
    trials = result.store.read(lambda tx: tx.page(result.study.id, 0, 1000, ()))
    assert {trial.state for trial in trials} == {"COMPLETED"}  # none was asked for a step that closed without it


def test_what_a_lost_worker_had_is_given_again_and_counts_against_nothing():
    class Losing(Inline):
        """Loses every fifth call with the machine it ran on."""

        n = 0

        def wait(self):
            done = super().wait()
            Losing.n += 1
            return [backends.Done(done[0].ticket, error=WorkerLost("gone"))] if done and Losing.n % 5 == 0 else done

    result = blackbox.minimize(objectives.square, [(-5, 5)] * 3, "cma_es", backend=Losing, budget=40)
    trials = result.store.read(lambda tx: tx.page(result.study.id, 0, 1000, ()))
    assert result.nfev == 40
    assert {trial.state for trial in trials} == {"COMPLETED"}
    assert sum(trial.attempt > 1 for trial in trials) >= 8
    assert sum(trial.failures + trial.lost for trial in trials) == 0


def test_an_objective_that_cannot_be_sent_is_refused_with_a_hint():
    with pytest.raises(InvalidInput, match="top level of a module"):
        blackbox.minimize(lambda x: 0.0, [(-5, 5)], backend="processes", n_workers=1, budget=10)


def test_a_dead_worker_process_costs_one_attempt_of_one_point(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKBOX_TEST_MARKER", str(tmp_path / "marker"))
    result = blackbox.minimize(objectives.dies_once, [(-5, 5)] * 2, backend="processes", n_workers=2, budget=40)
    assert result.nfev == 40
    trials = result.store.read(lambda tx: tx.page(result.study.id, 0, 1000, ()))
    assert sum(t.failures for t in trials) == 1
    assert all(t.state in ("COMPLETED", "SUPERSEDED") for t in trials)


def test_an_exception_in_a_worker_process_comes_back_with_its_traceback():
    with pytest.raises(ValueError, match="cannot do this one") as caught:
        blackbox.minimize(objectives.raises, [(-5, 5)], backend="processes", n_workers=1, budget=10)
    assert any("in a worker process" in note for note in caught.value.__notes__)


def test_a_value_that_cannot_come_back_is_an_error_not_a_hang():
    with pytest.raises(TypeError, match="cannot send"):
        blackbox.minimize(objectives.unpicklable, [(-5, 5)], backend="processes", n_workers=1, budget=10)


def test_no_step_waits_for_a_slow_process(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKBOX_TEST_MARKER", str(tmp_path / "marker"))
    store = MemoryStore()
    spec = {"name": "s", "space": {"x": {"type": "vector", "dim": 2, "init": 1.0}}, "budget": {"evaluations": 120}}
    head, _ = perform(store, create("p", {**spec, "algorithm": "cma_es", "start": "skip"}, 0.0))
    evaluator = backends.make("processes", objectives.slow_first, 2)
    try:
        result = blackbox.run(Study(head), store, evaluator, point=lambda p: p["x"])
    finally:
        evaluator.close()
    trials = store.read(lambda tx: tx.page(head.id, 0, 1000, ()))
    slow = [t for t in trials if t.state == "SUPERSEDED"]
    assert result.nfev == 120
    assert len(slow) == 1
    assert slow[0].number in (1, 2)
    assert slow[0].value is not None


@pytest.fixture
def one_process():
    """Makes backends of one process."""
    made = []

    def make(objective):
        made.append(backends.make("processes", objective, 1))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def until_done(backend, n):
    """The results of n calls, by ticket."""
    done = {}
    while len(done) < n:
        done.update({each.ticket: each for each in backend.wait()})
    return done


def test_points_wait_behind_others_only_where_evaluations_are_known_to_be_short(one_process):
    backend = one_process(objectives.pauses)
    assert (backend.free, backend.ahead) == (1, 0)  # nothing is known
    backend.submit(1, 0.0)
    assert (backend.free, backend.ahead) == (0, 0)
    until_done(backend, 1)
    assert backend.free == 1
    assert backend.ahead >= 1
    backend.submit(2, 1.0)
    while backend.ahead:  # until it is late with what it has
        time.sleep(0.01)
    until_done(backend, 1)
    for ticket in range(3, 40):
        backend.submit(ticket, 0.0)
    assert set(until_done(backend, 37)) == set(range(3, 40))
    assert backend.ahead > 0  # the slow one is long ago


def test_points_too_large_for_a_pipe_do_not_stop_the_driver(one_process):
    backend = one_process(objectives.square)
    x = np.ones(100_000)
    for ticket in range(6):
        backend.submit(ticket, x)  # 800 kB each: only the first is sent before it is wanted
    assert {done.value for done in until_done(backend, 6).values()} == {1e5}


def test_what_waited_for_a_dead_process_is_given_back(one_process):
    backend = one_process(objectives.dies_at)
    for ticket in range(4):
        backend.submit(ticket, ticket)
    done = until_done(backend, 4)
    assert done[0].value == 0.0
    assert [type(done[ticket].error) for ticket in (1, 2, 3)] == [backends.WorkerDied, WorkerLost, WorkerLost]
    backend.submit(5, 5)
    assert until_done(backend, 1)[5].value == 5.0


# beside the value


def test_what_is_told_beside_the_value_reaches_the_method(monkeypatch):
    seen = []

    def tell(self, state, results):
        seen.extend(results.extra)
        return told(self, state, results)

    told = RandomSearch.tell
    monkeypatch.setattr(RandomSearch, "tell", tell)

    def f(x):
        sums = {"count": 2, "total": np.array([x[0], 1.0]), "squares": (1, 2.5)}
        return {"value": np.float64(objectives.square(x)), "behaviour": np.float32([0.5, x[0]]), "sums": sums}

    result = blackbox.minimize(f, [(-1, 3)], "random_search", budget=17, options={"popsize": 8})
    assert len(seen) == 16
    for extra in seen:
        assert extra["behaviour"][0] == 0.5
        assert extra["sums"] == {
            "count": 2.0,
            "total": [pytest.approx(extra["behaviour"][1]), 1.0],
            "squares": [1.0, 2.5],
        }
    assert result.fun == min(extra["sums"]["total"][0] ** 2 for extra in seen)


def test_a_point_without_a_value_may_still_say_what_it_did():
    returned = {"value": float("nan"), "behaviour": [3.0]}
    result = blackbox.minimize(lambda x: returned, [(-1, 1)], "random_search", budget=2)
    trial = result.store.read(lambda tx: tx.trial(result.study.id, 1))
    assert trial.state == "INFEASIBLE"
    assert json.loads(trial.extra) == {"behaviour": [3.0], "reason": "value was nan"}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"behaviour": [1.0]}, 'has "value", "behaviour" and "sums"; got the names \'behaviour\''),
        ({"value": 1.0, "behavior": [1.0]}, "'behavior'"),
        ({"value": "1"}, "must return a number"),
        ({"value": 1.0, "behaviour": []}, "0 numbers, expected 1 to 256"),
        ({"value": 1.0, "behaviour": [0.0] * 257}, "257 numbers, expected 1 to 256"),
        ({"value": 1.0, "behaviour": [[1.0]]}, r"behaviour.0 must be a number, got list"),
        ({"value": 1.0, "behaviour": "far"}, "behaviour must be a list of numbers, got str"),
        ({"value": 1.0, "behaviour": [1.0, float("nan")]}, r"behaviour.1 is nan, expected a finite number"),
        ({"value": 1.0, "sums": [1.0]}, "sums must be a mapping of names"),
        ({"value": 1.0, "sums": {"a": True}}, r"sums.a must be a number, got bool"),
        ({"value": 1.0, "sums": {"a": [1.0, float("inf")]}}, r"sums.a.1 is inf"),
        ({"value": 1.0, "sums": dict.fromkeys(map(str, range(65)), 1.0)}, "65 names, expected at most 64"),
    ],
)
def test_side_data_that_cannot_be_used_is_refused_with_its_place(returned, message):
    with pytest.raises(InvalidInput, match=message):
        blackbox.minimize(lambda x: returned, [(-1, 1)], "random_search", budget=2)


@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_an_objective_may_look_at_its_trial(backend, monkeypatch):
    ask = RandomSearch.ask
    monkeypatch.setattr(
        RandomSearch,
        "ask",
        lambda self, state, lanes, pending: replace(
            ask(self, state, lanes, pending), payload=tuple({"lane": int(lane)} for lane in lanes)
        ),
    )
    result = blackbox.minimize(
        objectives.sees_its_trial,
        [(-1, 1)],
        "random_search",
        budget=9,
        options={"popsize": 4},
        backend=backend,
        n_workers=None if backend == "inline" else 1,
        with_trial=True,
    )
    trials = result.store.read(lambda tx: [tx.trial(result.study.id, n) for n in range(1, 10)])
    told = [json.loads(trial.extra)["sums"] for trial in trials]
    assert [t["number"] for t in told] == list(range(1, 10))
    assert (told[0]["step"], "lane" in told[0]) == (0, False)  # the start, which is nobody's lane
    told = told[1:]
    assert [t["lane"] for t in told] == [0, 1, 2, 3] * 2
    assert [t["step"] for t in told] == [0] * 4 + [1] * 4
    assert len({t["eval_seed"] for t in told}) == 2
