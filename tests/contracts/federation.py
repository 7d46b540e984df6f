"""The contract of every federated method, with any phases and payloads. Runs over the registry."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from blackbox import codec, federation
from blackbox.errors import Conflict, InvalidContribution, InvalidInput
from blackbox.federation import Broadcast, Contribution, Federation, FederationState, Participant, Update
from blackbox.records import Matrix, Vector
from blackbox.rng import Key
from blackbox.space import Float, Space
from blackbox.space import Vector as Numbers

KEY = Key.from_seed(5)
CLIENTS = ("ann", "bob", "cleo", "dan")
DIM = 6


@dataclass(frozen=True)
class Variant:
    """A method with options under which it is tested."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(str(v) for v in self.options.values() if not isinstance(v, dict))])


def make(variant: Variant, space: Space | None = None, **options: Any) -> Federation[Any]:
    space = space or Space({"w": Numbers(dim=DIM, low=-1, high=1)})
    return federation.build(variant.name, space, {**variant.options, **options}, KEY)


def participant(coordinator: Federation[Any], client: str, weight: float = 1.0) -> Participant[Any, Any]:
    return federation.accept(coordinator.invitation(), client=client, weight=weight, secret=client.encode() * 16)


@cache
def centre(client: str) -> Vector:
    """Return the (d,) minimum of the client's bowl, inside [0.2, 0.8]."""
    return np.random.default_rng(sum(client.encode())).uniform(0.2, 0.8, DIM)


def bowl(client: str) -> Callable[[Matrix], Vector]:
    return lambda x: np.asarray(np.square(x - centre(client)).sum(axis=1))


def work(machine: Participant[Any, Any], own: Any, broadcast: Broadcast, f: Callable[[Matrix], Vector]) -> Any:
    """The participant's state when its phase is done."""
    own = machine.start(own, broadcast)
    while len(points := machine.ask(own)):
        own = machine.tell(own, f(points))
    return own


