"""Points of a finite space that were told already: evaluated again, or answered from the archive."""

import json
import random

import pytest

import blackbox
from blackbox.space import Categorical, Float, Int, Space
from blackbox.study.answers import AskRequest
from blackbox.study.editing import Study
from blackbox.study.settling import Report
from tests.engine.studies import Driver, start

SIX = {"n": {"type": "int", "low": 0, "high": 2}, "c": {"type": "categorical", "choices": ["a", "b"]}}
GRID = {name: {"type": "int", "low": 0, "high": 9} for name in "xyz"}


@pytest.fixture(autouse=True, params=[False, True], ids=["closes-outside", "closes-at-once"])
def measures(request, monkeypatch):
    monkeypatch.setattr(Driver, "measures", request.param)


def table(params: dict) -> float:
    return float(sum((v - 6) ** 2 if isinstance(v, int) else ord(v) for v in params.values()))


def run(d: Driver, objective=table, n: int = 10**6, count: int = 1) -> list[dict]:
    """Evaluate until the study grants nothing; the points that were evaluated."""
    seen: list[dict] = []
    while len(seen) < n and (leases := d.ask(count=count).leases):
        for lease in leases:
            seen.append(json.loads(lease.point.params))
            d.tell(lease, objective(seen[-1]))
    return seen


def texts(seen: list[dict]) -> list[str]:
    return [json.dumps(params, sort_keys=True) for params in seen]


def trials(d: Driver) -> list:
    return d.store.read(lambda tx: tx.page(d.study.id, 0, 10**6, ()))


def test_the_size_of_a_space_is_the_number_of_its_points():
    assert Space({"n": Int(low=0, high=2), "c": Categorical(choices=["a", "b"])}).size == 6
    assert Space({"n": Int(low=0, high=2), "x": Float(low=0, high=1)}).size is None


@pytest.mark.parametrize("algorithm", ["random_search", "cma_es", "sep_cma_es", "cbo", "pycma"])
@pytest.mark.parametrize("count", [1, 4])
def test_with_reuse_every_point_is_evaluated_once_and_a_told_space_ends_the_study(store, algorithm, count):
    d = start(store, algorithm, space=SIX, budget={"evaluations": 100}, duplicates="reuse")
    seen = run(d, count=count)
    row = d.row()
    if count == 1:
        assert len(seen) == len(set(texts(seen)))
    if row.reason == "space_exhausted":
        assert len(set(texts(seen))) == 6
        assert d.ask().reason == "space_exhausted"
    else:  # the method was done before
        assert (row.state, count) != ("ACTIVE", 1)
    assert row.used == len(seen) <= 100
    reused = [trial for trial in trials(d) if trial.source == "reuse"]
    assert all(trial.state == "COMPLETED" and trial.attempt == 0 for trial in reused)
    assert d.replayed_equal() == row.step
    d.check_log()


def test_auto_reuses_after_three_repeats_with_equal_values_and_says_why_it_ends(store):
    d = start(store, "random_search", space=SIX, budget={"evaluations": 100})
    seen = texts(run(d))
    assert len(set(seen)) == 6
    assert len({text for text in seen if seen.count(text) > 1}) == 3
    assert (d.row().state, d.row().reason) == ("COMPLETED", "space_exhausted")
    assert any(trial.source == "reuse" for trial in trials(d)) or len(seen) >= 9


@pytest.mark.parametrize("noise", ["values", "stderr"])
def test_a_noisy_objective_is_evaluated_again_and_its_space_is_never_exhausted(store, noise):
    rng = random.Random(1)
    d = start(store, "random_search", space=SIX, budget={"evaluations": 60})
    for _ in range(60):
        lease = d.lease()
        value = table(json.loads(lease.point.params))
        if noise == "values":
            d.tell(lease, value + rng.random())
        else:
            d.tell(lease, value, extra={"stderr": 0.1})
    assert (d.row().used, d.row().reason) == (60, "budget")
    assert not any(trial.source == "reuse" for trial in trials(d))


def test_one_value_that_differs_switches_reuse_off_again(store):
    d = start(store, "random_search", space=GRID, options={"popsize": 4})
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        params = {"x": ord(name) - 97, "y": 0, "z": 0}
        for _ in range(2):
            (number,) = d.do(d.study.enqueue([params], now=d.now))
            d.tell(d.lease(), value)
    reusable = lambda: store.read(lambda tx: d.study._granter.repeats.reusable(tx, tx.study(d.study.id)))  # noqa: E731
    assert reusable()
    d.do(d.study.tell([Report(number, value=3.5)], now=d.now))
    assert not reusable()
    d.do(d.study.invalidate(trial=number, now=d.now))
    assert not reusable()  # of the three points only two have been told twice


def test_evaluate_asks_again_as_often_as_the_method_wants(store):
    d = start(store, "random_search", space=SIX, budget={"evaluations": 40}, duplicates="evaluate")
    assert len(run(d)) == 40
    assert d.row().reason == "budget"


def test_a_method_that_stays_on_told_points_does_not_ask_for_ever(store):
    """A flat table: the method may never leave the points it knows, and every ask ends all the same."""
    d = start(store, "cma_es", space=GRID, duplicates="reuse", budget={"evaluations": 30})
    seen = run(d, lambda params: 0.0)
    assert d.row().state == "COMPLETED"
    assert len(seen) <= 30


