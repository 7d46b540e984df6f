"""A route: its path, the scope it needs, its requests and answers, and its endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import UnionType
from typing import Any, ClassVar

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blackbox_server.routes.call import Call
from blackbox_server.schemas import parsing
from blackbox_server.schemas.parsing import Query

Endpoint = Callable[[Call], Awaitable[Response]]


class Route(APIRoute):
    """A route that admits only keys with the scope it declares.

    Its other declarations make `/openapi.json`; the tests validate every answer against them. Its endpoint takes the
    `Call` and bypasses FastAPI's dependency injection and response models, which on the hot routes cost more than the
    work itself.

    Attributes
    ----------
    action : the endpoint.
    needs : scope of the key; "" admits any key, None needs no key.
    answers : by status, the type of a JSON answer, the media type of any other, or None for one without a body.
    body : model of the body, or the union of several.
    required : whether the body may not be missing.
    kinds : other media types than JSON in which the body may come.
    vectors : whether the limit of bodies with points applies.
    query : model of the query parameters.
    headers : further request headers that it reads, with their meanings.
    documented : whether `/openapi.json` contains it.
    """

    PATH: ClassVar[Mapping[str, str]] = {
        "study": "Id of a study.",
        "trial": "A trial, as t_41 or 41.",
        "round": "Number of a round; `current` for the open one.",
        "version": "A step, or the sha256 of a vector.",
        "worker": "Name of a worker.",
        "key": "Id of an API key.",
        "code": "Last part of a problem's `type`.",
    }
    """The parameters of paths, described."""

    def __init__(
        self,
        method: str,
        path: str,
        needs: str | None,
        answers: Mapping[int, Any],
        endpoint: Endpoint,
        *,
        body: type[BaseModel] | UnionType | None = None,
        required: bool = True,
        kinds: Sequence[str] = (),
        vectors: bool = False,
        query: type[Query] | None = None,
        headers: Mapping[str, str] | None = None,
        documented: bool = True,
    ) -> None:

        async def respond(request: Request) -> Response:
            return await endpoint(request.scope["blackbox"])

        super().__init__(path, respond, methods=[method], response_model=None, name=endpoint.__name__)
        self.action = endpoint
        self.method = method
        self.needs = needs
        self.answers = answers
        self.body = body
        self.required = required
        self.kinds = kinds
        self.vectors = vectors
        self.query = query
        self.headers = headers or {}
        self.documented = documented

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the request, run the endpoint, send its response."""
        if scope["method"] != self.method:
            await super().handle(scope, receive, send)  # 405, with the method that it takes
            return
        call: Call = scope["blackbox"]
        await call.enter(self.path, self.needs, allow_empty=not self.required, vectors=self.vectors)
        if self.query is None and self.needs is not None and (text := scope["query_string"]):
            raise parsing.unknown_parameter(text.decode("latin-1").partition("=")[0], ())
        response = await self.action(call)
        await response(scope, receive, send)


class Routes(list[Route]):
    """The routes of a module, each declared above its endpoint."""

    def __call__(
        self, address: str, needs: str | None, answers: Mapping[int, Any], **options: Any
    ) -> Callable[[Endpoint], Endpoint]:
        """Declare a route.

        Parameters
        ----------
        address : method and path, such as "GET /v1/studies/{study}".
        """
        method, path = address.split(" ")

        def declare(endpoint: Endpoint) -> Endpoint:
            self.append(Route(method, path, needs, answers, endpoint, **options))
            return endpoint

        return declare
