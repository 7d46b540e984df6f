"""The service itself: links, health, metrics, documentation, limits, algorithms."""

# ruff: noqa: E501 -- the shell lines of llms.txt are printed as they are typed

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

from starlette.responses import PlainTextResponse, Response

from blackbox import federation
from blackbox.algorithm import registry
from blackbox.space import Space
from blackbox_server import metrics, problems
from blackbox_server.limits import QUOTAS
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import answer, tagged
from blackbox_server.routes.route import Routes
from blackbox_server.schemas import answers, parsing

routes = Routes()

LLMS = """# blackbox: gradient-free optimization over HTTP

Create a study, then repeat: ask for a trial, evaluate it, tell its value. JSON in and out; every error says what was
expected and has a `hint`. All state is on the server: any number of workers may ask and tell, and may die.

Set Z to the address of this server and A to {what}:

```bash
Z={origin}
A="{header}"
```

The whole loop, for a command ./my_job that prints a number:

```bash
S=$(curl -s $Z/v1/studies -H "$A" -d '{"name":"demo","direction":"minimize","budget":{"evaluations":50},"space":{"x":{"type":"float","low":-5,"high":5}}}' | jq -r .id)
while T=$(curl -s $Z/v1/studies/$S/ask -H "$A" -d '{"wait_seconds":20}') && [ "$(jq -r .study.state <<<$T)" = ACTIVE ]; do
  [ "$(jq '.trials|length' <<<$T)" = 0 ] && continue          # nothing free just now; the wait already paced us
  X=$(jq .trials[0].params.x <<<$T); V=$(./my_job $X)
  curl -s $Z/v1/studies/$S/tell -H "$A" -d "{\\"trial\\":$(jq .trials[0].id <<<$T),\\"value\\":$V}" >/dev/null
done; curl -s $Z/v1/studies/$S/brief -H "$A"
```

A parameter of the space is {"type":"float"|"int","low":0,"high":1}, {"type":"categorical","choices":["a","b"]}, or
{"type":"vector","dim":10}, with low and high, or in a convex set: "region":{"type":"simplex"} (also l1_ball, nuclear_ball,
knapsack, birkhoff, polytope, ...: schema Vector in /openapi.json).

If a point cannot be evaluated tell {"trial":"t_41","status":"infeasible"}; if your evaluator broke, {"status":"failed"};
if you stop early, {"status":"released"}. NaN is refused. Send an Idempotency-Key with every POST that you may repeat.

Federated rounds (objectives that only their owners may evaluate): POST .../rounds/join {"client":"me"}, GET
.../rounds/current, POST .../rounds/{r}/contributions, or .../decline if no evaluation gave a value; the participant's half runs where the data is:
blackbox participant $S my_job:evaluate --client me

GET /v1/studies/$S/brief says how it goes in 2 kB and ends with the next command to run.
GET /v1/studies/$S/health lists what is wrong, with numbers and what to do; no items mean that all is well. A study whose
evaluations all fail is PAUSED with the error as its reason; POST .../resume goes on.
GET /v1/studies/$S/best?view=recommended is the point to deploy, noise considered.
GET /v1/algorithms lists the algorithms and their options; "auto" (the default) chooses. GET /v1/limits lists the limits.
Reference: /openapi.json
"""

EXAMPLES = {
    "create": {
        "name": "demo",
        "direction": "minimize",
        "budget": {"evaluations": 50},
        "space": {"x": {"type": "float", "low": -5, "high": 5}},
    },
    "ask": {"count": 1, "worker": "me", "wait_seconds": 20},
    "tell": {"results": [{"trial": "t_1", "value": 0.183}], "ask": {"count": 1}},
}


@routes("GET /v1", None, {200: answers.ServiceInfo, 304: None})
async def document(call: Call) -> Response:
    """Links and examples."""
    links = {
        "studies": "/v1/studies",
        "study": "/v1/studies/{study}",
        "algorithms": "/v1/algorithms",
        "limits": "/v1/limits",
        "keys": "/v1/keys",
        "openapi": "/openapi.json",
        "llms": "/llms.txt",
        "healthz": "/healthz",
        "readyz": "/readyz",
        "metrics": "/metrics",
    }
    for name in ("ask", "tell", "heartbeat", "trials", "best", "health", "events", "export", "brief", "fork"):
        links[name] = f"/v1/studies/{{study}}/{name}"
    return tagged(call, {"name": "blackbox", "version": "v1", "links": links, "examples": EXAMPLES})


@routes("GET /healthz", None, {200: answers.Status})
async def healthz(call: Call) -> Response:
    """Liveness: the process answers."""
    return answer({"status": "ok"})


@routes("GET /readyz", None, {200: answers.Status})
async def readyz(call: Call) -> Response:
    """Readiness: the store answers, too."""
    await call.service.read(lambda tx: tx.key("readyz"))
    return answer({"status": "ready"})


@routes("GET /metrics", None, {200: "text/plain"})
async def exposition(call: Call) -> Response:
    """Metrics for Prometheus."""
    return Response(call.service.metrics.text(), media_type=metrics.CONTENT_TYPE)


@routes("GET /openapi.json", None, {200: "application/json", 304: None}, documented=False)
async def schema(call: Call) -> Response:
    """The reference: every route with its requests and answers."""
    return tagged(call, await asyncio.to_thread(call.scope["app"].openapi))  # making it takes half a second, once


