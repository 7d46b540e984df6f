"""What a study counts and what it believes: a budget bounds what is handed out, a real value outweighs a timer."""

import heapq
import json
import random
import sys

import pytest

from blackbox.study.editing import Study
from blackbox.study.effects import Compute, at_once, drive, in_place
from blackbox.study.settling import Report
from tests.engine.studies import Driver, sphere, start


@pytest.fixture(autouse=True, params=[False, True], ids=["closes-outside", "closes-at-once"])
def measures(request, monkeypatch):
    monkeypatch.setattr(Driver, "measures", request.param)


def need(d: Driver) -> int:
    return d.study.algorithm(d.row()).need(d.do(d.study.state())[1])


def fleet(d: Driver, n_workers: int, seed: int = 0) -> int:
    """Evaluate until the study grants nothing and nothing is out, each evaluation for a time of its own; how many."""
    rng = random.Random(seed)
    out, n = [], 0
    while True:
        while len(out) < n_workers and (leases := d.ask(f"w{n}").leases):
            n += 1
            heapq.heappush(out, (d.now + rng.expovariate(1.0), n, leases[0], sphere(d.point(leases[0]))))
        if not out:
            return n
        d.now, _, lease, value = heapq.heappop(out)
        d.tell(lease, value)


# A budget -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["cma_es", "openai_es", "mezo", "cbo"])
def test_a_budget_bounds_the_evaluations_that_are_made_and_all_of_them_are_counted(store, algorithm):
    d = start(store, algorithm, budget={"evaluations": 60}, options={"popsize": 6})
    made = fleet(d, 7)
    row = d.row()
    assert (made, row.used, row.state, row.reason) == (60, 60, "COMPLETED", "budget")
    assert (row.leased, row.queued) == (0, 0)
    if algorithm != "cbo":
        assert row.late == sum(t.state == "SUPERSEDED" for t in store.read(lambda tx: tx.page(d.study.id, 0, 99, ())))
        assert row.late > 0
    d.check_log()
    d.replayed_equal()


def test_a_study_whose_last_evaluations_come_late_ends_by_its_budget(store):
    d = start(store)
    slow = d.lease("slow")
    d.evaluate(3 * need(d))
    used = d.row().used
    d.do(d.study.edit(budget=d.study.spec.budget.model_copy(update={"evaluations": used + 1})))
    empty = d.ask()
    assert (empty.leases, empty.reason, empty.retry_after, empty.row.state) == ((), "budget_exhausted", 1.0, "ACTIVE")
    assert d.tell(slow, 7.0).outcome == "late_recorded"
    row = d.row()
    assert (row.used, row.late, row.state, row.reason) == (used + 1, 1, "COMPLETED", "budget")
    assert d.ask().reason == "completed"


def test_a_withdrawn_evaluation_that_is_never_told_lapses_and_another_is_granted(store):
    d = start(store)
    d.lease("dead", lease_seconds=1000.0)
    d.evaluate(3 * need(d))
    d.do(d.study.edit(budget=d.study.spec.budget.model_copy(update={"evaluations": d.row().used + 1})))
    assert d.ask().reason == "budget_exhausted"
    d.now += 1000.0
    d.tell(d.lease(), 1.0)
    assert (d.row().state, d.row().late) == ("COMPLETED", 0)


def test_a_withdrawn_evaluation_that_is_given_back_costs_nothing(store):
    d = start(store)
    slow = d.lease("slow")
    d.evaluate(3 * need(d))
    d.do(d.study.edit(budget=d.study.spec.budget.model_copy(update={"evaluations": d.row().used + 1})))
    assert not d.ask().leases
    d.tell(slow, status="released")
    assert d.lease()
    assert d.row().withdrawn == 0


def test_each_failed_attempt_is_an_evaluation_of_the_budget(store):
    d = start(store, budget={"evaluations": 7}, lease={"max_attempts": 3})
    d.evaluate(1)
    n = 1
    while leases := d.ask("w").leases:
        n += 1
        d.tell(leases[0], status="failed")
    assert (n, d.row().used, d.row().reason) == (7, 7, "budget")


def test_repeating_a_failure_or_a_late_value_does_not_count_twice(store):
    d = start(store)
    broken = d.lease("broken")
    assert [d.tell(broken, status="failed").outcome for _ in range(3)] == ["requeued", "duplicate", "duplicate"]
    assert (d.row().used, d.trial(broken.trial.number).failures) == (1, 1)
    first = d.lease("first", lease_seconds=1.0)
    d.now += 2.0
    second = d.lease("second")
    assert first.trial.number == second.trial.number == broken.trial.number
    d.tell(second, 1.0)
    for _ in range(3):
        d.tell(first, 2.0)
    assert (d.row().used, d.row().late) == (3, 1)  # three leases, three evaluations
    d.check_log()


