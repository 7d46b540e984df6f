"""The rows that an open study remembers are right, whoever else changes them and whatever is rolled back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from blackbox import codec
from blackbox.errors import StoreUnavailable
from blackbox.study import history
from blackbox.study.answers import AskRequest
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.known import LEASES_KEPT, NUMBERS_KEPT, Known
from blackbox.study.leases import Lease
from blackbox.study.memory import MemoryStore
from blackbox.study.open_step import PARAMS_STORED_UPTO, OpenStep, position_of
from blackbox.study.rows import COMPLETED, LEASED, PointRow, StudyRow, TrialRow, Tx
from blackbox.study.settling import Report
from tests.engine.studies import Driver, start

DIM = 3
ROW = StudyRow("st_0", step=2, upto_seq=9, seq=12)


def opened(row: StudyRow) -> OpenStep:
    """The step that is open in a row; only its position matters here."""
    algorithm = start(MemoryStore(), "random_search").study.algorithm(StudyRow("st_0"))
    return OpenStep(position_of(row), algorithm, algorithm.init())


def lease(number: int, step: int = 2) -> Lease:
    return Lease(TrialRow("st_0", number, step, number, state=LEASED), PointRow("st_0", number, b"", None, None), "t")


def result(number: int, seq: int) -> tuple[TrialRow, PointRow]:
    made = lease(number)
    return replace(made.trial, state=COMPLETED, seq=seq, value=1.0), made.point


# One at a time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"step": 3}, {"epoch": 1}, {"upto_seq": 10}])
def test_a_step_is_found_by_its_position_only(change: dict[str, int]) -> None:
    known = Known(DIM)
    known.committed = opened(ROW)
    assert known.step_of(replace(ROW, seq=99, trials=7)) is known.committed
    assert known.step_of(replace(ROW, **change)) is None


def test_results_are_known_for_the_very_row_that_has_them() -> None:
    known, results = Known(DIM), [result(1, 10), result(2, 12)]
    assert known.results(ROW) is None
    known.remember_results(ROW, results)
    assert known.results(ROW) == results
    assert known.results(replace(ROW, seq=13)) is None  # something was logged since
    known.remember_results(ROW, None)
    assert known.results(ROW) is None


def test_a_lease_is_taken_once() -> None:
    known = Known(DIM)
    known.remember_leases([lease(1), lease(2)])
    assert list(known.take_leases([2, 3])) == [2]
    assert list(known.take_leases([1, 2])) == [1]


def test_only_the_newest_leases_are_kept_and_none_of_large_points() -> None:
    numbers = range(1, LEASES_KEPT + 3)
    small, wide, large = Known(DIM), Known(PARAMS_STORED_UPTO), Known(PARAMS_STORED_UPTO + 1)
    for known in (small, wide, large):
        known.remember_leases(lease(number) for number in numbers)
    assert list(small.take_leases(numbers)) == list(numbers)[2:]
    assert list(wide.take_leases(numbers)) == list(numbers)[-(NUMBERS_KEPT // PARAMS_STORED_UPTO) :]
    assert not large.take_leases(numbers)


def test_a_closed_step_leaves_its_successor_and_the_results_that_it_did_not_consume() -> None:
    known, after = Known(DIM), replace(ROW, step=3, upto_seq=12, seq=14)
    known.committed = opened(ROW)
    known.remember_leases([lease(1, step=1), lease(2, step=2)])
    step = opened(after)
    known.steps_closed(after, step, [result(3, 13)], oldest=2)
    assert known.step_of(after) is step
    assert known.step_of(ROW) is known.committed  # should the transaction be undone
    assert known.results(after) == [result(3, 13)]
    assert list(known.take_leases([1, 2])) == [2]


def test_of_a_transaction_that_was_undone_nothing_is_known_but_what_is_committed_is() -> None:
    known, after = Known(DIM), replace(ROW, step=3, upto_seq=12)
    known.committed = opened(ROW)
    known.keep_results(ROW, [result(1, 10)])
    known.remember_leases([lease(1)])
    known.steps_closed(after, opened(after), [], oldest=None)
    known.forget()
    assert known.step_of(after) is None
    assert known.results(after) is None
    assert not known.take_leases([1])
    assert known.step_of(ROW) is known.committed
    assert known.take_results(ROW) == [result(1, 10)]


def test_results_left_for_advance_are_taken_once_and_only_for_their_step() -> None:
    known = Known(DIM)
    known.keep_results(ROW, [result(1, 10)])
    assert known.take_results(replace(ROW, seq=20)) == [result(1, 10)]  # more was told since; these are a beginning
    assert known.take_results(ROW) is None
    known.keep_results(ROW, [result(1, 10)])
    assert known.take_results(replace(ROW, step=3)) is None


def test_another_object_for_a_step_takes_its_place_wherever_it_is_known() -> None:
    known, new = Known(DIM), opened(ROW)
    old = known.committed = opened(ROW)
    known.steps_closed(ROW, old, None, None)
    known.replace(old, new)
    assert known.step_of(ROW) is new
    known.forget()
    assert known.step_of(ROW) is new
    known.replace(old, opened(ROW))
    assert known.step_of(ROW) is new  # the old one is known no more


# The invariant --------------------------------------------------------------------------------------------------------


class Unsteady(MemoryStore):
    """A store whose next commit fails when told so: the work has run, and is undone."""

    failing = False

    def write(self, work: Callable[[Tx], Any]) -> Any:
        if not self.failing:
            return super().write(work)

        def undone(tx: Tx) -> None:
            work(tx)
            raise StoreUnavailable("the disk is full")

        return super().write(undone)


def check(store: MemoryStore, study: Study, reader: Study) -> int:
    """The invariant of `Known` against the store, which a reader knows by replay only; returns how many of its
    statements said something."""
    known, said = study._known, 0
    row, state = perform(store, reader.state())
    if (step := known.step_of(row)) is not None:
        assert codec.encode(step.state) == codec.encode(state)
        said += 1
    if (results := known.results(row)) is not None:
        assert results == store.read(lambda tx: history.results(tx, study.id, row.upto_seq, history.MAX_SEQ))
        said += 1
    for number, remembered in known._leases.items():
        stored = store.read(lambda tx, number=number: (tx.trial(study.id, number), tx.points(study.id, [number])))
        trial = stored[0]
        assert trial is not None
        if (trial.state, trial.attempt) == (LEASED, remembered.trial.attempt):
            assert (remembered.trial, remembered.point) == (trial, stored[1][number])
            said += 1
    return said


@pytest.mark.parametrize("algorithm", ["random_search", "cma_es", "cbo", "nelder_mead"])
@pytest.mark.parametrize("measures", [True, False])
def test_what_is_known_is_true_after_every_work_whoever_did_it_and_whatever_was_undone(
    algorithm: str, measures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "measures", measures)  # whether steps close inside the transaction of a tell
    store = Unsteady()
    first = start(store, algorithm, DIM)
    drivers, reader = [first, first.reopened()], Study(first.study.head)
    rng, held, said, undone = random.Random(algorithm), dict[int, Lease](), 0, 0
    for _ in range(300):
        d = rng.choice(drivers)
        d.now = now = max(each.now for each in drivers) + rng.choice([0.0, 1.0, 50.0])
        store.failing = rng.random() < 0.1
        action = rng.random()
        try:
            if action < 0.4 or not held:
                answer = d.do(d.study.ask(now=now, worker="w", count=rng.randint(1, 4), lease_seconds=100.0))
                held.update({lease.trial.number: lease for lease in answer.leases})
            elif action < 0.9:
                chosen = rng.sample(sorted(held), min(len(held), rng.randint(1, 3)))
                reports = [
                    Report(n, held[n].token, value=rng.random(), status=rng.choice(["completed"] * 6 + ["released"]))
                    for n in chosen
                ]
                told = d.do(d.study.tell(reports, now=now, worker="w", ask=AskRequest("w", lease_seconds=100.0)))
                for number in chosen:
                    del held[number]
                if told.asked is not None:
                    held.update({lease.trial.number: lease for lease in told.asked.leases})
            else:
                d.do(d.study.advance(now=now))
        except StoreUnavailable:
            undone += 1
        store.failing = False
        said += sum(check(store, each.study, reader) for each in drivers)
    assert undone > 10
    assert said > 300
    assert first.row().step > 3
    first.check_log()
    assert first.replayed_equal() == first.row().step
