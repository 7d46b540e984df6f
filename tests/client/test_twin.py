"""The client is the server's twin: every path, every member of every body, query and answer, and nothing else.

The server's side is its own `/openapi.json`, and what it really answers; the client's is `protocol.ROUTES` with the
types it names. They are compared in both directions:

- routes: the same methods and paths;
- requests: each body and query of the document against the type that the route declares, member by member, with what
  must be there and the words that a member may be; and the headers that are really sent;
- answers: whatever a schema names or a real answer carries has a field in the client's model, and each field of a model
  is named by a schema or was seen in an answer (a null that no schema names says nothing);
- what is declared is used: `every_call.everything_once` sends every member of every declared type.

An answer that gets a schema later is compared with it without a change here.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NotRequired, Required

import pytest
from blackbox_client import errors
from blackbox_client.models import ENDED, Model
from blackbox_client.models.model import Member, members
from blackbox_client.protocol import ROUTES, Route
from blackbox_client.protocol import routes as table
from blackbox_client.protocol.routes import Listed, One
from blackbox_server.app import create_app
from blackbox_server.settings import Settings

from blackbox.study.memory import MemoryStore
from tests.client.conftest import RealServer
from tests.client.every_call import everything_once

NOT_CALLS = {
    "GET /healthz": "for whoever keeps the process running",
    "GET /readyz": "for whoever keeps the process running",
    "GET /metrics": "for Prometheus",
    "GET /llms.txt": "for agents that write their own client",
}
"""Routes that no program calls through this client, and why."""

WRITTEN_BY_HAND = {"ShortTell"}
"""Short forms of bodies, for people with curl: the client always sends the whole form."""

NOT_SENT = {"range", "if-range"}
"""Headers that the client does without: it fetches base vectors whole."""


# ---- what the client declares


def declared(kind: Any) -> dict[str, Any] | None:
    """Name -> annotation of what a body type declares (a TypedDict or a dataclass); None for everything else."""
    if typing.is_typeddict(kind):
        return typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind)
    return None


def required(kind: Any) -> set[str]:
    """Names that must be given."""
    if not typing.is_typeddict(kind):
        return set()
    hints = typing.get_type_hints(kind, include_extras=True)
    # Where annotations are text, `__total__` is all that the class knows by itself.
    asked = {name for name, hint in hints.items() if kind.__total__ or typing.get_origin(hint) is Required}
    return {name for name in asked if typing.get_origin(hints[name]) is not NotRequired}


def inner(hint: Any) -> Any:
    """The body type in an annotation, alone, in a sequence or beside other types; None where there is none."""
    if declared(hint) is not None:
        return hint
    return next((found for found in map(inner, typing.get_args(hint)) if found is not None), None)


def words(hint: Any) -> set[Any]:
    """The texts that an annotation allows, where it lists them."""
    if typing.get_origin(hint) is Literal:
        return set(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(words, typing.get_args(hint)))
    return set()


def body_types(kind: Any) -> Iterator[Any]:
    """A body type and those inside it."""
    yield kind
    for hint in (declared(kind) or {}).values():
        if (found := inner(hint)) is not None:
            yield from body_types(found)


def models(kind: type[Model]) -> Iterator[type[Model]]:
    """A model and those inside it."""
    yield kind
    for member in members(kind):
        if member.model is not None:
            yield from models(member.model)


def models_of(routes: Iterable[Route[Any]]) -> tuple[type[Model], ...]:
    """The models of those routes that answer in JSON."""
    return tuple(route.read.model for route in routes if isinstance(route.read, One | Listed))


def owner(model: type[Model], member: Member) -> tuple[type, str]:
    """A member, named by the class that declares it."""
    return next(base for base in model.__mro__ if member.name in inspect.get_annotations(base)), member.wire


# ---- what the document says


class Document:
    """`/openapi.json`, with its references followed."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.operations = {
            f"{method.upper()} {path}": operation
            for path, operations in raw["paths"].items()
            for method, operation in operations.items()
            if method in ("get", "post", "put", "patch", "delete")
        }

    def branches(self, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The schema, or the alternatives that it is made of; entries for a list."""
        if "$ref" in schema:
            yield from self.branches(self.raw["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        elif several := [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]:
            for each in several:
                yield from self.branches(each)
        elif schema.get("type") == "array":
            yield from self.branches(schema.get("items", {}))
        else:
            yield schema

    def members(self, schema: Mapping[str, Any]) -> dict[str, Any] | None:
        """Name -> schema of an object's members; None for everything else, open objects among it."""
        found: dict[str, Any] = {}
        named = False
        for branch in self.branches(schema):
            if "properties" in branch or branch.get("additionalProperties") is False:
                found |= branch.get("properties", {})
                named = True
        return found if named else None

    def required(self, schema: Mapping[str, Any]) -> set[str]:
        return {name for branch in self.branches(schema) for name in branch.get("required", ())}

    def words(self, schema: Mapping[str, Any]) -> set[Any]:
        found: set[Any] = set()
        for branch in self.branches(schema):
            found |= set(branch.get("enum", ())) | ({branch["const"]} if "const" in branch else set())
        return found

    def body(self, operation: Mapping[str, Any]) -> Mapping[str, Any] | None:
        content = operation.get("requestBody", {}).get("content", {})
        schema: Mapping[str, Any] | None = content.get("application/json", {}).get("schema")
        forms = (schema or {}).get("anyOf", ())
        return {"anyOf": [form for form in forms if name_of(form) not in WRITTEN_BY_HAND]} if forms else schema

    def parameters(self, operation: Mapping[str, Any], where: str) -> dict[str, Any]:
        listed = operation.get("parameters", ())
        return {each["name"]: each["schema"] for each in listed if each["in"] == where}

    def answers(self, operation: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for status, answer in operation["responses"].items():
            schema = answer.get("content", {}).get("application/json", {}).get("schema")
            if status.startswith("2") and schema:
                yield schema


def name_of(schema: Mapping[str, Any]) -> str:
    """The name of a schema that is a reference."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def differences(document: Document, schema: Mapping[str, Any], kind: Any, at: str) -> Iterator[str]:
    """How a type of the client differs from a schema of the server; `at` is where."""
    theirs, ours = document.members(schema), declared(kind)
    if theirs is None or ours is None:
        if theirs:
            yield f"{at}: the client takes anything where the server names {', '.join(theirs)}"
        if ours:
            yield f"{at}: the client names {', '.join(ours)} where the server takes anything"
        return
    yield from (f"{at}/{name}: the client does not say it" for name in sorted(theirs.keys() - ours.keys()))
    yield from (f"{at}/{name}: the server does not know it" for name in sorted(ours.keys() - theirs.keys()))
    if (must := document.required(schema)) != required(kind):
        yield f"{at}: the server requires {sorted(must)}, the client {sorted(required(kind))}"
    for name in theirs.keys() & ours.keys():
        place = f"{at}/{name}"
        if document.words(theirs[name]) != words(ours[name]):
            yield f"{place}: {document.words(theirs[name])} at the server, {words(ours[name])} in the client"
        yield from differences(document, theirs[name], inner(ours[name]), place)


# ---- what is really sent and answered


def unknown(value: Any, model: tuple[type[Model], ...], at: str, seen: set[tuple[type, str]]) -> Iterator[str]:
    """Members of a real answer that the models of its route have no field for; adds those they have to `seen`."""
    if not isinstance(value, Mapping):
        yield f"{at}: {value!r:.60} is no object"
        return
    for name, item in value.items():
        found = holders(model, name)
        if not found and item is not None:
            yield f"{at}/{name}: the client does not read it"
        for owned, member in found:
            seen.add(owner(owned, member))
            if name == "problem":
                yield from sent(item, errors.Problem, f"{at}/{name}", set())
            if member.model is not None and item is not None:
                for entry in item if isinstance(item, list) else [item]:
                    yield from unknown(entry, (member.model,), f"{at}/{name}", seen)


def unnamed(
    document: Document, schema: Mapping[str, Any], model: tuple[type[Model], ...], at: str, seen: set[tuple[type, str]]
) -> Iterator[str]:
    """The same of a schema of an answer, where there is one; a part that it names is not taken as it is, either."""
    for name, inside in (document.members(schema) or {}).items():
        found = holders(model, name)
        if not found:
            yield f"{at}/{name}: the client does not read it"
        for owned, member in found:
            seen.add(owner(owned, member))
            if member.model is not None:
                yield from unnamed(document, inside, (member.model,), f"{at}/{name}", seen)
            elif name == "problem":
                yield from differences(document, inside, errors.Problem, f"{at}/{name}")
            elif named := document.members(inside):
                yield f"{at}/{name}: the client takes it as it is, where the server names {', '.join(named)}"


def holders(model: tuple[type[Model], ...], name: str) -> list[tuple[type[Model], Member]]:
    """The members of some models that hold this member of JSON, also of those whose members stand beside their own."""
    beside = [each.model for one in model for each in members(one) if each.inline and each.model is not None]
    return [
        (owned, each) for owned in (*model, *beside) for each in members(owned) if each.wire == name and not each.inline
    ]


def sent(value: Any, kind: Any, at: str, seen: set[tuple[Any, str]]) -> Iterator[str]:
    """Members of a real request that its type does not declare; adds those that it does to `seen`."""
    names = declared(kind)
    if names is None:
        return
    for entry in value if isinstance(value, list) else [value]:
        for name in entry if isinstance(entry, Mapping) else ():
            if name not in names:
                yield f"{at}/{name}: sent, and not declared"
                continue
            seen.add((kind, name))
            yield from sent(entry[name], inner(names[name]), f"{at}/{name}", seen)


def routes_at(method: str, path: str) -> list[Route[Any]]:
    """The routes of the table that a request goes to: those with the fewest parts to fill in."""
    matching = [
        route
        for route in ROUTES
        if route.method == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", route.path), path) is not None
    ]
    fewest = min((route.path.count("{") for route in matching), default=0)
    return [route for route in matching if route.path.count("{") == fewest]


# ---- the tests


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    """The application, after every call of the client was made once."""
    own = RealServer()
    everything_once(own)
    yield own
    own.end()


@pytest.fixture(scope="module")
def document() -> Document:
    return Document(create_app(Settings(), MemoryStore()).openapi())


def test_every_path_of_the_server_has_a_route_of_the_client_and_nothing_else(document: Document) -> None:
    ours = {f"{route.method} {route.path}" for route in ROUTES}
    assert document.operations.keys() - ours == NOT_CALLS.keys()
    assert ours - document.operations.keys() == set()
    assert {route for route in vars(table).values() if isinstance(route, Route)} == set(ROUTES)


def test_every_member_of_every_request_is_declared_by_the_client_and_nothing_else(document: Document) -> None:
    found = []
    for route in ROUTES:
        at = f"{route.method} {route.path}"
        operation = document.operations[at]
        body, query = document.body(operation), document.parameters(operation, "query")
        if (body is None) != (route.body is None):
            found.append(f"{at}: the server {'reads no' if body is None else 'reads a'} body, unlike the client")
        elif body is not None:
            found += differences(document, body, route.body, at)
        if query or route.query is not None:
            found += differences(document, {"type": "object", "properties": query}, route.query, f"{at}?")
        parts = set(document.parameters(operation, "path"))
        if parts != set(re.findall(r"{(\w+)}", route.path)):
            found.append(f"{at}: its parts are {parts}")
    assert found == []


def test_a_short_tell_is_one_result_with_what_stands_beside_the_results(document: Document) -> None:
    schemas = document.raw["components"]["schemas"]
    short, whole, result = (schemas[name]["properties"] for name in ("ShortTell", "Tell", "Result"))
    assert set(short) == set(result) | set(whole) - {"results"}
    assert all(short[name] == schema for name, schema in result.items())
    tell = document.operations["POST /v1/studies/{study}/tell"]["requestBody"]["content"]["application/json"]["schema"]
    assert {name_of(form) for form in tell["anyOf"]} == {"Tell", "ShortTell"}


def test_every_member_of_every_answer_is_read_by_the_client_and_nothing_else(
    server: RealServer, document: Document
) -> None:
    found: list[str] = []
    seen: set[tuple[type, str]] = set()
    for each in server.exchanged:
        routes = routes_at(each.method, each.path)
        if model := models_of(routes):
            if not 200 <= each.status < 300:
                found += sent(json.loads(each.answer), errors.Problem, "a problem", set())
                continue
            at, answer = f"{each.method} {routes[0].path}", json.loads(each.answer)
            for part in parts_of(answer, routes[0]):
                found += unknown(part, model, at, seen)
            found += (f"{at}/{name}: the client does not read it" for name in beside_the_list(answer, routes[0]))
    for route in ROUTES:
        at = f"{route.method} {route.path}"
        schemas = list(document.answers(document.operations[at]))
        if bool(schemas) != bool(models_of([route])):
            found.append(
                f"{at}: the server answers {'in JSON' if schemas else 'otherwise'}, unlike what the client reads"
            )
        for schema in schemas:
            named = document.members(schema) or {}
            found += (f"{at}/{name}: the client does not read it" for name in beside_the_list(named, route))
            if model := models_of(each for each in ROUTES if (each.method, each.path) == (route.method, route.path)):
                part = named.get(route.read.name, {}) if isinstance(route.read, Listed) else schema
                found += unnamed(document, part, model, at, seen)
    assert sorted(set(found)) == []
    everywhere = {kind for top in models_of(ROUTES) for kind in models(top)}
    ours = {owner(kind, member) for kind in everywhere for member in members(kind) if not member.inline}
    assert sorted(f"{kind.__name__}.{name}" for kind, name in ours - seen) == [], "no answer has these"


def parts_of(answer: Any, route: Route[Any]) -> list[Any]:
    """The objects in an answer that a route's model reads."""
    return list(answer[route.read.name]) if isinstance(route.read, Listed) else [answer]


def beside_the_list(answer: Mapping[str, Any], route: Route[Any]) -> set[str]:
    """What stands beside a list, and is neither it nor the address of the next page."""
    return answer.keys() - {route.read.name, "next"} if isinstance(route.read, Listed) else set()


def test_every_declared_member_of_a_request_can_be_sent_and_nothing_else_is(server: RealServer) -> None:
    found: list[str] = []
    seen: set[tuple[Any, str]] = set()
    kinds: set[Any] = set()
    for route in ROUTES:
        kinds |= {kind for top in (route.body, route.query) if top is not None for kind in body_types(top)}
    for each in server.exchanged:
        for route in routes_at(each.method, each.path)[:1]:
            at = f"{route.method} {route.path}"
            if route.body is not None and each.headers["content-type"] == "application/json":
                found += sent(each.json, route.body, at, seen)
            found += sent(each.query, route.query, f"{at}?", seen)
    assert sorted(set(found)) == []
    ours = {(kind, name) for kind in kinds for name in declared(kind) or ()}
    assert sorted(f"{kind.__name__}.{name}" for kind, name in ours - seen) == [], "no method of the client sends these"
    calls = {(each.method, route.path) for each in server.exchanged for route in routes_at(each.method, each.path)}
    assert {(route.method, route.path) for route in ROUTES} - calls == set()


def test_every_header_of_the_document_is_sent_and_no_other_that_means_something(
    server: RealServer, document: Document
) -> None:
    known = {
        name.lower() for each in document.operations.values() for name in document.parameters(each, "header")
    } - NOT_SENT
    found: list[str] = []
    for route in ROUTES:
        at = f"{route.method} {route.path}"
        requests = [each for each in server.exchanged if route in routes_at(each.method, each.path)]
        sent_here = {name for each in requests for name in each.headers} & known
        theirs = {name.lower() for name in document.parameters(document.operations[at], "header")} - NOT_SENT
        if sent_here != theirs:
            found.append(f"{at}: the client sends {sorted(sent_here)}, the server reads {sorted(theirs)}")
    assert found == []


def test_the_states_in_which_a_study_has_ended_are_states_of_the_server(document: Document) -> None:
    (study,) = document.answers(document.operations["GET /v1/studies/{study}"])
    states = document.words((document.members(study) or {})["state"])
    assert states - ENDED == {"ACTIVE", "PAUSED"}
    assert states > ENDED


def test_the_comparison_finds_what_it_looks_for(document: Document) -> None:
    """Each kind of difference, made on purpose."""
    spec = document.body(document.operations["POST /v1/studies"])
    assert spec is not None
    kind = table.CREATE_STUDY.body
    poorer = {"properties": {**(document.members(spec) or {})}, "required": ["name", "space"]}
    del poorer["properties"]["target"]  # type: ignore[attr-defined]
    assert list(differences(document, poorer, kind, "at")) == ["at/target: the server does not know it"]
    richer = {"properties": {**(document.members(spec) or {}), "mood": {}}, "required": ["name", "space"]}
    assert list(differences(document, richer, kind, "at")) == ["at/mood: the client does not say it"]
    best = document.parameters(document.operations["GET /v1/studies/{study}/best"], "query")
    best["view"] = {"enum": ["observed", "recommended", "pareto"], "type": "string"}
    (words_differ,) = differences(document, {"properties": best}, table.BEST.query, "at?")
    assert "pareto" in words_differ
    assert list(unknown({"leases": [], "commands": []}, models_of([table.HEARTBEAT]), "at", set())) == [
        "at/commands: the client does not read it"
    ]
    nested = {"properties": {"leases": {"items": {"properties": {"token": {}, "grace": {}}}, "type": "array"}}}
    assert list(unnamed(document, nested, models_of([table.HEARTBEAT]), "at", set())) == [
        "at/leases/grace: the client does not read it"
    ]
