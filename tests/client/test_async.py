"""The client as coroutines: the same surface as the client, against the application itself."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from blackbox_client import AsyncClient, AsyncStudyHandle, Client, RetryPolicy, StudyHandle, completed, errors, protocol

from tests.client.conftest import RealServer

MIRRORS = [(Client, AsyncClient), (StudyHandle, AsyncStudyHandle)]
CANCELLED = {"interrupt"}  # a task is cancelled instead
SENDS_NOTHING = {"study"}


class Beside(httpx.AsyncBaseTransport):
    """The application of a `RealServer` for an event loop."""

    def __init__(self, server: RealServer) -> None:
        self._server = server

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        answer = await asyncio.to_thread(self._server.handle_request, request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.read())


def in_a_loop(real: RealServer, play: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncClient("http://testserver", real.key, transport=Beside(real)) as client:
            await play(client)

    asyncio.run(run())


def public(cls: type[Any]) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(cls) if not name.startswith("_")}


def as_coroutines(annotation: str) -> str:
    return annotation.replace("Iterator", "AsyncIterator").replace("StudyHandle", "AsyncStudyHandle")


@pytest.mark.parametrize(("plain", "mirror"), MIRRORS)
def test_the_clients_have_the_same_members_signatures_and_docstrings(plain: type[Any], mirror: type[Any]) -> None:
    assert set(public(plain)) == set(public(mirror))
    for name, member in public(plain).items():
        other = public(mirror)[name]
        if isinstance(member, property):
            assert isinstance(other, property)
            assert inspect.getdoc(other) == inspect.getdoc(member)
            continue
        wanted, found = inspect.signature(member), inspect.signature(other)
        kept = [p for p in wanted.parameters.values() if p.name not in CANCELLED]
        assert [str(p) for p in kept] == [str(p) for p in found.parameters.values()], name
        assert as_coroutines(str(wanted.return_annotation)) == str(found.return_annotation), name
        assert len(kept) < len(wanted.parameters) or inspect.getdoc(other) == inspect.getdoc(member), name
        inner = inspect.unwrap(other)
        waits = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
        assert waits or name in SENDS_NOTHING, f"{name} would block the event loop"


async def listed(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.fixture
def called() -> Iterator[set[str]]:
    """Names of the members of the two classes that were called."""
    names: set[str] = set()
    before = {cls: dict(vars(cls)) for cls in (AsyncClient, AsyncStudyHandle)}
    for cls, members in before.items():
        for name, member in members.items():
            if name.startswith("_") or not inspect.isfunction(member):
                continue

            def noted(*args: Any, of: Any = member, at: str = f"{cls.__name__}.{name}", **more: Any) -> Any:
                names.add(at)
                return of(*args, **more)

            setattr(cls, name, noted)
    yield names
    for cls, members in before.items():
        for name, member in members.items():
            if not name.startswith("_"):
                setattr(cls, name, member)


def test_every_call_works_against_the_application(real: RealServer, called: set[str]) -> None:
    async def play(client: AsyncClient) -> None:
        assert (await client.service()).raw
        assert (await client.limits()).raw
        assert any(each.name == "cma_es" for each in await client.algorithms())
        assert any(each.name == "fedzo" for each in await client.federated_algorithms())
        assert (await client.explain("lease-unknown")).raw
        key = await client.create_key(["study:evaluate"], name="short")
        assert key.id in [each.id for each in await client.keys()]
        await client.delete_key(str(key.id))
        await plain_study(client)
        await big_study(client)
        await rounds(client)

    in_a_loop(real, play)
    there = {f"{cls.__name__}.{name}" for cls in (AsyncClient, AsyncStudyHandle) for name in vars(cls)}
    missing = {name for name in there - called if not name.partition(".")[2].startswith("_")}
    assert missing == {"AsyncStudyHandle.info"}


async def plain_study(client: AsyncClient) -> None:
    space = {"x": {"type": "float", "low": -5, "high": 5}}
    study = await client.create_study(name="async", space=space, algorithm="random_search", budget=100, start="skip")
    assert study.id in [each.id async for each in client.studies(limit=1)]
    assert (await client.study(study.id).info).name == "async"
    assert (await study.update(labels={"by": "loop"})).labels == {"by": "loop"}
    await study.enqueue([{"params": {"x": 1.5}}])
    answer = await study.ask(3, worker="w", lease_seconds=60)
    first, second, third = answer.trials
    assert first.params == {"x": 1.5}
    assert len((await study.heartbeat(answer.trials)).leases) == 3
    await study.report(first, 1, 0.5)
    assert (await study.tell(first, 2.25, worker="w")).applied == 1
    assert (await study.cancel_trial(second)).state == "CANCELLED"
    assert (await study.tell([completed(third, 9.0)], worker="w", ask=1)).ask is not None
    with pytest.raises(TypeError, match="single trial"):
        await study.tell([], 1.0)
    with pytest.raises(errors.Conflict):
        await study.requeue(first)
    assert (await study.best()).value == 2.25
    assert study.id in await study.brief()
    assert isinstance(await study.health(), tuple)
    assert (await study.trial(first)).value == 2.25
    assert len(await listed(study.trials(limit=2))) >= 4
    assert len(await listed(study.events())) == (await study.event_page(limit=500)).next_after
    assert [row async for row in study.history()]
    assert [line async for line in study.export()]
    await study.invalidate(third, "wrong")
    assert (await client.quarantine("nobody")).raw is not None
    await study.snapshot()
    fork = await study.fork(name="async fork")
    assert isinstance(fork, AsyncStudyHandle)
    assert (await study.pause("lunch")).state == "PAUSED"
    assert (await study.resume()).state == "ACTIVE"
    assert (await study.complete()).state == "COMPLETED"
    assert (await fork.cancel()).state == "CANCELLED"
    await fork.delete()
    with pytest.raises(errors.NotFound):
        await fork.refresh()


async def big_study(client: AsyncClient) -> None:
    space = {"w": {"type": "vector", "dim": 50, "low": None, "high": None}}
    study = await client.create_study(name="async big", space=space, algorithm="openai_es", budget=1000)
    (trial,) = (await study.ask(encoding="seed")).trials
    assert trial.candidate is not None
    base, factors = await study.ingredients(trial.candidate)
    assert base is not None
    assert not factors
    assert await study.base(trial.candidate.base_sha256 or "", sha256=base.sha256) is base, "from the cache"
    rebuilt = (await study.arguments(trial))[await study.name_of_vector()]
    np.testing.assert_array_equal(rebuilt, await study.materialise(trial))
    assert rebuilt.shape == (50,)


async def rounds(client: AsyncClient) -> None:
    space = {"x": {"type": "vector", "dim": 2, "low": 0, "high": 1}}
    options = {"rounds": 1, "local_steps": 1, "quorum": 1.0}
    study = await client.create_study(name="async rounds", space=space, algorithm={"name": "fedzo", "options": options})
    seat = await study.host("judge")
    while (await study.open_phase()).step == 0:
        answer = await seat.ask(8)
        await seat.tell([completed(trial, 0.5) for trial in answer.trials])
    assert (await study.past_round(0)).state == "AGGREGATED"


def test_many_calls_wait_at_once_in_one_loop(real: RealServer) -> None:
    async def play(client: AsyncClient) -> None:
        space = {"x": {"type": "float", "low": 0, "high": 1}}
        study = await client.create_study(name="many", space=space, algorithm="random_search", budget=40)
        answers = await asyncio.gather(*(study.ask(worker=f"w{i}") for i in range(10)))
        trials = [trial for answer in answers for trial in answer.trials]
        assert len({trial.id for trial in trials}) == 10
        told = await asyncio.gather(*(study.tell(trial, 1.0) for trial in trials))
        assert sum(each.applied for each in told) == 10

    in_a_loop(real, play)


def test_a_lost_answer_is_repeated_under_one_key_and_an_error_is_not(server: Any, answer: Any) -> None:
    path = "/v1/studies/st_1/ask"
    server.on("POST", path, answer(cut=0), answer({"detail": "busy"}, 503), {"trials": [], "granted": 0})
    server.on("GET", "/v1/studies/st_1", answer({"detail": "no", "code": "forbidden"}, 403))

    async def run() -> None:
        retry = RetryPolicy(base_seconds=0.001, max_seconds=0.002)
        async with AsyncClient(server.url, retry=retry) as client:
            assert (await client.study("st_1").ask()).trials == ()
            with pytest.raises(errors.Forbidden):
                await client.study("st_1").refresh()
            server.on("POST", path, answer({"detail": "busy"}, 503))
            with pytest.raises(errors.BlackboxClientError):
                await client.send(protocol.ask("st_1", protocol.ask_body(1)), give_up_seconds=0.0)

    asyncio.run(run())
    first, second, third = server.requests("POST", path)[:3]
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == third.headers["idempotency-key"]
    assert len(server.requests("GET", "/v1/studies/st_1")) == 1


def test_a_call_that_waits_to_be_repeated_ends_with_its_task(server: Any, answer: Any) -> None:
    server.on("GET", "/v1/studies/st_1", answer({"detail": "busy"}, 503))

    async def run() -> None:
        async with AsyncClient(server.url, retry=RetryPolicy(base_seconds=60.0)) as client:
            task = asyncio.create_task(client.study("st_1").refresh())
            while not server.requests("GET", "/v1/studies/st_1"):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
