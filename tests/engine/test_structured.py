"""A method whose points are no vectors: its candidates are asked, stored, told and replayed as text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

import blackbox
from blackbox import Pending, Results, Structured, rng
from blackbox.algorithm import ALGORITHMS
from blackbox.errors import IncompatibleProblem
from blackbox.records import no_note
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.memory import MemoryStore
from tests.engine.studies import Driver, perform

WORDS = ("be brief", "think aloud", "answer in verse", "give an example")
SPACE = {"prompt": {"type": "categorical", "choices": list(WORDS)}}


@dataclass(frozen=True, slots=True)
class State:
    step: int
    best: str
    value: float


class PickOptions(blackbox.Options):
    pass


class Pick(blackbox.Algorithm[PickOptions, State]):
    """Draws one of the texts at random and keeps the best; only for these tests."""

    Options = PickOptions
    State = State

    def init(self) -> State:
        return State(0, json.dumps({"prompt": WORDS[0]}), float("inf"))

    def need(self, state: State) -> int:
        return 2

    def ask(self, state: State, lanes: Sequence[int], pending: Pending) -> Structured:
        draws = rng.uniforms(self.noise, state.step, list(lanes), 1)[:, 0]
        texts = tuple(json.dumps({"prompt": WORDS[int(u * len(WORDS))]}) for u in draws)
        return Structured(texts, note=no_note(len(texts)))

    def tell(self, state: State, results: Results) -> State:
        best, value = state.best, state.value
        for candidate, told in zip(results.candidates, results.scalar, strict=True):
            if told < value:
                best, value = candidate, float(told)
        return replace(state, step=state.step + 1, best=best, value=value)

    def recommend(self, state: State) -> str:
        return state.best

    def metrics(self, state: State) -> Mapping[str, float]:
        return {"best": state.value}


@pytest.fixture
def study() -> Iterator[Driver]:
    traits = blackbox.Traits(encoding="structured", parameters=frozenset({"categorical"}))
    blackbox.algorithm("pick", traits)(Pick)
    try:
        store = MemoryStore()
        head, _ = perform(store, create("p", {"name": "words", "space": SPACE, "algorithm": "pick", "seed": 1}, 0.0))
        yield Driver(store, Study(head))
    finally:
        del ALGORITHMS.classes["pick"]


def worth(params: Mapping[str, Any]) -> float:
    return float(len(params["prompt"]))


def test_structured_points_are_equal_where_their_texts_are() -> None:
    points = Structured(("a", "b", "a"), note=no_note(3))
    assert points.hashes[0] == points.hashes[2] == hashlib.sha256(b"a").hexdigest() != points.hashes[1]
    assert points.take([2, 1]).candidates == ("a", "b")


def test_candidates_go_out_as_params_and_come_back_as_text(study: Driver) -> None:
    for _ in range(12):
        lease = study.lease()
        assert lease.point.vector is None
        assert lease.point.recipe is None
        params = study.study.params(lease.point)
        assert params["prompt"] in WORDS
        assert study.tell(lease, worth(params)).outcome == "applied"
    study.ask()
    recommended = study.do(study.study.recommend()).params
    assert recommended == {"prompt": "be brief"}
    best = study.do(study.study.best())
    assert best is not None
    assert best[1] == recommended
    for record, digest in study.do(study.study.replay()):
        assert digest == record.digest


def test_an_enqueued_point_reaches_the_method_as_a_candidate(study: Driver) -> None:
    study.do(study.study.enqueue([{"prompt": WORDS[2]}], now=study.now))
    lease = study.lease()
    assert study.study.params(lease.point) == {"prompt": WORDS[2]}
    assert study.tell(lease, -1.0).outcome == "applied"


def test_what_compares_points_as_numbers_says_that_these_are_none(study: Driver) -> None:
    with pytest.raises(IncompatibleProblem, match="structured"):
        study.do(study.study.archive())
    lease = study.lease()
    with pytest.raises(IncompatibleProblem, match="structured point"):
        study.study.vector(lease.point)
