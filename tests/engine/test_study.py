"""The study: who gets what, what becomes of what is told, how steps close, and that the log is the truth."""

import json
import math
import random

import numpy as np
import pytest

from blackbox.errors import (
    IncompatibleProblem,
    InvalidInput,
    LeaseUnknown,
    StudySpecMismatch,
    StudyStateError,
    TrialNotFound,
)
from blackbox.study.answers import AskRequest
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import Read, Write, perform
from blackbox.study.memory import MemoryStore
from blackbox.study.settling import Report
from tests.engine.studies import Driver, sphere, start


@pytest.fixture(autouse=True, params=[False, True], ids=["closes-outside", "closes-at-once"])
def measures(request, monkeypatch):
    """Every rule holds whether steps are closed by `advance` or in the transaction of the tell."""
    monkeypatch.setattr(Driver, "measures", request.param)


# Leases ---------------------------------------------------------------------------------------------------------------


def test_asking_twice_gives_different_lanes_of_one_step(store):
    d = start(store)
    first, second = d.lease("a"), d.lease("b")
    assert (first.trial.step, second.trial.step) == (0, 0)
    assert (first.trial.lane, second.trial.lane) == (0, 1)
    assert first.point.vector != second.point.vector
    d.check_log()


def test_lapsed_lease_is_given_to_the_next_worker_with_the_same_point(store):
    d = start(store)
    lost = d.lease("dead", lease_seconds=10)
    d.now += 11
    again = d.lease("alive")
    assert again.trial.number == lost.trial.number
    assert again.point == lost.point
    assert (again.trial.attempt, again.trial.lost, again.trial.worker) == (2, 1, "alive")
    assert again.token != lost.token
    d.check_log()


def test_a_lease_that_lapses_too_often_fails_the_trial_for_good(store):
    d = start(store, lease={"max_lost": 2})
    number = d.lease(lease_seconds=1).trial.number
    for _ in range(2):
        d.now += 2
        assert d.lease(lease_seconds=1).trial.number == number
    d.now += 2
    assert d.lease(lease_seconds=1).trial.number != number
    assert d.trial(number).state == "FAILED"
    assert json.loads(d.trial(number).extra)["error"]["type"] == "lost"
    d.check_log()


def test_a_lapsed_lease_that_still_answers_is_applied_and_the_other_holder_is_told_to_abandon(store):
    d = start(store)
    slow = d.lease("slow", lease_seconds=1)
    d.now += 2
    other = d.lease("other")
    assert d.tell(slow, 0.5).outcome == "applied"
    (renewal,) = d.do(d.study.heartbeat([other.token], now=d.now))
    assert renewal.directive == "abandon"
    assert d.tell(other, 0.5).outcome == "duplicate"
    assert d.tell(other, 0.6).outcome == "late_recorded"
    d.check_log()


def test_renewing_keeps_a_lease(store):
    d = start(store)
    lease = d.lease("a", lease_seconds=10)
    d.now += 8
    (renewal,) = d.do(d.study.heartbeat([lease.token], now=d.now, extend_seconds=10))
    assert (renewal.directive, renewal.until) == ("continue", d.now + 10)
    d.now += 8
    assert d.lease("b").trial.number != lease.trial.number


def test_released_costs_nothing_and_goes_to_the_next(store):
    d = start(store)
    lease = d.lease("a")
    assert d.tell(lease, status="released").outcome == "released"
    again = d.lease("b")
    assert again.trial.number == lease.trial.number
    assert (again.trial.failures, again.trial.lost) == (0, 0)
    d.check_log()


def test_retryable_failures_are_requeued_until_the_limit(store):
    d = start(store, lease={"max_attempts": 2})
    lease = d.lease()
    outcome = d.tell(lease, status="failed", extra={"error": {"type": "Oom"}})
    assert (outcome.outcome, outcome.attempts_left) == ("requeued", 1)
    again = d.lease()
    assert again.trial.number == lease.trial.number
    outcome = d.tell(again, status="failed")
    assert (outcome.outcome, outcome.state) == ("applied", "FAILED")
    assert d.row().used == 2  # both evaluations were paid for
    d.check_log()


def test_a_failure_that_cannot_be_retried_is_final_at_once(store):
    d = start(store)
    lease = d.lease()
    assert d.tell(lease, status="failed", retryable=False).state == "FAILED"


def test_a_failure_of_an_old_attempt_does_not_take_the_trial_from_its_new_holder(store):
    d = start(store)
    old = d.lease("a", lease_seconds=1)
    d.now += 2
    new = d.lease("b")
    assert d.tell(old, status="failed").outcome == "duplicate"
    assert d.trial(new.trial.number).state == "LEASED"
    assert d.tell(new, 1.0).outcome == "applied"


def test_a_retried_ask_gets_the_leases_that_are_still_live(store):
    d = start(store)
    first = d.ask(count=3, key="k1").leases
    assert d.ask(count=3, key="k1").leases == first
    d.tell(first[0], 1.0)
    assert [x.trial.number for x in d.ask(count=3, key="k1").leases] == [x.trial.number for x in first[1:]]
    assert {x.trial.number for x in d.ask(count=3, key="k2").leases}.isdisjoint({x.trial.number for x in first})


def test_resume_gives_a_restarted_worker_its_own_leases_first(store):
    d = start(store)
    mine = d.ask("a", count=2).leases
    d.ask("b", count=2)
    resumed = d.ask("a", count=3, resume=True).leases
    assert [x.trial.number for x in resumed[:2]] == [x.trial.number for x in mine]
    assert len(resumed) == 3


