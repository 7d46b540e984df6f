"""The contract of every store. A store's tests inherit `StoreContract` and give it a `store` fixture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackbox.errors import Conflict
from blackbox.study.memory import MemoryStore
from blackbox.study.rows import (
    CANCELLED,
    COMPLETED,
    INFEASIBLE,
    LEASED,
    QUEUED,
    SUPERSEDED,
    TRIAL_STATES,
    ContributionRow,
    EventRow,
    InterimRow,
    KeyRow,
    LateRow,
    MemberRow,
    PointRow,
    ReplyRow,
    SnapshotRow,
    StepRow,
    Store,
    StudyHead,
    StudyRow,
    TrialRow,
    Tx,
    UpdateRow,
)

S = "st_one"


class Boom(Exception):
    """Raised on purpose."""


def head(study: str = S, project: str = "default") -> StudyHead:
    return StudyHead(study, project, f"name of {study}", '{"space": {}}', "sha256:00", b"\x00secret", 1.5e9)


def leased(number: int, step: int = 0, lane: int | None = None, study: str = S, **changes: Any) -> TrialRow:
    lane = number if lane is None else lane
    row = TrialRow(study, number, step, lane, 0, LEASED, "w", 1, 100.0 + number, f"key {number}", 1.0, 2.0)
    return replace(row, **changes)


def queued(number: int, step: int = 0, lane: int | None = None, study: str = S) -> TrialRow:
    return TrialRow(study, number, step, number if lane is None else lane, asked_at=1.0)


def point(trial: TrialRow) -> PointRow:
    return PointRow(trial.study, trial.number, bytes(range(16)), None, f'{{"x": {trial.number}}}', b"\x01" * 8, "null")


def insert(tx: Tx, *trials: TrialRow) -> None:
    tx.insert_trials(trials, [point(trial) for trial in trials])


def tell(tx: Tx, number: int, seq: int, value: float | None = 0.5, state: str = COMPLETED, **changes: Any) -> None:
    trial = tx.trial(S, number)
    assert trial is not None
    tx.put_trial(replace(trial, state=state, seq=seq, value=value, until=None, told_at=3.0, **changes))


def contribution(seq: int, client: str = "a") -> ContributionRow:
    return ContributionRow(S, seq, client, 3, "local", 1.5, b"\x00content")


def rounds_of(tx: Tx) -> tuple[Any, ...]:
    """All that a store has about the rounds of a study."""
    return tx.members(S), tx.contributions(S, 0, 99), tx.waiting_contributions(S), tx.updates(S, 0, 99)


class StoreContract:
    """Behaviours, as sentences."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        raise NotImplementedError("give the store under test")

    @pytest.fixture
    def study(self, store: Store) -> Store:
        """The store with one study in it."""
        store.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
        return store

    # works

    def test_a_work_gives_back_what_it_returns(self, store: Store) -> None:
        assert store.write(lambda tx: 41) == 41
        assert store.read(lambda tx: 42) == 42

    def test_a_failing_work_leaves_no_trace(self, study: Store) -> None:
        def first(tx: Tx) -> None:
            insert(tx, queued(1), leased(2))
            tell(tx, 2, 1)
            tx.insert_steps([StepRow(S, 0, 1, "need", None, 2, 1.0, 1)])
            tx.insert_snapshot(SnapshotRow(S, 0, 1, b"old"))
            tx.put_blob(S, "d", 0, b"content")
            tx.put_interim(InterimRow(S, 2, 1, 0, 0.5, 1.0), 2)

        study.write(first)
        before = study.read(everything)

        def second(tx: Tx) -> None:
            insert(tx, leased(3), queued(4))
            tell(tx, 1, 3)
            tx.put_digests(S, [(0, "sha")])
            tx.supersede(S, 9, 9)
            tx.put_study(StudyRow(S, step=3, trials=9))
            tx.put_head(replace(head(), resolved="{}"))
            tx.insert_steps([StepRow(S, 1, 3, "need", None, 4, 1.0, 1)])
            tx.insert_event(EventRow(S, 5, "study.paused", 1.0, "{}"))
            tx.insert_late(LateRow(S, 6, 2, "w", 1.0, 0.1, None))
            tx.insert_snapshot(SnapshotRow(S, 0, 1, b"new"))
            tx.keep_snapshots(S, 0, [])
            tx.drop_blobs(S, 9, [])
            tx.put_blob(S, "e", 1, b"content")
            for step in (0, 1, 2):
                tx.put_interim(InterimRow(S, 2, 1, step, 0.25, 2.0), 2)
            tx.put_key(KeyRow("k", "n", "default", b"h", "all", 1.0))
            tx.put_reply(ReplyRow("default", "k", "r", 200, "{}", 1.0))
            tx.insert_study(head("st_two"), StudyRow("st_two"))
            tx.delete_study(S)
            raise Boom

        with pytest.raises(Boom):
            study.write(second)
        assert study.read(everything) == before

    def test_an_interrupt_in_a_work_undoes_it_and_reaches_the_caller(self, study: Store) -> None:
        def work(tx: Tx) -> None:
            insert(tx, queued(1))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            study.write(work)
        assert study.read(lambda tx: tx.trial(S, 1)) is None
        study.write(lambda tx: insert(tx, queued(1)))

    def test_works_never_interleave(self, study: Store) -> None:
        def work(tx: Tx) -> None:
            row = tx.study(S)
            assert row is not None
            row.asks += 1
            tx.put_study(row)

        def worker() -> None:
            for _ in range(50):
                study.write(work)

        threads = [threading.Thread(target=worker) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        row = study.read(lambda tx: tx.study(S))
        assert row is not None
        assert row.asks == 400

    def test_works_of_a_group_see_one_another_and_one_that_fails_leaves_no_trace(self, study: Store) -> None:
        def fails(tx: Tx) -> None:
            insert(tx, queued(2))
            raise Boom

        group = study.try_begin()
        assert group is not None
        assert group.run(lambda tx: insert(tx, queued(1))) == (None, None)
        value, failure = group.run(fails)
        assert value is None
        assert isinstance(failure, Boom)
        assert group.run(lambda tx: [trial.number for trial in tx.open_trials(S)]) == ([1], None)
        group.run(lambda tx: insert(tx, queued(2)))
        group.commit()
        assert study.read(lambda tx: tx.open_trials(S)) == [queued(1), queued(2)]
        study.write(lambda tx: insert(tx, queued(3)))

    def test_a_work_sees_what_it_wrote(self, study: Store) -> None:
        def work(tx: Tx) -> TrialRow | None:
            insert(tx, queued(1))
            return tx.trial(S, 1)

        assert study.write(work) == queued(1)

    def test_a_work_that_writes_through_the_store_is_refused_instead_of_waiting_for_itself(self, study: Store) -> None:
        with pytest.raises(RuntimeError, match="a work called"):
            study.write(lambda tx: study.write(lambda inner: None))
        study.write(lambda tx: insert(tx, queued(1)))

    # studies

    def test_a_study_comes_back_field_by_field(self, store: Store) -> None:
        row = StudyRow(
            S, "PAUSED", "why", 3, 1, 9, 7, 2, 4, 12, 1, 2, 6, 0.25, 5, -1.5, 8, "[[0,0],[3,1]]"
        )  # fmt: skip
        given = replace(head(), parent="st_zero")
        store.write(lambda tx: tx.insert_study(given, row))
        assert store.read(lambda tx: (tx.head(S), tx.study(S))) == (given, row)
        assert store.read(lambda tx: tx.find("default", given.name)) == given
        assert store.read(lambda tx: (tx.find("other", given.name), tx.head("st_x"), tx.study("st_x"))) == (None,) * 3

    def test_types_are_kept_exactly(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, leased(1), leased(2)))
        study.write(lambda tx: tell(tx, 1, 1, value=1e-300, invalid=True))
        study.write(lambda tx: tell(tx, 2, 2, value=3.0))
        one, two = study.read(lambda tx: tx.told(S, 0, 2))
        assert (one.invalid, two.invalid) == (True, False)
        assert type(one.invalid) is bool
        assert type(two.value) is float
        assert type(two.seq) is int
        assert one.value == 1e-300
        row = study.read(lambda tx: tx.study(S))
        assert row is not None
        assert type(row.cost) is float

    def test_numbers_beyond_53_bits_and_text_of_any_script_survive(self, study: Store) -> None:
        study.write(lambda tx: tx.put_study(StudyRow(S, seq=2**62 + 1, reason="naïve 试验 \x00 '; DROP TABLE trials")))
        row = study.read(lambda tx: tx.study(S))
        assert row is not None
        assert (row.seq, row.reason) == (2**62 + 1, "naïve 试验 \x00 '; DROP TABLE trials")

    def test_two_studies_of_one_name_conflict(self, study: Store) -> None:
        with pytest.raises(Conflict, match="exists"):
            study.write(lambda tx: tx.insert_study(replace(head(), id="st_two"), StudyRow("st_two")))
        with pytest.raises(Conflict):
            study.write(lambda tx: tx.insert_study(replace(head(), name="another"), StudyRow(S)))
        study.write(
            lambda tx: tx.insert_study(replace(head("st_two"), project="p", name=head().name), StudyRow("st_two"))
        )

    def test_a_work_may_go_on_after_a_conflict_and_nothing_of_the_refused_rows_is_there(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, queued(1, lane=5)))

        def work(tx: Tx) -> None:
            with pytest.raises(Conflict):
                insert(tx, queued(2, lane=4), queued(3, lane=5))
            insert(tx, queued(2, lane=6))

        study.write(work)
        assert [t.lane for t in study.read(lambda tx: tx.page(S, 0, 9, ()))] == [5, 6]
        assert study.read(lambda tx: tx.lanes_at(S, 0)) == {5, 6}

    def test_the_head_changes_but_neither_its_name_nor_its_project(self, study: Store) -> None:
        study.write(lambda tx: tx.put_head(replace(head(), resolved="{}")))
        assert study.read(lambda tx: tx.head(S)) == replace(head(), resolved="{}")
        for changed in (replace(head(), name="x"), replace(head(), project="x")):
            with pytest.raises(Conflict):
                study.write(lambda tx, changed=changed: tx.put_head(changed))  # type: ignore[misc]

    def test_studies_are_listed_by_id_and_project(self, store: Store) -> None:
        for i in range(5):
            given = head(f"st_{i}", "even" if i % 2 == 0 else "odd")
            store.write(lambda tx, given=given: tx.insert_study(given, StudyRow(given.id)))  # type: ignore[misc]

        def ids(project: str | None, after: str, limit: int) -> list[str]:
            rows = store.read(lambda tx: tx.studies(project, after, limit))
            assert all(h.id == r.id for h, r in rows)
            return [h.id for h, _ in rows]

        assert ids(None, "", 3) == ["st_0", "st_1", "st_2"]
        assert ids(None, "st_2", 3) == ["st_3", "st_4"]
        assert ids("even", "st_0", 9) == ["st_2", "st_4"]

    def test_a_deleted_study_takes_everything_along_and_frees_its_name(self, study: Store) -> None:
        def fill(tx: Tx) -> None:
            insert(tx, queued(1), leased(2))
            tx.insert_steps([StepRow(S, 0, 1, "need", None, 2, 1.0, 1)])
            tx.insert_event(EventRow(S, 5, "study.paused", 1.0, "{}"))
            tx.insert_late(LateRow(S, 6, 2, "w", 1.0, 0.1, None))
            tx.insert_snapshot(SnapshotRow(S, 0, 1, b"new"))
            tx.put_blob(S, "e", 1, b"content")

        study.write(fill)
        study.write(lambda tx: tx.delete_study(S))
        assert study.read(lambda tx: (tx.study(S), tx.head(S), tx.studies(None, "", 9))) == (None, None, [])
        study.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
        assert study.read(everything) == {S: {**EMPTY, "head": head(), "study": StudyRow(S)}}

    # federated rounds

    def test_a_member_comes_back_and_who_left_is_no_longer_listed(self, study: Store) -> None:
        for name in "ba":
            study.write(lambda tx, name=name: tx.put_member(MemberRow(S, name, 1.5)))  # type: ignore[misc]
        assert study.read(lambda tx: tx.members(S)) == [MemberRow(S, "a", 1.5), MemberRow(S, "b", 1.5)]
        study.write(lambda tx: tx.put_member(MemberRow(S, "a", 1.5, 2.5)))
        assert study.read(lambda tx: tx.members(S)) == [MemberRow(S, "b", 1.5)]
        assert study.read(lambda tx: tx.member(S, "a")) == MemberRow(S, "a", 1.5, 2.5)
        study.write(lambda tx: tx.put_member(MemberRow(S, "a", 3.5)))
        assert study.read(lambda tx: tx.members(S))[0] == MemberRow(S, "a", 3.5)
        assert study.read(lambda tx: tx.member(S, "c")) is None

    def test_a_client_contributes_once_to_a_phase_of_a_round(self, study: Store) -> None:
        first = contribution(1)
        study.write(lambda tx: tx.insert_contribution(first))
        for again in (replace(first, seq=2, content=b"other"), replace(first, round=9)):
            with pytest.raises(Conflict):
                study.write(lambda tx, again=again: tx.insert_contribution(again))  # type: ignore[misc]
        for seq, other in enumerate(
            (replace(first, client="b"), replace(first, round=4), replace(first, phase="q")), 2
        ):
            study.write(lambda tx, row=replace(other, seq=seq): tx.insert_contribution(row))  # type: ignore[misc]
        assert study.read(lambda tx: tx.contribution(S, "a", 3, "local")) == first
        assert study.read(lambda tx: tx.contribution(S, "a", 5, "local")) is None
        assert [c.seq for c in study.read(lambda tx: tx.contributions(S, 1, 3))] == [2, 3]
        assert [c.seq for c in study.read(lambda tx: tx.waiting_contributions(S))] == [1, 2, 3, 4]

    def test_settled_contributions_wait_no_more_and_lose_their_content_unless_it_is_kept(self, study: Store) -> None:
        rows = [contribution(seq, client=f"c{seq}") for seq in (1, 2, 3, 4)]
        study.write(lambda tx: [tx.insert_contribution(row) for row in rows])
        study.write(lambda tx: tx.settle_contributions(S, [1, 2], 7, True))
        study.write(lambda tx: tx.settle_contributions(S, [4], -1, False))
        study.write(lambda tx: tx.settle_contributions(S, [], 8, False))
        assert study.read(lambda tx: tx.waiting_contributions(S)) == [rows[2]]
        assert study.read(lambda tx: tx.contributions(S, 0, 9)) == [
            replace(rows[0], step=7),
            replace(rows[1], step=7),
            rows[2],
            replace(rows[3], step=-1, content=None),
        ]

    def test_updates_come_in_their_order_from_a_version_on(self, study: Store) -> None:
        rows = [UpdateRow(S, version, f'{{"version": {version}}}') for version in (1, 2, 3)]
        for row in reversed(rows):
            study.write(lambda tx, row=row: tx.insert_update(row))  # type: ignore[misc]
        assert study.read(lambda tx: (tx.updates(S, 0, 9), tx.updates(S, 1, 1), tx.updates(S, 3, 9))) == (
            rows,
            [rows[1]],
            [],
        )
        with pytest.raises(Conflict):
            study.write(lambda tx: tx.insert_update(replace(rows[0], content="{}")))
        assert study.read(lambda tx: tx.updates(S, 0, 1)) == rows[:1]

    def test_a_failing_work_leaves_no_trace_in_the_rounds(self, study: Store) -> None:
        def first(tx: Tx) -> None:
            tx.put_member(MemberRow(S, "a", 1.0))
            tx.insert_contribution(contribution(1))

        def second(tx: Tx) -> None:
            tx.put_member(MemberRow(S, "a", 1.0, 2.0))
            tx.put_member(MemberRow(S, "b", 1.0))
            tx.settle_contributions(S, [1], 0, False)
            tx.insert_contribution(contribution(2, client="b"))
            tx.insert_update(UpdateRow(S, 1, "{}"))
            raise Boom

        study.write(first)
        before = study.read(rounds_of)
        with pytest.raises(Boom):
            study.write(second)
        assert study.read(rounds_of) == before
        study.write(lambda tx: tx.insert_contribution(contribution(2, client="b")))

    def test_a_deleted_study_takes_its_rounds_along(self, study: Store) -> None:
        def fill(tx: Tx) -> None:
            tx.put_member(MemberRow(S, "a", 1.0))
            tx.insert_contribution(contribution(1))
            tx.insert_update(UpdateRow(S, 1, "{}"))

        empty = study.read(rounds_of)
        study.write(fill)
        assert study.read(rounds_of) != empty
        study.write(lambda tx: tx.delete_study(S))
        study.write(lambda tx: tx.insert_study(head(), StudyRow(S)))
        assert study.read(rounds_of) == empty
        study.write(fill)

    def test_changing_what_is_not_there_is_an_error(self, study: Store) -> None:
        for work in (
            lambda tx: tx.put_study(StudyRow("st_x")),
            lambda tx: tx.put_head(head("st_x")),
            lambda tx: tx.delete_study("st_x"),
            lambda tx: tx.put_trial(queued(1)),
            lambda tx: tx.put_trial(queued(0)),
            lambda tx: insert(tx, queued(1, study="st_x")),
        ):
            with pytest.raises(LookupError):
                study.write(work)

    # trials

    def test_leased_trials_are_changed_only_while_they_are_leased_so(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, leased(1), leased(2), leased(3), queued(4)))
        told = [replace(leased(n), state=COMPLETED, until=None, value=1.0, seq=n, told_at=3.0) for n in (1, 2)]

        def change(*rows: TrialRow) -> bool:
            def work(tx: Tx) -> None:
                if not tx.put_leased(rows):
                    raise Boom

            try:
                study.write(work)
            except Boom:
                return False
            return True

        for bad in (replace(told[0], attempt=2), replace(told[0], number=4, lane=4), replace(told[0], number=99)):
            assert not change(told[1], bad)
            assert study.read(lambda tx: tx.trial(S, 2)) == leased(2)
        assert change(*told)
        assert study.read(lambda tx: [tx.trial(S, n) for n in (1, 2, 3)]) == [*told, leased(3)]
        assert study.read(lambda tx: tx.told(S, 0, 9)) == told
        assert not change(told[0])  # nobody holds it any more
        assert change()

    def test_a_trial_comes_back_field_by_field(self, study: Store) -> None:
        row = TrialRow(
            S, 1, 2, -3, 1, COMPLETED, "w", 2, 9.5, "key", 1.25, 2.5, 3.75, 1, 4, 7, -0.125, '{"n": 3}', "mine", True
        )
        study.write(lambda tx: insert(tx, row))
        assert study.read(lambda tx: tx.trial(S, 1)) == row
        changed = TrialRow(S, 1, 2, -3, 1, LEASED, "v", 3, 8.5, None, 1.5, None, None, 2, 5, 7, None, None, None, False)
        study.write(lambda tx: tx.put_trial(changed))
        assert study.read(lambda tx: tx.trial(S, 1)) == changed
        assert study.read(lambda tx: (tx.trial(S, 0), tx.trial(S, 2))) == (None, None)

    def test_rows_that_come_out_are_copies(self, study: Store) -> None:
        given = leased(1)
        study.write(lambda tx: insert(tx, given))
        given.worker = "changed after the insert"
        for take in (
            lambda tx: tx.trial(S, 1),
            lambda tx: tx.open_trials(S)[0],
            lambda tx: tx.lapsed(S, 1e9, 9)[0],
            lambda tx: tx.leased_by(S, "w")[0],
            lambda tx: tx.leased_under(S, "key 1")[0],
            lambda tx: tx.page(S, 0, 9, ())[0],
        ):
            row = study.read(take)
            assert row == leased(1)
            row.worker = "changed by the reader"
        row = study.read(lambda tx: tx.study(S))
        assert row is not None
        row.asks = 7
        assert study.read(lambda tx: tx.study(S)) == StudyRow(S)

    def test_a_place_is_taken_once_per_replicate(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, queued(1, step=2, lane=3)))
        with pytest.raises(Conflict):
            study.write(lambda tx: insert(tx, queued(2, step=2, lane=3)))
        with pytest.raises(Conflict):
            study.write(lambda tx: insert(tx, queued(1, step=9)))
        with pytest.raises(Conflict):
            study.write(lambda tx: insert(tx, queued(2, lane=7), queued(3, lane=7)))
        study.write(lambda tx: insert(tx, replace(queued(2, step=2, lane=3), replicate=1), queued(3, step=3, lane=3)))
        assert study.read(lambda tx: tx.lanes_at(S, 2)) == {3}

    def test_inserting_no_trials_changes_nothing(self, study: Store) -> None:
        study.write(lambda tx: tx.insert_trials([], []))

    def test_lanes_of_a_step_are_those_chosen_by_the_method_whatever_became_of_them(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, queued(1, lane=-1), leased(2, lane=0), queued(3, lane=5), queued(4, 1, 2)))
        study.write(lambda tx: tell(tx, 2, 1))
        assert study.read(lambda tx: (tx.lanes_at(S, 0), tx.lanes_at(S, 1), tx.lanes_at(S, 2))) == ({0, 5}, {2}, set())

    def test_points_come_by_number_and_unknown_ones_are_left_out(self, study: Store) -> None:
        trials = [queued(1), queued(2), queued(3)]
        rows = [
            PointRow(S, 1, b"\x00" * 80, None, '{"x": 1}', b"", None),
            PointRow(S, 2, None, '{"terms": []}', None, b"\x02" * 16, '{"checkpoint": 1}'),
            PointRow(S, 3, bytes(100_000), None, None, b"", None),
        ]
        study.write(lambda tx: tx.insert_trials(trials, rows))
        assert study.read(lambda tx: tx.points(S, [2])) == {2: rows[1]}
        assert study.read(lambda tx: tx.points(S, [3, 1, 9])) == {1: rows[0], 3: rows[2]}
        assert study.read(lambda tx: (tx.points(S, []), tx.points(S, [0]), tx.points(S, [7]))) == ({}, {}, {})

    def test_enqueued_points_are_handed_out_first_then_by_number(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, queued(1), leased(2), queued(3, lane=-3), queued(4), queued(5, lane=-5)))
        take = lambda limit: [t.number for t in study.read(lambda tx: tx.queued(S, limit))]  # noqa: E731
        assert take(9) == [3, 5, 1, 4]
        assert take(1) == [3]
        assert take(3) == [3, 5, 1]
        assert take(0) == []

    def test_lapsed_leases_come_longest_first_and_a_lease_that_ends_now_still_holds(self, study: Store) -> None:
        rows = [leased(1, until=30.0), leased(2, until=10.0), leased(3, until=20.0), leased(4, until=10.0), queued(5)]
        study.write(lambda tx: insert(tx, *rows))
        assert [t.number for t in study.read(lambda tx: tx.lapsed(S, 30.0, 9))] == [2, 4, 3]
        assert [t.number for t in study.read(lambda tx: tx.lapsed(S, 31.0, 3))] == [2, 4, 3]
        assert study.read(lambda tx: tx.lapsed(S, 10.0, 9)) == []

    def test_leases_are_found_by_request_and_by_worker(self, study: Store) -> None:
        rows = [leased(1, ask_key="k"), leased(2, ask_key="k", worker="v"), leased(3, ask_key=None), queued(4)]
        study.write(lambda tx: insert(tx, *rows))
        study.write(lambda tx: tx.put_trial(replace(queued(4), worker="w", ask_key="k")))
        assert study.read(lambda tx: tx.leased_under(S, "k")) == rows[:2]
        assert study.read(lambda tx: tx.leased_by(S, "w")) == [rows[0], rows[2]]
        assert study.read(lambda tx: tx.leased_under(S, "other")) == []
        study.write(lambda tx: tell(tx, 1, 1))
        assert study.read(lambda tx: tx.leased_under(S, "k")) == rows[1:2]

    def test_open_trials_come_by_number_and_leave_when_they_close(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, leased(1), queued(2, lane=-2), queued(3), leased(4), leased(5)))
        study.write(lambda tx: tell(tx, 4, 1))
        study.write(lambda tx: tx.put_trial(replace(leased(5), state=QUEUED, until=None)))
        assert [t.number for t in study.read(lambda tx: tx.open_trials(S))] == [1, 2, 3, 5]

    def test_told_trials_come_by_their_place_in_the_log(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, *(leased(n) for n in range(1, 6))))
        for seq, number in ((1, 4), (3, 2), (6, 5)):
            study.write(lambda tx, seq=seq, number=number: tell(tx, number, seq))  # type: ignore[misc]
        study.write(lambda tx: tell(tx, 1, 7, None, INFEASIBLE))
        numbers = lambda a, b: [t.number for t in study.read(lambda tx: tx.told(S, a, b))]  # noqa: E731
        assert numbers(0, 2**62) == [4, 2, 5, 1]
        assert numbers(1, 6) == [2, 5]
        assert numbers(3, 5) == []
        assert [t.number for t in study.read(lambda tx: tx.told_by(S, "w"))] == [1, 2, 4, 5]
        assert study.read(lambda tx: tx.told_by(S, "v")) == []

    def test_supersede_withdraws_chosen_trials_of_older_steps_and_counts_them(self, study: Store) -> None:
        rows = [
            queued(1, 0, 0), queued(2, 1, 0), queued(3, 2, 0), queued(4, 0, -4),
            leased(5, 0, 1), leased(6, 1, 1), leased(7, 0, -7), leased(8, 0, 2),
        ]  # fmt: skip
        study.write(lambda tx: insert(tx, *rows))
        study.write(lambda tx: tell(tx, 8, 1))
        assert study.write(lambda tx: tx.supersede(S, 2, 1)) == (2, 1)
        states = [t.state for t in study.read(lambda tx: tx.page(S, 0, 9, ()))]
        assert states == [SUPERSEDED, SUPERSEDED, QUEUED, QUEUED, SUPERSEDED, LEASED, LEASED, COMPLETED]
        assert [t.number for t in study.read(lambda tx: tx.open_trials(S))] == [3, 4, 6, 7]
        assert study.write(lambda tx: tx.supersede(S, 2, 1)) == (0, 0)

    def test_withdrawn_trials_are_out_until_their_lease_lapses_or_they_are_told(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, queued(1), leased(2), leased(3), leased(4), leased(5, step=1)))
        out = lambda now: study.read(lambda tx: tx.withdrawn(S, now))  # noqa: E731
        assert out(0.0) == 0
        assert study.write(lambda tx: tx.supersede(S, 1, 1)) == (1, 3)
        assert (out(102.0), out(103.0), out(104.5)) == (3, 2, 0)  # a lease lapses after its last moment
        study.write(lambda tx: tell(tx, 4, 1, state=SUPERSEDED))
        assert out(102.0) == 2

    def test_a_result_may_get_a_later_place_in_the_log(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, leased(1), leased(2), leased(3)))
        study.write(lambda tx: [tell(tx, n, n) for n in (1, 2, 3)])

        def move(tx: Tx) -> None:
            tell(tx, 2, 7)
            raise Boom

        with pytest.raises(Boom):
            study.write(move)
        assert [t.number for t in study.read(lambda tx: tx.told(S, 0, 9))] == [1, 2, 3]
        study.write(lambda tx: tell(tx, 2, 7))
        assert [(t.number, t.seq) for t in study.read(lambda tx: tx.told(S, 0, 9))] == [(1, 1), (3, 3), (2, 7)]

    def test_pages_are_stable_and_may_be_of_some_states(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, *(leased(n) if n % 2 else queued(n) for n in range(1, 8))))
        numbers = lambda *a: [t.number for t in study.read(lambda tx: tx.page(S, *a))]  # noqa: E731
        assert numbers(0, 3, ()) == [1, 2, 3]
        assert numbers(3, 9, ()) == [4, 5, 6, 7]
        assert numbers(1, 2, (LEASED,)) == [3, 5]
        assert numbers(0, 9, (QUEUED, CANCELLED)) == [2, 4, 6]

    def test_the_best_trial_is_valid_completed_and_the_earliest_of_equals(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, *(leased(n) for n in range(1, 8))))

        def fill(tx: Tx) -> None:
            tell(tx, 1, 5, 2.0)
            tell(tx, 2, 1, 2.0)
            tell(tx, 3, 2, 1.0, invalid=True)
            tell(tx, 4, 3, 0.5, "STOPPED")
            tell(tx, 5, 4, 7.0, SUPERSEDED)
            tell(tx, 6, 6, None, INFEASIBLE)

        assert study.read(lambda tx: tx.best(S, False)) is None
        study.write(fill)
        lowest, highest = study.read(lambda tx: (tx.best(S, False), tx.best(S, True)))
        assert lowest is not None
        assert highest is not None
        assert (lowest.number, highest.number) == (2, 5)

    # the log

    def test_results_put_in_another_order_come_by_their_place_too(self, study: Store) -> None:
        study.write(lambda tx: insert(tx, *(leased(n) for n in (1, 2, 3, 4))))
        study.write(lambda tx: [tell(tx, n, seq) for n, seq in ((4, 1), (1, 7), (2, 5))])

        def undone(tx: Tx) -> None:
            tell(tx, 3, 6)
            raise Boom

        with pytest.raises(Boom):
            study.write(undone)
        assert [trial.number for trial in study.read(lambda tx: tx.told(S, 0, 9))] == [4, 2, 1]
        study.write(lambda tx: tell(tx, 3, 6))
        assert [trial.number for trial in study.read(lambda tx: tx.told(S, 1, 6))] == [2, 3]

    def test_steps_are_kept_by_number_and_by_place_in_the_log(self, study: Store) -> None:
        rows = [StepRow(S, i, 2 * i + 1, "need", f"sha{i}", 2 * i + 2, 1.0 + i, 3) for i in range(5)]
        study.write(lambda tx: tx.insert_steps(rows[:3]))
        study.write(lambda tx: tx.insert_steps(rows[3:]))
        study.write(lambda tx: tx.insert_steps([]))
        assert study.read(lambda tx: tx.steps(S, 1, 3)) == rows[1:3]
        assert study.read(lambda tx: tx.steps(S, 3, 99)) == rows[3:]
        assert study.read(lambda tx: tx.steps_logged(S, 4, 2)) == rows[2:4]
        with pytest.raises(Conflict):
            study.write(lambda tx: tx.insert_steps([rows[4]]))
        study.write(lambda tx: tx.put_digests(S, [(1, None), (2, "new")]))
        digests = [row.digest for row in study.read(lambda tx: tx.steps(S, 0, 99))]
        assert digests == ["sha0", None, "new", "sha3", "sha4"]

    def test_events_and_late_values_come_after_a_place_in_the_log(self, study: Store) -> None:
        events = [EventRow(S, seq, "study.paused", 1.0, f'{{"n": {seq}}}') for seq in (1, 4, 9)]
        late = [LateRow(S, seq, 1, None if seq == 3 else "w", 1.0, 0.5, None) for seq in (2, 3, 8)]
        for event in events:
            study.write(lambda tx, event=event: tx.insert_event(event))  # type: ignore[misc]
        for row in late:
            study.write(lambda tx, row=row: tx.insert_late(row))  # type: ignore[misc]
        assert study.read(lambda tx: (tx.events(S, 0, 9), tx.late(S, 0, 9))) == (events, late)
        assert study.read(lambda tx: (tx.events(S, 1, 1), tx.late(S, 2, 9))) == (events[1:2], late[1:])
        with pytest.raises(Conflict):
            study.write(lambda tx: tx.insert_event(events[2]))
        with pytest.raises(Conflict):
            study.write(lambda tx: tx.insert_late(late[2]))

    # caches and large things

    def test_the_newest_snapshot_of_an_epoch_at_or_before_a_step_is_found(self, study: Store) -> None:
        rows = [SnapshotRow(S, epoch, step, b"%d.%d" % (epoch, step)) for epoch, step in ((0, 2), (0, 8), (1, 4))]
        for row in rows:
            study.write(lambda tx, row=row: tx.insert_snapshot(row))  # type: ignore[misc]
        assert study.read(lambda tx: tx.snapshot(S, 0, 8)) == rows[1]
        assert study.read(lambda tx: tx.snapshot(S, 0, 7)) == rows[0]
        assert study.read(lambda tx: tx.snapshot(S, 0, 1)) is None
        assert study.read(lambda tx: tx.snapshot(S, 1, 99)) == rows[2]
        study.write(lambda tx: tx.insert_snapshot(SnapshotRow(S, 0, 2, b"again")))
        assert study.read(lambda tx: tx.snapshot(S, 0, 2)) == SnapshotRow(S, 0, 2, b"again")

    def test_pruning_keeps_only_the_named_snapshots_of_one_epoch(self, study: Store) -> None:
        def fill(tx: Tx) -> None:
            for epoch, step in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 3)):
                tx.insert_snapshot(SnapshotRow(S, epoch, step, b"state"))

        study.write(fill)
        study.write(lambda tx: tx.keep_snapshots(S, 0, iter([1, 3, 9])))
        assert study.read(lambda tx: (tx.snapshot_steps(S, 0), tx.snapshot_steps(S, 1))) == ([1, 3], [])

    def test_blobs_are_found_by_digest_and_by_step(self, study: Store) -> None:
        large = bytes(range(256)) * 16_384
        study.write(lambda tx: tx.put_blob(S, "d1", 1, large))
        study.write(lambda tx: tx.put_blob(S, "d2", 2, b""))
        assert study.read(lambda tx: tx.blob(S, "d1")) == large
        assert study.read(lambda tx: (tx.blob_at(S, 1), tx.blob_at(S, 2))) == (("d1", large), ("d2", b""))
        assert (
            study.read(lambda tx: (tx.blob(S, "d3"), tx.blob_at(S, 3), tx.blob("st_two", "d1") if 0 else None))
            == (None,) * 3
        )
        study.write(lambda tx: tx.put_blob(S, "d1", 3, large))
        assert study.read(lambda tx: (tx.blob_at(S, 1), tx.blob_at(S, 3))) == (None, ("d1", large))

    def test_old_blobs_are_dropped_but_those_of_kept_steps(self, study: Store) -> None:
        for step in range(5):
            study.write(lambda tx, step=step: tx.put_blob(S, f"d{step}", step, b"x"))  # type: ignore[misc]
        study.write(lambda tx: tx.drop_blobs(S, 3, iter([1, 4])))
        kept = study.read(lambda tx: [step for step in range(5) if tx.blob_at(S, step)])
        assert kept == [1, 3, 4]

    def test_a_blob_that_several_steps_share_is_kept_for_each_of_them(self, study: Store) -> None:
        for step, digest in enumerate(["a", "a", "a", "b", "c", "c"]):
            study.write(lambda tx, step=step, digest=digest: tx.put_blob(S, digest, step, b"x"))  # type: ignore[misc]
        study.write(lambda tx: tx.drop_blobs(S, 5, [1]))
        assert study.read(lambda tx: [digest for digest in "abc" if tx.blob(S, digest)]) == ["a", "c"]

    # the service's own

    def test_keys_are_replaced_by_id_and_listed_by_project(self, store: Store) -> None:
        rows = [KeyRow(f"k{i}", "n", "even" if i % 2 == 0 else "odd", b"\x00h", "all", float(i)) for i in range(3)]
        for row in reversed(rows):
            store.write(lambda tx, row=row: tx.put_key(row))  # type: ignore[misc]
        revoked = replace(rows[1], revoked_at=5.0, expires_at=6.0)
        store.write(lambda tx: tx.put_key(revoked))
        assert store.read(lambda tx: (tx.key("k1"), tx.key("k9"))) == (revoked, None)
        assert store.read(lambda tx: tx.keys(None)) == [rows[0], revoked, rows[2]]
        assert store.read(lambda tx: tx.keys("even")) == [rows[0], rows[2]]

    def test_replies_are_kept_per_project_until_they_are_purged(self, store: Store) -> None:
        rows = [ReplyRow("p", "k1", "sha", 201, '{"id": 1}', 10.0), ReplyRow("q", "k1", "sha", 200, "", 20.0)]
        for row in rows:
            store.write(lambda tx, row=row: tx.put_reply(row))  # type: ignore[misc]
        assert store.read(lambda tx: (tx.reply("p", "k1"), tx.reply("q", "k1"), tx.reply("p", "k2"))) == (*rows, None)
        store.write(lambda tx: tx.purge_replies(20.0))
        assert store.read(lambda tx: (tx.reply("p", "k1"), tx.reply("q", "k1"))) == (None, rows[1])

    def test_the_newest_interim_values_of_a_trial_are_kept_one_for_each_step_of_an_attempt(self, study: Store) -> None:
        rows = [InterimRow(S, 1, attempt, step, step / 8, 1.5) for attempt in (1, 2) for step in (0, 3, 9)]
        others = [InterimRow(S, 2, 1, 0, -1.0, 2.5)]
        for row in (*reversed(rows), *others):
            study.write(lambda tx, row=row: tx.put_interim(row, 4))  # type: ignore[misc]
        assert study.read(lambda tx: tx.interim(S, 1)) == rows[2:]
        assert study.read(lambda tx: (tx.interim(S, 2), tx.interim(S, 3))) == (others, [])
        again = replace(rows[4], value=7.0, at=9.0)
        study.write(lambda tx: tx.put_interim(again, 4))
        assert study.read(lambda tx: tx.interim(S, 1)) == [*rows[2:4], again, rows[5]]
        with pytest.raises(LookupError):
            study.write(lambda tx: tx.put_interim(replace(again, study="st_none"), 4))

    # the reference

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(program=st.deferred(lambda: st.lists(_works, max_size=8)))
    def test_any_sequence_of_verbs_means_what_it_means_in_memory(self, store: Store, program: list[Any]) -> None:
        ids = [f"st_{next(_ids):08}" for _ in range(2)]  # of this example: the store is kept from one to the next
        reference = MemoryStore()
        for verbs, fails in program:
            outcomes = []
            for each in (store, reference):

                def work(tx: Tx, verbs: Any = verbs, fails: bool = fails) -> list[Any]:
                    answers = [_answer(tx, ids[i], verb, a, b, x) for i, verb, a, b, x in verbs]
                    if fails:
                        raise Boom
                    return answers

                try:
                    outcomes.append(each.write(work))
                except Boom:
                    outcomes.append("undone")
            assert outcomes[0] == outcomes[1]
        pages = [each.read(lambda tx: {i: contents(tx, i) for i in ids}) for each in (store, reference)]
        assert pages[0] == pages[1]


