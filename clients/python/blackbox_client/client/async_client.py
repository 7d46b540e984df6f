"""The client as coroutines. What a call does is written once, in `client.client`: the docstrings are its."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from blackbox_client import protocol
from blackbox_client.client.async_connection import AsyncConnection, documented_by
from blackbox_client.client.async_study import AsyncStudyHandle
from blackbox_client.client.client import Client
from blackbox_client.models import (
    AlgorithmInfo,
    ApiKey,
    FederatedInfo,
    Limits,
    ProblemInfo,
    Quarantined,
    ServiceDocument,
    Study,
    bodies,
)


@documented_by(Client)
class AsyncClient(AsyncConnection):
    """A connection to a server for programs with an event loop: `Client` as coroutines and asynchronous iterators.

    Parameters and errors are those of `AsyncConnection`; use it as an asynchronous context manager.
    """

    async def service(self) -> ServiceDocument:
        return await self.send(protocol.service())

    async def limits(self) -> Limits:
        return await self.send(protocol.limits())

    async def algorithms(self) -> tuple[AlgorithmInfo, ...]:
        return (await self.send(protocol.algorithms())).algorithms

    async def federated_algorithms(self) -> tuple[FederatedInfo, ...]:
        return (await self.send(protocol.algorithms())).federated

    async def explain(self, code: str) -> ProblemInfo:
        return await self.send(protocol.problem(code))

    async def create_key(
        self,
        scopes: Sequence[str],
        *,
        name: str | None = None,
        project: str | None = None,
        expires_seconds: float | None = None,
    ) -> ApiKey:
        return await self.send(
            protocol.create_key(scopes=scopes, name=name, project=project, expires_seconds=expires_seconds)
        )

    async def delete_key(self, key_id: str) -> None:
        await self.send(protocol.delete_key(key_id))

    async def quarantine(self, worker: str, reason: str | None = None) -> Quarantined:
        return await self.send(protocol.quarantine(worker, reason=reason))

    async def create_study(
        self,
        *,
        name: str,
        space: Mapping[str, Any],
        direction: bodies.Direction | None = None,
        algorithm: str | bodies.AlgorithmChoice | None = None,
        budget: int | bodies.Budget | None = None,
        target: float | None = None,
        lease: bodies.LeaseDefaults | None = None,
        parallelism: int | bodies.Parallelism | None = None,
        rounds: bodies.Rounds | None = None,
        start: bodies.StartPolicy | None = None,
        duplicates: bodies.DuplicatesPolicy | None = None,
        seed: int | str | None = None,
        noise: bodies.Noise | None = None,
        non_finite: bodies.NonFinitePolicy | None = None,
        require_lease: bool | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncStudyHandle:
        call = protocol.create_study(
            name=name,
            space=space,
            direction=direction,
            algorithm=algorithm,
            budget=budget,
            target=target,
            lease=lease,
            parallelism=parallelism,
            rounds=rounds,
            start=start,
            duplicates=duplicates,
            seed=seed,
            noise=noise,
            non_finite=non_finite,
            require_lease=require_lease,
            labels=labels,
        )
        info = await self.send(call)
        return AsyncStudyHandle(self, info.id, info)

    async def keys(self) -> tuple[ApiKey, ...]:
        return tuple([key async for key in self.all(protocol.list_keys())])

    def study(self, study_id: str) -> AsyncStudyHandle:
        return AsyncStudyHandle(self, study_id)

    async def studies(self, *, limit: int | None = None) -> AsyncIterator[Study]:
        async for study in self.all(protocol.list_studies(limit=limit)):
            yield study
