"""The settings of the service: name, type, default and description of each. The environment prefix is `BLACKBOX_`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from blackbox.errors import FieldError, InvalidInput, nearest

PREFIX = "BLACKBOX_"
OF_CLIENTS = ("url", "key", "key_file")
"""Variables with the same prefix that belong to clients; a server may be started in their environment."""


class Settings(BaseModel):
    """Settings of one server process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8800, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    database: str = "blackbox.db"
    """Path of the SQLite file, or sqlite:///path."""
    insecure_local: bool = False
    """No keys at all. Only on a loopback address. Host and Origin are checked, and POSTs must say they are JSON."""
    root_project: str = Field("default", min_length=1, max_length=200)
    """Project of the first key; only its key administrators make keys for other projects."""
    first_key_file: str | None = None
    """File of the first key, which is then not printed: read where it exists, else written, for its owner alone."""

    max_connections: int = Field(4000, ge=0)
    """Most open connections; 0: no limit."""
    max_connections_per_address: int = Field(1000, ge=0)
    """Most open connections of one address; 0: no limit, for a server behind a proxy, which is one address."""
    max_head_bytes: int = Field(32 * 2**10, ge=1024)
    """Largest request line with headers."""
    head_seconds: float = Field(10.0, gt=0)
    """A request line with headers that takes longer to arrive is answered with 408."""
    failed_keys_per_minute: float = Field(60.0, gt=0)
    """Unknown keys that one address may send; beyond it only keys that were good before are looked at."""

    max_body_bytes: int = Field(2**20, ge=1024)
    """Largest request body in JSON."""
    max_vector_body_bytes: int = Field(8 * 2**20, ge=1024)
    """The same where points are sent (trials, tell, create, contributions): decoding holds every other request."""
    max_binary_body_bytes: int = Field(64 * 2**20, ge=1024)
    """Largest contribution in the binary form."""
    max_count: int = Field(1000, ge=1)
    """Most trials of one ask, results of one tell, leases of one heartbeat, items of one page."""
    max_values_bytes: int = Field(64 * 2**20, ge=1024)
    """Most that one ask sends as numbers: dimension x count x 8 bytes."""
    max_algorithm_bytes: int = Field(2 * 2**30, ge=2**20)
    """Largest memory estimate of an algorithm; more is refused when a study is created."""
    max_info_bytes: int = Field(16 * 2**10, ge=0)
    """Largest `info` of a result, and largest `sums`."""
    max_wait_seconds: float = Field(30.0, ge=0)
    """Longest time an ask or a read of events is held."""
    body_seconds: float = Field(30.0, gt=0)
    """A body that takes longer to arrive is answered with 408."""
    rate_per_second: float = Field(5000.0, gt=0)
    """Requests per second and key, on average; bursts may be twice as many."""

    max_studies: int = Field(10_000, ge=1)
    """Most studies of a project; deleted ones do not count."""
    max_keys: int = Field(1000, ge=1)
    """Most keys of a project; revoked ones count."""
    max_labels: int = Field(64, ge=0)
    """Most labels of a study."""
    max_participants: int = Field(1000, ge=1)
    """Most participants that have joined a federated study."""
    max_queued: int = Field(100_000, ge=1)
    """Most trials of a study that wait to be asked for, enqueued points among them."""
    max_trials: int = Field(10_000_000, ge=1)
    """Most trials of a study beyond which no points are added that it did not choose."""
    max_injected_per_hour: int = Field(100_000, ge=1)
    """Points that the study did not choose, of one key, on average; so many at once."""
    max_open_bytes: int = Field(2 * 2**30, ge=2**20)
    """Largest sum of the memory estimates of a project's open studies; those used longest ago are closed."""
    max_all_open_bytes: int = Field(4 * 2**30, ge=2**20)
    """The same for all projects together."""
    max_held_bytes: int = Field(64 * 2**20, ge=1024)
    """Bytes of bodies of one key that are under way at a time."""
    max_all_held_bytes: int = Field(256 * 2**20, ge=1024)
    """The same for all keys together."""

    compute_threads: int = Field(2, ge=1)
    """Threads for algorithm steps that are too long for the event loop."""
    slice_threads: int = Field(0, ge=0)
    """Threads among which the update of one large vector is cut by coordinates; 0: one per core."""
    slice_ray: str = ""
    """Address of a Ray cluster (host:port) that computes these parts instead; empty: threads. Needs the extra `ray`."""
    inline_seconds: float = Field(0.002, ge=0)
    """Algorithm steps expected to be shorter run in the event loop."""
    open_studies: int = Field(256, ge=1)
    """Studies kept open, with their decoded states."""
    reply_hours: float = Field(24.0, gt=0)
    """How long the answer to a POST with an Idempotency-Key is kept."""
    shutdown_seconds: float = Field(10.0, ge=0)
    """How long a stopping server lets requests finish."""

    @pydantic.model_validator(mode="after")
    def _keys_unless_loopback(self) -> Self:
        if self.insecure_local and not is_loopback(self.host):
            raise ValueError(f"insecure_local needs a loopback host, got {self.host}; use 127.0.0.1 or keys")
        return self

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, /, **given: Any) -> Settings:
        """Settings from `BLACKBOX_*` variables; explicit arguments take precedence.

        Raises
        ------
        InvalidInput
            Names the faulty variable and, for an unknown one, the nearest setting.
        """
        environ = os.environ if environ is None else environ
        raw: dict[str, Any] = {}
        for name, value in environ.items():
            field = name.removeprefix(PREFIX).lower()
            if not name.startswith(PREFIX) or field.startswith("test_") or field in OF_CLIENTS:
                continue
            if field not in cls.model_fields:
                hint = nearest(field.upper(), map(str.upper, cls.model_fields))
                raise InvalidInput(f"{name} is no setting of the server", hint=hint)
            raw[field] = value
        try:
            return cls.model_validate({**raw, **given})
        except pydantic.ValidationError as error:
            faults = [FieldError("/" + "/".join(map(str, e["loc"])), e["type"], e["msg"]) for e in error.errors()]
            words = "; ".join(f"{PREFIX}{f.pointer[1:].upper()}: {f.message}" for f in faults)
            raise InvalidInput(words, hint="see the table of settings in server/README.md", errors=faults) from None


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