def contents(tx: Tx, study: str) -> dict[str, Any]:
    """All that a store has about one study."""
    row = tx.study(study)
    if row is None:
        return {"head": tx.head(study)}
    trials = tx.page(study, 0, 10**6, ())
    return {
        "head": tx.head(study),
        "study": row,
        "trials": trials,
        "points": tx.points(study, [trial.number for trial in trials]),
        "open": tx.open_trials(study),
        "queued": tx.queued(study, 10**6),
        "lapsed": tx.lapsed(study, 1e18, 10**6),
        "told": tx.told(study, 0, 2**62),
        "lanes": [tx.lanes_at(study, step) for step in range(4)],
        "steps": tx.steps(study, 0, 10**6),
        "logged": tx.steps_logged(study, 0, 10**6),
        "events": tx.events(study, 0, 10**6),
        "late": tx.late(study, 0, 10**6),
        "interim": [tx.interim(study, number) for number in range(4)],
        "snapshots": [
            tx.snapshot(study, epoch, step) for epoch in range(2) for step in tx.snapshot_steps(study, epoch)
        ],
        "blobs": [tx.blob_at(study, step) for step in range(20)],
    }


def everything(tx: Tx) -> dict[str, dict[str, Any]]:
    """All that a store has about all studies."""
    return {h.id: contents(tx, h.id) for h, _ in tx.studies(None, "", 10**6)}


