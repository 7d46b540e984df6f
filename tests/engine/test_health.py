"""The health of a study, and the pause of one whose evaluators are broken."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blackbox
from blackbox.errors import InvalidInput
from blackbox.records import Notice
from blackbox.study.health import CODES, Tally, notices
from blackbox.study.rows import StudyRow, TrialRow
from tests.engine.studies import start

SPACE = {"x0": {"type": "float", "low": 0.0, "high": 1.0}, "x1": {"type": "float", "low": 0.0, "high": 1.0}}
TEXT = {"error": {"type": "TypeError", "message": "the objective must return a number, got str"}}


def study(store, **spec):
    return start(store, **{"space": SPACE, "algorithm": "random_search", "noise": "none", **spec})


def codes(d):
    return [item.code for item in d.do(d.study.health(now=d.now))]


def fail(d, n=1, worker="w", error=TEXT, retryable=False):
    outcomes = []
    for _ in range(n):
        lease = d.lease(worker)
        outcomes.append(d.tell(lease, status="failed", extra=error, retryable=retryable, worker=worker))
    return outcomes


def test_a_study_that_goes_well_has_no_notices(store):
    d = study(store)
    assert codes(d) == []
    d.evaluate(60)
    assert codes(d) == []


def test_a_study_whose_first_evaluations_fail_for_good_is_paused_with_the_error(store):
    d = study(store, budget={"evaluations": 50})
    fail(d, 4)
    assert d.row().state == "ACTIVE"
    fail(d, 1)
    row = d.row()
    assert (row.state, row.used) == ("PAUSED", 5)
    assert row.reason.startswith("the first 5 evaluations all failed, the last with TypeError: the objective must")
    assert d.ask().reason == "paused"
    (item,) = d.do(d.study.health(now=d.now))
    assert item.code == "evaluations_fail"
    assert item.evidence["error_type"] == "TypeError"
    assert item.evidence["error_worker"] == "w"
    assert "resume" in item.action


def test_counting_towards_a_pause_survives_a_restart(store):
    d = study(store)
    fail(d, 3)
    again = d.reopened()
    fail(again, 2)
    assert again.row().state == "PAUSED"


def test_resume_counts_failures_anew(store):
    d = study(store)
    fail(d, 5)
    d.do(d.study.resume(now=d.now))
    assert codes(d) == ["evaluations_fail"]  # five of five, whoever has looked at them
    fail(d, 4)
    assert d.row().state == "ACTIVE"
    fail(d, 1)
    assert d.row().state == "PAUSED"


def test_errors_of_different_types_pause_only_after_many(store):
    d = study(store)
    for i in range(19):
        fail(d, 1, error={"error": {"type": f"Error{i}", "message": ""}}, worker=f"w{i}")
    assert d.row().state == "ACTIVE"
    fail(d, 1, worker="another")
    assert d.row().state == "PAUSED"


def test_a_result_between_failures_keeps_a_study_going(store):
    d = study(store)
    for _ in range(6):
        fail(d, 4)
        d.evaluate(1)
    assert d.row().state == "ACTIVE"
    assert codes(d) == ["evaluations_fail"]  # a fifth of all and more


def test_many_failures_in_a_row_pause_a_study_that_had_results(store):
    d = study(store)
    d.evaluate(10)
    for i in range(20):
        assert d.row().state == "ACTIVE"
        fail(d, 1, worker=f"w{i}")
    assert d.row().reason.startswith("the last 20 evaluations all failed")


@pytest.mark.parametrize("retryable", [False, True])
def test_a_small_budget_spent_on_failures_alone_does_not_end_completed(store, retryable):
    d = study(store, budget={"evaluations": 3})
    while d.row().state == "ACTIVE" and (leases := d.ask().leases):
        d.tell(leases[0], status="failed", extra=TEXT, retryable=retryable)
    row = d.row()
    assert row.state in ("PAUSED", "FAILED")
    assert "TypeError: the objective must return a number" in row.reason


def test_a_budget_spent_on_failures_of_different_kinds_ends_failed(store):
    d = study(store, budget={"evaluations": 3})
    for kind in ("A", "B", "C"):
        fail(d, 1, error={"error": {"type": kind, "message": "no"}})
    row = d.row()
    assert (row.state, row.reason) == (
        "FAILED",
        "the budget is spent: 3 evaluations all failed, the last with C: no",
    )


def test_leases_that_lapse_do_not_pause_a_study_because_a_timer_is_no_evidence(store):
    d = study(store, lease={"max_lost": 0})
    for _ in range(12):
        d.lease(lease_seconds=1)
        d.now += 2
    assert d.row().state == "ACTIVE"
    (item,) = [i for i in d.do(d.study.health(now=d.now)) if i.code == "lost_leases"]
    assert item.evidence["lost"] == 11


def test_infeasible_points_are_results_but_no_values_are_noticed(store):
    d = study(store)
    for _ in range(12):
        d.tell(d.lease(), status="infeasible")
    assert (codes(d), d.row().state) == (["no_point_feasible"], "ACTIVE")


def test_equal_values_are_noticed_and_one_other_value_ends_the_notice(store):
    d = study(store)
    d.evaluate(25, objective=lambda x: 4.0)
    (item,) = d.do(d.study.health(now=d.now))
    assert (item.code, item.evidence) == ("nothing_moves", {"values": 25, "value": 4.0})
    d.evaluate(1, objective=lambda x: 3.0)
    assert codes(d) == []


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_that_get_worse_are_noticed(store, sign):
    d = study(store, direction="minimize" if sign > 0 else "maximize")
    values = iter(range(100))
    d.evaluate(48, objective=lambda x: sign * next(values))
    assert codes(d) == ["values_get_worse"]
    better = study(store, direction="maximize" if sign > 0 else "minimize", name="better")
    values = iter(range(100))
    better.evaluate(48, objective=lambda x: sign * next(values))
    assert codes(better) == []


def test_an_evaluation_that_takes_far_longer_than_all_before_it_is_noticed(store):
    d = study(store)
    for _ in range(5):
        lease = d.lease()
        d.now += 20
        d.tell(lease, float(d.now % 7))
    d.lease("stuck", lease_seconds=10_000)
    d.now += 99
    assert codes(d) == []
    d.now += 2
    (item,) = d.do(d.study.health(now=d.now))
    assert item.code == "evaluations_hang"
    assert (item.evidence["worker"], item.evidence["seconds"]) == ("stuck", 101)


def test_a_study_without_any_result_for_long_says_so(store):
    d = study(store)
    d.now += 599
    assert codes(d) == []
    d.now += 2
    assert codes(d) == ["no_result_yet"]
    d.lease()
    (item,) = d.do(d.study.health(now=d.now))
    assert item.evidence == {"seconds": 601, "trials": 1, "leased": 1}
    d.evaluate(1)
    assert codes(d) == []


def test_more_workers_than_the_population_can_use_are_noticed(store):
    d = study(store, algorithm="cma_es", options={"popsize": 6})
    d.evaluate(12)  # two steps are over, so that results of the first one are of no use
    d.ask(count=17)
    assert codes(d) == []
    d.ask(count=1)
    (item,) = d.do(d.study.health(now=d.now))
    assert item.code == "more_workers_than_useful"
    assert (item.evidence["leased"], item.evidence["results_per_step"]) == (18, 6)


def test_many_late_results_are_noticed():
    row = StudyRow("st_1", used=100, late=10)
    found = notices(row, maximize=False, created_at=0.0, now=1.0, need=6, group=True)
    assert [item.code for item in found] == ["more_workers_than_useful"]
    few = replace(row, late=9)
    assert notices(few, maximize=False, created_at=0.0, now=1.0, need=6, group=True) == []


def test_what_an_algorithm_says_replaces_the_studys_own_notice_of_the_same_code():
    row = StudyRow("st_1", used=30)
    tally = Tally()
    for number in range(30):
        tally.told(TrialRow("st_1", number, 0, number, value=1.0), {}, 1.0)
    tally.store(row)
    own = Notice("nothing_moves", "no pair of a step differed", {"steps": 3}, "start elsewhere")
    assert notices(row, maximize=False, created_at=0.0, now=1.0, own=[own]) == [own]
    assert [i.code for i in notices(row, maximize=False, created_at=0.0, now=1.0)] == ["nothing_moves"]


def test_what_is_counted_is_small_and_reads_back(store):
    d = study(store)
    d.evaluate(300)
    fail(d, 2)
    row = d.row()
    assert len(row.health) < 1500
    copy = StudyRow("st_2", health=row.health)
    Tally.of(row).store(copy)
    assert copy.health == row.health


def test_a_tally_that_is_taken_and_not_stored_leaves_what_the_row_says():
    row = StudyRow("st_1")
    tally = Tally()
    for value in (1.5, -0.0, 0.0, 1e-300, *range(40)):
        tally.told(TrialRow("st_1", 7, 0, 7, value=float(value)), {"stderr": 0.5}, 1 / 3)
    tally.attempt_failed({"type": 'a "b"', "message": "c\\\n"}, None)
    tally.replicate = (3, 0.1, 30)
    tally.store(row)
    stored = Tally.of(row)
    lost = Tally.take(row)
    assert lost == stored
    lost.told(TrialRow("st_1", 8, 0, 8, value=3.0), {}, None)
    assert Tally.take(row) == stored
    assert stored.recent == [float(value) for value in range(24, 40)]
    assert stored.first[:4] == [1.5, 0.0, 0.0, 1e-300]


def test_a_study_of_an_older_release_has_counted_nothing_and_is_well():
    assert notices(StudyRow("st_1", used=40), maximize=False, created_at=0.0, now=1e6) == []
    assert Tally.of(StudyRow("st_1", health='{"later":1,"values":2}')).values == 2


def test_the_page_lists_every_code():
    page = (Path(__file__).parents[2] / "server" / "README.md").read_text()
    section = page.partition("## Health\n")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)) == CODES
    source = (Path(blackbox.__file__).parent / "study" / "health.py").read_text()
    assert set(re.findall(r'Notice\(\s*"(\w+)"', source)) == set(CODES)


def test_an_objective_that_returns_text_is_an_error_at_once_in_minimize():
    with pytest.raises(InvalidInput, match="must return a number, got str"):
        blackbox.minimize(lambda x: "0.5", [(0, 1)], budget=50)


def test_a_fork_keeps_what_is_known_of_noise_and_counts_the_rest_anew(store):
    d = study(store, noise="auto")
    rng = np.random.default_rng(0)
    d.evaluate(40, objective=lambda x: float(rng.standard_normal()))
    head = d.do(d.study.fork("branch", now=d.now))
    forked = Tally.of(store.read(lambda tx: tx.study(head.id)))
    assert (forked.noise, forked.pairs, forked.values) == ("seen", 1, 0)
