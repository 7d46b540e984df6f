"""The application: its routes, the mapping of errors, startup and shutdown; and `run`, which serves it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blackbox.algorithm import registry
from blackbox.backends.ray_cluster import RaySlices
from blackbox.errors import BlackboxError, nearest
from blackbox.study.effects import Steps, perform
from blackbox.study.rows import Store
from blackbox_server import auth
from blackbox_server.auth import Keyring
from blackbox_server.compute import Threads
from blackbox_server.connections import Connections
from blackbox_server.limits import Buckets, HeldBytes
from blackbox_server.metrics import Metrics, ServerTiming, timing
from blackbox_server.problems import Forbidden, MethodNotAllowed, RouteNotFound, row_of
from blackbox_server.routes import hot, keys, meta, openapi, reading, rounds, studies, trials
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import problem_answer
from blackbox_server.routes.route import Route
from blackbox_server.service import Service
from blackbox_server.settings import Settings
from blackbox_server.store import SqlStore
from blackbox_server.store.embedded import EmbeddedStore

logger = logging.getLogger("blackbox_server")

PURGE_SECONDS = 600.0
OTHER_FILES = 256
"""Files that a server has open beside its connections, at most."""
HOT_PREFIX = "/v1/studies/"
LOCAL_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.I)
"""Values of the header Host, and what follows the scheme of an Origin, that name this machine and nothing else."""


class App(FastAPI):
    """FastAPI with an outer layer of our own.

    The layer makes the `Call` of each request, adds the headers of each answer, and turns errors into problems. It also
    dispatches the hot routes by itself: the framework's routing costs as much as an ask does.
    """

    _hot: Mapping[str, Route] = {}

    def openapi(self) -> dict[str, Any]:
        """The document behind `/openapi.json`, made once."""
        if self.openapi_schema is None:
            routes = (route for route in self.routes if isinstance(route, Route))
            self.openapi_schema = openapi.document(routes, self.title, self.version)
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        call = scope["blackbox"] = Call(scope, receive, self.state)
        timing.set(call)
        started = perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *call.answer_headers()]
            await send(message)

        try:
            if self.state.local is not None:
                _from_here(scope)
            route = self._hot_route(scope)
            if route is not None:
                scope["app"] = self
                await route.handle(scope, receive, answer)
            else:
                await super().__call__(scope, receive, answer)
        except Exception as raised:
            if status:  # too late for another answer
                raise
            error = _known(raised, scope)
            if row_of(error).status >= 500:
                logger.exception("%s %s failed (%s)", scope["method"], scope["path"], call.request_id)
            response = problem_answer(error, call.request_id)
            if isinstance(raised, HTTPException) and raised.status_code == 405:
                response.headers["allow"] = (raised.headers or {}).get("Allow", "")
            await response(scope, receive, answer)
        finally:
            call.release()
            self.state.metrics.answered(call.route, status, perf_counter() - started)

    def build_middleware_stack(self) -> ASGIApp:
        """The router without middleware: errors are answered in `__call__`, for hot and cold routes alike."""
        return self.router

    def _hot_route(self, scope: Scope) -> Route | None:
        path: str = scope["path"]
        if scope["method"] != "POST" or not path.startswith(HOT_PREFIX):
            return None
        study, _, verb = path[len(HOT_PREFIX) :].partition("/")
        route = self._hot.get(verb)
        if route is not None:
            scope["path_params"] = {"study": study}
        return route


def _from_here(scope: Scope) -> None:
    """Refuse requests of other hosts and of web pages, on a server without keys.

    Otherwise any web page could drive the service through the browser of the person who runs it.

    Raises
    ------
    Forbidden
        If the request names a host other than this machine, or comes from a page of another origin.
    """
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name == b"host" and not LOCAL_HOST.fullmatch(text):
            raise Forbidden(f"this server has no keys and only answers to localhost, not to {text[:100]!r}")
        if name == b"origin" and not LOCAL_HOST.fullmatch(text.partition("://")[2]):
            raise Forbidden(f"this server has no keys and does not answer pages of {text[:100]!r}")


def create_app(
    settings: Settings | None = None,
    store: Store | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> App:
    """The service as an ASGI application.

    Parameters
    ----------
    settings : None reads them from the environment.
    store : None opens the database that the settings name when the application starts, and closes it when it ends.
    clock : seconds since the epoch: what is written, and when leases lapse.
    monotonic : seconds that nobody can set: rates, and how long a verified key is believed.
    """
    settings = settings or Settings.from_env()

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        registry()  # imports every algorithm now, not at somebody's first request
        opened = store if store is not None else open_store(settings)
        front = EmbeddedStore(opened)
        cluster = RaySlices(settings.slice_ray) if settings.slice_ray else None
        computer = Threads(settings.compute_threads, settings.inline_seconds, settings.slice_threads, cluster)
        state = app.state
        timing.set(ServerTiming())
        state.service = Service(settings, front, computer, state.metrics, clock, monotonic)
        per_minute = settings.failed_keys_per_minute
        keyring = Keyring(front, settings.rate_per_second, Buckets(per_minute / 60.0, per_minute), clock, monotonic)
        if settings.insecure_local:
            state.local = keyring.local(settings.root_project)
        else:
            state.keyring = keyring
            state.first_key = await state.service.drive(_first_key(settings, clock))
        purging = asyncio.create_task(_purge(state.service))
        try:
            yield
        finally:
            purging.cancel()
            state.service.close()
            front.close()
            computer.close()
            if store is None:
                await asyncio.to_thread(opened.close)

    every = (hot, studies, trials, rounds, reading, keys, meta)
    declared = [route for module in every for route in module.routes]
    # Its own pages and document are left out: `routes.meta` serves the document, and the pages would load scripts.
    app = App(title="blackbox", version="1", lifespan=lifespan, routes=declared, openapi_url=None)
    app._hot = {route.path.rpartition("/")[2]: route for route in hot.routes}
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.held = HeldBytes(settings)
    per_hour = settings.max_injected_per_hour
    app.state.injected = Buckets(per_hour / 3600.0, per_hour)
    app.state.local = app.state.keyring = app.state.first_key = None
    return app


def open_store(settings: Settings) -> Store:
    """The store that the settings name.

    Raises
    ------
    InvalidInput, StoreUnavailable
    """
    return SqlStore(settings.database)


def _first_key(settings: Settings, clock: Callable[[], float]) -> Steps[str | None]:
    """The text of the first key if it was just made and has to be printed; None if it is kept in a file."""
    path = None if settings.first_key_file is None else Path(settings.first_key_file)
    text = yield from auth.first_key(settings.root_project, clock(), path)
    return text if path is None else None


async def _purge(service: Service) -> None:
    """Delete old idempotency records periodically."""
    while True:
        try:
            await service.purge()
        except BlackboxError:
            logger.warning("old answers could not be purged", exc_info=True)
        await asyncio.sleep(PURGE_SECONDS)


# Errors of the framework ----------------------------------------------------------------------------------------------


def _known(error: Exception, scope: Scope) -> Exception:
    """The exceptions of the framework as errors of ours; any other unchanged."""
    if not isinstance(error, HTTPException):
        return error
    path = scope["path"][:200]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        return MethodNotAllowed(f"{scope['method'][:20]} {path} is not possible", hint=f"This address takes {allowed}.")
    near = nearest(path, [getattr(route, "path", "") for route in scope["app"].routes])
    hint = near if near.startswith("did") else "GET /v1 lists what there is."
    return RouteNotFound(f"there is nothing at {path}", hint=hint)


# Serving --------------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """Prints its address, and the first key, once it listens; closes the store when it stops."""

    def __init__(self, config: uvicorn.Config, store: Store) -> None:
        super().__init__(config)
        self._store = store

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then print the address."""
        await super().startup(sockets)
        if self.should_exit:
            return
        # What is loaded by now stays for ever. Full collections that look through it again hold every request for a
        # tenth of a second.
        gc.collect()
        gc.freeze()
        app: Any = self.config.loaded_app
        state = _state(app)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"blackbox serves http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        if state is not None and state.first_key is not None:
            print(f"first key, shown only now: {state.first_key}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer held requests, finish running ones, close the store."""
        state = _state(self.config.loaded_app)
        if state is not None:
            state.service.let_go()
        await super().shutdown(sockets)
        await asyncio.to_thread(self._store.close)  # here, because uvicorn lets the signal end the process after this


def _state(app: Any) -> Any:
    """The state of the application, inside the layers that uvicorn wraps around it."""
    while app is not None and not isinstance(app, App):
        app = getattr(app, "app", None)
    return None if app is None else app.state


def _allow_connections(settings: Settings) -> None:
    """Raise this process's limit of open files, often 1024, to what the connections need, as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = (settings.max_connections or 65_536) + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def run(settings: Settings) -> None:
    """Serve until interrupted. Then held requests are answered, running ones finish, and the store is closed.

    Parameters
    ----------
    settings : with port 0 a free port is taken; the address is printed.

    Raises
    ------
    BlackboxError
        If the database cannot be opened, or the file of the first key cannot be used.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # The event loop and the thread that commits take turns with the interpreter lock; with the default interval each
    # would wait up to 5 ms for the other under load.
    sys.setswitchinterval(0.0005)
    _allow_connections(settings)
    opened = open_store(settings)
    if settings.first_key_file is not None and not settings.insecure_local:
        try:  # not when the application starts, where an error would become a traceback
            perform(opened, _first_key(settings, time.time))
        except BlackboxError:
            opened.close()
            raise
    config = uvicorn.Config(
        create_app(settings, opened),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="error",  # at "warning" everybody who sends nonsense writes a line
        timeout_graceful_shutdown=int(settings.shutdown_seconds) or 1,
        timeout_keep_alive=75,
        server_header=False,
        proxy_headers=False,
        date_header=False,
        http=cast(Any, Connections(settings)),
        ws="none",
    )
    try:
        _Server(config, opened).run()
    finally:
        opened.close()
