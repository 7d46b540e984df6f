"""API keys: who may do what, in which project.

A key is `zok_<8 characters of id>_<43 characters of secret>`. The secret is 32 random bytes, so one SHA-256 is
enough to store it; it is shown once. A key belongs to one project and sees nothing of
another: other tenants' studies answer 404.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from blackbox.errors import FieldError, InvalidInput, nearest
from blackbox.study.effects import Steps, read, write
from blackbox.study.rows import KeyRow, Tx
from blackbox_server.limits import Buckets, TokenBucket
from blackbox_server.problems import Forbidden, KeyNotFound, RateLimited, Unauthorized
from blackbox_server.store.front import AsyncStore

Scope = Literal["study:read", "study:evaluate", "study:admin", "project:admin", "keys:admin"]
SCOPES: tuple[Scope, ...] = ("study:read", "study:evaluate", "study:admin", "project:admin", "keys:admin")
IMPLIED: dict[str, frozenset[str]] = {
    "study:read": frozenset({"study:read"}),
    "study:evaluate": frozenset({"study:evaluate"}),
    "study:admin": frozenset({"study:admin", "study:read", "study:evaluate"}),
    "project:admin": frozenset({"project:admin", "study:admin", "study:read", "study:evaluate"}),
    "keys:admin": frozenset({"keys:admin"}),
}
TRUSTED_SECONDS = 5.0
"""How long a verified key is believed without reading its row again, and so how long one revoked elsewhere works."""

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a key: who makes a request, in which project, with which scopes."""

    key_id: str
    name: str
    project: str
    scopes: frozenset[str]
    bucket: TokenBucket
    expires_at: float | None = None

    def may(self, scope: str) -> bool:
        """Whether its scopes, with those that they include, contain this one."""
        return scope in self.scopes

    def check_time(self, now: float) -> None:
        """Raise if the key has expired by `now`, in seconds since the epoch.

        Raises
        ------
        Unauthorized
        """
        if self.expires_at is not None and self.expires_at <= now:
            raise Unauthorized("the key has expired")

    def require(self, scope: str) -> None:
        """Raise unless the scope is granted.

        Raises
        ------
        Forbidden
        """
        if scope not in self.scopes:
            raise Forbidden(f"this needs the scope {scope}, the key has {', '.join(sorted(self.scopes)) or 'none'}")


def new_key(
    name: str, project: str, scopes: Iterable[str], now: float, expires_at: float | None = None
) -> tuple[str, KeyRow]:
    """A new key: its text, to be shown once, and the row to store.

    Parameters
    ----------
    now, expires_at : seconds since the epoch; None never expires.
    """
    text = _fresh()
    return text, _row(text, name, project, scopes, now, expires_at)


def key_of_file(path: Path) -> str:
    """The key in a file; a missing file is created with a new key.

    A key that was written to the file but not to the store, because the machine lost power in between, is found at the
    next start.

    Raises
    ------
    InvalidInput
        If the file holds no key, or cannot be read or written.
    """
    try:
        if not path.exists():
            text, draft = _fresh(), path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)  # so that nobody reads half of the file
            return text
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        hint = "its folder must exist and belong to the user of the server"
        raise InvalidInput(f"the first key's file {path}: {error.strerror}", hint=hint) from None
    if not re.fullmatch("zok_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}", text):
        hint = "put a key into it (zok_, 8 letters or digits, _, 43 random ones), or remove it to have one made"
        raise InvalidInput(f"the first key's file {path} holds no key", hint=hint)
    return text


def _fresh() -> str:
    identifier = "".join(secrets.choice(_BASE62) for _ in range(8))
    return f"zok_{identifier}_{_base62(secrets.token_bytes(32))}"


def _row(
    text: str, name: str, project: str, scopes: Iterable[str], now: float, expires_at: float | None = None
) -> KeyRow:
    return KeyRow(text.split("_")[1], name, project, _hash(text), " ".join(sorted(scopes)), now, expires_at)


def _base62(raw: bytes) -> str:
    number, digits = int.from_bytes(raw, "big"), []
    for _ in range(43):  # 62^43 > 2^256
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def checked_scopes(scopes: Iterable[str], granted_by: Principal | None = None) -> frozenset[str]:
    """The scopes, after checking that all are known and that the granting key has each of them.

    Raises
    ------
    InvalidInput, Forbidden
    """
    wanted = frozenset(scopes)
    for scope in sorted(wanted):
        if scope not in SCOPES:
            raise InvalidInput(
                f'there is no scope "{scope}"', hint=nearest(scope, SCOPES),
                errors=[FieldError("/scopes", "unknown", f'there is no scope "{scope}"')],
            )  # fmt: skip
        if granted_by is not None and scope not in granted_by.scopes:
            raise Forbidden(f"a key can only give scopes that it has, and it lacks {scope}")
    return wanted