@routes("GET /llms.txt", None, {200: "text/plain"})
async def llms(call: Call) -> Response:
    """The whole loop as text, for agents."""
    local = call.service.settings.insecure_local  # bodies must be said to be JSON there, and there are no keys
    what = "the header that it needs in place of a key" if local else "your key"
    header = "Content-Type: application/json" if local else "Authorization: Bearer zok_..."
    return PlainTextResponse(LLMS.replace("{origin}", call.origin).replace("{what}", what).replace("{header}", header))


@routes("GET /problems/{code}", None, {200: answers.ProblemKind})
async def problem_page(call: Call) -> Response:
    """The meaning of a problem's `type`."""
    code = call.path["code"]
    rows = {row.code: (cls, row) for cls, row in problems.TABLE.items()}
    if code not in rows:
        raise problems.RouteNotFound(f"there is no problem called {code[:80]!r}")
    cls, row = rows[code]
    return answer(
        {
            "code": code, "status": row.status, "title": row.title, "retryable": row.retryable,
            "hint": problems.hint(row), "about": cls.__doc__,
        }
    )  # fmt: skip


@routes("GET /v1/limits", "", {200: answers.Limits})
async def limits(call: Call) -> Response:
    """The limits of this key."""
    found, own = call.settings, call.principal
    return answer(
        {
            "body_bytes": found.max_body_bytes,
            "vector_body_bytes": found.max_vector_body_bytes,
            "binary_body_bytes": found.max_binary_body_bytes,
            "head_bytes": found.max_head_bytes,
            "head_seconds": found.head_seconds,
            "body_seconds": found.body_seconds,
            "connections_per_address": found.max_connections_per_address,
            "json_depth": parsing.MAX_DEPTH,
            "json_values": parsing.MAX_VALUES,
            "json_plain_values": parsing.MAX_PLAIN_VALUES,
            "json_objects": parsing.MAX_OBJECTS,
            "json_members": parsing.MAX_MEMBERS,
            "json_texts": parsing.MAX_TEXTS,
            "json_name": parsing.MAX_NAME,
            "json_digits": parsing.MAX_DIGITS,
            "count": found.max_count,
            "values_bytes": found.max_values_bytes,
            "algorithm_bytes": found.max_algorithm_bytes,
            "info_bytes": found.max_info_bytes,
            "wait_seconds": found.max_wait_seconds,
            "requests_per_second": found.rate_per_second,
            "requests_left": call.left,
            "quotas": await _quotas(call),
            "key": {
                "id": own.key_id,
                "name": own.name,
                "project": own.project,
                "scopes": sorted(own.scopes),
            },
        }
    )


async def _quotas(call: Call) -> list[answers.QuotaUse]:
    """Every quota, with what is used of those that are counted for the project or the key."""
    own, service = call.principal, call.service
    used: dict[str, float] = {
        "studies": await service.usage.n_studies(own.project),
        "keys": await service.read(lambda tx: len(tx.keys(own.project))),
        "open_bytes": service.usage.open_bytes(own.project),
        "held_bytes": call.state.held.by_key[own.key_id],
        "injected": call.injected,
    }
    return [
        {
            "name": quota.name,
            "per": quota.per,
            "value": quota.value(call.settings),
            "used": used.get(quota.name),
            "about": quota.about,
        }
        for quota in QUOTAS.values()
    ]


@routes("GET /v1/algorithms", "", {200: answers.Algorithms, 304: None})
async def algorithms(call: Call) -> Response:
    """Every algorithm: the problems it treats, its options as JSON schema, the memory it needs."""
    return tagged(call, {"algorithms": _algorithms(), "federated": _federated()})


@lru_cache(maxsize=1)
def _federated() -> list[dict[str, Any]]:
    """Algorithms that work in rounds of participants; a study names them like any other."""
    shapes = []
    for name, cls in federation.registry().items():
        about = (cls.__doc__ or "").strip()
        summary = about.splitlines()[0] if about else ""
        shapes.append({"name": name, "summary": summary, "about": about, "options": cls.Options.model_json_schema()})
    return shapes


@lru_cache(maxsize=1)
def _algorithms() -> list[dict[str, Any]]:
    shapes = []
    for name, cls in registry().items():
        traits = cls.traits
        about = (cls.__doc__ or "").strip()
        shapes.append(
            {
                "name": name,
                "summary": about.splitlines()[0] if about else "",
                "about": about,
                "options": cls.Options.model_json_schema(),
                "parameters": sorted(traits.parameters),
                "regions": sorted(traits.regions),
                "projects": traits.projects,
                "tells": sorted(traits.tells),
                "max_dim": traits.max_dim,
                "kind": traits.kind,
                "asynchronous": not traits.sequential,
                "injects": traits.injects,
                "seed_encoded": traits.encoding == "recipe",
                "memory_bytes": _memory(name),
            }
        )
    return shapes


def _memory(name: str) -> dict[str, int]:
    """Estimated bytes by dimension, with default options; dimensions it does not treat are left out."""
    cls, found = registry()[name], {}
    for dim in (10, 1000, 100_000, 1_000_000):
        for limits in ({}, {"low": 0.0, "high": 1.0}, {"region": {"type": "simplex"}}):
            space = Space.from_json({"x": {"type": "vector", "dim": dim, **limits}})
            if cls.why_not(space) is None:
                found[str(dim)] = int(cls.memory(cls.resolve(cls.Options(), space), space))
                break
    return found
