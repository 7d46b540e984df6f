"""A federated study: who joins, what counts, how phases close, and that the log is the truth."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from blackbox import codec, federation
from blackbox.errors import IncompatibleProblem, InvalidContribution, LeaseUnknown, StudyStateError
from blackbox.federation import Contribution
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.kinds import as_kind, open_study
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import Store
from blackbox.study.trials import TrialStudy

DIM = 4
CENTRES = {"a": 0.2, "b": 0.4, "c": 0.6, "d": 0.8}


class Rounds:
    """A federated study, its store, a clock, and participants in this process."""

    def __init__(self, store: Store, study: FederatedStudy, now: float = 1000.0) -> None:
        self.store, self.study, self.now = store, study, now
        self.tokens: dict[str, str] = {}
        self.machines: dict[str, Any] = {}
        self.private: dict[str, Any] = {}

    def do(self, steps: Any) -> Any:
        return perform(self.store, steps)

    def join(self, *clients: str) -> Rounds:
        for client in clients:
            joined = self.do(self.study.join(client, now=self.now))
            self.tokens[client] = joined.token
            machine = federation.accept(joined.invitation.to_json(), client=client, secret=client.encode() * 16)
            self.machines[client], self.private[client] = machine, machine.init()
        return self

    def phase(self, client: str | None = None) -> Any:
        return self.do(self.study.phase(now=self.now, token=None if client is None else self.tokens[client]))

    def made(self, client: str) -> Contribution:
        """The client's contribution to the open phase."""
        broadcast = self.phase().broadcast
        blobs = {digest: self.blob(digest, vector) for digest, vector in broadcast.blobs().items()}
        broadcast = federation.Broadcast.from_json(broadcast.to_json(), blobs)
        machine, own = self.machines[client], self.private[client]
        own = machine.start(own, broadcast)
        while len(points := machine.ask(own)):
            own = machine.tell(own, np.square(points - CENTRES[client]).sum(axis=1))
        contribution = machine.contribution(own)
        self.private[client] = machine.settle(own, True)
        return contribution

    def blob(self, digest: str, like: Any) -> Any:
        content = self.store.read(lambda tx: tx.blob(self.study.id, digest))
        return np.frombuffer(content, dtype=like.dtype)

    def send(self, client: str, contribution: Contribution | None = None) -> Any:
        self.now += 1.0
        sent = contribution or self.made(client)
        return self.do(self.study.contribute(self.tokens[client], sent, now=self.now))

    def decline(self, client: str, error: str | None = None) -> Any:
        self.now += 1.0
        state = self.state()
        phase = self.study.federation.phases[state.phase].name
        return self.do(self.study.decline(self.tokens[client], state.round, phase, error, now=self.now))

    def round(self, clients: Sequence[str] = tuple(CENTRES)) -> None:
        """Everybody works on the open phase, then all send."""
        made = {client: self.made(client) for client in clients}
        for client, contribution in made.items():
            self.send(client, contribution)

    def row(self) -> Any:
        return self.do(self.study.row())

    def state(self) -> Any:
        return self.do(self.study.state())[1]

    def reopened(self) -> Rounds:
        again = Rounds(self.store, self.do(open_study(self.study.id)), self.now)
        again.tokens, again.machines, again.private = self.tokens, self.machines, self.private
        return again

    def replayed_equal(self) -> int:
        n = 0
        for record, digest in self.do(self.study.replay()):
            assert digest == record.digest, f"step {record.step}"
            n += 1
        return n

    def check_log(self) -> None:
        """The log is gap-free, and the counters agree with the rows."""
        row = self.row()

        def read(tx: Any) -> Any:
            seqs = [c.seq for c in tx.contributions(self.study.id, 0, 2**62)]
            seqs += [s.seq for s in tx.steps_logged(self.study.id, 0, 10**6)]
            seqs += [e.seq for e in tx.events(self.study.id, 0, 10**6)]
            return seqs, tx.waiting_contributions(self.study.id)

        seqs, waiting = self.store.read(read)
        assert sorted(seqs) == list(range(1, row.seq + 1))
        assert row.waiting == len(waiting)


def start(store: Store, method: str = "fedzo", **spec: Any) -> Rounds:
    options = {"local_steps": 2, "quorum": 1.0, **spec.pop("options", {})}
    raw = {
        "name": "federated",
        "space": {"w": {"type": "vector", "dim": DIM, "low": 0.0, "high": 1.0}},
        "algorithm": {"name": method, "options": options},
        **spec,
    }
    head, _ = perform(store, create("default", raw, 1000.0))
    study = perform(store, open_study(head.id))
    assert isinstance(study, FederatedStudy)
    return Rounds(store, study)