def test_parallelism_cap_and_budget_limit_a_grant_and_say_so(store):
    d = start(store, parallelism={"max_leased": 3}, budget={"evaluations": 5})
    asked = d.ask(count=4)
    assert (len(asked.leases), asked.reason) == (3, "parallelism_cap")
    for lease in asked.leases:
        d.tell(lease, 1.0)
    asked = d.ask(count=4)
    assert (len(asked.leases), asked.reason) == (2, "budget_exhausted")
    empty = d.ask()
    assert (empty.leases, empty.reason) == ((), "budget_exhausted")
    for lease in asked.leases:
        d.tell(lease, 1.0)
    done = d.ask()
    assert (done.leases, done.reason, done.row.state) == ((), "completed", "COMPLETED")
    d.check_log()


def test_no_worker_waits_while_all_lanes_of_a_step_are_out(store):
    d = start(store, dim=3)
    leases = [d.lease(f"w{i}") for i in range(40)]
    assert [lease.trial.lane for lease in leases] == list(range(40))
    assert {lease.trial.step for lease in leases} == {0}


def test_a_tell_asks_along_in_the_same_transaction_unless_a_step_has_to_close_outside_first(store):
    d = start(store)
    need = d.study.algorithm(d.row()).need(d.do(d.study.state())[1])
    lease = d.lease()
    for i in range(1, 3 * need + 1):
        d.now += 1.0
        steps = d.study.tell(
            [Report(lease.trial.number, lease.token, value=float(i))], now=d.now, worker="w", ask=AskRequest("w")
        )
        writes, told = written(d, steps)
        assert len(writes) == 1
        assert told.outcomes[0].outcome == "applied"
        closes = i % need == 0
        outside = not d.measures or i == need  # the first step is closed outside, to see how long it takes
        assert told.n_closed == int(closes and not outside)
        assert (told.asked is None) == (closes and outside)
        lease = d.lease() if told.asked is None else told.asked.leases[0]
    assert lease.trial.step == 3
    d.check_log()
    assert d.replayed_equal() == 3


def written(d, steps):
    """The works that an operation wrote, and its answer."""
    works = []

    def counted(effect):
        if not isinstance(effect, Write):
            return effect
        works.append(effect.work)
        return effect

    def watched():
        answer = None
        while True:
            try:
                effect = steps.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = yield counted(effect)

    return works, d.do(watched())


def started(steps):
    """An operation brought to its first write: itself, and the work."""
    effect = next(steps)
    while not isinstance(effect, Write):
        effect = steps.send(effect.work())
    return steps, effect.work


def finished(steps, answer):
    """The answer of an operation that needs nothing after its write."""
    with pytest.raises(StopIteration) as end:
        steps.send(answer)
    return end.value.value


def test_works_of_one_transaction_see_the_step_that_an_earlier_one_of_them_closed(store, monkeypatch):
    monkeypatch.setattr(Driver, "measures", True)
    d = start(store, "random_search", options={"popsize": 4})
    d.evaluate(4)
    leases = [d.lease(f"w{i}") for i in range(4)]
    reports = [Report(lease.trial.number, lease.token, value=1.0) for lease in leases]
    tells = [started(d.study.tell([report], now=d.now, worker="w")) for report in reports]
    asks = [started(d.study.ask(now=d.now, worker=f"v{i}")) for i in range(12)]
    answers = store.write(lambda tx: [work(tx) for _, work in tells + asks])  # one group of the writer
    told = [finished(steps, answer) for (steps, _), answer in zip(tells, answers[:4], strict=True)]
    assert [t.n_closed for t in told] == [0, 0, 0, 1]
    granted = [finished(steps, answer) for (steps, _), answer in zip(asks, answers[4:], strict=True)]
    assert [(g.leases[0].trial.step, g.leases[0].trial.lane) for g in granted] == [(2, lane) for lane in range(12)]
    d.check_log()
    assert d.replayed_equal() == 2


def test_asks_that_miss_the_same_points_all_get_some(store):
    d = start(store, "random_search", dim=70_000, options={"popsize": 64})  # too large to compute any ahead
    d.do(d.study.state())
    asks = [started(d.study.ask(now=d.now, worker=f"v{i}", count=8)) for i in range(4)]
    answers = store.write(lambda tx: [work(tx) for _, work in asks])  # the first one takes what is there
    granted = [finished(asks[0][0], answers[0])]
    for (steps, _), answer in zip(asks[1:], answers[1:], strict=True):
        granted.append(d.do(resumed(steps, answer)))
    assert sorted(lease.trial.lane for asked in granted for lease in asked.leases) == list(range(32))
    d.check_log()


def resumed(steps, answer):
    """The rest of an operation whose first write gave this answer."""
    while True:
        try:
            effect = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = yield effect


def test_a_step_closed_in_a_transaction_that_is_undone_was_never_closed(store, monkeypatch):
    monkeypatch.setattr(Driver, "measures", True)
    d = start(store, "random_search", options={"popsize": 2})
    d.evaluate(3)
    other = d.reopened()
    lease = d.lease()
    steps, work = started(d.study.tell([Report(lease.trial.number, lease.token, value=-7.0)], now=d.now, worker="w"))

    def undone(tx):
        assert work(tx).row.step == 2
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full") as failed:
        store.write(undone)
    with pytest.raises(RuntimeError, match="disk is full"):
        steps.throw(failed.value)
    other.tell(lease, 5.0)  # the same place in the log, with another value
    other.do(other.study.advance(now=d.now))
    assert d.row().step == 2
    assert d.do(d.study.state())[1].value == other.do(other.study.state())[1].value > -7.0
    d.evaluate(3)
    assert d.replayed_equal() == 3


