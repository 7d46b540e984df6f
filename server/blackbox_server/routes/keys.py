"""API keys of a project."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from blackbox.study.effects import Steps, Write
from blackbox.study.rows import KeyRow, Tx
from blackbox_server import auth
from blackbox_server.problems import Forbidden
from blackbox_server.routes import shapes
from blackbox_server.routes.http import (
    answer,
    body_of,
    dumps,
    exchange,
    needs,
    once,
    router,
    service,
    settings,
)
from blackbox_server.schemas import NewKey

routes = router()


def _shape(row: KeyRow) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "project": row.project,
        "scopes": row.scopes.split(),
        "created_at": shapes.at(row.created_at),
        "expires_at": shapes.at(row.expires_at),
        "revoked_at": shapes.at(row.revoked_at),
    }


def _put(row: KeyRow) -> Steps[KeyRow]:
    def work(tx: Tx) -> KeyRow:
        tx.put_key(row)
        return row

    made: KeyRow = yield Write(work)
    return made


@routes.post("/v1/keys", **needs("keys:admin", NewKey))
async def create(request: Request) -> Response:
    """Make a key. Its text is in this answer and nowhere else: a repeated request shows the key without it."""
    body, raw = await body_of(request, NewKey)
    service_, own = service(request), exchange(request).principal
    project = body.project or own.project
    if project != own.project and own.project != settings(request).root_project:
        raise Forbidden(f"a key of project {own.project} cannot make keys for {project}")
    scopes = auth.checked_scopes(body.scopes, own)
    now = service_.clock()
    expires = None if body.expires_seconds is None else now + body.expires_seconds
    text, row = auth.new_key(body.name, project, scopes, now, expires)

    def render(tx: Tx, made: KeyRow) -> tuple[int, bytes]:
        return 201, dumps(_shape(made))

    done = await service_.once(once(request, raw), _put(row), render)
    shape = {**_shape(row), "key": text} if done.result is not None else None
    return answer(shape, 201) if shape else _again(done.body)


def _again(body: bytes) -> Response:
    return Response(body, 201, media_type="application/json")


@routes.get("/v1/keys", **needs("keys:admin"))
async def list_keys(request: Request) -> Response:
    """Keys of the project, without their secrets."""
    project = exchange(request).principal.project
    rows = service(request).read(lambda tx: tx.keys(project))
    return answer({"keys": [_shape(row) for row in rows]})


@routes.delete("/v1/keys/{key}", **needs("keys:admin"))
async def delete(request: Request) -> Response:
    """Revoke a key."""
    service_, own = service(request), exchange(request).principal
    project = None if own.project == settings(request).root_project else own.project
    now = service_.clock()
    await service_.write(lambda tx: auth.revoked(tx, request.path_params["key"], project, now))
    keyring = request.app.state.keyring
    if keyring is not None:
        keyring.forget()
    return Response(status_code=204)