@pytest.mark.parametrize("algorithm", ["cma_es", "cbo"])
def test_while_the_method_asks_for_known_points_others_are_granted_and_no_known_value_is_paid_for(
    store, algorithm, monkeypatch
):
    monkeypatch.setattr("blackbox.study.granting.REUSED_AT_ONCE", 1)
    space = {name: {"type": "int", "low": 0, "high": 7} for name in "xy"}
    seen = []
    for name in ("a", "b"):
        d = start(store, algorithm, space=space, duplicates="reuse", budget={"evaluations": 62}, name=name, seed=7)
        seen.append(texts(run(d)))
        row = d.row()
        assert len(set(seen[-1])) == len(seen[-1]) == row.used
        untold = [trial for trial in trials(d) if trial.source == "untold"]
        assert untold
        assert all(trial.lane < 0 and trial.state == "COMPLETED" for trial in untold)
        assert d.replayed_equal() == row.step
        d.check_log()
    assert seen[0] == seen[1]


def test_a_point_that_is_out_is_not_granted_as_untold_and_one_given_back_is_granted_again(store):
    d = start(store, "random_search", space=SIX, duplicates="reuse")
    repeats = d.study._granter.repeats
    d.tell(d.lease(), 1.0)
    out = d.lease("slow").point.params

    def untold(n: int) -> list[str]:
        return store.read(lambda tx: [params for _, params in repeats.untold(tx, tx.study(d.study.id), n)])

    assert len(set(untold(9))) == len(untold(9)) == 4
    assert out not in untold(9)
    assert untold(2) == untold(9)[:2]


def test_what_is_told_here_is_known_as_if_it_were_read_from_the_log(store, monkeypatch):
    monkeypatch.setattr("blackbox.study.repeats.READ_AT_ONCE", 7)
    d = start(store, "random_search", space=GRID, duplicates="reuse", options={"popsize": 4})
    run(d, n=40, count=3)
    d.do(d.study.enqueue([{"x": 1, "y": 2, "z": 3}], now=d.now))
    run(d, n=3)
    other = d.reopened()
    for each in (d, other):
        each.lease()
    assert other.study._granter.repeats._told == d.study._granter.repeats._told


def test_points_that_people_enqueue_are_evaluated_again(store):
    d = start(store, "random_search", space=SIX, duplicates="reuse")
    params = json.loads(d.lease().point.params)
    for _ in range(2):
        d.do(d.study.enqueue([params], now=d.now))
        lease = d.lease()
        assert lease.trial.source == "enqueued"
        d.tell(lease, 1.0)


def test_what_is_out_may_complete_the_space_so_others_wait_for_it(store):
    d = start(store, "random_search", space=SIX, duplicates="reuse")
    while d.row().used < 5:
        d.tell(d.lease(), 1.0)
    last = d.lease()
    empty = d.ask("other")
    assert (empty.leases, empty.reason, empty.retry_after, empty.row.state) == ((), "space_exhausted", 1.0, "ACTIVE")
    d.tell(last, status="released")
    assert d.lease("other").trial.number == last.trial.number
    d.tell(last, 1.0)
    assert (d.ask().reason, d.row().reason) == ("space_exhausted", "space_exhausted")


def test_a_result_taken_back_takes_its_copies_along(store):
    d = start(store, "random_search", space=GRID, duplicates="reuse", options={"popsize": 8})
    run(d, n=150)
    copies = [trial for trial in trials(d) if trial.source == "reuse"]
    assert copies
    first = int(json.loads(copies[0].extra)["reused"][2:])
    same = [t.number for t in copies if json.loads(t.extra)["reused"] == f"t_{first}"]
    used = d.row().used
    assert d.do(d.study.invalidate(trial=first, now=d.now)) == 1 + len(same)
    assert d.row().used == used - 1
    assert all(d.trial(number).invalid for number in same)
    d.replayed_equal()


def test_a_reopened_study_and_another_program_know_what_was_told(store):
    d = start(store, "random_search", space=SIX, duplicates="reuse")
    seen = run(d, n=3)
    other = d.reopened()
    seen += run(other, n=2)
    seen += run(d)
    assert sorted(texts(seen)) == sorted(set(texts(seen)))
    assert len(seen) == 6
    branch = Driver(store, Study(d.do(d.study.fork("branch", now=d.now))), d.now)
    assert branch.replayed_equal() == branch.row().step > 0
    branch.check_log()


def test_an_ask_that_comes_with_a_tell_and_one_with_a_key_keep_their_leases(store):
    d = start(store, "random_search", space=SIX, duplicates="reuse", options={"popsize": 3})
    lease = d.lease()
    for _ in range(20):
        report = Report(lease.trial.number, lease.token, value=1.0)
        told = d.do(d.study.tell([report], now=d.now, worker="w", ask=AskRequest("w", 2)))
        leases = told.asked.leases if told.asked is not None else ()
        leases = leases or d.ask(count=2, key=f"k{d.row().seq}").leases
        if not leases:
            break
        assert d.row().leased == len(leases)
        for spare in leases[1:]:
            d.tell(spare, 1.0)
        lease = leases[0]
    assert d.row().reason == "space_exhausted"
    d.check_log()


def test_minimize_evaluates_each_point_of_a_small_table_once():
    seen = []
    space = {"n": Int(low=0, high=4), "c": Categorical(choices=["a", "b", "c"])}
    result = blackbox.minimize(lambda p: seen.append(tuple(p.values())) or table(p), space, "cma_es", 300)
    assert result.nfev == len(seen) <= 300
    assert len(seen) - len(set(seen)) <= 60
