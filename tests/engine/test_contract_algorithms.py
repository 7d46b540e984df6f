"""The contract of tests/contracts/algorithm.py on every registered method, and on a method made of two of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from blackbox.algorithm import registry
from blackbox.records import NOTHING_PENDING
from blackbox.study.effects import perform
from blackbox.study.rows import QUEUED
from tests.contracts.algorithm import DOMAINS, AlgorithmContract, Case, assert_replays, box, cases, run_study
from tests.contracts.algorithm import home as home_of
from tests.contracts.composer import TwoArms, registered

METHODS = list(registry().values())


class TestRegistered(AlgorithmContract):
    @pytest.fixture(params=[case for method in METHODS for case in cases(method)], ids=str)
    def case(self, request: pytest.FixtureRequest) -> Case:
        case: Case = request.param
        return case

    @pytest.fixture(params=[case for method in METHODS for case in cases(method, DOMAINS)], ids=str)
    def bare(self, request: pytest.FixtureRequest) -> Case:
        case: Case = request.param
        return case

    @pytest.fixture(params=[home_of(method) for method in METHODS], ids=str)
    def home(self, request: pytest.FixtureRequest) -> Case:
        case: Case = request.param
        return case


class TestComposed(AlgorithmContract):
    @pytest.fixture(autouse=True)
    def by_name(self) -> Iterator[None]:
        with registered():
            yield

    @pytest.fixture(params=cases(TwoArms, DOMAINS), ids=str)
    def case(self, request: pytest.FixtureRequest) -> Case:
        case: Case = request.param
        return case

    @pytest.fixture
    def home(self) -> Case:
        return home_of(TwoArms)

    def test_both_arms_get_their_own_results_in_a_study_of_several_workers(self) -> None:
        case = Case(TwoArms, box(6), {"options": ({"popsize": 6}, {"popsize": 3})})
        store, study = run_study(case, turns=300, workers=5, lost=0.1)
        row, state = perform(store, study.state())
        cma, uniform = case.make()._states(state)
        assert cma.step > 12
        assert uniform.step > 24
        assert state.best[0] < state.best[1], "the arm that learns is ahead"
        trials = store.read(lambda tx: tx.page(study.id, 0, 10_000, ()))
        points = store.read(lambda tx: tx.points(study.id, [trial.number for trial in trials]))
        notes = [tuple(np.frombuffer(points[trial.number].note, dtype="<i8").tolist()) for trial in trials]
        assert len(set(notes)) == len(notes), "an arm handed out one of its lanes twice"
        share = sum(note[0] for note in notes) / len(notes)
        assert 0.4 < share < 0.6, "workers are shared evenly"
        assert not any(trial.state == QUEUED for trial in trials)
        assert row.step > 30
        assert_replays(store, study)

    def test_an_arm_in_company_asks_what_it_would_ask_alone(self) -> None:
        loop = home_of(TwoArms, dim=4).loop().run(200, workers=5, lost=0.2)
        two: TwoArms = loop.algorithm
        for i, arm in enumerate(two.arms):
            states = {own.step: own for state, _ in loop.history for own in [two._states(state)[i]]}
            assert len(states) > 5
            n_told = 0
            for _, results in loop.history:
                for note, vector in zip(results.points.note, results.vectors, strict=True):
                    if note[0] == i:
                        alone = arm.ask(states[note[1]], [int(note[2])], NOTHING_PENDING)
                        assert alone.vectors.tobytes() == vector.tobytes()
                        n_told += 1
            assert n_told > 60

    def test_it_is_not_in_the_registry_of_the_package(self) -> None:
        assert TwoArms not in METHODS