def test_what_a_quick_method_raises_does_not_cost_the_result_that_came(store, monkeypatch):
    monkeypatch.setattr(Driver, "measures", True)
    d = start(store, "random_search", options={"popsize": 2})
    d.evaluate(3)
    lease = d.lease()

    def broken(state, results):
        raise ZeroDivisionError("no such number")

    monkeypatch.setattr(d.study.algorithm(d.row()), "tell", broken)
    assert d.tell(lease, 1.0).outcome == "applied"
    d.do(d.study.advance(now=d.now))
    assert (d.row().state, d.row().used, d.row().step) == ("FAILED", 4, 1)
    monkeypatch.undo()
    d.do(d.study.resume(now=d.now))
    d.do(d.study.advance(now=d.now))
    assert d.row().step == 2
    d.check_log()


def test_a_forged_token_is_refused_and_changes_nothing(store):
    d = start(store)
    lease = d.lease()
    outcome = d.do(d.study.tell([Report(lease.trial.number, lease.token[:-1] + "x", value=1.0)], now=d.now)).outcomes[0]
    assert outcome.outcome == "rejected"
    assert isinstance(outcome.error, LeaseUnknown)
    assert d.trial(lease.trial.number).state == "LEASED"


def test_a_token_of_another_trial_is_refused(store):
    d = start(store)
    a, b = d.lease(), d.lease()
    outcome = d.do(d.study.tell([Report(a.trial.number, b.token, value=1.0)], now=d.now)).outcomes[0]
    assert isinstance(outcome.error, LeaseUnknown)


def test_a_study_may_insist_on_lease_tokens(store):
    d = start(store, require_lease=True)
    lease = d.lease()
    outcome = d.do(d.study.tell([Report(lease.trial.number, value=1.0)], now=d.now)).outcomes[0]
    assert "lease token" in str(outcome.error)
    assert d.tell(lease, 1.0).outcome == "applied"


def test_an_unknown_trial_is_an_item_error_and_its_neighbours_are_applied(store):
    d = start(store)
    lease = d.lease()
    told = d.do(d.study.tell([Report(99, value=1.0), Report(lease.trial.number, lease.token, value=2.0)], now=d.now))
    assert [o.outcome for o in told.outcomes] == ["rejected", "applied"]
    assert isinstance(told.outcomes[0].error, TrialNotFound)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_is_refused_with_a_hint_or_taken_as_infeasible(store, value):
    d = start(store)
    lease = d.lease()
    outcome = d.tell(lease, value)
    assert outcome.outcome == "rejected"
    assert '"status":"infeasible"' in outcome.error.hint
    lenient = start(store, name="lenient", non_finite="infeasible")
    assert lenient.tell(lenient.lease(), value).state == "INFEASIBLE"


def test_telling_twice_is_a_duplicate_and_another_value_is_recorded_beside_it(store):
    d = start(store)
    lease = d.lease()
    assert d.tell(lease, 1.0).outcome == "applied"
    assert d.tell(lease, 1.0).outcome == "duplicate"
    assert d.tell(lease, 2.0).outcome == "late_recorded"
    row = d.row()
    assert (row.used, row.best_value) == (1, 1.0)
    assert [(x.number, x.value) for x in store.read(lambda tx: tx.late(d.study.id, 0, 10))] == [(1, 2.0)]
    d.check_log()


def test_a_result_for_a_superseded_trial_may_still_improve_the_best(store):
    d = start(store)
    slow = d.lease("slow")
    d.evaluate(40, lambda x: 5.0 + sphere(x))
    assert d.trial(slow.trial.number).state == "SUPERSEDED"
    outcome = d.tell(slow, 0.001)
    assert (outcome.outcome, outcome.best_so_far) == ("late_recorded", True)
    assert d.row().best_trial == slow.trial.number
    assert d.tell(slow, 0.001).outcome == "duplicate"
    d.check_log()
    d.replayed_equal()


def test_a_heartbeat_for_a_superseded_trial_says_abandon(store):
    d = start(store)
    slow = d.lease("slow")
    d.evaluate(40)
    (renewal,) = d.do(d.study.heartbeat([slow.token], now=d.now))
    assert renewal.directive == "abandon"


def test_a_worker_that_keeps_failing_is_backed_off_and_alone_pauses_the_study(store):
    d = start(store)
    d.tell(d.lease(), 1.0)
    for _ in range(19):
        d.tell(d.lease(), status="failed")
    assert d.row().state == "ACTIVE"
    d.tell(d.lease(), status="failed")
    row = d.row()
    assert row.state == "PAUSED"
    assert "20 times" in row.reason
    assert d.ask().reason == "paused"
    d.do(d.study.resume(now=d.now))
    assert d.ask().leases


def test_failures_that_use_up_the_budget_fail_the_study_and_are_answered(store):
    d = start(store, budget={"evaluations": 9}, lease={"max_attempts": 1})
    errors = [{"error": {"type": f"Error{i}", "message": ""}} for i in range(9)]
    outcomes = [d.tell(d.lease(), status="failed", extra=error) for error in errors]
    assert {o.state for o in outcomes} == {"FAILED"}
    assert (d.row().state, d.row().reason[:19]) == ("FAILED", "the budget is spent")
    d.check_log()


