"""The protocol over the asynchronous httpx: sends calls, and repeats them by the same rules."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from blackbox_client import protocol
from blackbox_client.client.connection import Attempts, Connection, Endpoint, reply_of
from blackbox_client.models import Page
from blackbox_client.protocol import Call, Reply, RetryPolicy

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


def documented_by(original: type[Any]) -> Callable[[C], C]:
    """Give the public members of a class the docstrings that they have in the class that they mirror."""

    def document(mirror: C) -> C:
        for name, member in vars(mirror).items():
            said = inspect.getdoc(getattr(original, name, None))
            if not name.startswith("_") and member.__doc__ is None and said:
                member.__doc__ = said
        return mirror

    return document


@documented_by(Connection)
class AsyncConnection(Endpoint):
    """A connection to a server for one event loop; leave it as an asynchronous context manager, or await `close`.

    Parameters
    ----------
    url, key, timeout, retry, prefix_bytes : see `Endpoint`, also for the attributes and errors.
    transport : the transport of httpx, for tests and special networks.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        prefix_bytes: int = 2**28,
    ) -> None:
        super().__init__(url, key, timeout=timeout, retry=retry, prefix_bytes=prefix_bytes)
        self._http = httpx.AsyncClient(transport=transport, **self._of_httpx)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[T], *, give_up_seconds: float | None = None) -> T:
        """Send a call and read its answer; repeats it as the retry policy says. Cancel the task to give it up.

        Parameters
        ----------
        call : from `blackbox_client.protocol`.
        give_up_seconds : replaces that of the policy.

        Raises
        ------
        BlackboxClientError
            One class per cause, see `blackbox_client.errors`.
        """

        async def attempt() -> tuple[Reply, None]:
            response = await self._http.send(self._request(self._http, call))
            return reply_of(response, response.content), None

        reply, _ = await self._until_answered(call, attempt, give_up_seconds)
        return call.read(reply)

    async def _until_answered(
        self,
        call: Call[Any],
        attempt: Callable[[], Awaitable[tuple[Reply, T]]],
        give_up_seconds: float | None = None,
    ) -> tuple[Reply, T]:
        attempts = Attempts(self, call, give_up_seconds)
        while True:
            failed: Reply | httpx.RequestError
            try:
                reply, extra = await attempt()
                if attempts.succeeded(reply):
                    return reply, extra
                failed = reply
            except httpx.RequestError as error:
                failed = error
            await asyncio.sleep(attempts.delay(failed))

    @asynccontextmanager
    async def lines(self, call: Call[str]) -> AsyncIterator[AsyncIterator[str]]:
        async def attempt() -> tuple[Reply, httpx.Response]:
            response = await self._http.send(self._request(self._http, call), stream=True)
            try:
                body = await response.aread() if response.status_code >= 300 else b""
            except BaseException:
                await response.aclose()
                raise
            return reply_of(response, body), response

        _, response = await self._until_answered(call, attempt)
        try:
            yield response.aiter_lines()
        finally:
            await response.aclose()

    async def all(self, call: Call[Page[T]]) -> AsyncIterator[T]:
        following: Call[Page[T]] | None = call
        while following is not None:
            page = await self.send(following)
            for item in page.items:
                yield item
            following = protocol.next_page(following, page)
