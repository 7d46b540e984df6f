"""However an update is cut, and whoever computes the parts, no bit of the state changes."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import blackbox
from blackbox import codec, federation, recipes
from blackbox.algorithm import build, resolve_options
from blackbox.errors import InvalidInput
from blackbox.recipes import slices
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.records import NOTHING_PENDING, Results, Term
from blackbox.rng import Key
from blackbox.space import Space, Vector

DIM = 5 * slices.ALIGN + 77
POPSIZE = 16
KEY = Key.from_seed(1)
SPACE = Space({"weights": Vector(dim=DIM)})


class Counting(slices.Inline):
    """Notes the parts it was given."""

    def __init__(self) -> None:
        self.parts: list[slices.Part] = []

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        self.parts = list(items)
        return iter([function(item) for item in self.parts])


def digest_after_two_steps(stepper: str = "adam", slicer: Slicer = WHOLE) -> str:
    """Of the state of an evolution strategy in many dimensions."""
    options = {"popsize": POPSIZE, "stepper": {"type": stepper}, "weight_decay": 0.01}
    method = build("openai_es", SPACE, resolve_options("openai_es", SPACE, options), KEY, slicer=slicer)
    state = method.init()
    for step in range(2):
        points = method.ask(state, range(POPSIZE), NOTHING_PENDING)
        values = (np.arange(POPSIZE) * (37 + step) % 17).reshape(-1, 1).astype(float)
        steps = np.full(POPSIZE, step, dtype=np.int64)
        state = method.tell(state, Results(steps, np.arange(POPSIZE), points, values))
    return codec.digest(codec.encode(state))


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 40), st.integers(1, 64))
def test_a_cut_covers_every_coordinate_once_and_is_aligned(start: int, count: int, n_parts: int, align: int) -> None:
    parts = slices.split(start, start + count, n_parts, align)
    assert 1 <= len(parts) <= n_parts
    assert (parts[0][0], parts[-1][1]) == (start, start + count)
    assert all(a[1] == b[0] and a[1] % align == 0 for a, b in itertools.pairwise(parts))
    lengths = [b - a for a, b in parts[1:-1]]
    assert not lengths or max(lengths) - min(lengths) <= align


@pytest.mark.parametrize("stepper", ["adam", "clipup"])
@pytest.mark.parametrize("n_parts", [1, 3, 16])
def test_the_state_has_the_same_digest_for_any_number_of_parts(n_parts: int, stepper: str) -> None:
    expected = digest_after_two_steps(stepper)
    counting = Counting()
    assert digest_after_two_steps(stepper, Slicer(counting, n_parts, threshold=0)) == expected
    assert len(counting.parts) == min(n_parts, 6)  # there are six aligned pieces


@pytest.mark.parametrize("n_parts", [1, 3, 16])
def test_threads_give_the_same_digest(n_parts: int) -> None:
    expected = digest_after_two_steps()
    with ThreadPoolExecutor(2) as threads:
        assert digest_after_two_steps(slicer=Slicer(threads, n_parts, threshold=0)) == expected


@pytest.mark.slow
def test_processes_give_the_same_digest() -> None:
    expected = digest_after_two_steps()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        for n_parts in (1, 3, 16):
            assert digest_after_two_steps(slicer=Slicer(processes, n_parts, threshold=0)) == expected


def test_factors_and_slices_of_slices_are_cut_too() -> None:
    factor = np.linspace(0.5, 2.0, DIM, dtype=np.float32)
    name = recipes.digest(factor)
    terms = [Term(0, 3, lane, 0.5 - lane, "rademacher" if lane % 2 else "normal", name) for lane in range(4)]
    start, count = 12_345, 3 * slices.ALIGN
    expected = recipes.weighted_noise_sum(terms, KEY, DIM, {name: factor})[start : start + count]
    counting = Counting()
    found = recipes.weighted_noise_sum(
        terms, KEY, DIM, {name: factor}.__getitem__, start=start, count=count, slicer=Slicer(counting, 4, threshold=0)
    )
    assert found.tobytes() == expected.tobytes()
    assert counting.parts[0][0] == start
    assert counting.parts[-1][1] == start + count
    assert len(counting.parts) == 4


def test_small_sums_are_not_handed_out() -> None:
    counting = Counting()
    recipes.weighted_noise_sum([Term(0, 0, 0, 1.0)], KEY, 1000, slicer=Slicer(counting, 4))
    assert counting.parts == []
    with pytest.raises(InvalidInput, match="n_parts"):
        Slicer(counting, 0)


def test_an_error_in_a_part_is_the_error_of_the_update() -> None:
    class Failing:
        def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
            raise OSError("no machine")

    with pytest.raises(OSError, match="no machine"):
        recipes.weighted_noise_sum([Term(0, 0, 0, 1.0)], KEY, DIM, slicer=Slicer(Failing(), 2, threshold=0))


@pytest.mark.parametrize("method", ["openai_es", "pgpe", "ars"])
def test_a_study_hands_its_slicer_to_the_method(method: str) -> None:
    def recommended(slicer: Slicer) -> bytes:
        space = {"w": Vector(dim=2 * slices.ALIGN, init=1.0)}
        found = blackbox.minimize(lambda w: float((w**2).mean()), space, method, budget=41, noise="none", slicer=slicer)
        return bytes(found.proposed.tobytes())

    counting = Counting()
    assert recommended(Slicer(counting, 2, threshold=0)) == recommended(WHOLE)
    assert counting.parts == [(0, slices.ALIGN), (slices.ALIGN, 2 * slices.ALIGN)]


def test_coordinators_and_participants_of_rounds_cut_their_sums_too() -> None:
    def moved(slicer: Slicer) -> bytes:
        space = Space({"w": Vector(dim=2 * slices.ALIGN)})
        options = {"payload": "scalars", "count": 2, "local_steps": 1}
        coordinator = federation.build("fedzo", space, options, KEY, slicer)
        participant = federation.accept(coordinator.invitation(), client="ann", secret=b"s" * 16, slicer=slicer)
        own = participant.start(participant.init(), coordinator.broadcast(coordinator.init()))
        own = participant.tell(own, (participant.ask(own) - 1).mean(axis=1))
        return bytes(
            own.z.tobytes() + coordinator.tell(coordinator.init(), [participant.contribution(own)]).x.tobytes()
        )

    both = Counting()
    assert moved(Slicer(both, 2, threshold=0)) == moved(WHOLE)
    assert both.parts == [(0, slices.ALIGN), (slices.ALIGN, 2 * slices.ALIGN)]