def test_one_failing_worker_among_good_ones_does_not_pause_the_study(store):
    d = start(store)
    d.tell(d.lease("good"), 1.0, worker="good")
    for _ in range(20):
        d.tell(d.lease("bad"), status="failed", worker="bad")
    assert d.row().state == "ACTIVE"
    assert d.ask("bad").reason == "worker_backed_off"
    assert d.ask("good").leases
    d.now += 31
    assert d.ask("bad").leases


# Steps ----------------------------------------------------------------------------------------------------------------


def test_a_step_closes_on_the_first_enough_results_whoever_brings_them(store):
    d = start(store, dim=3)
    need = d.study.algorithm(d.row()).need(d.do(d.study.state())[1])
    leases = [d.lease(f"w{i}") for i in range(need + 3)]
    for lease in reversed(leases[4:]):
        d.tell(lease, sphere(d.point(lease)))
    assert d.do(d.study.advance(now=d.now)) == 0
    d.tell(leases[0], 1.0)
    assert d.do(d.study.advance(now=d.now)) == 1
    (record,) = store.read(lambda tx: tx.steps(d.study.id, 0, 9))
    assert (record.told, record.why) == (need, "need")
    d.replayed_equal()


def test_replay_gives_the_recorded_digest_at_every_step(store):
    for algorithm in ("cma_es", "random_search"):
        d = start(store, algorithm, name=algorithm)
        d.evaluate(100)
        assert d.replayed_equal() == d.row().step >= 10


def test_two_instances_of_one_study_agree_and_a_lost_race_reads_again(store):
    a = start(store)
    b = a.reopened()
    rng = random.Random(1)
    for _ in range(150):
        driver = rng.choice([a, b])
        lease = driver.lease()
        driver.tell(lease, sphere(driver.point(lease)))
    for driver in (a, b):
        driver.do(driver.study.advance(now=driver.now))
    assert a.row() == b.row()
    a.check_log()
    assert a.replayed_equal() >= 15


def test_what_an_instance_remembers_of_a_lease_does_not_outweigh_the_store(store):
    a = start(store, "random_search", options={"popsize": 4})
    b = a.reopened()
    withdrawn, lapsed = a.lease("a", lease_seconds=10.0), a.lease("a", lease_seconds=10.0)
    b.do(b.study.cancel_trial(withdrawn.trial.number, now=b.now))
    b.now = a.now = a.now + 60.0
    again = b.lease("b")
    assert (again.trial.number, again.trial.attempt) == (lapsed.trial.number, 2)
    reports = [Report(lease.trial.number, lease.token, value=1.0) for lease in (withdrawn, lapsed)]
    told = a.do(a.study.tell(reports, now=a.now, worker="a"))
    assert [o.outcome for o in told.outcomes] == ["late_recorded", "applied"]
    kept = a.trial(lapsed.trial.number)
    assert (kept.attempt, kept.lost, kept.worker, kept.state) == (2, 1, "a", "COMPLETED")
    assert a.trial(withdrawn.trial.number).state == "CANCELLED"
    assert b.tell(again, 2.0, worker="b").outcome == "late_recorded"
    a.check_log()


def test_results_that_others_logged_are_told_too(store):
    a = start(store, "random_search", options={"popsize": 4})
    b = a.reopened()
    a.evaluate(5)  # a has heard everything so far
    for driver, value in ((a, 3.0), (b, -5.0), (a, 2.0), (b, 4.0)):
        driver.tell(driver.lease(), value)
    for driver in (a, b):
        driver.do(driver.study.advance(now=a.now))
        assert driver.do(driver.study.state())[1].value == -5.0
    a.tell(a.lease(), 9.0)
    a.do(a.study.pause(now=a.now))  # takes a place in the log as well
    a.do(a.study.resume(now=a.now))
    a.evaluate(8)
    a.check_log()
    assert a.replayed_equal() == b.row().step == 4


def test_a_trial_released_and_then_completed_in_one_tell_takes_its_place_by_its_result(store):
    d = start(store, "random_search", options={"popsize": 2})
    d.evaluate(3)  # one result is waiting, so the next one closes the step
    first, second = d.lease(), d.lease()
    reports = [
        Report(first.trial.number, first.token, "released"),
        Report(second.trial.number, second.token, value=1.0),
        Report(first.trial.number, first.token, value=-9.0),
    ]
    told = d.do(d.study.tell(reports, now=d.now, worker="w"))
    assert [o.outcome for o in told.outcomes] == ["released", "applied", "applied"]
    d.do(d.study.advance(now=d.now))
    assert (d.row().step, d.row().waiting, d.row().upto_seq) == (2, 1, d.trial(second.trial.number).seq)
    d.evaluate(1)
    assert d.do(d.study.state())[1].value == -9.0
    d.check_log()
    assert d.replayed_equal() == 3


def test_a_swap_is_refused_when_the_row_has_moved_on(store):
    a = start(store)
    need = a.study.algorithm(a.row()).need(a.do(a.study.state())[1])
    leases = [a.lease() for _ in range(need)]
    for lease in leases:
        a.tell(lease, sphere(a.point(lease)))
    b = a.reopened()
    # Run b's advance up to its swap, let a win, then go on.
    steps = b.study.advance(now=1.0)
    effect = steps.send(None)
    while not isinstance(effect, Write):
        effect = steps.send(store.read(effect.work) if isinstance(effect, Read) else effect.work())
    assert a.do(a.study.advance(now=a.now)) == 1

    def finish():
        effect_ = steps.send(store.write(effect.work))
        while True:
            effect_ = steps.send(store.read(effect_.work) if isinstance(effect_, Read) else effect_.work())

    with pytest.raises(StopIteration) as end:
        finish()
    assert end.value.value == 0
    assert a.row().step == 1
    a.check_log()


