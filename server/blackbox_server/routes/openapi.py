"""The document behind `/openapi.json`: OpenAPI 3.1, made from what the routes declare."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from blackbox_server.problems import Problem
from blackbox_server.routes.route import Route

BYTES = {"type": "string", "format": "binary"}
REF = "#/components/schemas/{model}"
IDEMPOTENCY_KEY = "Makes it safe to send the request again: the same answer comes back, and nothing happens twice."


def document(routes: Iterable[Route], title: str, version: str) -> dict[str, Any]:
    """The document of these routes."""
    routes = [route for route in routes if route.documented]
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    problem = {"application/problem+json": {"schema": schemas[Problem]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Problem": {"description": "What went wrong, where, and what to do.", "content": problem}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas(routes: Iterable[Route]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """The schema of each type that is read or answered, by type, and the components that these refer to."""
    named = (each for route in routes for each in (route.body, *route.answers.values()))
    types = dict.fromkeys([Problem, *(each for each in named if each is not None and not isinstance(each, str))])
    # One schema of all of them, so that shared parts are made once.
    whole = TypeAdapter(tuple[*types]).json_schema(ref_template=REF)  # type: ignore[valid-type]
    return dict(zip(types, whole["prefixItems"], strict=True)), whole["$defs"]


def _operation(route: Route, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    name, module = route.action.__name__, route.action.__module__.rpartition(".")[2]
    about = inspect.getdoc(route.action) or ""
    operation: dict[str, Any] = {
        "summary": about.partition("\n")[0],
        "description": about,
        "operationId": f"{module}_{name}",
        "tags": [module],
        "parameters": _parameters(route),
        "responses": {str(status): _response(each, schemas) for status, each in route.answers.items()},
    }
    operation["responses"]["default"] = {"$ref": "#/components/responses/Problem"}
    if route.needs is not None:
        operation |= {"security": [{"key": []}], "x-scope": route.needs}
    if route.body is not None:
        content = {
            "application/json": {"schema": schemas[route.body]},
            **{kind: {"schema": BYTES} for kind in route.kinds},
        }
        operation["requestBody"] = {"required": route.required, "content": content}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    text = {"type": "string"}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "description": route.PATH[name], "schema": text}
        for name in route.param_convertors
    ]
    if route.query is not None:
        for name, schema in route.query.model_json_schema()["properties"].items():
            about = {"description": schema.pop("description", "")}
            parameters.append({"name": name, "in": "query", "required": False, **about, "schema": schema})
    headers = dict(route.headers)
    if route.method == "POST" and route.needs is not None:
        headers["Idempotency-Key"] = IDEMPOTENCY_KEY
    parameters += [
        {"name": name, "in": "header", "description": what, "schema": text} for name, what in headers.items()
    ]
    return parameters


def _response(answer: Any, schemas: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    if answer is None:
        return {"description": "Nothing more to say."}
    if isinstance(answer, str):
        return {"description": "The content.", "content": {answer: {"schema": {"type": "string"}}}}
    about = (inspect.getdoc(answer) or "The answer.") if isinstance(answer, type) else "One of several."
    return {"description": about, "content": {"application/json": {"schema": schemas[answer]}}}
