"""The application: routes, error mapping, what happens at start and end; and `run`, which serves it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blackbox.algorithm import registry
from blackbox.backends.ray_cluster import RaySlices
from blackbox.errors import BlackboxError, FieldError, InvalidInput, nearest
from blackbox.study.rows import Store
from blackbox_server.auth import Keyring
from blackbox_server.compute import Threads
from blackbox_server.metrics import Metrics
from blackbox_server.problems import Forbidden, MethodNotAllowed, RouteNotFound, row_of
from blackbox_server.routes import hot, keys, meta, reading, rounds, studies, trials
from blackbox_server.routes.http import Exchange, Guarded, problem_answer
from blackbox_server.service import Service, timing
from blackbox_server.settings import Settings

logger = logging.getLogger("blackbox_server")

PURGE_SECONDS = 600.0
HOT_PREFIX = "/v1/studies/"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


class App(FastAPI):
    """FastAPI inside a layer of our own.

    The layer gives every request its record, every answer its headers, every error its problem. It also takes the hot
    routes straight to their endpoints: the framework's way to them costs as much as an ask does.
    """

    _hot: Mapping[str, Guarded] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        own = scope["blackbox"] = Exchange()
        timing.set(own)
        started = perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *own.headers()]
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
                logger.exception("%s %s failed (%s)", scope["method"], scope["path"], own.request_id)
            response = problem_answer(error, own.request_id)
            if isinstance(raised, HTTPException) and raised.status_code == 405:
                response.headers["allow"] = (raised.headers or {}).get("Allow", "")
            await response(scope, receive, answer)
        finally:
            self.state.metrics.answered(own.route, status, perf_counter() - started)

    def build_middleware_stack(self) -> ASGIApp:
        """The router alone: errors are answered above, where hot routes get the same."""
        return AsyncExitStackMiddleware(self.router)

    def _hot_route(self, scope: Scope) -> Guarded | None:
        path: str = scope["path"]
        if scope["method"] != "POST" or not path.startswith(HOT_PREFIX):
            return None
        study, _, verb = path[len(HOT_PREFIX) :].partition("/")
        route = self._hot.get(verb)
        if route is not None:
            scope["path_params"] = {"study": study}
        return route


def _from_here(scope: Scope) -> None:
    """Without keys, a web page must not be able to drive the service through the browser of the person who runs it.

    Raises
    ------
    Forbidden
        If the request names another host than this machine, or comes from a page of another one.
    """
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name == b"host" and _host(text) not in LOCAL_NAMES:
            raise Forbidden(f"this server has no keys and only answers to localhost, not to {text[:100]!r}")
        if name == b"origin" and _host(text.partition("://")[2]) not in LOCAL_NAMES:
            raise Forbidden(f"this server has no keys and does not answer pages of {text[:100]!r}")


def _host(text: str) -> str:
    return text[: text.index("]") + 1] if text.startswith("[") and "]" in text else text.partition(":")[0]


def create_app(
    settings: Settings | None = None, store: Store | None = None, clock: Callable[[], float] = time.time
) -> App:
    """The service as an ASGI application.

    Parameters
    ----------
    settings : None reads them from the environment.
    store : None opens the database that the settings name when the application starts, and closes it when it ends.
    clock : seconds since the epoch.
    """
    settings = settings or Settings.from_env()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        registry()  # imports every method now, not at somebody's first request
        opened = store if store is not None else open_store(settings)
        cluster = RaySlices(settings.slice_ray) if settings.slice_ray else None
        computer = Threads(settings.compute_threads, settings.inline_seconds, settings.slice_threads, cluster)
        state = app.state
        timing.set(Exchange())
        state.service = Service(settings, opened, computer, state.metrics, clock)
        if settings.insecure_local:
            state.local = Keyring(opened, settings.rate_per_second).local(settings.root_project, clock())
        else:
            state.keyring = Keyring(opened, settings.rate_per_second)
            state.first_key = await asyncio.to_thread(_first_key, settings, state.keyring, clock)
        purging = asyncio.create_task(_purge(state.service))
        try:
            yield
        finally:
            purging.cancel()
            state.service.close()
            computer.close()
            if store is None:
                await asyncio.to_thread(opened.close)

    app = App(title="blackbox", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app._hot = {route.path.rpartition("/")[2]: route for route in hot.routes.routes if isinstance(route, Guarded)}
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.local = app.state.keyring = app.state.first_key = None
    for module in (hot, studies, trials, rounds, reading, keys, meta):
        app.router.routes.extend(module.routes.routes)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def open_store(settings: Settings) -> Store:
    """The store that the settings name."""
    from blackbox_server.store import SqlStore

    return SqlStore(settings.database)


def _first_key(settings: Settings, keyring: Keyring, clock: Callable[[], float]) -> str | None:
    """The first key, if it was made now and is to be shown: one in a file is not."""
    path = None if settings.first_key_file is None else Path(settings.first_key_file)
    text = keyring.first_key(settings.root_project, clock(), path)
    return text if path is None else None


async def _purge(service: Service) -> None:
    """Forget old answers, now and then."""
    while True:
        try:
            await service.purge()
        except BlackboxError:
            logger.warning("old answers could not be purged", exc_info=True)
        await asyncio.sleep(PURGE_SECONDS)


# Errors of the framework ----------------------------------------------------------------------------------------------


def _known(error: Exception, scope: Scope) -> Exception:
    """What the framework raises, as errors of ours."""
    if isinstance(error, RequestValidationError):
        faults = [
            FieldError("/" + "/".join(str(part) for part in item["loc"][1:]), item["type"], item["msg"])
            for item in error.errors()
        ]
        detail = "; ".join(f"query parameter {fault.pointer[1:]}: {fault.message}" for fault in faults)
        return InvalidInput(detail, errors=faults)
    if not isinstance(error, HTTPException):
        return error
    path = scope["path"][:200]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        return MethodNotAllowed(f"{scope['method'][:20]} {path} is not possible", hint=f"This address takes {allowed}.")
    near = nearest(path, [getattr(route, "path", "") for route in scope["app"].routes])
    hint = near if near.startswith("did") else "GET /v1 lists what there is."
    return RouteNotFound(f"there is nothing at {path}", hint=hint)


# OpenAPI --------------------------------------------------------------------------------------------------------------


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the models that our own routes read. Made once."""
    if app.openapi_schema is None:
        document = copy.deepcopy(get_openapi(title=app.title, version=app.version, routes=app.routes))
        components = document.setdefault("components", {})
        models = components.setdefault("schemas", {})
        for operations in document["paths"].values():
            for operation in operations.values():
                if (body := operation.pop("x-body", None)) is not None:
                    name, schema = body
                    models.update(schema.pop("$defs", {}))
                    models[name] = schema
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema


# Serving --------------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """Says where it listens, and the first key, once it does. Closes the store when it stops."""

    def __init__(self, config: uvicorn.Config, store: Store) -> None:
        super().__init__(config)
        self._store = store

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        app: Any = self.config.loaded_app
        state = _state(app)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"blackbox serves http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        if state is not None and state.first_key is not None:
            print(f"first key, shown only now: {state.first_key}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = _state(self.config.loaded_app)
        if state is not None:
            state.service.let_go()
        await super().shutdown(sockets)
        await asyncio.to_thread(self._store.close)  # here: after this, uvicorn lets the signal end the process


def _state(app: Any) -> Any:
    """The application's state, through the layers that uvicorn puts around it."""
    while app is not None and not isinstance(app, FastAPI):
        app = getattr(app, "app", None)
    return None if app is None else app.state


def run(settings: Settings) -> None:
    """Serve until interrupted. Held requests are let go, running ones finish, then the store is closed.

    Parameters
    ----------
    settings : with port 0 a free port is taken; the address is printed.

    Raises
    ------
    BlackboxError
        If the database cannot be opened, or the first key's file is of no use.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # The event loop and the store's writer hand the interpreter to each other all the time; with the default each
    # waits up to 5 ms for the other under load.
    sys.setswitchinterval(0.0005)
    opened = open_store(settings)
    if settings.first_key_file is not None and not settings.insecure_local:
        try:  # here and not when the application starts, where an error is a traceback
            _first_key(settings, Keyring(opened, settings.rate_per_second), time.time)
        except BlackboxError:
            opened.close()
            raise
    config = uvicorn.Config(
        create_app(settings, opened),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=int(settings.shutdown_seconds) or 1,
        timeout_keep_alive=75,
        server_header=False,
        proxy_headers=False,
        date_header=False,
    )
    try:
        _Server(config, opened).run()
    finally:
        opened.close()