def test_the_order_of_arrival_within_a_step_does_not_change_the_state(store):
    digests = set()
    for order in ("forward", "backward"):
        d = start(store, name=order)
        need = d.study.algorithm(d.row()).need(d.do(d.study.state())[1])
        leases = [d.lease() for _ in range(need)]
        for lease in leases if order == "forward" else reversed(leases):
            d.tell(lease, sphere(d.point(lease)))
        d.do(d.study.advance(now=d.now))
        digests.add(store.read(lambda tx, d=d: tx.steps(d.study.id, 0, 1))[0].digest)
    assert len(digests) == 1


def test_members_are_never_in_two_flights(store):
    d = start(store, "cbo", options={"popsize": 8}, noise="none")
    leases = d.ask(count=20).leases
    assert sorted(lease.trial.lane for lease in leases) == list(range(8))
    assert d.ask().reason == "all_members_in_flight"
    rng = random.Random(2)
    out = {lease.trial.lane: lease for lease in leases}
    for _ in range(60):
        lane = rng.choice(sorted(out))
        d.tell(out.pop(lane), rng.random())
        lease = d.lease()
        assert lease.trial.lane not in out
        out[lease.trial.lane] = lease
    d.check_log()
    assert d.replayed_equal() == 60


def test_members_that_all_fail_for_good_do_not_block_the_study(store):
    d = start(store, "cbo", options={"popsize": 4}, lease={"max_attempts": 1})
    for i in range(4):
        d.tell(d.lease(f"w{i}"), status="failed", worker=f"w{i}")
    again = d.lease("w9")
    assert again.trial.step == 1
    assert store.read(lambda tx: tx.steps(d.study.id, 0, 1))[0].why == "stalled"


def test_a_sequential_method_hands_out_one_point_at_a_time(store):
    d = start(store, "nelder_mead")
    first = d.lease("a")
    assert d.ask("b").reason == "sequential_method"
    d.tell(first, sphere(d.point(first)))
    second = d.lease("b")
    assert second.trial.step == 1
    d.evaluate(0)
    d.tell(second, sphere(d.point(second)))
    d.evaluate(100)
    assert d.row().best_value < 0.1
    d.replayed_equal()


def test_a_sequential_method_gets_a_barrier_for_a_point_that_failed_for_good(store):
    d = start(store, "nelder_mead", lease={"max_attempts": 1})
    d.evaluate(5)
    d.tell(d.lease(), status="failed")
    d.evaluate(60)
    assert d.row().best_value < 1.0
    d.replayed_equal()


def test_recipe_candidates_are_rebuilt_from_their_base(store):
    d = start(store, "openai_es", dim=50)
    lease = d.lease()
    assert lease.point.vector is None
    assert lease.point.recipe is not None
    d.evaluate(120)
    best = d.do(d.study.best())
    assert len(best[1]["x"]) == 50
    assert sphere(best[1]["x"]) == pytest.approx(best[0].value, rel=1e-5)
    d.replayed_equal()


def test_bases_are_dropped_when_no_open_trial_and_not_the_best_names_them(store):
    d = start(store, "openai_es", dim=20, options={"popsize": 4})
    d.evaluate(60)
    row = d.row()
    kept = store.read(lambda tx: [step for step in range(row.step + 1) if tx.blob_at(d.study.id, step)])
    assert len(kept) <= 3


def test_maximizing_is_minimizing_the_negative(store):
    low = start(store, name="low")
    high = start(store, name="high", direction="maximize")
    low.evaluate(50, sphere)
    high.evaluate(50, lambda x: -sphere(x))
    assert high.row().best_value == -low.row().best_value
    digests = [[s.digest for s in store.read(lambda tx, d=d: tx.steps(d.study.id, 0, 99))] for d in (low, high)]
    assert digests[0] == digests[1]


def test_infeasible_points_rank_last_and_failed_ones_are_not_told(store):
    d = start(store)
    rng = random.Random(3)
    for i in range(120):
        lease = d.lease()
        what = rng.random()
        if what < 0.2:
            d.tell(lease, status="infeasible")
        elif what < 0.3:
            d.tell(lease, status="failed", retryable=False, worker=f"w{i}")
        else:
            d.tell(lease, sphere(d.point(lease)))
    d.do(d.study.advance(now=d.now))
    records = store.read(lambda tx: tx.steps(d.study.id, 0, 99))
    assert len(records) >= 10
    d.replayed_equal()
    d.check_log()


def test_a_method_that_raises_fails_the_study_and_keeps_the_old_state(store, monkeypatch):
    d = start(store)
    d.evaluate(20)
    before = d.row()
    algorithm = type(d.study.algorithm(before))
    with monkeypatch.context() as broken:
        broken.setattr(algorithm, "tell", lambda *_: (_ for _ in ()).throw(np.linalg.LinAlgError("no convergence")))
        for lease in [d.lease() for _ in range(10)]:
            d.tell(lease, 1.0)
        d.do(d.study.advance(now=d.now))
        row = d.row()
        assert (row.state, row.step) == ("FAILED", before.step)
        assert "no convergence" in row.reason
        assert d.ask(advance=False).reason == "study_failed"
    d.do(d.study.resume(now=d.now))
    assert d.do(d.study.advance(now=d.now)) >= 1
    assert d.row().state == "ACTIVE"
    d.check_log()