def test_injected_points_and_released_leases_cost_nothing(store):
    d = start(store, budget={"evaluations": 5})
    vector = d.study.space.initial.astype("<f8").tobytes()
    d.do(d.study.tell([Report(value=3.0, vector=vector, params='{"x": [1.0, 1.0, 1.0]}')], now=d.now))
    d.tell(d.lease(), status="released")
    assert (d.row().used, len(d.ask(count=9).leases)) == (0, 5)


def test_a_reached_target_ends_the_study_at_once_and_what_is_out_is_told_and_counted(store):
    d = start(store, target=0.5, budget={"evaluations": 100})
    good, other = d.lease("a"), d.lease("b")
    d.tell(good, 0.1)
    assert (d.row().state, d.row().reason, d.ask().reason) == ("COMPLETED", "target", "completed")
    assert d.tell(other, 0.05).outcome == "applied"
    assert (d.row().used, d.row().best_value) == (2, 0.05)


def test_a_fork_and_a_result_taken_back_keep_the_counters(store):
    d = start(store)
    slow = d.lease("slow")
    d.evaluate(2 * need(d))
    d.tell(slow, 9.0)
    d.evaluate(2 * need(d))
    row = d.row()
    branch = Driver(store, Study(d.do(d.study.fork("branch", now=d.now))), d.now)
    assert (branch.row().used, branch.row().late) == (row.used, row.late) == (4 * need(d) + 1, 1)
    d.do(d.study.invalidate(trial=slow.trial.number, now=d.now))
    assert (d.row().used, d.row().late) == (row.used - 1, 0)


# Evidence -------------------------------------------------------------------------------------------------------------


def lapse(d: Driver, n: int = 3) -> list:
    """Leases of one trial that lapse one after another, until a timer calls it FAILED."""
    leases = [d.lease(f"lost{i}", lease_seconds=1.0) for i in range(1)]
    for i in range(1, n):
        d.now += 2.0
        leases.append(d.lease(f"lost{i}", lease_seconds=1.0))
        assert leases[-1].trial.number == leases[0].trial.number
    d.now += 2.0
    d.ask("next")
    assert d.trial(leases[0].trial.number).state == "FAILED"
    return leases


def test_a_value_outweighs_the_leases_that_lapsed(store):
    d = start(store, lease={"max_lost": 2})
    leases = lapse(d)
    outcome = d.tell(leases[1], -5.0, worker="lost1")
    assert (outcome.outcome, outcome.state, outcome.best_so_far) == ("applied", "COMPLETED", True)
    row, trial = d.row(), d.trial(leases[0].trial.number)
    assert (row.best_value, row.best_trial, row.used, row.late) == (-5.0, trial.number, 1, 0)
    assert (trial.state, trial.value, trial.worker) == ("COMPLETED", -5.0, "lost1")
    assert d.tell(leases[1], -5.0).outcome == "duplicate"
    assert d.tell(leases[0], -4.0).outcome == "late_recorded"
    assert (d.row().used, d.row().late, d.row().best_value) == (2, 1, -5.0)
    d.check_log()
    d.evaluate(2 * need(d))
    (record, *_) = store.read(lambda tx: tx.steps(d.study.id, 0, 1))
    assert record.told == need(d)
    assert d.replayed_equal() >= 2
    d.check_log()


@pytest.mark.parametrize("algorithm", ["cma_es", "random_search", "cbo", "mezo"])
def test_a_value_that_a_timer_gave_up_is_told_to_the_algorithm_while_it_takes_it(store, algorithm):
    d = start(store, algorithm, options={"popsize": 6}, lease={"max_lost": 2})
    leases = lapse(d)
    d.evaluate(2)
    before = d.row().step
    d.tell(leases[2], -7.0)
    d.evaluate(14)
    taken = store.read(lambda tx: tx.steps(d.study.id, 0, d.row().step))
    trial = d.trial(leases[0].trial.number)
    told = store.read(lambda tx: [t for t in tx.told(d.study.id, 0, d.row().upto_seq) if t.state == "COMPLETED"])
    assert trial in told
    assert sum(record.told for record in taken) == len(told)
    assert d.replayed_equal() > before
    d.check_log()


def test_a_value_that_comes_after_its_step_counts_for_the_best_point_and_changes_no_step(store):
    d = start(store, "mezo", lease={"max_lost": 2})
    leases = lapse(d)
    d.evaluate(3 * need(d))
    outcome = d.tell(leases[0], -7.0)
    assert (outcome.outcome, outcome.best_so_far) == ("late_recorded", True)
    assert (d.row().best_value, d.row().late) == (-7.0, 1)
    assert d.do(d.study.best())[0].value == -7.0
    assert d.tell(leases[0], -7.0).outcome == "duplicate"
    assert d.replayed_equal() >= 3
    d.check_log()
    d.do(d.study.invalidate(trial=leases[0].trial.number, now=d.now))
    assert d.row().best_value > -7.0