@pytest.mark.parametrize("method", list(federation.registry()))
def test_rounds_in_a_store_end_where_rounds_in_memory_do(store, method):
    d = start(store, method).join(*CENTRES)
    alone = federation.rehearse(
        federation.build(method, d.study.space, d.study.federation.options, d.study.key),
        {name: lambda points, c=centre: np.square(points - c).sum(axis=1) for name, centre in CENTRES.items()},
        3,
    )
    shuffled = random.Random(5)
    while d.state().round < 3:
        d.round(shuffled.sample(sorted(CENTRES), len(CENTRES)))
        d = d.reopened()
    # The secrets differ, and with them private directions; who only sends shared ones ends at the same bytes.
    assert d.state().version == alone.state.version == 3
    if "private" not in method and d.study.federation.phases[-1].payload.get("coefficients"):
        np.testing.assert_array_equal(d.state().x, alone.state.x)
    assert d.replayed_equal() == d.row().step == 3 * len(d.study.federation.phases)
    d.check_log()


def test_the_order_of_arrival_does_not_change_a_byte(store):
    ends = []
    for i, order in enumerate(("abcd", "dbca")):
        d = start(store, "scaffold", name=f"order {i}").join(*CENTRES)
        for _ in range(4):
            d.round(order)
        ends.append(codec.encode(d.state()))
        d.check_log()
    assert ends[0] == ends[1]


def test_a_contribution_sent_again_is_a_duplicate_and_counts_once(store):
    d = start(store).join(*CENTRES)
    first = d.made("a")
    assert (d.send("a", first).outcome, d.send("a", first).outcome) == ("applied", "duplicate")
    for client in "bcd":
        d.send(client)
    assert (d.state().step, d.state().counted) == (1, 4)
    again = d.send("a", first)
    assert (again.outcome, again.counted) == ("duplicate", True), "it was used, though its phase is closed"
    assert d.row().seq == 4 + 4 + 1 + 1  # joined, contributed, the step, created
    d.check_log()


def test_a_phase_closes_at_its_quorum_and_those_behind_it_are_recorded(store):
    d = start(store, options={"quorum": 0.5}).join(*CENTRES)
    slow = d.made("d")
    assert d.phase().need == 2
    d.round("ab")
    assert d.state().round == 1
    late = d.send("d", slow)
    assert (late.outcome, late.counted) == ("late", False)
    assert d.state().counted == 2
    assert d.replayed_equal() == 1
    d.check_log()


def test_a_stale_move_waits_for_the_phase_that_takes_it(store):
    d = start(store, "scaffold", options={"quorum": 0.5, "max_staleness": 2}).join(*CENTRES)
    slow = d.made("d")
    d.round("ab")
    outcome = d.send("d", slow)
    assert (outcome.outcome, outcome.counted) in (("applied", True), ("held", True))
    d.round("ab"[: 2 - outcome.received])
    assert d.state().round == 2
    row = d.store.read(lambda tx: tx.contribution(d.study.id, "d", 0, slow.phase))
    assert row.step == 1, "counted a round later"
    assert d.replayed_equal() == 2
    d.check_log()


def test_a_deadline_closes_a_phase_with_what_has_arrived_but_never_with_nothing(store):
    d = start(store, rounds={"deadline_seconds": 60}).join(*CENTRES)
    d.send("a")
    assert d.phase().closes_at == 1060.0
    d.now = 1059.0
    assert d.phase().broadcast.round == 0
    d.now = 1060.0
    assert d.phase().broadcast.round == 1
    assert d.phase().closes_at == 1120.0
    d.now = 1500.0
    assert d.phase().broadcast.round == 1, "nothing came"
    assert d.send("b").outcome == "applied"
    assert d.phase().broadcast.round == 2, "long overdue, so the first one closes it"
    assert [s.why for s in d.store.read(lambda tx: tx.steps(d.study.id, 0, 9))] == ["deadline"] * 2
    d.check_log()
    assert d.replayed_equal() == 2


def test_a_participant_without_a_value_is_not_waited_for_and_moves_nothing(store):
    d = start(store).join("a", "b")
    assert d.decline("b", "MemoryError").outcome == "declined"
    assert d.decline("b", "MemoryError").outcome == "duplicate"
    seen = d.phase("b")
    assert (dict(seen.declined), seen.need, seen.invited) == ({"b": "MemoryError"}, 1, False)
    assert d.phase("a").invited
    alone = d.made("a")
    d.send("a", alone)
    assert d.state().round == 1
    assert d.state().counted == 1
    np.testing.assert_allclose(d.state().x, 0.5 + alone.vectors["delta"], rtol=1e-6)
    assert not d.phase().declined, "it is asked again in the next phase"
    assert [n.code for n in d.do(d.study.health(now=d.now))] == ["participants_declined"]
    d.round("ab")
    assert d.state().round == 2
    assert d.state().counted == 2
    d.round("ab")
    assert d.do(d.study.health(now=d.now)) == [], "long ago"
    d.check_log()
    assert d.replayed_equal() == 3