EMPTY: dict[str, Any] = {
    "trials": [], "points": {}, "open": [], "queued": [], "lapsed": [], "told": [], "lanes": [frozenset()] * 4,
    "steps": [], "logged": [], "events": [], "late": [], "interim": [[]] * 4, "snapshots": [], "blobs": [None] * 20,
}  # fmt: skip

# Random verbs ---------------------------------------------------------------------------------------------------------

_ids = count()


def _insert(tx: Tx, s: str, a: int, b: int, x: float) -> Any:
    """One to three trials; their places may be taken."""
    row = tx.study(s)
    assert row is not None
    makes: list[Callable[..., TrialRow]] = [queued, leased, queued]
    trials = [makes[(a + i) % 3](row.trials + 1 + i, b % 3, (a + i * b) % 6 - 2, study=s) for i in range(1 + a % 3)]
    insert(tx, *trials)
    row.trials += len(trials)
    tx.put_study(row)
    return trials


def _change(tx: Tx, s: str, a: int, b: int, x: float) -> Any:
    """Any state to any other, with what the state needs."""
    row = tx.study(s)
    assert row is not None
    trial = tx.trial(s, 1 + a % max(1, row.trials))
    if trial is None:
        return None
    trial.state = TRIAL_STATES[b % len(TRIAL_STATES)]
    if trial.seq is None and trial.state in ("COMPLETED", "INFEASIBLE", "FAILED", "STOPPED"):
        row.seq += 1
        trial.seq, trial.value = row.seq, x
    trial.until, trial.attempt = (x, trial.attempt + 1) if trial.state == LEASED else (None, trial.attempt)
    trial.worker, trial.ask_key, trial.invalid = [None, "w", "v"][a % 3], [None, "k"][b % 2], a % 5 == 0
    tx.put_trial(trial)
    tx.put_study(row)
    return trial


