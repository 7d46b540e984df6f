"""Where steps run: in place, in a thread, and large sums in parts that are counted as time of their step."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from blackbox_server.compute import Threads, timed
from blackbox_server.metrics import Metrics, ServerTiming, timing
from blackbox_server.service import Service
from blackbox_server.settings import Settings
from blackbox_server.store.embedded import EmbeddedStore

from blackbox import recipes
from blackbox.recipes import slices
from blackbox.records import Term
from blackbox.rng import Key
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.kinds import as_kind
from blackbox.study.memory import MemoryStore
from blackbox.study.settling import Report

DIM = 4 * slices.ALIGN + 5
TERMS = [Term(0, 0, lane, 1.0 + lane) for lane in range(40)]
KEY = Key.from_seed(2)


def where() -> str:
    return threading.current_thread().name


def test_short_works_run_in_place_and_long_ones_in_a_thread() -> None:
    with closing(Threads(1, inline_seconds=0.01)) as computer:
        assert asyncio.run(computer.run(where, 0.001)) == where()
        assert asyncio.run(computer.run(where, 0.1)).startswith("compute")


class Listening:
    """Two workers that take a while, and note where each part is computed."""

    n_workers = 2

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        for item in items:
            time.sleep(0.02)
            self.seen.append(where())
            yield function(item)

    def close(self) -> None:
        self.seen.append("closed")


def test_a_large_sum_is_cut_among_threads_to_the_same_bits_and_its_time_is_that_of_the_step() -> None:
    seen: list[str] = []

    def work(slicer: slices.Slicer) -> Callable[[], Any]:
        return partial(timed, partial(recipes.weighted_noise_sum, TERMS, KEY, DIM, slicer=slicer))

    expected, alone = work(slices.WHOLE)()
    for n_slices in (1, 3):
        with closing(Threads(1, 0.0, n_slices)) as computer:
            found, seconds = asyncio.run(computer.run(work(computer.slicer), 1.0))
        assert found.tobytes() == expected.tobytes()
        assert seconds > 0.2 * alone  # waiting for one's own parts is work
    with closing(Threads(1, 0.0, 1, Listening(seen))) as computer:
        found, seconds = asyncio.run(computer.run(work(computer.slicer), 1.0))
    assert np.array_equal(found, expected)
    assert len(seen) == 5
    assert seen[-1] == "closed"
    assert seconds >= 0.08


def test_the_steps_of_a_study_of_the_service_are_cut() -> None:
    seen: list[str] = []
    store = MemoryStore()
    spec = {
        "name": "large",
        "space": {"w": {"type": "vector", "dim": DIM}},
        "algorithm": {"name": "openai_es", "options": {"popsize": 34}},
        "start": "skip",
    }
    head, _ = perform(store, create("mine", spec, 0.0))

    async def one_step(computer: Threads) -> int:
        service = Service(Settings(), EmbeddedStore(store), computer, Metrics())
        opened = await service.open(head.id, "mine")
        asked = await service.drive(opened.study.ask(now=0.0, count=34))
        reports = [Report(lease.trial.number, lease.token, value=float(i)) for i, lease in enumerate(asked.leases)]
        await service.drive(opened.study.tell(reports, now=1.0))
        await service.advance(opened)
        return perform(store, opened.study.row()).step

    with closing(Threads(1, 0.0, 1, Listening(seen))) as computer:
        timing.set(ServerTiming())
        assert asyncio.run(one_step(computer)) == 1
    assert [name.partition("_")[0] for name in seen] == ["compute"] * 4 + ["closed"]


def test_more_long_readers_than_threads_all_come_to_an_end() -> None:
    store = MemoryStore()
    spec = {"name": "read", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "algorithm": "random_search"}
    head, _ = perform(store, create("mine", spec, 0.0))

    async def readers(computer: Threads) -> int:
        service = Service(Settings(), EmbeddedStore(store), computer, Metrics())
        study = as_kind((await service.open(head.id, "mine")).study, Study)
        async with asyncio.timeout(30):
            found = await asyncio.gather(*(service.drive_beside(study.archive()) for _ in range(100)))
        service.close()
        return len(found)

    with closing(Threads(1, 0.0, 1)) as computer:
        timing.set(ServerTiming())
        assert asyncio.run(readers(computer)) == 100