def test_a_declined_phase_needs_no_more_than_can_still_come(store):
    d = start(store, options={"quorum": 0.75}).join(*CENTRES)
    assert d.phase().need == 3
    d.decline("d")
    assert d.phase().need == 3, "three may still come"
    d.decline("c")
    assert d.phase().need == 2
    d.round("ab")
    assert d.state().round == 1


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_rounds_in_which_nobody_has_a_value_pause_with_the_reason_and_never_complete(store, deadline):
    d = start(store, options={"rounds": 2}, rounds={"min_joined": 2, "deadline_seconds": deadline}).join("a", "b")
    d.decline("a", "RuntimeError")
    assert d.row().state == "ACTIVE"
    d.decline("b", None)
    if deadline is not None:
        assert d.row().state == "ACTIVE", "somebody may still join"
        d.now += deadline
        d.phase()
    assert (d.row().state, d.row().step) == ("PAUSED", 0)
    assert "a (RuntimeError), b (values that are not finite) had no value" in d.row().reason
    d.do(d.study.resume(now=d.now))
    seen = d.phase("a")
    assert seen.invited
    assert not seen.declined, "everybody is asked again"
    d.round("ab")
    d.round("ab")
    assert (d.row().state, d.row().reason) == ("COMPLETED", "rounds")


def test_rounds_pause_if_fewer_than_min_clients_have_a_value(store):
    d = start(store, options={"min_clients": 2}).join("a", "b")
    d.decline("b", "OSError")
    d.send("a")
    assert d.row().state == "PAUSED"
    assert "has 1 of the 2 contributions it needs" in d.row().reason


def test_who_declined_and_joins_again_or_contributes_after_all_takes_part(store):
    d = start(store).join("a", "b")
    d.decline("a", "OSError")
    d.join("a")
    assert d.phase("a").invited
    assert not d.phase().declined
    d.decline("b")
    assert d.send("b").outcome == "applied"
    assert not d.phase().declined
    assert d.phase().need == 2
    assert d.decline("b").outcome == "duplicate"


def test_of_an_error_only_the_type_can_leave_a_participant(store):
    d = start(store).join("a", "b")
    for text in ("RuntimeError: patient 17 is missing", "a b", "x" * 101, "", "17"):
        with pytest.raises(InvalidContribution, match="name of a type"):
            d.decline("a", text)
    assert d.decline("a", "httpx.ReadTimeout").outcome == "declined"
    events = d.store.read(lambda tx: tx.events(d.study.id, 0, 99))
    (event,) = [e for e in events if e.type == "participant.declined"]
    assert json.loads(event.data) == {"client": "a", "round": 0, "phase": "local", "error": "httpx.ReadTimeout"}


def test_a_phase_that_is_not_open_cannot_be_declined(store):
    d = start(store).join("a", "b")
    d.round("ab")
    assert d.do(d.study.decline(d.tokens["a"], 0, "local", None, now=d.now)).outcome == "duplicate"
    d.join("c")
    assert d.do(d.study.decline(d.tokens["c"], 0, "local", None, now=d.now)).outcome == "late"
    with pytest.raises(InvalidContribution, match="the open phase is"):
        d.do(d.study.decline(d.tokens["a"], 5, "local", None, now=d.now))
    with pytest.raises(InvalidContribution, match="is none"):
        d.do(d.study.decline(d.tokens["a"], 1, "locla", None, now=d.now))
    d.do(d.study.cancel(now=d.now))
    with pytest.raises(StudyStateError):
        d.do(d.study.decline(d.tokens["a"], 1, "local", None, now=d.now))


def test_rounds_begin_when_enough_have_joined(store):
    d = start(store, rounds={"min_joined": 3}).join("a", "b")
    assert d.phase("a").broadcast is None
    d.join("c")
    opened = d.phase("a")
    assert (opened.broadcast.round, opened.joined, opened.need, opened.invited) == (0, 3, 3, True)


def test_who_leaves_is_not_waited_for(store):
    d = start(store).join(*CENTRES)
    d.round("abc")
    assert d.state().round == 0
    d.do(d.study.leave(d.tokens["d"], now=d.now))
    assert d.phase().broadcast.round == 1
    d.join("d")
    assert d.phase().joined == 4
    d.check_log()


def test_joining_again_gives_the_same_token_and_no_second_member(store):
    d = start(store).join("a")
    token, seq = d.tokens["a"], d.row().seq
    assert d.join("a").tokens["a"] == token
    assert d.row().seq == seq


