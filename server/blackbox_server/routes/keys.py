"""API keys of a project."""

from __future__ import annotations

from starlette.responses import Response

from blackbox.study.effects import Steps, write
from blackbox.study.rows import KeyRow, Tx
from blackbox_server import auth
from blackbox_server.limits import QUOTAS
from blackbox_server.problems import Forbidden
from blackbox_server.routes import shapes
from blackbox_server.routes.call import Call
from blackbox_server.routes.responses import JsonResponse, answer, dumps
from blackbox_server.routes.route import Routes
from blackbox_server.schemas.answers import KeyInfo, KeysPage, MadeKey
from blackbox_server.schemas.requests import NewKey

routes = Routes()


def _shape(row: KeyRow) -> KeyInfo:
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

    return (yield from write(work))


@routes("POST /v1/keys", "keys:admin", {201: MadeKey}, body=NewKey)
async def create(call: Call) -> Response:
    """Make a key. Its text is in this answer and nowhere else: a repeated request shows the key without it."""
    body = await call.body(NewKey)
    own, root = call.principal, call.settings.root_project
    project = body.project or own.project
    if own.project not in (project, root):
        raise Forbidden(f"a key of project {own.project} cannot make keys for {project}")
    scopes, now = auth.checked_scopes(body.scopes, own), call.now
    expires = None if body.expires_seconds is None else now + body.expires_seconds
    QUOTAS["keys"].check(call.settings, await call.service.read(lambda tx: len(tx.keys(project))))
    text, row = auth.new_key(body.name, project, scopes, now, expires)

    def render(tx: Tx, made: KeyRow) -> tuple[int, bytes]:
        return 201, dumps(_shape(made))

    done = await call.once(_put(row), render)
    if done.result is None:
        return JsonResponse(done.body, done.status)
    return answer({**_shape(row), "key": text}, 201)


@routes("GET /v1/keys", "keys:admin", {200: KeysPage})
async def list_keys(call: Call) -> Response:
    """Keys of the project, without their secrets."""
    project = call.principal.project
    rows = await call.service.read(lambda tx: tx.keys(project))
    return answer({"keys": [_shape(row) for row in rows]})


@routes("DELETE /v1/keys/{key}", "keys:admin", {204: None})
async def delete(call: Call) -> Response:
    """Revoke a key."""
    own, now, key = call.principal.project, call.now, call.path["key"]
    project = None if own == call.settings.root_project else own
    await call.service.write(lambda tx: auth.revoked(tx, key, project, now))
    if call.state.keyring is not None:
        call.state.keyring.forget(key)
    return Response(status_code=204)