def _log(tx: Tx, s: str, a: int, b: int, x: float) -> Any:
    """A step record, an event and a late value; or a step that is there already."""
    row = tx.study(s)
    assert row is not None
    step = row.step if a % 4 else max(0, row.step - 1)
    tx.insert_steps([StepRow(s, step, row.seq, "need", None, row.seq + 1, x, b)])
    tx.insert_event(EventRow(s, row.seq + 2, "study.paused", x, "{}"))
    tx.insert_late(LateRow(s, row.seq + 3, a, None, x, x, None))
    row.step, row.seq = row.step + 1, row.seq + 3
    tx.put_study(row)
    return row


def _digests(tx: Tx, s: str, a: int, b: int, x: float) -> Any:
    n = len(tx.steps(s, 0, 10**6))
    return tx.put_digests(s, [(a % n, f"sha{b}"), (b % n, None)]) if n else None


_verbs: dict[str, Callable[[Tx, str, int, int, float], Any]] = {
    "create": lambda tx, s, a, b, x: tx.insert_study(replace(head(s), created_at=x), StudyRow(s, best_value=x)),
    "delete": lambda tx, s, a, b, x: tx.delete_study(s) if a % 4 == 0 else None,
    "insert": _insert,
    "insert more": _insert,
    "change": _change,
    "change more": _change,
    "log": _log,
    "digests": _digests,
    "head": lambda tx, s, a, b, x: tx.put_head(replace(head(s), resolved=str(a), name="x" if b == 0 else head(s).name)),
    "supersede": lambda tx, s, a, b, x: tx.supersede(s, a % 4, b % 4),
    "withdrawn": lambda tx, s, a, b, x: tx.withdrawn(s, 100.0 + a),
    "points": lambda tx, s, a, b, x: tx.points(s, list(range(a % 4, b))),
    "queued": lambda tx, s, a, b, x: tx.queued(s, a % 5),
    "lapsed": lambda tx, s, a, b, x: tx.lapsed(s, x, 1 + a),
    "leases": lambda tx, s, a, b, x: (tx.leased_by(s, "w"), tx.leased_under(s, "k"), tx.told_by(s, "v")),
    "told": lambda tx, s, a, b, x: tx.told(s, a, a + b),
    "page": lambda tx, s, a, b, x: tx.page(s, a % 4, b, TRIAL_STATES[: a % 3]),
    "best": lambda tx, s, a, b, x: tx.best(s, a % 2 == 0),
    "interim": lambda tx, s, a, b, x: tx.put_interim(InterimRow(s, a % 4, b % 2, a, x, x), 1 + b % 3),
    "snapshot": lambda tx, s, a, b, x: tx.insert_snapshot(SnapshotRow(s, a % 2, b, b"%d" % a)),
    "newest": lambda tx, s, a, b, x: tx.snapshot(s, a % 2, b),
    "prune": lambda tx, s, a, b, x: tx.keep_snapshots(s, a % 2, range(b)),
    "blob": lambda tx, s, a, b, x: tx.put_blob(s, f"d{a % 4}", a % 4 + 4 * (b % 3), b"%d" % (a % 4)),
    "drop": lambda tx, s, a, b, x: tx.drop_blobs(s, a, [b]),
}


def _answer(tx: Tx, study: str, verb: str, a: int, b: int, x: float) -> Any:
    """Return the answer of a verb, or the kind of its error; a study is made when a verb needs one."""
    try:
        if verb != "create" and tx.study(study) is None:
            tx.insert_study(head(study), StudyRow(study))
        return _verbs[verb](tx, study, a, b, x)
    except (Conflict, LookupError) as error:
        return "conflict" if isinstance(error, Conflict) else "unknown"


_verb = st.tuples(
    st.integers(0, 1), st.sampled_from(sorted(_verbs)), st.integers(0, 12), st.integers(0, 12),
    st.floats(-1e9, 1e9, allow_nan=False),
)  # fmt: skip
_works = st.tuples(st.lists(_verb, max_size=12), st.sampled_from([False, False, True]))
