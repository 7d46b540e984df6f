"""The handle on one study as coroutines. What a call does is said once, in `client.study`: the docstrings are its."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from typing import Any, Literal

import httpx
import numpy as np
from numpy.typing import NDArray

from blackbox_client import protocol, recipes
from blackbox_client.client.async_connection import AsyncConnection, documented_by
from blackbox_client.client.study import Rows, StudyHandle, batch_of, place_of, taken, tokens_of, vector_of
from blackbox_client.errors import BaseMismatch, ConnectionFailed, Forbidden
from blackbox_client.models import (
    AskAnswer,
    Best,
    Event,
    EventPage,
    HealthItem,
    HeartbeatAnswer,
    Invalidated,
    Json,
    OpenPhase,
    PastRound,
    ReportAnswer,
    Result,
    SeedCandidate,
    Snapshot,
    Study,
    TellAnswer,
    Trial,
    TrialRef,
    bodies,
)

log = logging.getLogger("blackbox_client")


@documented_by(StudyHandle)
class AsyncStudyHandle:
    """One study of a server: `StudyHandle` as coroutines and asynchronous iterators.

    Parameters
    ----------
    client, id, info : as in `StudyHandle`.

    Notes
    -----
    ``await study.info`` reads the study once. Vectors are rebuilt in a thread, beside the event loop.
    """

    def __init__(self, client: AsyncConnection, id: str, info: Study | None = None) -> None:
        self.client = client
        self.id = id
        self._info = info
        self._vector_name: str | None = None

    def __repr__(self) -> str:
        return f"AsyncStudyHandle({self.id!r} at {self.client.url})"

    @property
    def info(self) -> Awaitable[Study]:
        return self._known()

    async def _known(self) -> Study:
        return self._info or await self.refresh()

    def _keep(self, info: Study) -> Study:
        self._info = info
        return info

    async def refresh(self) -> Study:
        return self._keep(await self.client.send(protocol.get_study(self.id)))

    async def update(
        self,
        *,
        budget: int | bodies.Budget | None = None,
        labels: Mapping[str, str] | None = None,
        lease: bodies.LeaseDefaults | None = None,
        parallelism: int | bodies.Parallelism | None = None,
        if_match: str | None = None,
    ) -> Study:
        call = protocol.update_study(
            self.id, budget=budget, labels=labels, lease=lease, parallelism=parallelism, if_match=if_match
        )
        return self._keep(await self.client.send(call))

    async def delete(self) -> None:
        await self.client.send(protocol.delete_study(self.id))

    async def host(self, client: str, weight: float | None = None) -> AsyncStudyHandle:
        joined = await self.client.send(protocol.host(self.id, client, weight))
        return AsyncStudyHandle(self.client, place_of(joined, self.id))

    async def open_phase(self, *, after_step: int = -1, wait_seconds: float = 0.0) -> OpenPhase:
        return await self.client.send(protocol.current_round(self.id, after_step=after_step, wait_seconds=wait_seconds))

    async def past_round(self, round: int) -> PastRound:
        return await self.client.send(protocol.past_round(self.id, round))

    async def pause(self, reason: str | None = None) -> Study:
        return self._keep(await self.client.send(protocol.change_state(self.id, "pause", reason=reason)))

    async def resume(self, reason: str | None = None) -> Study:
        return self._keep(await self.client.send(protocol.change_state(self.id, "resume", reason=reason)))

    async def complete(self, reason: str | None = None) -> Study:
        return self._keep(await self.client.send(protocol.change_state(self.id, "complete", reason=reason)))

    async def cancel(self, reason: str | None = None) -> Study:
        return self._keep(await self.client.send(protocol.change_state(self.id, "cancel", reason=reason)))

    async def snapshot(self) -> Snapshot:
        return await self.client.send(protocol.snapshot(self.id))

    async def fork(
        self,
        step: int | None = None,
        *,
        name: str | None = None,
        algorithm: str | bodies.AlgorithmChoice | None = None,
    ) -> AsyncStudyHandle:
        info = await self.client.send(protocol.fork(self.id, step, name=name, algorithm=algorithm))
        return AsyncStudyHandle(self.client, info.id, info)

    async def ask(
        self,
        count: int = 1,
        worker: str | None = None,
        wait_seconds: float = 0.0,
        *,
        lease_seconds: float | Literal["auto"] | None = None,
        resume: bool = False,
        encoding: bodies.Encoding = "values",
        idempotency_key: str | None = None,
    ) -> AskAnswer:
        body = protocol.ask_body(
            count,
            worker=worker,
            lease_seconds=lease_seconds,
            wait_seconds=wait_seconds,
            resume=resume,
            encoding=encoding,
        )
        return await self.client.send(protocol.ask(self.id, body, idempotency_key=idempotency_key))

    async def tell(
        self,
        results: Result | TrialRef | Iterable[Result],
        value: Any = None,
        *,
        worker: str | None = None,
        ask: int | bodies.Ask | None = None,
        idempotency_key: str | None = None,
    ) -> TellAnswer:
        batch = batch_of(results, value)
        body = protocol.ask_body(ask) if isinstance(ask, int) else ask
        return await self.client.send(
            protocol.tell(self.id, batch, worker=worker, ask=body, idempotency_key=idempotency_key)
        )

    async def heartbeat(self, leases: Iterable[str | Trial], *, extend_seconds: float | None = None) -> HeartbeatAnswer:
        return await self.client.send(protocol.heartbeat(self.id, tokens_of(leases), extend_seconds=extend_seconds))

    async def enqueue(self, trials: Iterable[bodies.Enqueued]) -> tuple[Trial, ...]:
        return tuple(taken(entry) for entry in (await self.client.send(protocol.enqueue(self.id, trials))).items)

    async def trial(self, trial: TrialRef) -> Trial:
        return await self.client.send(protocol.get_trial(self.id, trial))

    async def cancel_trial(self, trial: TrialRef, reason: str | None = None) -> Trial:
        return await self.client.send(protocol.change_trial(self.id, trial, "cancel", reason=reason))

    async def requeue(self, trial: TrialRef, reason: str | None = None) -> Trial:
        return await self.client.send(protocol.change_trial(self.id, trial, "requeue", reason=reason))

    async def invalidate(self, trial: TrialRef, reason: str | None = None) -> Invalidated:
        return await self.client.send(protocol.invalidate(self.id, trial, reason=reason))

    async def report(
        self, trial: TrialRef, step: int | None = None, value: Any = None, *, lease: str | None = None
    ) -> ReportAnswer:
        return await self.client.send(protocol.report(self.id, trial, step, value, lease=lease))

    async def best(self, k: int | None = None, view: bodies.View | None = None) -> Best:
        return await self.client.send(protocol.best(self.id, k=k, view=view))

    async def health(self) -> tuple[HealthItem, ...]:
        return (await self.client.send(protocol.health(self.id))).items

    async def brief(self) -> str:
        return await self.client.send(protocol.brief(self.id))

    async def event_page(
        self,
        after: int = 0,
        *,
        types: Iterable[str] | None = None,
        wait_seconds: float = 0.0,
        limit: int | None = None,
    ) -> EventPage:
        return await self.client.send(
            protocol.events(self.id, after, wait_seconds=wait_seconds, types=types, limit=limit)
        )

    async def trials(self, *, state: str | None = None, limit: int | None = None) -> AsyncIterator[Trial]:
        async for trial in self.client.all(protocol.list_trials(self.id, state=state, limit=limit)):
            yield trial

    async def events(
        self,
        after: int = 0,
        *,
        types: Iterable[str] | None = None,
        follow: bool = False,
        wait_seconds: float = 20.0,
    ) -> AsyncIterator[Event]:
        types = list(types) if types else None
        while True:
            start = time.monotonic()
            page = await self.event_page(after, types=types, wait_seconds=wait_seconds if follow else 0.0)
            for event in page.events:
                yield event
            if not page.events and page.next_after <= after:
                if not follow:
                    return
                await asyncio.sleep(max(0.0, min(0.5, wait_seconds) - (time.monotonic() - start)))
            after = page.next_after

    async def export(self, format: bodies.ExportFormat | None = None, *, after_seq: int = 0) -> AsyncIterator[str]:
        async with self.client.lines(protocol.export(self.id, format=format, after_seq=after_seq or None)) as lines:
            try:
                async for line in lines:
                    yield line
            except httpx.RequestError as error:
                raise ConnectionFailed(f"the export broke off: {error!r}; ask again with after_seq") from error

    async def history(self, *, after_seq: int = 0) -> AsyncIterator[Json]:
        rows = Rows(after_seq)
        while True:
            try:
                async for line in self.export(after_seq=rows.after_seq):
                    if row := rows.read(line):
                        yield row
                return
            except (ConnectionFailed, json.JSONDecodeError):
                if rows.stuck():
                    raise

    async def base(self, version: int | str, *, dtype: str = "f32", sha256: str | None = None) -> recipes.Blob:
        get, call = self.client.bases.get, protocol.base(self.id, version)

        def of(content: bytes | None) -> recipes.Blob:
            return get(self.id, str(version), dtype, sha256, lambda: _there(content))

        try:
            return of(None)
        except _NotKept:
            pass
        content = await self.client.send(call)
        try:
            return of(content)
        except BaseMismatch:  # once more: it may have been cut off on its way
            content = await self.client.send(call)
            return of(content)

    async def materialise(self, trial: Trial) -> NDArray[np.float32]:
        candidate = trial.candidate
        if candidate is None:
            raise ValueError(f'{trial.id} is not seed-encoded; ask with encoding="seed", or read trial.params')
        base, factors = await self.ingredients(candidate)
        cache = self.client.prefixes
        return await asyncio.to_thread(recipes.rebuild, candidate.raw, base, factors=factors, cache=cache)

    async def ingredients(self, candidate: SeedCandidate) -> tuple[recipes.Blob | None, dict[str, recipes.Blob]]:
        digest, dtype = candidate.base_sha256, candidate.dtype
        base = await self.base(digest, dtype=dtype, sha256=digest) if digest else None
        weights = {op["weight"] for op in candidate.ops if isinstance(op.get("weight"), str)}
        return base, {weight: await self.base(weight, dtype=dtype, sha256=weight) for weight in weights}

    async def arguments(self, trial: Trial) -> dict[str, Any]:
        params = dict(trial.params)
        if trial.candidate is not None:
            params[await self.name_of_vector()] = await self.materialise(trial)
        return params

    async def name_of_vector(self) -> str:
        if self._vector_name is None:
            try:
                space: Mapping[str, Any] = (await self.info).space
            except Forbidden:
                log.warning("this key may not read %s to learn the name of its vector: calling it theta", self.id)
                space = {}
            self._vector_name = vector_of(space)
        return self._vector_name


class _NotKept(Exception):
    """A vector is not in the cache."""


def _there(content: bytes | None) -> bytes:
    if content is None:
        raise _NotKept
    return content
