"""Rows of the service itself: API keys, and answers remembered for a retry."""

from __future__ import annotations

from blackbox.study.rows import KeyRow, ReplyRow
from blackbox_server.store.verbs.base import Verbs, arguments, columns, no_nan, upsert

PUT_KEY, KEY_ARGUMENTS = upsert("keys", KeyRow, "id"), arguments(KeyRow)
KEY = f"SELECT {columns(KeyRow)} FROM keys WHERE id = ?"
KEYS = f"SELECT {columns(KeyRow)} FROM keys WHERE ?1 IS NULL OR project = ?1 ORDER BY created_at, id"
PUT_REPLY, REPLY_ARGUMENTS = upsert("replies", ReplyRow, "project, key"), arguments(ReplyRow)
REPLY = f"SELECT {columns(ReplyRow)} FROM replies WHERE project = ? AND key = ?"
PURGE_REPLIES = "DELETE FROM replies WHERE at < ?"


class ServiceVerbs(Verbs):
    """Verbs of `Tx` about keys and remembered answers."""

    def put_key(self, row: KeyRow) -> None:
        no_nan(row.created_at, row.expires_at, row.revoked_at)
        self._execute(PUT_KEY, KEY_ARGUMENTS(row))

    def key(self, key_id: str) -> KeyRow | None:
        found = self._execute(KEY, (key_id,)).fetchone()
        return KeyRow(*found) if found else None

    def keys(self, project: str | None) -> list[KeyRow]:
        return [KeyRow(*row) for row in self._execute(KEYS, (project,))]

    def put_reply(self, row: ReplyRow) -> None:
        self._execute(PUT_REPLY, REPLY_ARGUMENTS(row))

    def reply(self, project: str, key: str) -> ReplyRow | None:
        found = self._execute(REPLY, (project, key)).fetchone()
        return ReplyRow(*found) if found else None

    def purge_replies(self, before: float) -> None:
        self._execute(PURGE_REPLIES, (before,))