def test_closing_a_step_by_hand_tells_what_is_there(store):
    d = start(store)
    lease = d.lease()
    d.tell(lease, 1.0)
    assert d.do(d.study.close(now=d.now, why="deadline")) == 1
    (record,) = store.read(lambda tx: tx.steps(d.study.id, 0, 9))
    assert (record.why, record.told) == ("deadline", 1)
    d.replayed_equal()


# The study's life -----------------------------------------------------------------------------------------------------


def test_creating_twice_returns_the_first_and_another_spec_is_a_mismatch_with_the_fields(store):
    raw = {"name": "a", "space": {"x": {"type": "float", "low": 0, "high": 1}}}
    head, made = perform(store, create("default", raw, 1.0))
    again, made_again = perform(store, create("default", raw, 2.0))
    assert (made, made_again, again.id) == (True, False, head.id)
    with pytest.raises(StudySpecMismatch) as caught:
        perform(store, create("default", {**raw, "direction": "maximize"}, 3.0))
    assert [e.pointer for e in caught.value.errors] == ["/direction"]
    other, made = perform(store, create("other-project", {**raw, "direction": "maximize"}, 3.0))
    assert made
    assert other.id != head.id


def test_the_order_of_parameters_survives_storing(store):
    space = {n: {"type": "float", "low": i, "high": i + 1} for i, n in enumerate("zyxabc")}
    head, _ = perform(store, create("default", {"name": "a", "space": space}, 1.0))
    assert Study(store.read(lambda tx: tx.head(head.id))).space.names == tuple("zyxabc")


def test_auto_is_resolved_when_the_study_is_created_and_says_why(store):
    raw = {"name": "a", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "budget": {"evaluations": 100}}
    head, _ = perform(store, create("default", raw, 1.0))
    resolved = Study(head).resolved
    assert resolved.algorithm == "cma_es"
    assert "1 continuous-like dimension" in resolved.reason
    assert resolved.options["popsize"] >= 4


@pytest.mark.parametrize(
    ("change", "pointer", "word"),
    [
        ({"nme": "x"}, "/nme", "name"),
        ({"budget": {"evals": 3}}, "/budget/evals", "evaluations"),
        ({"direction": "up"}, "/direction", "minimize"),
        ({"budget": {"evaluations": 0}}, "/budget/evaluations", "greater than or equal to 1"),
        ({"target": math.nan}, "/target", "finite"),
        ({"space": {}}, None, None),
        ({"algorithm": {"name": "cma_ess"}}, None, "cma_es"),
        ({"algorithm": {"name": "cma_es", "options": {"popsiz": 3}}}, "/popsiz", "popsize"),
    ],
)
def test_a_bad_spec_is_refused_with_pointer_and_hint(change, pointer, word):
    raw = {"name": "a", "space": {"x": {"type": "float", "low": 0, "high": 1}}, **change}
    with pytest.raises((InvalidInput, KeyError)) as caught:
        perform(MemoryStore(), create("default", raw, 1.0))
    if pointer is not None:
        assert pointer in [e.pointer for e in caught.value.errors]
    if word is not None:
        assert word in str(caught.value)


def test_pause_takes_results_but_hands_out_nothing(store):
    d = start(store)
    lease = d.lease()
    d.do(d.study.pause(now=d.now))
    assert d.ask().reason == "paused"
    assert d.tell(lease, 1.0).outcome == "applied"
    d.do(d.study.resume(now=d.now))
    assert d.ask().leases
    d.check_log()


def test_cancel_withdraws_what_is_out_and_later_results_are_only_recorded(store):
    d = start(store)
    lease = d.lease()
    d.do(d.study.cancel(now=d.now))
    assert d.trial(lease.trial.number).state == "CANCELLED"
    assert d.ask().reason == "cancelled"
    assert d.tell(lease, 1.0).outcome == "late_recorded"
    assert d.row().leased == 0
    with pytest.raises(StudyStateError, match="CANCELLED"):
        d.do(d.study.resume(now=d.now))
    d.check_log()


def test_target_deadline_and_cost_end_a_study(store):
    d = start(store, name="t", target=0.5)
    d.tell(d.lease(), 0.6)
    assert d.row().state == "ACTIVE"
    d.tell(d.lease(), 0.5)
    assert (d.row().state, d.row().reason) == ("COMPLETED", "target")
    d = start(store, name="d", budget={"deadline": "1970-01-01T00:20:00Z"})
    assert d.ask().leases
    d.now = 1201.0
    assert d.ask().reason == "completed"
    d = start(store, name="c", budget={"max_cost": 1.0})
    d.tell(d.lease(), 1.0, extra={"cost": {"usd": 0.6}})
    d.tell(d.lease(), 1.0, extra={"cost": {"usd": 0.6}})
    assert d.row().reason == "max_cost"


def test_raising_the_budget_of_a_completed_study_makes_it_active_again(store):
    d = start(store, budget={"evaluations": 2})
    d.evaluate(2)
    assert d.row().state == "COMPLETED"
    d.do(d.study.edit(budget=d.study.spec.budget.model_copy(update={"evaluations": 4})))
    assert d.row().state == "ACTIVE"
    d.evaluate(2)
    assert d.row().state == "COMPLETED"
    assert d.reopened().study.spec.budget.evaluations == 4