def first_key(project: str, now: float, path: Path | None = None) -> Steps[str | None]:
    """Make the administrator's key if the store has no keys yet; returns its text, to be shown once.

    Parameters
    ----------
    path : file of its text, see `key_of_file`; not touched if the store has keys.

    Raises
    ------
    InvalidInput
        If the file cannot be used.
    """
    if (yield from read(lambda tx: bool(tx.keys(None)))):
        return None
    text = _fresh() if path is None else key_of_file(path)
    row = _row(text, "first", project, SCOPES, now)

    def work(tx: Tx) -> bool:
        if tx.keys(None):
            return False
        tx.put_key(row)
        return True

    return text if (yield from write(work)) else None


class Keyring:
    """The keys of a store.

    Parameters
    ----------
    rate : requests per second and key.
    failures : the failed keys of each address.
    clock : seconds since the epoch, at which keys expire.
    monotonic : seconds by which rates are measured and verified keys believed; no change of the date moves it.
    """

    def __init__(
        self,
        store: AsyncStore,
        rate: float,
        failures: Buckets,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._rate = rate
        self._failures = failures
        self._clock = clock
        self._monotonic = monotonic
        self._trusted: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._buckets: dict[str, TokenBucket] = {}
        self._ended: set[str] = set()

    def local(self, project: str) -> Principal:
        """The principal of every request to a server without keys."""
        return Principal("local", "local", project, frozenset(SCOPES), self._bucket("local"))

    async def admit(self, authorization: bytes | None, address: str = "") -> Principal:
        """The owner of a key.

        Parameters
        ----------
        address : of the client. One that has sent too many unknown keys is answered without a look at the store, except
            for keys that were good before.

        Raises
        ------
        Unauthorized, RateLimited
        """
        if authorization is None:
            raise Unauthorized("the request has no Authorization header")
        name = hashlib.sha256(authorization).digest()  # the cache is searched by digest: its timing tells nothing
        known, now = self._trusted.get(name), self._monotonic()
        if known is not None and known[0] > now:
            known[1].check_time(self._clock())
            return known[1]
        if known is None and self._failures.exhausted(address, now):
            raise RateLimited(
                f"more than {self._failures.burst:g} unknown keys came from {address}",
                hint="Check the key; keys that are known already go on working. Wait a minute before sending others.",
            )
        try:
            principal = await self._verified(authorization)
        except Unauthorized:
            self._trusted.pop(name, None)
            self._failures.take(address, now)
            raise
        self._trusted[name] = (now + TRUSTED_SECONDS, principal)
        if len(self._trusted) > 1024:
            self._trusted.popitem(last=False)
        return principal

    def recheck(self, principal: Principal) -> None:
        """Raise if the key of a request that has been held for a while was revoked here, or has expired.

        Raises
        ------
        Unauthorized
        """
        if principal.key_id in self._ended:
            raise Unauthorized("the key was revoked")
        principal.check_time(self._clock())

    async def _verified(self, authorization: bytes) -> Principal:
        scheme, _, text = authorization.decode("latin-1").strip().partition(" ")
        parts = text.strip().split("_")
        if scheme.lower() != "bearer" or len(parts) != 3 or parts[0] != "zok" or len(text) > 200:
            raise Unauthorized("the Authorization header holds no key of this service")
        row = await self._store.read(lambda tx: tx.key(parts[1][:64]))
        # The comparison also runs for unknown ids, so that its time does not tell which ones exist.
        matches = hmac.compare_digest(_hash(text.strip()), row.hash if row is not None else bytes(32))
        if row is None or not matches:
            raise Unauthorized("the key is not known")
        if row.revoked_at is not None:
            raise Unauthorized("the key was revoked")
        scopes = frozenset().union(*(IMPLIED.get(scope, frozenset()) for scope in row.scopes.split()))
        principal = Principal(row.id, row.name, row.project, scopes, self._bucket(row.id), row.expires_at)
        principal.check_time(self._clock())
        return principal

    def _bucket(self, key_id: str) -> TokenBucket:
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._buckets[key_id] = TokenBucket(self._rate, self._monotonic())
        return bucket

    def forget(self, key_id: str) -> None:
        """End a key that was revoked: its held requests too; every other is verified against its row again."""
        self._ended.add(key_id)
        self._buckets.pop(key_id, None)
        # They stay in the cache: an address that sends unknown keys must not make these unknown.
        self._trusted = OrderedDict((name, (-math.inf, each)) for name, (_, each) in self._trusted.items())


def spend(principal: Principal, now: float) -> int:
    """Count one request; returns how many more the key may send right now.

    Parameters
    ----------
    now : seconds of a monotonic clock.

    Raises
    ------
    RateLimited
    """
    left = principal.bucket.take(now)
    if left < 0:
        raise RateLimited(f"more than {principal.bucket.rate:g} requests per second for key {principal.key_id}")
    return left


def revoked(tx: Tx, key_id: str, project: str | None, now: float) -> KeyRow:
    """Revoke a key of a project (None: of any).

    Raises
    ------
    KeyNotFound
    """
    row = tx.key(key_id)
    if row is None or (project is not None and row.project != project):
        raise KeyNotFound(f'there is no key "{key_id[:64]}"')
    gone = row if row.revoked_at is not None else replace(row, revoked_at=now)
    tx.put_key(gone)
    return gone