def test_a_sequential_method_keeps_the_barrier_it_was_told_and_the_value_counts_for_the_best_point(store):
    d = start(store, "nelder_mead", lease={"max_lost": 2})
    d.evaluate(4)
    leases = lapse(d)
    d.do(d.study.advance(now=d.now))
    outcome = d.tell(leases[0], -7.0)
    assert (outcome.outcome, outcome.best_so_far) == ("late_recorded", True)
    assert d.row().best_value == -7.0
    d.evaluate(6)
    assert d.replayed_equal() == d.row().step
    d.check_log()


def test_a_value_outweighs_the_failure_of_another_worker(store):
    d = start(store)
    slow = d.lease("slow", lease_seconds=1.0)
    d.now += 2.0
    broken = d.lease("broken")
    d.tell(broken, status="failed", retryable=False, worker="broken")
    assert d.trial(slow.trial.number).state == "FAILED"
    assert d.tell(slow, -1.0).state == "COMPLETED"
    assert (d.row().best_value, d.row().used, d.row().late) == (-1.0, 2, 0)
    d.evaluate(2 * need(d))
    d.replayed_equal()
    d.check_log()


def test_the_first_answer_of_an_evaluator_holds(store):
    d = start(store)
    for status, value in (("infeasible", None), ("completed", 5.0), ("stopped", 5.0)):
        slow = d.lease("slow", lease_seconds=1.0)
        d.now += 2.0
        other = d.lease("other")
        d.tell(other, value, status=status)
        best = d.row().best_value
        outcome = d.tell(slow, -9.0)
        assert (outcome.outcome, outcome.best_so_far, d.row().best_value) == ("late_recorded", False, best)
    d.check_log()


def test_a_value_for_a_trial_that_a_person_withdrew_is_kept_and_is_not_the_best(store):
    d = start(store)
    lease = d.lease()
    d.do(d.study.cancel_trial(lease.trial.number, now=d.now))
    assert d.tell(lease, -9.0).outcome == "late_recorded"
    assert (d.trial(lease.trial.number).value, d.row().best_value, d.row().used, d.row().late) == (-9.0, None, 1, 1)


@pytest.mark.parametrize("verb", ["pause", "complete"])
def test_values_count_while_a_study_is_paused_and_after_its_end(store, verb):
    d = start(store, lease={"max_lost": 2})
    lost, lease = lapse(d), d.lease()
    d.do(getattr(d.study, verb)(now=d.now))
    assert d.tell(lease, -1.0).outcome == "applied"
    assert d.tell(lost[0], -2.0).outcome == "applied"
    assert d.row().best_value == -2.0
    d.check_log()


def test_a_step_that_was_computed_with_the_failure_is_computed_again(store):
    """Two programs: one computes a step whose results include a failure, the other hears the value meanwhile."""
    d = start(store, "random_search", options={"popsize": 4}, lease={"max_lost": 2})
    leases = lapse(d)
    other = d.reopened()
    for _ in range(4):
        lease = d.do(d.study.ask(now=d.now, worker="w")).leases[0]
        report = Report(lease.trial.number, lease.token, value=1.0)
        d.do(d.study.tell([report], now=d.now, worker="w"))
    answer, told = in_place(store), []

    async def interrupted(effect):
        value = await answer(effect)
        if isinstance(effect, Compute) and not told:
            told.append(other.tell(leases[0], -3.0))
        return value

    at_once(drive(d.study.advance(now=d.now), interrupted))
    d.evaluate(9)
    assert d.trial(leases[0].trial.number).value == -3.0
    row = d.row()
    assert row.waiting == len(store.read(lambda tx: tx.told(d.study.id, row.upto_seq, row.seq)))
    assert d.replayed_equal() == row.step
    d.check_log()


def test_what_a_timer_wrote_stays_in_the_log(store):
    d = start(store, lease={"max_lost": 2})
    leases = lapse(d)
    seq = d.trial(leases[0].trial.number).seq
    d.tell(leases[0], 1.0)
    (event,) = [e for e in store.read(lambda tx: tx.events(d.study.id, 0, 99)) if e.type == "trial.failed"]
    assert event.seq == seq
    assert json.loads(event.data)["error"]["type"] == "lost"


def test_a_budget_is_exceeded_by_no_more_than_the_leases_that_lapsed(store):
    rng = random.Random(5)
    d = start(store, budget={"evaluations": 30}, lease={"max_lost": 50})
    slow: list = []
    n_lapsed = 0
    while leases := d.ask(f"w{len(slow)}", lease_seconds=1.0).leases:
        if rng.random() < 0.3:
            slow.append(leases[0])
            d.now += 2.0
            n_lapsed += 1
        else:
            d.tell(leases[0], sphere(d.point(leases[0])))
    assert (d.row().used, n_lapsed > 5) == (30, True)
    for lease in slow:
        d.tell(lease, 9.0)
    assert 30 < d.row().used <= 30 + n_lapsed
    d.check_log()


def test_costs_that_add_up_beyond_the_largest_number_stay_finite(store):
    d = start(store)
    for _ in range(3):
        d.tell(d.lease(), 1.0, extra={"cost": {"usd": 1.5e308}})
    assert d.row().cost == sys.float_info.max