def test_leases_granted_after_an_edit_run_as_it_says_and_are_as_many(store):
    d = start(store, lease={"default_seconds": 100.0})
    before = d.lease()
    limits = d.study.spec.lease.model_copy(update={"default_seconds": 7.0, "max_lost": 0})
    d.do(d.study.edit(lease=limits, parallelism=d.study.spec.parallelism.model_copy(update={"max_leased": 2})))
    after = d.lease()
    assert (before.trial.until, after.trial.until) == (d.now + 100.0, d.now + 7.0)
    assert d.ask().reason == "parallelism_cap"
    d.now += 10.0
    again = d.lease()
    assert again.trial.number not in (before.trial.number, after.trial.number)
    assert d.trial(after.trial.number).state == "FAILED"  # lost once, which is once too often now
    assert d.reopened().study.spec.lease == limits


def test_enqueued_points_are_handed_out_first_and_survive_the_closing_of_steps(store):
    d = start(store)
    d.lease("other")
    (number,) = d.do(d.study.enqueue([{"x": [0.0, 0.0, 0.0]}], now=d.now))
    lease = d.lease("w")
    assert lease.trial.number == number
    assert d.study.params(lease.point)["x"].tolist() == [0.0, 0.0, 0.0]
    d.tell(lease, status="released")
    for i in range(40):
        free = d.ask(f"w{i}", count=2).leases
        for item in free:
            if item.trial.number != number:
                d.tell(item, 5.0 + sphere(d.point(item)))
            else:
                d.tell(item, status="released")
    assert d.row().step >= 2
    assert d.tell(d.lease(), 0.0).best_so_far
    d.check_log()


def test_points_told_from_outside_are_recorded_and_may_be_the_best(store):
    d = start(store)
    vector = d.study.space.encode({"x": [0.1, 0.0, 0.0]}).tobytes()
    report = Report(None, value=0.01, vector=vector, params='{"x":[0.1,0.0,0.0]}', source="previous-study")
    (outcome,) = d.do(d.study.tell([report], now=d.now)).outcomes
    assert (outcome.outcome, outcome.best_so_far) == ("injected", True)
    d.evaluate(60)
    assert d.trial(outcome.trial).source == "previous-study"
    d.check_log()
    d.replayed_equal()


def test_cancelled_and_requeued_trials(store):
    d = start(store)
    lease = d.lease()
    d.do(d.study.cancel_trial(lease.trial.number, now=d.now))
    assert d.do(d.study.heartbeat([lease.token], now=d.now))[0].directive == "abandon"
    d.do(d.study.requeue_trial(lease.trial.number, now=d.now))
    again = d.lease()
    assert again.trial.number == lease.trial.number
    d.tell(again, 1.0)
    with pytest.raises(StudyStateError, match="has a result"):
        d.do(d.study.requeue_trial(lease.trial.number, now=d.now))
    with pytest.raises(TrialNotFound):
        d.do(d.study.cancel_trial(77, now=d.now))
    d.check_log()


# History --------------------------------------------------------------------------------------------------------------


def test_taking_back_a_result_gives_the_state_of_a_replay_without_it(store):
    d = start(store)
    d.evaluate(70)
    poisoned = 24
    before = [s.digest for s in store.read(lambda tx: tx.steps(d.study.id, 0, 99))]
    assert d.do(d.study.invalidate(trial=poisoned, now=d.now)) == 1
    after = [s.digest for s in store.read(lambda tx: tx.steps(d.study.id, 0, 99))]
    at = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
    assert at == (poisoned - 1) // d.study.algorithm(d.row()).need(d.do(d.study.state())[1])
    assert d.replayed_equal() == len(after)
    assert d.reopened().replayed_equal() == len(after)
    d.evaluate(30)
    d.replayed_equal()
    d.check_log()


def test_taking_back_the_best_result_makes_the_next_one_best(store):
    d = start(store)
    d.evaluate(30)
    best = d.row().best_trial
    d.do(d.study.invalidate(trial=best, now=d.now))
    row = d.row()
    assert row.best_trial != best
    values = {t.number: t.value for t in store.read(lambda tx: tx.told(d.study.id, 0, 10**6)) if t.number != best}
    assert row.best_value == min(values.values())


def test_a_workers_results_are_taken_back_together(store):
    d = start(store)
    for i in range(40):
        worker = "bad" if i % 4 == 0 else "good"
        lease = d.lease(worker)
        d.tell(lease, -100.0 if worker == "bad" else sphere(d.point(lease)), worker=worker)
    d.do(d.study.advance(now=d.now))
    assert d.row().best_value == -100.0
    assert d.do(d.study.invalidate(worker="bad", now=d.now)) == 10
    assert d.row().best_value > 0
    d.replayed_equal()


def test_a_sequential_run_goes_on_after_a_result_was_taken_back(store):
    d = start(store, "nelder_mead")
    d.evaluate(30)
    d.do(d.study.invalidate(trial=12, now=d.now))
    d.replayed_equal()
    d.evaluate(80)
    assert d.row().best_value < 0.5
    d.replayed_equal()


def test_a_fork_keeps_the_past_and_has_a_future_of_its_own(store):
    d = start(store)
    d.evaluate(20)
    d.tell(d.lease("slow"), 1.0)
    d.do(d.study.tell([Report(7, value=-1.0), Report(7, value=-2.0)], now=d.now))  # late, beside the first value
    d.evaluate(49)
    head = d.do(d.study.fork("branch", now=d.now, step=5))
    branch = Driver(store, Study(head), d.now)
    assert branch.row().step == 5
    branch.check_log()
    records = [store.read(lambda tx, i=i: tx.steps(i, 0, 5)) for i in (d.study.id, head.id)]
    assert [r.digest for r in records[0]] == [r.digest for r in records[1]]
    lease = branch.lease()
    theirs = store.read(lambda tx: {p.vector for p in tx.points(d.study.id, range(1, d.row().trials + 1)).values()})
    assert lease.point.vector not in theirs
    branch.tell(lease, sphere(branch.point(lease)))
    branch.evaluate(40)
    assert branch.replayed_equal() > 5
    assert branch.reopened().replayed_equal() > 5
    second = Driver(store, Study(branch.do(branch.study.fork("twig", now=d.now))), d.now)
    second.evaluate(20)
    assert second.replayed_equal() > branch.row().step
    second.check_log()


