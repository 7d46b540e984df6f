"""Drives the engine's generators from an event loop.

`drive` answers the effects of an operation: transactions are awaited from the store, where many requests share one
commit, and the steps of algorithms run where `compute` decides. On top of that: one open study per id, one advance in
flight per study, long polls, and answers that are remembered for a retry.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from blackbox.errors import StoreUnavailable, StudyNotFound
from blackbox.study import effects
from blackbox.study.answers import AskAnswer, AskRequest, TellAnswer
from blackbox.study.base import BaseStudy
from blackbox.study.effects import Compute, Effect, Read, Steps, Write
from blackbox.study.hosting import HostedStudy, hosted_by
from blackbox.study.kinds import as_kind, open_study
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import ACTIVE, ReplyRow, StudyRow, Tx
from blackbox.study.settling import Report
from blackbox.study.trials import TrialStudy
from blackbox_server.compute import Computer, timed
from blackbox_server.metrics import Metrics, timing
from blackbox_server.problems import IdempotencyKeyReused
from blackbox_server.settings import Settings
from blackbox_server.store.front import AsyncStore
from blackbox_server.usage import Usage

T = TypeVar("T")
Render = Callable[[Tx, Any], tuple[int, bytes]]
logger = logging.getLogger("blackbox_server")

POLL_SECONDS = 1.0
"""A held ask tries again after so many seconds even if nothing woke it, because leases lapse silently."""
ENDED = ("completed", "cancelled", "study_failed", "space_exhausted")
"""Reasons for an empty answer to an ask that waiting does not change."""
BESIDE_THREADS = 4
"""Most operations at once that read very many rows."""
LARGE_SPEC = 16 * 1024
"""Studies whose resolved spec has more characters than this are opened in a thread."""
LARGE_DIM = 20_000
"""Points with more numbers than this in total are decoded in a thread."""


class Waiters:
    """Requests that wait for an event, served in the order of their arrival."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def wake(self, n: int | None = None) -> None:
        """Wake the first n (None: all)."""
        while self._waiting and (n is None or n > 0):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                n = None if n is None else n - 1

    async def wait(self, seconds: float, gone: asyncio.Future[Any] | None = None) -> None:
        """Wait until woken, until the client has disconnected (`gone`), or for so many seconds."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        both = (waiter,) if gone is None else (waiter, gone)
        try:
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)


@dataclass(slots=True, eq=False, weakref_slot=True)
class OpenStudy:
    """An open study, with the requests that wait for it.

    Attributes
    ----------
    asks : asks held until something may be granted.
    log : reads of events held until the log grows.
    advancing : set while a request closes steps, and resolved when it has.
    rounds : for a hosted participant, the federated study it takes part in, while that is open.
    hosted : for a federated study, its hosted participants that are open.
    memory : the estimate of its memory, in bytes.
    """

    study: BaseStudy
    asks: Waiters = field(default_factory=Waiters)
    log: Waiters = field(default_factory=Waiters)
    advancing: asyncio.Future[None] | None = None
    rounds: OpenStudy | None = None
    hosted: WeakSet[OpenStudy] = field(default_factory=WeakSet)
    memory: int = 0

    def changed(self, freed: int | None = None) -> None:
        """Wake those who wait, after a tell that freed so many leases, or (None) an advance or a change of state."""
        self.asks.wake(freed)
        self.log.wake()
        for participant in self.hosted:
            participant.asks.wake()


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """The identity of a request that may be sent again.

    Attributes
    ----------
    key : its Idempotency-Key; None: its answer is not remembered.
    digest : SHA-256 of its path and body, to refuse another request under the same key.
    """

    project: str
    key: str | None
    digest: str

    @staticmethod
    def of(project: str, key: str | None, *parts: bytes) -> IdempotentRequest:
        """The identity of a request with these path and body."""
        return IdempotentRequest(project, key, hashlib.sha256(b"\n".join(parts)).hexdigest() if key else "")


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """The answer to an idempotent request; `result` is None if the answer is the stored one of an earlier attempt."""

    status: int
    body: bytes
    result: T | None


class Service:
    """The studies of a store, for many concurrent requests in one event loop.

    Parameters
    ----------
    clock : seconds since the epoch: what is written, and when leases lapse.
    monotonic : seconds that nobody can set: everything that lasts.
    """

    def __init__(
        self,
        settings: Settings,
        store: AsyncStore,
        computer: Computer,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.store = store
        self.metrics = metrics
        self.clock = clock
        self.monotonic = monotonic
        self._computer = computer
        self._beside = ThreadPoolExecutor(BESIDE_THREADS, "beside")
        self._studies: OrderedDict[str, OpenStudy] = OrderedDict()
        self.usage = Usage(settings, store)
        self.stopping = False

    # Driving ----------------------------------------------------------------------------------------------------------

    async def write(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a function in a write transaction; returns when it is durable.

        Raises
        ------
        StoreUnavailable
        """
        started = perf_counter()
        try:
            return await self.store.write(work, long)
        except StoreUnavailable:
            self._studies.clear()  # nobody knows what the disk has: read everything again
            raise
        finally:
            timing.get().db += perf_counter() - started

    async def read(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a function on a snapshot of what is committed."""
        started = perf_counter()
        try:
            return await self.store.read(work, long)
        finally:
            timing.get().db += perf_counter() - started

    async def drive(self, steps: Steps[T]) -> T:
        """Drive an operation to its end."""
        return await effects.drive(steps, self._answer)

    async def drive_beside(self, steps: Steps[T]) -> T:
        """Drive an operation that reads very many rows, in a thread beside the event loop."""

        async def answer(effect: Effect) -> Any:
            assert not isinstance(effect, Compute)
            return await (self.write if isinstance(effect, Write) else self.read)(effect.work, long=True)

        return await self._driven_beside(steps, answer)

    async def beside(self, work: Callable[[], T]) -> T:
        """Run a function that computes for long in a thread beside the event loop."""
        # Threads of their own: these wait for long reads, which need threads of the loop's pool. In one pool enough of
        # them would wait for one another for ever.
        return await asyncio.get_running_loop().run_in_executor(self._beside, copy_context().run, work)

    async def _driven_beside(self, steps: Steps[T], answer: Callable[[Effect], Coroutine[Any, Any, Any]]) -> T:
        """Drive an operation in a thread; the event loop answers its effects, its computations aside."""
        loop = asyncio.get_running_loop()

        async def there(effect: Effect) -> Any:
            if isinstance(effect, Compute):
                return effect.work()
            return asyncio.run_coroutine_threadsafe(answer(effect), loop).result()

        return await self.beside(lambda: effects.at_once(effects.drive(steps, there)))

    async def _answer(self, effect: Effect) -> Any:
        if isinstance(effect, Write):
            return await self.write(effect.work, effect.long)
        if isinstance(effect, Read):
            return await self.read(effect.work)
        return await self._compute(effect)

    async def _compute(self, effect: Compute) -> Any:
        started = perf_counter()
        try:
            value, seconds = await self._computer.run(partial(timed, effect.work), effect.seconds)
        finally:
            timing.get().algo += perf_counter() - started
        if effect.took is not None:
            effect.took(seconds)
        return value

    async def once(
        self, request: IdempotentRequest, steps: Steps[T], render: Render, beside: bool = False
    ) -> Answered[T]:
        """Drive an operation whose answer is stored in the same transaction as its effect.

        A retry with the same key looks for the stored answer in the transaction that would do the work, so the work is
        done exactly once.

        Parameters
        ----------
        render : (transaction, result of the operation's first write) -> status and body of the response.
        beside : whether to compute what the operation computes in a thread.

        Raises
        ------
        IdempotencyKeyReused
            If the key was used for another request.
        """
        now = self.clock()
        rendered: tuple[int, bytes] = (200, b"{}")
        earlier: ReplyRow | None = None

        def remembered(tx: Tx, work: Callable[[Tx], Any]) -> Any:
            nonlocal rendered, earlier
            project, key = request.project, request.key
            if key is not None:
                earlier = tx.reply(project, key)
                if earlier is not None and earlier.at < now - 3600.0 * self.settings.reply_hours:
                    earlier = None
                if earlier is not None:
                    if earlier.request != request.digest:
                        raise IdempotencyKeyReused(f'the key "{key[:64]}" came with another request')
                    raise _Repeated
            answer = work(tx)
            rendered = render(tx, answer)
            if key is not None:
                tx.put_reply(ReplyRow(project, key, request.digest, rendered[0], rendered[1].decode(), now))
            return answer

        written = False

        async def answer(effect: Effect) -> Any:
            nonlocal written
            if written or not isinstance(effect, Write):
                return await self._answer(effect)
            value = await self.write(lambda tx: remembered(tx, effect.work), effect.long)
            written = True  # not earlier: a write that was rolled back is tried again
            return value

        try:
            result = await (self._driven_beside(steps, answer) if beside else effects.drive(steps, answer))
        except _Repeated:
            assert earlier is not None
            return Answered(earlier.status, earlier.body.encode(), None)
        return Answered(*rendered, result)

    async def purge(self) -> None:
        """Delete answers that are older than `reply_hours`."""
        before = self.clock() - 3600.0 * self.settings.reply_hours
        await self.write(lambda tx: tx.purge_replies(before))

    # Studies ----------------------------------------------------------------------------------------------------------

    async def open(self, study: str, project: str) -> OpenStudy:
        """The study of that id, if it belongs to the project.

        Raises
        ------
        StudyNotFound
            Also for a study of another project.
        """
        found = self._studies.get(study)
        if found is None:
            head = await self.read(lambda tx: tx.head(study))
            large = head is not None and len(head.resolved) > LARGE_SPEC
            steps = open_study(study, self._computer.slicer)
            made = await (self.drive_beside(steps) if large else self.drive(steps))
            found = self._studies.get(study)  # another request may have been faster
            if found is None:
                found = OpenStudy(made, memory=self.usage.make_room(made, self._studies))
                self._studies[study] = found
                self.usage.alive.add(found)
            if len(self._studies) > self.settings.open_studies:
                self._studies.popitem(last=False)
            self.metrics.open_studies.set(len(self._studies))
            await self._follow_rounds(found)
        else:
            self._studies.move_to_end(study)
        if found.study.head.project != project:
            raise StudyNotFound(f"there is no study {study}")
        return found

    async def _follow_rounds(self, opened: OpenStudy) -> None:
        """Connect a hosted participant that was just opened with its federated study, and the other way round."""
        study = opened.study
        if isinstance(study, HostedStudy):
            with suppress(StudyNotFound):  # deleted, as the participant will find out
                opened.rounds = await self.open(study.hosted.study, study.head.project)
                if isinstance(rounds := opened.rounds.study, FederatedStudy):
                    study.parent = rounds
                    opened.rounds.hosted.add(opened)
        elif isinstance(study, FederatedStudy):
            # A server that died may owe contributions that they had finished, and no evaluator need ever come again.
            for participant in await self.drive(hosted_by(study)):
                try:
                    await self.drive(participant.advance(now=self.clock()))
                except Exception:
                    logger.exception("advance of %s failed", participant.id)

    def close(self) -> None:
        """Let the threads end that run beside the event loop."""
        self._beside.shutdown(wait=False, cancel_futures=True)

    def let_go(self) -> None:
        """Answer every held request at once, because the server is stopping."""
        self.stopping = True
        for opened in self._studies.values():
            opened.changed()

    def forget(self, study: str) -> None:
        """Drop an open study that was deleted."""
        found = self._studies.pop(study, None)
        if found is not None:
            found.changed()

    async def advance(self, opened: OpenStudy) -> bool:
        """Close the steps that can be closed; returns whether any was. One request does it, others wait for it."""
        moved = False
        while opened.study.due():
            if opened.advancing is not None:
                await opened.advancing
                moved = True
                continue
            opened.advancing = asyncio.get_running_loop().create_future()
            started = perf_counter()
            steps = 0
            rounds = None if opened.rounds is None else opened.rounds.study.seen
            try:
                steps = await self.drive(opened.study.advance(now=self.clock()))
            except Exception:
                # The results are stored, so the current request has not failed; the next one tries again.
                logger.exception("advance of %s failed", opened.study.id)
            finally:
                opened.advancing.set_result(None)
                opened.advancing = None
            if steps:
                self.metrics.steps.inc(steps)
                self.metrics.advance_seconds.observe(perf_counter() - started)
                opened.changed()
                moved = True
            if opened.rounds is not None and opened.rounds.study.seen != rounds:
                opened.rounds.changed()
            if not steps:
                break
        return moved

    async def ask(
        self,
        opened: OpenStudy,
        request: AskRequest,
        *,
        wait_seconds: float = 0.0,
        gone: Callable[[], Awaitable[None]] | None = None,
        again: Callable[[], None] | None = None,
        asked: AskAnswer | None = None,
    ) -> AskAnswer:
        """Lease trials; holds the request while there are none, for at most `wait_seconds`.

        Parameters
        ----------
        gone : resolves when the client has disconnected: nobody would evaluate what is granted after that.
        again : called before another attempt; raises if the caller may no longer ask.
        asked : the answer that a tell has already got in its own transaction.

        Raises
        ------
        IncompatibleProblem
            If the study has no trials.
        AlgorithmChanged
            If this release cannot go on with it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + min(wait_seconds, self.settings.max_wait_seconds)
        left: asyncio.Future[None] | None = None
        try:
            while True:
                if asked is None:
                    await self.advance(opened)
                    asked = await self.drive(
                        as_kind(opened.study, TrialStudy).ask(
                            now=self.clock(),
                            worker=request.worker,
                            count=request.count,
                            lease_seconds=request.lease_seconds,
                            key=request.key,
                            resume=request.resume,
                        )
                    )
                remaining = until - loop.time()
                if asked.leases or remaining <= 0.0 or asked.reason in ENDED or self.stopping:
                    self.metrics.leased.inc(len(asked.leases))
                    return asked
                if gone is not None and left is None:
                    left = asyncio.ensure_future(gone())
                with self.metrics.waiting.track_inprogress():
                    await opened.asks.wait(min(POLL_SECONDS, remaining), left)
                if left is not None and left.done():
                    return asked
                if again is not None:
                    again()
                asked = None
        finally:
            if left is not None:
                left.cancel()

    async def told(self, opened: OpenStudy, told: TellAnswer) -> StudyRow:
        """Finish a tell: count its results, close steps, wake waiters. Returns the row of the study after that."""
        counts = Counter(outcome.outcome for outcome in told.outcomes)
        for outcome, n in counts.items():
            self.metrics.told(outcome, n)
        freed = counts["applied"] + counts["requeued"] + counts["released"]
        row = (opened.study.seen if await self.advance(opened) else None) or told.row
        if told.n_closed:
            self.metrics.steps.inc(told.n_closed)
        opened.changed(None if told.n_closed or row.state != ACTIVE else freed)
        return row

    async def tell(
        self, opened: OpenStudy, reports: Sequence[Report], worker: str, ask: AskRequest | None = None
    ) -> tuple[TellAnswer, StudyRow]:
        """Apply results, ask in the same transaction where possible, and close steps; durable when it returns."""
        study = as_kind(opened.study, TrialStudy)
        told = await self.drive(study.tell(reports, now=self.clock(), worker=worker, ask=ask))
        return told, await self.told(opened, told)

    async def row(self, opened: OpenStudy) -> StudyRow:
        """The committed row of a study.

        Raises
        ------
        StudyNotFound
            If it has been deleted.
        """
        row = await self.read(lambda tx: tx.study(opened.study.id))
        if row is None:
            self.forget(opened.study.id)
            raise StudyNotFound(f"there is no study {opened.study.id}")
        return row


class _Repeated(Exception):
    """Leaves a transaction in which the stored answer was found."""
