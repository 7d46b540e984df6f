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

from blackbox import recipes
from blackbox.recipes import slices
from blackbox.records import Term
from blackbox.rng import Key

DIM = 4 * slices.ALIGN + 5
TERMS = [Term(0, 0, lane, 1.0 + lane) for lane in range(40)]
KEY = Key.from_seed(2)


def where() -> str:
    return threading.current_thread().name


def test_short_works_run_in_place_and_long_ones_in_a_thread() -> None:
    with closing(Threads(1, inline_seconds=0.01)) as computer:
        assert asyncio.run(computer.run(where, 0.001)) == where()
        assert asyncio.run(computer.run(where, 0.1)).startswith("compute")


def test_a_large_sum_is_cut_among_threads_to_the_same_bits_and_its_time_is_that_of_the_step() -> None:
    seen: list[str] = []

    class Listening:
        """Two workers that take a while."""

        n_workers = 2

        def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
            for item in items:
                time.sleep(0.02)
                seen.append(where())
                yield function(item)

        def close(self) -> None:
            seen.append("closed")

    work = partial(recipes.weighted_noise_sum, TERMS, KEY, DIM)
    expected, alone = timed(work)
    for n_slices in (1, 3):
        with closing(Threads(1, 0.0, n_slices)) as computer:
            found, seconds = asyncio.run(computer.run(partial(timed, work), 1.0))
        assert found.tobytes() == expected.tobytes()
        assert seconds > 0.2 * alone  # waiting for one's own parts is work
    with closing(Threads(1, 0.0, 1, Listening())) as computer:
        found, seconds = asyncio.run(computer.run(partial(timed, work), 1.0))
    assert np.array_equal(found, expected)
    assert len(seen) == 5
    assert seen[-1] == "closed"
    assert seconds >= 0.08