def test_a_fork_takes_along_a_failure_that_was_told_for_a_withdrawn_trial(store):
    d = start(store, "random_search", options={"popsize": 4})
    slow = d.lease("slow")
    d.do(d.study.cancel_trial(slow.trial.number, now=d.now))
    assert d.tell(slow, status="failed").outcome == "late_recorded"
    d.evaluate(4)
    assert d.tell(slow, 0.5).outcome == "late_recorded"
    d.evaluate(4)
    for name, step in (("before", 1), ("after", None)):
        branch = Driver(store, Study(d.do(d.study.fork(name, now=d.now, step=step))), d.now)
        branch.check_log()
        assert branch.replayed_equal() == branch.row().step
        branch.evaluate(8)
        branch.check_log()


def test_a_fork_with_another_algorithm_gets_the_results_as_points_it_did_not_choose(store):
    d = start(store, "random_search")
    d.evaluate(40)
    head = d.do(d.study.fork("cma", now=d.now, algorithm={"name": "cma_es"}))
    branch = Driver(store, Study(head), d.now)
    assert branch.study.resolved.algorithm == "cma_es"
    assert branch.row().best_value == d.row().best_value
    branch.evaluate(80)
    assert branch.row().best_value < d.row().best_value
    branch.replayed_equal()
    branch.check_log()


def test_a_fork_of_a_recipe_study_to_a_dense_method_gets_its_points_as_numbers(store):
    d = start(store, "openai_es", dim=6, options={"popsize": 6})
    told = {}
    for _ in range(40):
        lease = d.lease()
        told[lease.trial.number] = d.point(lease)
        d.tell(lease, sphere(told[lease.trial.number]))
    d.do(d.study.advance(now=d.now))
    head = d.do(d.study.fork("cma", now=d.now, algorithm={"name": "cma_es"}))
    branch = Driver(store, Study(head), d.now)
    vectors = [branch.study.vector(p) for p in store.read(lambda tx: tx.points(head.id, range(1, 41))).values()]
    assert [v.tolist() for v in vectors] == [v.tolist() for v in told.values()]
    branch.evaluate(40)
    branch.replayed_equal()
    branch.check_log()


def test_the_archive_holds_every_told_point_with_its_replicates(store):
    d = start(store, direction="maximize")
    lease = d.lease()
    d.tell(lease, 1.0, extra={"stderr": 0.5})
    d.tell(lease, 3.0)
    d.evaluate(20, lambda x: -sphere(x))
    archive, numbers = d.do(d.study.archive())
    assert (len(archive), numbers[0]) == (21, lease.trial.number)
    assert (archive.mean[0], archive.n[0], archive.stderr[0]) == (-2.0, 2, 1.0)
    assert numbers[archive.best()[0]] == lease.trial.number
    recipes = start(store, "openai_es", name="recipes")
    with pytest.raises(IncompatibleProblem, match="recipes"):
        recipes.do(recipes.study.archive())


def test_a_past_state_can_be_looked_at(store):
    d = start(store)
    d.evaluate(70)
    row, early = d.do(d.study.state(3))
    assert early.step == 3
    assert d.do(d.study.state())[1].step == row.step
    with pytest.raises(InvalidInput, match="between 0 and"):
        d.do(d.study.state(row.step + 1))


def test_snapshots_are_thinned_and_a_reopened_study_continues_from_the_newest(store, monkeypatch):
    monkeypatch.setattr("blackbox.study.pace.SNAPSHOT_STEPS", 4)
    d = start(store)
    d.evaluate(300)
    steps = store.read(lambda tx: tx.snapshot_steps(d.study.id, 0))
    assert 3 <= len(steps) <= 10
    assert steps[-1] >= d.row().step - 8
    fresh = d.reopened()
    assert fresh.do(fresh.study.state())[1].step == d.row().step
    fresh.evaluate(30)
    assert fresh.replayed_equal() == fresh.row().step


def test_a_long_asynchronous_run_with_lost_late_and_failed_results_replays_exactly(store):
    d = start(store, dim=4)
    rng = random.Random(7)
    out = []
    for _ in range(1000):
        d.now += rng.random() * 3
        while len(out) < 12:
            out.append(d.lease(f"w{len(out)}", lease_seconds=rng.choice([5, 50, 500])))
        lease = out.pop(rng.randrange(len(out)))
        fate = rng.random()
        if fate < 0.2:
            continue
        if fate < 0.25:
            d.tell(lease, status="failed", worker=None)
        elif fate < 0.3:
            d.tell(lease, status="infeasible", worker=None)
        else:
            d.tell(lease, sphere(d.point(lease)), worker=None)
            if fate > 0.9:
                d.tell(lease, sphere(d.point(lease)), worker=None)
    d.do(d.study.advance(now=d.now))
    d.check_log()
    assert d.replayed_equal() == d.row().step >= 60
    assert d.row().best_value < 0.05