def test_only_the_invited_contribute(store):
    d = start(store, options={"participation": 0.5}, seed="2").join(*CENTRES)
    invited = [client for client in CENTRES if d.phase(client).invited]
    others = sorted(set(CENTRES) - set(invited))
    assert invited
    assert others, "the seed leaves somebody out"
    with pytest.raises(InvalidContribution, match="was not invited to round 0"):
        d.send(others[0])
    assert d.send(invited[0]).outcome == "applied"


def test_a_contribution_in_anothers_name_is_refused(store):
    d = start(store).join("a", "b")
    made = d.made("a")
    with pytest.raises(LeaseUnknown, match="the token is b's, the contribution a's"):
        d.do(d.study.contribute(d.tokens["b"], made, now=d.now))
    with pytest.raises(LeaseUnknown, match="was not given out by this study"):
        d.do(d.study.contribute("a~" + "0" * 24, made, now=d.now))
    assert d.row().waiting == 0


def test_what_does_not_fit_the_phase_is_refused_and_changes_nothing(store):
    d = start(store).join("a", "b")
    made, row = d.made("a"), d.row()
    raw = {**made.to_json(), "points": [[0.1] * DIM]}
    with pytest.raises(InvalidContribution) as refused:
        Contribution.from_json(raw)
    assert refused.value.errors[0].pointer == "/points"
    raw = {**made.to_json(), "round": 7}
    with pytest.raises(InvalidContribution, match="the open phase is"):
        d.do(d.study.contribute(d.tokens["a"], Contribution.from_json(raw), now=d.now))
    assert d.row() == row


def test_a_paused_study_keeps_what_comes_and_a_completed_one_refuses_it(store):
    d = start(store, options={"quorum": 1.0}).join("a", "b")
    made = {client: d.made(client) for client in "ab"}
    d.do(d.study.pause(now=d.now))
    assert d.send("a", made["a"]).outcome == "applied"
    assert d.send("b", made["b"]).outcome == "applied"
    assert d.state().round == 0
    d.do(d.study.resume(now=d.now))
    assert d.phase().broadcast.round == 1
    more = d.made("a")
    d.do(d.study.complete(now=d.now))
    with pytest.raises(StudyStateError, match="it takes no contributions"):
        d.send("a", more)
    assert d.phase().broadcast is None


def test_the_study_completes_after_its_rounds_or_its_evaluations(store):
    d = start(store, options={"rounds": 2}).join(*CENTRES)
    d.round()
    d.round()
    assert (d.row().state, d.row().reason) == ("COMPLETED", d.study.federation.stopped(d.state()).reason)
    spent = d.row().used
    assert spent == d.state().evaluations > 0
    d = start(store, name="budget", budget={"evaluations": spent // 2}).join(*CENTRES)
    d.round()
    assert (d.row().state, d.row().reason) == ("COMPLETED", "budget")


def test_an_absent_participant_catches_up_from_the_updates(store):
    d = start(store, options={"rounds": 9}).join(*CENTRES)
    began = federation.project(d.study.space.initial, d.study.space)
    for _ in range(5):
        d.round()
    sent = [federation.Update.from_json(json.loads(row.content)) for row in d.do(d.study.updates(after=0))]
    x, version = federation.catch_up(began, 0, sent, d.study.key, d.study.space)
    assert version == 5
    np.testing.assert_array_equal(x, d.state().x)
    assert [row.version for row in d.do(d.study.updates(after=3))] == [4, 5]


def test_a_study_that_forgets_contributions_goes_on_from_its_snapshots(store):
    d = start(store, rounds={"keep": "open"}).join(*CENTRES)
    for _ in range(3):
        d.round()
    rows = d.store.read(lambda tx: tx.contributions(d.study.id, 0, 2**62))
    assert {row.content for row in rows} == {None}
    again = d.reopened()
    assert codec.encode(again.state()) == codec.encode(d.state())
    again.round()
    assert again.state().round == 4


def test_trials_belong_to_other_studies(store):
    d = start(store)
    with pytest.raises(IncompatibleProblem, match="works in federated rounds"):
        as_kind(d.study, TrialStudy)
    with pytest.raises(IncompatibleProblem, match="minimises"):
        start(store, name="max", direction="maximize")
    plain, _ = perform(store, create("default", {"name": "plain", "space": {"x": {"type": "float"}}}, 1.0))
    assert type(perform(store, open_study(plain.id))) is Study


def test_two_views_of_one_study_close_a_phase_once(store):
    d = start(store).join(*CENTRES)
    other = d.reopened()
    made = {client: d.made(client) for client in CENTRES}
    for i, (client, contribution) in enumerate(made.items()):
        (d, other)[i % 2].send(client, contribution)
    assert d.state().step == other.state().step == 1
    assert codec.encode(d.state()) == codec.encode(other.state())
    d.check_log()
    assert d.replayed_equal() == 1
