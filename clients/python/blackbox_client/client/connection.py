"""The protocol over httpx: sends calls, and repeats them."""

from __future__ import annotations

import logging
import os
import random as random_module
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from blackbox_client import protocol
from blackbox_client.client.bases import BaseCache
from blackbox_client.errors import CallInterrupted
from blackbox_client.models import Page
from blackbox_client.protocol import Call, NoAnswer, Outcome, Raise, Reply, RetryPolicy, RetryState
from blackbox_client.recipes import PrefixCache

log = logging.getLogger("blackbox_client")
T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8800"


class Endpoint:
    """A server, and the rules by which it is called: all of a connection that sends nothing.

    Parameters
    ----------
    url : address of the server, with or without ``/v1``; None: the environment's ``BLACKBOX_URL``, else `DEFAULT_URL`.
    key : API key; None: the environment's ``BLACKBOX_KEY``, else the content of the file that its
        ``BLACKBOX_KEY_FILE`` names, else none is sent.
    timeout : seconds without a byte after which an attempt counts as lost; long polls get their wait on top.
    retry : when failed attempts are repeated; see `RetryPolicy`.
    prefix_bytes : most bytes of points kept to build their children from; see `recipes.PrefixCache`.

    Attributes
    ----------
    bases, prefixes : base vectors and points of parents, shared by all studies of the connection.

    Raises
    ------
    ValueError
        If the address is not an http or https one, or the key's file cannot be read.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        prefix_bytes: int = 2**28,
    ) -> None:
        url = url or os.environ.get("BLACKBOX_URL") or DEFAULT_URL
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"the server's address looks like http://host:port, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self.retry = retry or RetryPolicy()
        key = key if key is not None else _key_of_environment()
        headers = {"user-agent": "blackbox-client-python/0.1"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._of_httpx: dict[str, Any] = {
            "headers": headers,
            # loading the certificates takes longer than a call on loopback; without TLS they are not needed
            "verify": parts.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            "follow_redirects": False,
            # idle connections are dropped before uvicorn does it (5 s), so that requests do not run into closed ones
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=4.0),
        }
        self.bases = BaseCache()
        self.prefixes = PrefixCache(prefix_bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        return http.build_request(
            call.method,
            self.url + call.path,
            params=dict(call.query) or None,
            content=call.body,
            headers=dict(call.headers),
            timeout=httpx.Timeout(self.timeout, read=self.timeout + call.hold_seconds, pool=None),
        )


class Attempts:
    """The attempts of one call: decides after each whether and when to try again."""

    def __init__(self, endpoint: Endpoint, call: Call[Any], give_up_seconds: float | None) -> None:
        policy = endpoint.retry
        if give_up_seconds is not None:
            policy = RetryPolicy(policy.base_seconds, policy.max_seconds, give_up_seconds, policy.n_server_errors)
        self._call, self._url, self._policy = call, endpoint.url, policy
        self._state = RetryState(call, policy)
        self._start = time.monotonic()

    def succeeded(self, reply: Reply) -> bool:
        """Whether this reply answers the call."""
        return self._state.succeeded(reply)

    def delay(self, failed: Reply | httpx.RequestError) -> float:
        """Seconds to wait before the next attempt.

        Raises
        ------
        BlackboxClientError
            If there is to be none.
        """
        cause = failed if isinstance(failed, httpx.RequestError) else None
        outcome: Outcome = _no_answer(failed, self._url) if isinstance(failed, httpx.RequestError) else failed
        decision = self._state.after(outcome, time.monotonic() - self._start, random_module.random())
        if isinstance(decision, Raise):
            raise decision.error from cause
        log.log(
            logging.WARNING if self._state.attempt == 1 else logging.DEBUG,
            "%s %s: %s; trying again in %.1f s (giving up after %.0f s)",
            self._call.method,
            self._call.path,
            outcome.reason if isinstance(outcome, NoAnswer) else f"status {outcome.status}",
            decision.delay,
            self._policy.give_up_seconds,
        )
        return decision.delay


class Connection(Endpoint):
    """A connection to a server, which sends calls. Safe to share between threads; leave it as a context manager or call
    `close`.

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
        transport: httpx.BaseTransport | None = None,
        prefix_bytes: int = 2**28,
    ) -> None:
        super().__init__(url, key, timeout=timeout, retry=retry, prefix_bytes=prefix_bytes)
        self._http = httpx.Client(transport=transport, **self._of_httpx)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ---- sending

    def send(
        self, call: Call[T], *, interrupt: threading.Event | None = None, give_up_seconds: float | None = None
    ) -> T:
        """Send a call and read its answer; repeats it as the retry policy says.

        Parameters
        ----------
        call : from `blackbox_client.protocol`.
        interrupt : once set, a call that waits to be repeated is given up; a request under way is not cut off.
        give_up_seconds : replaces that of the policy.

        Raises
        ------
        BlackboxClientError
            One class per cause, see `blackbox_client.errors`.
        """

        def attempt() -> tuple[Reply, None]:
            response = self._http.send(self._request(self._http, call))
            return reply_of(response, response.content), None

        reply, _ = self._until_answered(call, attempt, interrupt, give_up_seconds)
        return call.read(reply)

    def _until_answered(
        self,
        call: Call[Any],
        attempt: Callable[[], tuple[Reply, T]],
        interrupt: threading.Event | None = None,
        give_up_seconds: float | None = None,
    ) -> tuple[Reply, T]:
        attempts = Attempts(self, call, give_up_seconds)
        while True:
            failed: Reply | httpx.RequestError
            try:
                reply, extra = attempt()
                if attempts.succeeded(reply):
                    return reply, extra
                failed = reply
            except httpx.RequestError as error:
                failed = error
            delay = attempts.delay(failed)
            if interrupt is None:
                time.sleep(delay)
            elif interrupt.wait(delay):
                raise CallInterrupted(f"{call.method} {call.path} was given up: the caller is stopping")

    @contextmanager
    def lines(self, call: Call[str]) -> Iterator[Iterator[str]]:
        """The lines of a long answer while it arrives.

        Raises
        ------
        BlackboxClientError
            If no answer begins, as in `send`.
        """

        def attempt() -> tuple[Reply, httpx.Response]:
            response = self._http.send(self._request(self._http, call), stream=True)
            try:
                body = response.read() if response.status_code >= 300 else b""
            except BaseException:
                response.close()
                raise
            return reply_of(response, body), response

        _, response = self._until_answered(call, attempt)
        try:
            yield response.iter_lines()
        finally:
            response.close()

    def all(self, call: Call[Page[T]]) -> Iterator[T]:
        """The items of a list, page by page."""
        following: Call[Page[T]] | None = call
        while following is not None:
            page = self.send(following)
            yield from page.items
            following = protocol.next_page(following, page)


def _key_of_environment() -> str | None:
    key, path = os.environ.get("BLACKBOX_KEY"), os.environ.get("BLACKBOX_KEY_FILE")
    if key is not None or not path:
        return key
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"BLACKBOX_KEY_FILE names {path}, which cannot be read as a key: {error}") from None


def reply_of(response: httpx.Response, body: bytes) -> Reply:
    """A response of httpx as the protocol reads it."""
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)


def _no_answer(error: httpx.RequestError, url: str) -> NoAnswer:
    """The reason why no answer came. An untrusted certificate or a bad address is not worth repeating."""
    ours = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
    seen: BaseException | None = error
    while seen is not None and not ours:
        ours = isinstance(seen, ssl.SSLCertVerificationError)
        seen = seen.__cause__ or seen.__context__
    return NoAnswer(f"{type(error).__name__} from {url}: {error or 'no details'}", repeatable=not ours)