def numbers(value: Any) -> Iterator[float]:
    """Every number anywhere in a record."""
    if isinstance(value, np.ndarray):
        yield from value.astype(np.float64).ravel().tolist()
    elif is_dataclass(value):
        for each in fields(value):
            yield from numbers(getattr(value, each.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


class FederationContract:
    """Inherit and give it a parametrized fixture `variant`."""

    def phases(
        self, variant: Variant, n_rounds: int = 2
    ) -> Iterator[tuple[Federation[Any], FederationState, list[Contribution]]]:
        """(coordinator, its state, what all clients contribute), phase by phase."""
        coordinator = make(variant)
        machines = {name: participant(coordinator, name, 1 + i) for i, name in enumerate(CLIENTS)}
        private = {name: machine.init() for name, machine in machines.items()}
        state = coordinator.init()
        while state.round < n_rounds:
            sent = []
            for name, machine in machines.items():
                own = work(machine, private[name], coordinator.broadcast(state), bowl(name))
                sent.append(machine.contribution(own))
                private[name] = machine.settle(own, True)
            yield coordinator, state, sent
            state = coordinator.tell(state, sent)
        yield coordinator, state, []

    # -- the participant

    def test_asking_changes_nothing_and_gives_the_same_rows(self, variant: Variant) -> None:
        coordinator = make(variant)
        machine = participant(coordinator, "ann")
        broadcast = coordinator.broadcast(coordinator.init())
        own = machine.start(machine.init(), broadcast)
        before = codec.encode(own)
        first = machine.ask(own)
        np.testing.assert_array_equal(first, machine.ask(own))
        assert codec.encode(own) == before == codec.encode(machine.start(own, broadcast))
        assert first.shape[1] == DIM
        assert np.isfinite(first).all()
        again = participant(coordinator, "ann")
        np.testing.assert_array_equal(first, again.ask(again.start(again.init(), broadcast)))

    def test_participants_draw_points_that_others_cannot_foretell(self, variant: Variant) -> None:
        coordinator = make(variant)
        broadcast = coordinator.broadcast(coordinator.init())
        asked = []
        for name in ("ann", "bob"):
            machine = participant(coordinator, name)
            asked.append(machine.ask(machine.start(machine.init(), broadcast)))
        private = variant.options.get("payload") != "scalars"  # shared directions are the point of scalars
        assert np.array_equal(*asked) != private

    def test_a_private_state_survives_its_encoding_at_every_step(self, variant: Variant) -> None:
        coordinator = make(variant)
        machine, f = participant(coordinator, "ann"), bowl("ann")
        state = coordinator.init()
        straight, broken = machine.init(), machine.init()
        for _ in range(2 * len(coordinator.phases)):
            broadcast = coordinator.broadcast(state)
            straight = work(machine, straight, broadcast, f)
            broken = codec.decode(type(broken), codec.encode(participant(coordinator, "ann").start(broken, broadcast)))
            while len(points := machine.ask(broken)):
                broken = participant(coordinator, "ann").tell(broken, f(points))
                broken = codec.decode(type(broken), codec.encode(broken))
            assert codec.encode(straight) == codec.encode(broken)
            sent = machine.contribution(straight)
            assert sent.to_bytes() == machine.contribution(broken).to_bytes()
            straight, broken = machine.settle(straight, True), machine.settle(broken, True)
            assert codec.encode(machine.settle(straight, True)) == codec.encode(straight)
            state = coordinator.tell(state, [sent])

    def test_no_answer_makes_an_update_that_is_not_finite(self, variant: Variant) -> None:
        for values in ([math.nan], [0.0], [math.inf, 1.0], [math.nan, 1.0, -3.0], [1e300, -1e300], [1e-320, 0.0]):
            coordinator = make(variant)
            machine = participant(coordinator, "ann")
            state, own = coordinator.init(), machine.init()
            answers = itertools.cycle(values)
            for _ in range(2 * len(coordinator.phases)):
                told = lambda x, answers=answers: np.array([next(answers) for _ in x])  # noqa: E731
                own = work(machine, own, coordinator.broadcast(state), told)
                counts = not machine.declines(own)
                state = coordinator.tell(state, [machine.contribution(own)] if counts else [])
                own = machine.settle(own, counts)
                assert np.isfinite(list(numbers(state))).all(), values
                assert np.isfinite(list(numbers(own))).all(), values

    def test_where_no_evaluation_gave_a_value_there_is_no_contribution_and_the_phase_can_begin_again(
        self, variant: Variant
    ) -> None:
        coordinator = make(variant)
        machine = participant(coordinator, "ann")
        broadcast = coordinator.broadcast(coordinator.init())
        own = work(machine, machine.init(), broadcast, lambda x: np.full(len(x), math.nan))
        assert machine.declines(own)
        assert machine.done(own)
        with pytest.raises(Conflict, match="so there is no contribution"):
            machine.contribution(own)
        assert own.work.evaluations > 0
        assert own.work.released == 0
        again = work(machine, machine.settle(own, False), broadcast, bowl("ann"))
        assert not machine.declines(again)
        assert any(v.any() for v in machine.contribution(again).vectors.values())

    def test_a_flat_objective_is_information(self, variant: Variant) -> None:
        coordinator = make(variant)
        machine = participant(coordinator, "ann")
        state = coordinator.init()
        own = work(machine, machine.init(), coordinator.broadcast(state), lambda x: np.ones(len(x)))
        assert not machine.declines(own)
        moved = coordinator.tell(state, [machine.contribution(own)])
        assert (moved.x == state.x).all()
        assert [notice.code for notice in coordinator.notices(moved)] == ["nothing_moves"]
        assert not coordinator.notices(state)

    def test_only_finished_phases_contribute(self, variant: Variant) -> None:
        coordinator = make(variant)
        machine = participant(coordinator, "ann")
        with pytest.raises(Conflict, match="no phase has begun"):
            machine.contribution(machine.init())
        own = machine.start(machine.init(), coordinator.broadcast(coordinator.init()))
        with pytest.raises(Conflict, match="points to evaluate"):
            machine.contribution(own)
        with pytest.raises(InvalidInput, match="expected the values of"):
            machine.tell(own, [1.0])

    def test_broadcasts_of_another_study_or_of_the_past_are_refused(self, variant: Variant) -> None:
        runs = list(self.phases(variant))
        coordinator, state, _ = runs[-1]
        machine = participant(coordinator, "ann")
        newest = coordinator.broadcast(state)
        own = machine.start(machine.init(), newest)
        with pytest.raises(InvalidInput, match="is old"):
            machine.start(own, coordinator.broadcast(runs[0][1]))
        with pytest.raises(InvalidInput, match="terms"):
            machine.start(own, replace(newest, terms="0" * 16, step=99))
        with pytest.raises(InvalidInput, match="finite"):
            machine.start(machine.init(), replace(newest, vectors={**newest.vectors, "x": np.full(DIM, np.nan)}))

    # -- what travels

    def test_nothing_private_travels(self, variant: Variant) -> None:
        """Neither a point that was evaluated, nor one relative to x, nor a value or a sum of values leaves."""
        coordinator = make(variant)
        machine = participant(coordinator, "ann")
        state, own = coordinator.init(), machine.init()
        points: list[Vector] = []
        values: list[float] = []

        def watched(x: Matrix) -> Vector:
            told = 1000.0 + 37.0 * np.square(x - centre("ann")).sum(axis=1)  # numbers like no other in the protocol
            points.extend(row for row in x if not np.array_equal(row, public))
            values.extend(told.tolist())
            return np.asarray(told)

        for _ in range(3 * len(coordinator.phases)):
            broadcast = coordinator.broadcast(state)
            public = broadcast.x
            own = work(machine, own, broadcast, watched)
            sent = machine.contribution(own)
            for vector in sent.vectors.values():
                assert vector.dtype == np.float32
                if len(vector) == DIM:
                    for known in (np.zeros(DIM), public):
                        distance = np.abs(np.array(points) - known - vector).max(axis=1)
                        assert distance.min() > 1e-6
            told = np.array(list(numbers(sent)))
            secrets = np.concatenate([np.array(values), np.array(points).ravel(), np.array(points).sum(axis=1)])
            near = np.abs(told[:, None] - secrets) <= 1e-7 * np.abs(secrets)
            assert not near[np.abs(told) > 1e-3].any()
            assert set(sent.to_json()) == {
                "terms", "client", "round", "phase", "weight", "vectors", "evaluations", "privacy"
            }  # fmt: skip
            state = coordinator.tell(state, [sent])
            own = machine.settle(own, True)

    def test_payloads_survive_json_and_bytes(self, variant: Variant) -> None:
        for coordinator, state, sent in self.phases(variant):
            broadcast = coordinator.broadcast(state)
            wire = json.loads(json.dumps(broadcast.to_json(), allow_nan=False))
            assert len(json.dumps(wire)) < 700
            back = Broadcast.from_json(wire, broadcast.blobs())
            assert codec.encode(back) == codec.encode(broadcast)
            for c in sent:
                coordinator.check(c)
                again = Contribution.from_json(json.loads(json.dumps(c.to_json(), allow_nan=False)))
                assert again.to_bytes() == c.to_bytes() == Contribution.from_bytes(c.to_bytes()).to_bytes()
                declared = coordinator.phases[state.phase].payload
                assert {name: len(v) for name, v in c.vectors.items()} == dict(declared)
            assert codec.encode(codec.decode(FederationState, codec.encode(state))) == codec.encode(state)

    def test_what_does_not_fit_is_refused_by_name(self, variant: Variant) -> None:
        coordinator, state, (good, *_) = next(iter(self.phases(variant)))
        name, vector = next(iter(good.vectors.items()))
        spoiled = vector.copy()
        spoiled[0] = np.nan
        for bad, word in (
            (replace(good, vectors={}), "is required"),
            (replace(good, vectors={**good.vectors, "points": vector}), "takes no such vector"),
            (replace(good, vectors={**good.vectors, name: np.append(vector, vector)}), "float32 numbers"),
            (replace(good, vectors={**good.vectors, name: np.outer(vector, vector)}), "float32 numbers"),
            (replace(good, vectors={**good.vectors, name: vector.astype(np.float64)}), "float32 numbers"),
            (replace(good, vectors={**good.vectors, name: spoiled}), "must be finite"),
            (replace(good, terms="other"), "terms"),
            (replace(good, phase="locl"), "did you mean|known"),
            (replace(good, round=7), "the open phase is"),
        ):
            with pytest.raises(InvalidContribution, match=word):
                coordinator.tell(state, [bad])
        with pytest.raises(InvalidContribution, match="twice"):
            coordinator.tell(state, [good, good])

    # -- the coordinator

    def test_the_order_of_arrival_changes_no_bit(self, variant: Variant) -> None:
        chance = random.Random(0)
        for coordinator, state, sent in self.phases(variant):
            expected = codec.encode(coordinator.tell(state, sent)) if sent else b""
            for _ in range(4 if sent else 0):
                shuffled = chance.sample(sent, len(sent))
                assert codec.encode(coordinator.tell(state, shuffled)) == expected

    def test_any_subset_closes_a_phase(self, variant: Variant) -> None:
        for coordinator, state, sent in self.phases(variant):
            if not sent:
                continue
            for n in (0, 1, 3):
                after = coordinator.tell(state, sent[:n])
                assert (after.step, after.counted) == (state.step + 1, n)
                assert np.isfinite(list(numbers(after))).all()
                if n == 0:
                    np.testing.assert_array_equal(after.x, state.x)
                    assert after.version == state.version

    def test_who_was_absent_rebuilds_x_from_the_updates_bit_for_bit(self, variant: Variant) -> None:
        updates: list[Update] = []
        runs = list(self.phases(variant, 4))
        coordinator, state, _ = runs[-1]
        for _, each, _ in runs:
            if each.update is not None and each.update.version > len(updates):
                updates.append(Update.from_json(json.loads(json.dumps(each.update.to_json()))))
        start = coordinator.init()
        x, version = federation.catch_up(start.x, 0, updates[::-1], coordinator.key, coordinator.space)
        assert version == state.version == len(updates)
        assert x.tobytes() == state.x.tobytes()
        with pytest.raises(InvalidInput, match="version 2 is missing"):
            federation.catch_up(start.x, 0, [u for u in updates if u.version != 2], coordinator.key, coordinator.space)

    def test_it_comes_near_the_minimum_of_the_mean(self, variant: Variant) -> None:
        start, end = self.distances(variant, lambda *_: False)
        assert end < 0.25 * start

    def test_thirty_percent_lost_costs_little(self, variant: Variant) -> None:
        chance = random.Random(1)
        start, end = self.distances(variant, lambda *_: chance.random() < 0.3)
        assert end < 0.35 * start

    def distances(self, variant: Variant, lost: Callable[[int, str, str], bool]) -> tuple[float, float]:
        """From the minimum of the mean, at the start and after ten rounds."""
        coordinator = make(variant, Space({"w": Numbers(dim=DIM, low=0, high=1, init=0.0)}))
        done = federation.rehearse(coordinator, {name: bowl(name) for name in CLIENTS}, 10, lost=lost)
        best = np.mean([centre(name) for name in CLIENTS], axis=0)
        start, end = coordinator.init(), done.state
        first, last = (float(np.linalg.norm(coordinator.recommend(state) - best)) for state in (start, end))
        return first, last

    def test_it_treats_free_and_mixed_spaces(self, variant: Variant) -> None:
        space = Space(
            {"rate": Float(low=1e-5, high=1e-1, scale="log"), "x": Float(init=3.0, unit=2.0), "w": Numbers(dim=2)}
        )
        coordinator = make(variant, space)
        target = np.array([0.5, 1.0, 0.3, -0.3])

        def f(x: Matrix) -> Vector:
            assert all(np.isfinite(space.decode(row)["x"]) for row in x)
            return np.asarray(np.square(x - target).sum(axis=1))

        done = federation.rehearse(coordinator, {"ann": f, "bob": f}, 6)
        assert np.linalg.norm(done.state.x - target) < np.linalg.norm(coordinator.init().x - target)
