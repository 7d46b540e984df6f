"""`/openapi.json` is valid and complete; that answers are as it says is seen by the client of all these tests."""

from __future__ import annotations

import re
from typing import Any

import pytest
from blackbox_server import auth
from blackbox_server.app import create_app
from blackbox_server.routes.route import Route
from blackbox_server.settings import Settings
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from blackbox.study.memory import MemoryStore
from tests.server.conftest import Server, document

OPERATIONS = [(path, verb, it) for path, verbs in document()["paths"].items() for verb, it in verbs.items()]
of_each_operation = pytest.mark.parametrize(
    ("path", "verb", "operation"), OPERATIONS, ids=[it["operationId"] for _, _, it in OPERATIONS]
)


def test_the_document_is_valid_openapi() -> None:
    assert document()["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document()).validate()


def test_the_served_document_is_this_one_and_has_every_route(server: Server) -> None:
    answer = server.http.get("/openapi.json")
    assert answer.json() == document()
    assert server.http.get("/openapi.json", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    routes = [route for route in create_app(Settings(), MemoryStore()).routes if isinstance(route, Route)]
    declared = {(route.path, route.method.lower()) for route in routes if route.path != "/openapi.json"}
    assert declared == {(path, verb) for path, verb, _ in OPERATIONS}
    assert len(declared) > 40


@of_each_operation
def test_an_operation_declares_its_parameters_its_body_and_its_answers(path: str, verb: str, operation: Any) -> None:
    named = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
    assert named == re.findall(r"{(\w+)}", path)
    assert all(each["description"] for each in operation["parameters"])
    assert operation["summary"]
    assert ("requestBody" in operation) == (verb in ("post", "patch"))
    assert operation["responses"]["default"] == {"$ref": "#/components/responses/Problem"}
    assert (operation.get("x-scope") in (*auth.SCOPES, "")) == ("security" in operation)
    contents = [body for each in operation["responses"].values() for body in each.get("content", {}).items()]
    contents += operation.get("requestBody", {}).get("content", {}).items()
    for kind, content in contents:
        Draft202012Validator.check_schema(content["schema"])
        assert content["schema"], kind
    assert contents or operation["responses"].keys() & {"204"}


def test_a_schema_says_what_may_not_come() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["AskAnswer"]["additionalProperties"] is False
    assert schemas["Progress"]["required"] == ["state", "step", "used", "late", "leased", "remaining"]
    assert schemas["Ask"]["additionalProperties"] is False
