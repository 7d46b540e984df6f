"""A hosted participant: its points are trials, the rounds see an ordinary participant, and the log is the truth."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blackbox import codec, federation
from blackbox.errors import Conflict, IncompatibleProblem, InvalidContribution, StudyNotFound, StudyStateError
from blackbox.study.editing import Study
from blackbox.study.effects import Effect, drive, in_place, perform
from blackbox.study.hosting import HostedStudy, hosted_by
from blackbox.study.kinds import as_kind, kind_of, open_study
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import Store
from blackbox.study.settling import Report
from blackbox.study.trials import TrialStudy
from tests.engine.studies import Driver
from tests.engine.test_rounds import CENTRES, Rounds, start


class Hosted(Driver):
    """A hosted participant whose evaluator asks and tells, on the clock of its rounds."""

    study: HostedStudy

    def __init__(self, rounds: Rounds, client: str, weight: float = 1.0) -> None:
        self.rounds, self.client = rounds, client
        joined, head = rounds.do(rounds.study.host(client, weight, now=rounds.now))
        self.token = joined.token
        super().__init__(rounds.store, kind_of(head)(head), rounds.now)

    def objective(self, point: Any) -> float:
        return float(np.square(point - CENTRES[self.client]).sum())

    def step(self, worker: str = "w") -> bool:
        """Ask for one point and tell its value; False if there is none."""
        asked = self.ask(worker)
        for lease in asked.leases:
            self.tell(lease, self.objective(self.point(lease)), worker=worker)
        self.do(self.study.advance(now=self.now))
        return bool(asked.leases)

    def work(self) -> int:
        """Evaluate until there is nothing to evaluate; how much that was."""
        n = 0
        while self.step():
            n += 1
        return n

    def again(self) -> HostedStudy:
        """The same study seen by another process: nothing cached."""
        study = self.do(open_study(self.study.id))
        assert isinstance(study, HostedStudy)
        self.study = study
        return study

    def own(self) -> Any:
        """The private state."""
        return self.do(self.study.state())[1].own


def hosted(rounds: Rounds, clients: str) -> dict[str, Hosted]:
    return {client: Hosted(rounds, client) for client in clients}


def told(d: Hosted, n: int) -> None:
    for _ in range(n):
        assert d.step()


@pytest.mark.parametrize("method", list(federation.registry()))
def test_hosted_rounds_end_where_those_of_machines_at_their_owners_do(store: Store, method: str) -> None:
    """The same secrets, points and values give the same bytes, wherever the machine runs."""
    r = start(store, method)
    sitting = hosted(r, "abcd")
    elsewhere = start(store, method, name="elsewhere").join(*CENTRES)
    assert elsewhere.study.federation.terms == r.study.federation.terms
    for client, d in sitting.items():
        machine = d.study.host.machine
        elsewhere.machines[client], elsewhere.private[client] = machine, machine.init()
    shuffled = random.Random(3)
    while r.state().round < 3:
        for client in shuffled.sample("abcd", 4):
            sitting[client].work()  # who comes last begins the next phase at once
            sitting[client].again()
    while elsewhere.state().round < 3:
        elsewhere.round()
    assert codec.encode(r.state()) == codec.encode(elsewhere.state())
    for d in sitting.values():
        d.again()
        assert d.replayed_equal() == d.row().step > 0
        d.check_log()
    assert r.replayed_equal() == r.row().step
    r.check_log()


def test_hosted_and_ordinary_participants_share_the_rounds(store: Store) -> None:
    r = start(store, "scaffold").join("a", "b")
    sitting = hosted(r, "cd")
    start_gap = np.linalg.norm(r.state().x - 0.5)
    for _ in range(8):
        r.round("ab")
        for d in sitting.values():
            assert d.work() > 0
    assert r.state().round == 8
    assert r.state().counted == 4
    assert np.linalg.norm(r.state().x - 0.5) <= max(0.05, float(start_gap))
    assert r.replayed_equal() == 8


def test_a_value_told_twice_counts_once(store: Store) -> None:
    r = start(store)
    d = Hosted(r, "a")
    lease = d.lease()
    value = d.objective(d.point(lease))
    assert d.tell(lease, value).outcome == "applied"
    assert d.tell(lease, value).outcome == "duplicate"
    assert d.tell(lease, value + 1.0).outcome == "late_recorded"
    d.work()
    assert r.state().evaluations == d.row().used == d.own().work.total
    d.check_log()
    assert d.replayed_equal() == d.row().step


def test_between_rounds_an_ask_is_empty_and_says_so(store: Store) -> None:
    r = start(store).join("b")
    d = Hosted(r, "a")
    d.work()
    asked = d.ask()
    assert (asked.leases, asked.reason) == ((), "between_rounds")
    assert asked.retry_after is not None
    step = d.row().step
    for _ in range(3):
        d.ask()
    assert d.row().step == step, "asking in vain moves nothing"
    r.send("b")
    assert d.ask().leases, "the next round is open"


def test_a_hosted_participant_waits_until_enough_have_joined(store: Store) -> None:
    r = start(store, rounds={"min_joined": 2})
    d = Hosted(r, "a")
    assert d.ask().reason == "between_rounds"
    r.join("b")
    assert d.ask().leases


def test_an_evaluator_that_vanishes_holds_nobody_up_after_the_deadline(store: Store) -> None:
    r = start(store, rounds={"deadline_seconds": 60}).join("b")
    d = Hosted(r, "a")
    lease = d.lease()  # and is never heard of again
    r.send("b")
    assert r.phase().broadcast.round == 0, "the quorum is everybody"
    r.now += 61
    assert r.phase().broadcast.round == 1
    d.now = r.now + 3600
    taken = d.lease("another")
    assert taken.trial.step > lease.trial.step, "the old phase was given up for the open one"
    assert d.tell(lease, 1.0).outcome == "late_recorded"
    assert d.work() > 0
    assert d.own().work.round == 1
    assert d.replayed_equal() == d.row().step
    d.check_log()


def test_a_lapsed_lease_of_a_hosted_participant_goes_to_the_next_evaluator(store: Store) -> None:
    r = start(store)
    d = Hosted(r, "a")
    n = len(d.ask(count=100).leases)
    assert n > 1
    assert d.ask("second").reason is not None, "all are out"
    d.now += 10_000
    again = d.ask("second", count=100)
    assert len(again.leases) == n
    assert {lease.trial.attempt for lease in again.leases} == {2}


def test_points_that_fail_for_good_have_no_value_and_stop_nothing(store: Store) -> None:
    r = start(store)
    d = Hosted(r, "a")
    round_of = r.state().round
    while r.state().round == round_of:
        asked = d.ask()
        for lease in asked.leases:
            if lease.trial.lane % 3 == 1:
                d.tell(lease, status="failed", retryable=False)
            else:
                d.tell(lease, d.objective(d.point(lease)))
    assert np.isfinite(r.state().x).all()
    assert d.replayed_equal() == d.row().step


ERROR = {"type": "MemoryError", "message": "patient 17"}


def fail(d: Hosted) -> None:
    """Let every evaluation fail for which there is a lease."""
    while asked := d.ask().leases:
        d.tell(asked[0], status="failed", retryable=False, extra={"error": ERROR})
    d.do(d.study.advance(now=d.now))


def test_a_hosted_participant_whose_evaluator_always_fails_declines_with_the_type_of_its_error(store: Store) -> None:
    r = start(store, options={"rounds": 2, "count": 2}).join("b")
    d = Hosted(r, "a")
    fail(d)
    assert dict(r.phase().declined) == {"a": "MemoryError"}
    assert "patient" not in str(r.store.read(lambda tx: tx.events(r.study.id, 0, 99)))
    r.send("b")
    assert r.state().round == 1
    assert r.state().counted == 1, "only who has a value counts"
    fail(d)
    r.do(r.study.leave(r.tokens["b"], now=r.now))
    r.do(r.study.advance(now=r.now))
    assert r.row().state == "PAUSED"
    assert "a (MemoryError)" in r.row().reason
    assert d.ask().reason == "paused", "its evaluators are broken"
    d.do(d.study.resume(now=d.now))
    r.do(r.study.resume(now=r.now))
    assert d.work() > 0, "the phase begins again"
    assert (r.row().state, r.row().reason, r.state().counted) == ("COMPLETED", "rounds", 1)
    assert d.replayed_equal() == d.row().step


def test_a_hosted_participant_that_is_paused_because_everything_failed_is_not_waited_for(store: Store) -> None:
    r = start(store, options={"count": 30}).join("b")
    d = Hosted(r, "a")
    fail(d)
    assert d.row().state == "PAUSED"
    assert "the first 5 evaluations all failed, the last with MemoryError" in d.row().reason
    assert dict(r.phase().declined) == {"a": "MemoryError"}
    d.do(d.study.resume(now=d.now))
    d.work()
    assert not r.phase().declined
    assert r.phase().received == 1, "mended in time, it counts after all"
    r.send("b")
    assert r.state().round == 1
    assert r.state().counted == 2
    assert d.replayed_equal() == d.row().step


def test_a_stale_move_that_still_counts_is_finished_and_others_are_given_up(store: Store) -> None:
    for staleness, name in ((0, "fresh"), (3, "stale")):
        r = start(store, "scaffold", name=name, options={"quorum": 0.5, "max_staleness": staleness}).join("b", "c")
        d = Hosted(r, "a")
        told(d, 1)
        r.round("bc")
        d.do(d.study.advance(now=d.now))
        assert d.own().work.round == (0 if staleness else 1)
        d.work()
        kept = store.read(lambda tx, r=r: tx.contributions(r.study.id, 0, 2**62))
        mine = [row for row in kept if row.client == "a"]
        assert next(row.round for row in mine) == (0 if staleness else 1)
        assert all(row.step is None or row.step >= 0 for row in mine), "none came too late"
        assert d.replayed_equal() == d.row().step


class Killed(Exception):
    """The process ends here, as far as its code can tell."""


class Dying:
    """A store that dies at its n-th write, before or after it is durable."""

    def __init__(self, store: Store, after: int, durable: bool) -> None:
        self.store, self.after, self.durable = store, after, durable

    def read(self, work: Any) -> Any:
        return self.store.read(work)

    def write(self, work: Any) -> Any:
        self.after -= 1
        if self.after == 0 and not self.durable:
            raise Killed
        answer = self.store.write(work)
        if self.after == 0:
            raise Killed
        return answer


@pytest.mark.parametrize("durable", [False, True])
def test_a_process_that_dies_at_any_write_loses_nothing_and_counts_nothing_twice(store: Store, durable: bool) -> None:
    """Two rounds of SCAFFOLD, whose control variates show every contribution that is counted twice or not at all."""

    def play(name: str, deaths: list[int]) -> tuple[bytes, int]:
        patient = {"max_lost": 1000}
        r = start(store, "scaffold", name=name, options={"count": 1, "local_steps": 2}, seed="4", lease=patient)
        head = r.do(r.study.host("a", now=r.now))[1]
        store.write(lambda tx: tx.put_head(replace(head, secret=bytes(16))))
        d = Hosted(r, "a")
        d.again()
        died = 0
        while r.state().round < 2:
            until = deaths[died] if died < len(deaths) else 10**9
            d.store = Dying(store, until, durable)  # type: ignore[assignment]
            try:
                while r.state().round < 2:
                    d.now += 1000.0  # whatever the dead one had leased has lapsed
                    d.step()
            except Killed:
                died += 1
            d.store = store
            d.again()
        d.do(d.study.advance(now=d.now))
        assert d.replayed_equal() == d.row().step
        d.check_log()
        r.check_log()
        rows = store.read(lambda tx: tx.contributions(r.study.id, 0, 2**62))
        assert [row.round for row in rows] == [0, 1]
        return codec.encode(r.state()), died

    smooth, _ = play("smooth", [])
    for n in range(1, 9):
        state, died = play(f"dying at {n}", [n] * 100)
        assert died > 2 or n > 6
        assert state == smooth


# joining and leaving


def test_hosting_again_gives_the_same_study_and_the_name_is_taken_for_machines_elsewhere(store: Store) -> None:
    r = start(store).join("b")
    joined, head = r.do(r.study.host("a", 3.0, now=r.now))
    seq = r.row().seq
    again, same = r.do(r.study.host("a", 3.0, now=r.now))
    assert (again.token, same) == (joined.token, head)
    assert r.row().seq == seq
    with pytest.raises(Conflict, match="is a hosted participant"):
        r.join("a")
    with pytest.raises(Conflict, match="runs its own machine"):
        r.do(r.study.host("b", now=r.now))
    with pytest.raises(Conflict, match=r"with the weight 3.0, got 2.0"):
        r.do(r.study.host("a", 2.0, now=r.now))
    with pytest.raises(InvalidContribution):
        r.do(r.study.host("a b", now=r.now))
    with pytest.raises(InvalidContribution):
        r.do(r.study.host("c", 0.0, now=r.now))
    study = r.do(open_study(head.id))
    assert isinstance(study, HostedStudy)
    assert study.host.machine.weight == 3.0
    assert [found.id for found in r.do(hosted_by(r.study))] == [head.id]


def test_who_leaves_or_ends_is_not_waited_for_and_may_come_back(store: Store) -> None:
    r = start(store).join("b")
    d = Hosted(r, "a")
    r.do(r.study.leave(d.token, now=r.now))
    r.send("b")
    assert r.state().round == 1, "nobody waits for a"
    assert d.ask().reason == "completed"
    assert d.row().reason == "left the rounds"
    r.do(r.study.host("a", now=r.now))
    d.again()
    assert d.ask().leases
    r.send("b")
    assert r.state().round == 1
    d.do(d.study.cancel(now=d.now))
    assert r.state().round == 2, "to cancel is to leave"
    assert not r.do(hosted_by(r.study))


def test_a_hosted_participant_ends_with_its_rounds(store: Store) -> None:
    for end, expected in (("complete", "COMPLETED"), ("cancel", "CANCELLED")):
        r = start(store, name=end)
        d = Hosted(r, "a")
        lease = d.lease()
        r.do(getattr(r.study, end)(now=r.now))
        assert d.ask().reason == expected.lower()
        assert d.row().state == expected
        assert d.tell(lease, 1.0).outcome in ("applied", "late_recorded")
        with pytest.raises(StudyStateError):
            r.do(r.study.host("a", now=r.now))
    r = start(store, name="all rounds", options={"rounds": 2})
    d = Hosted(r, "a")
    assert d.work() > 0
    assert r.row().state == d.row().state == "COMPLETED"
    assert d.ask().reason == "completed"
    found = d.do(d.study.recommend())
    step, params = found.step, found.params
    np.testing.assert_array_equal(params["w"], r.do(r.study.recommend()).params["w"])
    assert step == d.row().step


def test_a_hosted_participant_fails_with_its_rounds_and_goes_on_when_hosted_again(store: Store) -> None:
    r = start(store)
    d = Hosted(r, "a")
    told(d, 1)
    r.do(r.study._end("FAILED", "a numerical error", r.now))
    assert d.ask().reason == "study_failed"
    r.do(r.study.resume(now=r.now))
    r.do(r.study.host("a", now=r.now))
    d.now += 10_000
    assert d.work() > 0
    assert r.state().round > 0
    assert d.replayed_equal() == d.row().step


def test_a_hosted_participant_outlives_a_federated_study_that_is_deleted(store: Store) -> None:
    r = start(store)
    d = Hosted(r, "a")
    told(d, 2)
    store.write(lambda tx: tx.delete_study(r.study.id))
    d.again()
    assert d.ask().reason == "cancelled"
    assert "was deleted" in d.row().reason
    assert d.replayed_equal() == d.row().step
    with pytest.raises(StudyNotFound):
        r.do(open_study(r.study.id))


def test_its_points_and_its_past_are_its_machines(store: Store) -> None:
    r = start(store)
    d = Hosted(r, "a")
    d.lease()
    forged = Report(None, vector=np.zeros(4).tobytes(), params="{}", status="infeasible", extra={"counted": True})
    with pytest.raises(IncompatibleProblem, match="hosted participant a"):
        d.do(d.study.tell([forged], now=d.now))
    with pytest.raises(IncompatibleProblem, match="hosted participant a"):
        as_kind(d.study, Study)
    assert as_kind(d.study, TrialStudy) is d.study
    with pytest.raises(IncompatibleProblem, match="works on trials"):
        as_kind(d.study, FederatedStudy)


def test_two_replicas_that_follow_the_rounds_at_once_contribute_once(store: Store) -> None:
    """Both see a finished phase; one records what became of it, the other looks again."""
    r = start(store, "scaffold").join("b")
    d = Hosted(r, "a")
    one, other = d.again(), d.again()
    while not one.host.owes(d.do(one.state())[1]):
        lease = d.lease()
        reports = [Report(lease.trial.number, lease.token, value=d.objective(d.point(lease)))]
        d.do(one.tell(reports, now=d.now))
        d.do(super(HostedStudy, one).advance(now=d.now))
        d.study = one
    perform(store, other.row())
    steps = [one.advance(now=d.now), other.advance(now=d.now)]
    _interleaved(store, steps)
    rows = store.read(lambda tx: tx.contributions(r.study.id, 0, 2**62))
    assert [row.client for row in rows] == ["a"]
    assert d.replayed_equal() == d.row().step
    d.check_log()


def _interleaved(store: Store, running: list[Any]) -> None:
    """Drive several operations, one effect each in turn."""
    answer = in_place(store)

    async def answer_in_turn(effect: Effect) -> Any:
        value = await answer(effect)
        await asyncio.sleep(0)
        return value

    async def all_of_them() -> None:
        await asyncio.gather(*(drive(steps, answer_in_turn) for steps in running))

    asyncio.run(all_of_them())
