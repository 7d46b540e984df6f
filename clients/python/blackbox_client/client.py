"""The client: the protocol over httpx, and a handle on one study.

>>> from blackbox_client import Client, completed
>>> with Client("http://127.0.0.1:8800", key="zok_...") as client:  # doctest: +SKIP
...     study = client.create_study(name="demo", space={"x": {"type": "float", "low": -5, "high": 5}}, budget=50)
...     while not (answer := study.ask(wait_seconds=20)).study.ended:
...         study.tell([completed(trial, trial.params["x"] ** 2) for trial in answer.trials])
...     print(study.brief())
"""

from __future__ import annotations

import json
import logging
import os
import random as random_module
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray

from blackbox_client import protocol, recipes
from blackbox_client.errors import BaseMismatch, CallInterrupted, ConnectionFailed, Forbidden
from blackbox_client.models import (
    AlgorithmInfo,
    ApiKey,
    AskAnswer,
    Best,
    Event,
    EventPage,
    HeartbeatAnswer,
    Json,
    Page,
    ReportAnswer,
    Result,
    SeedCandidate,
    Snapshot,
    Study,
    TellAnswer,
    Trial,
    completed,
)
from blackbox_client.protocol import (
    Call,
    Encoding,
    Exchange,
    NoAnswer,
    Outcome,
    Raise,
    Reply,
    RetryPolicy,
    TrialRef,
    View,
)

log = logging.getLogger("blackbox_client")
T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8800"


class Client:
    """A connection to a server. Safe to share between threads; use it as a context manager or call `close`.

    Parameters
    ----------
    url : address of the server, with or without ``/v1``; None: the environment's ``BLACKBOX_URL``, else `DEFAULT_URL`.
    key : API key; None: the environment's ``BLACKBOX_KEY``, else the content of the file that its
        ``BLACKBOX_KEY_FILE`` names, else none is sent.
    timeout : seconds without a byte after which an attempt counts as lost; long polls get their wait on top.
    retry : when failed attempts are repeated; see `RetryPolicy`.
    transport : what httpx sends through, for tests and special networks.
    prefix_bytes : most bytes of points kept to build their children from; see `recipes.PrefixCache`.

    Raises
    ------
    ValueError
        If the address is not an http or https one, or the key's file cannot be read.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        prefix_bytes: int = 2**28,
    ) -> None:
        url = url or os.environ.get("BLACKBOX_URL") or DEFAULT_URL
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"the server's address looks like http://host:port, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self.retry = retry or RetryPolicy()
        key = key if key is not None else _key_of_environment()
        headers = {"user-agent": "blackbox-client-python/0.1"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._http = httpx.Client(
            headers=headers,
            transport=transport,
            # loading the certificates takes longer than a call on loopback; without TLS they are not needed
            verify=parts.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            follow_redirects=False,
            # idle connections are dropped before uvicorn does it (5 s), so that requests do not run into closed ones
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=4.0),
        )
        self._bases = _BaseCache()
        self._prefixes = recipes.PrefixCache(prefix_bytes)

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ---- sending

    def send(
        self, call: Call[T], *, interrupt: threading.Event | None = None, give_up_seconds: float | None = None
    ) -> T:
        """Send a call and read its answer, repeating it as the contract says.

        Parameters
        ----------
        call : from `blackbox_client.protocol`.
        interrupt : once set, a call waiting to be repeated is given up; a request under way is not cut off.
        give_up_seconds : instead of the policy's.

        Raises
        ------
        BlackboxClientError
            One class per cause, see `blackbox_client.errors`.
        """

        def attempt() -> tuple[Outcome, None]:
            response = self._http.send(self._request(call))
            return _reply(response, response.content), None

        reply, _ = self._until_answered(call, attempt, interrupt, give_up_seconds)
        return call.read(reply)

    def _request(self, call: Call[Any]) -> httpx.Request:
        return self._http.build_request(
            call.method,
            self.url + call.path,
            params=dict(call.query) or None,
            content=call.body,
            headers=dict(call.headers),
            timeout=httpx.Timeout(self.timeout, read=self.timeout + call.hold_seconds, pool=None),
        )

    def _until_answered(
        self,
        call: Call[Any],
        attempt: Callable[[], tuple[Outcome, T]],
        interrupt: threading.Event | None = None,
        give_up_seconds: float | None = None,
    ) -> tuple[Reply, T]:
        policy = self.retry
        if give_up_seconds is not None:
            policy = RetryPolicy(policy.base_seconds, policy.max_seconds, give_up_seconds, policy.n_server_errors)
        exchange = Exchange(call, policy)
        start = time.monotonic()
        while True:
            outcome: Outcome
            cause: Exception | None = None
            try:
                outcome, extra = attempt()
                if isinstance(outcome, Reply) and exchange.succeeded(outcome):
                    return outcome, extra
            except httpx.RequestError as error:
                outcome, cause = _no_answer(error, self.url), error
            decision = exchange.after(outcome, time.monotonic() - start, random_module.random())
            if isinstance(decision, Raise):
                raise decision.error from cause
            log.log(
                logging.WARNING if exchange.attempt == 1 else logging.DEBUG,
                "%s %s: %s; trying again in %.1f s (giving up after %.0f s)",
                call.method,
                call.path,
                outcome.reason if isinstance(outcome, NoAnswer) else f"status {outcome.status}",
                decision.delay,
                policy.give_up_seconds,
            )
            if interrupt is None:
                time.sleep(decision.delay)
            elif interrupt.wait(decision.delay):
                raise CallInterrupted(f"{call.method} {call.path} was given up: the caller is stopping") from cause

    @contextmanager
    def _lines(self, call: Call[str]) -> Iterator[Iterator[str]]:
        """The lines of a long answer while it arrives."""

        def attempt() -> tuple[Outcome, httpx.Response]:
            response = self._http.send(self._request(call), stream=True)
            try:
                body = response.read() if response.status_code >= 300 else b""
            except BaseException:
                response.close()
                raise
            return _reply(response, body), response

        _, response = self._until_answered(call, attempt)
        try:
            yield response.iter_lines()
        finally:
            response.close()

    def _all(self, call: Call[Page[T]]) -> Iterator[T]:
        following: Call[Page[T]] | None = call
        while following is not None:
            page = self.send(following)
            yield from page.items
            following = protocol.next_page(following, page)

    # ---- the service

    def service(self) -> Json:
        """The service document."""
        return self.send(protocol.service())

    def limits(self) -> Json:
        """What this key may do."""
        return self.send(protocol.limits())

    def algorithms(self) -> tuple[AlgorithmInfo, ...]:
        """The algorithms of the server."""
        return tuple(self._all(protocol.algorithms()))

    def create_key(self, scopes: Sequence[str], *, name: str | None = None, **more: Any) -> ApiKey:
        """A new key; its `secret` is shown this once. `more` goes into the request as it is."""
        return self.send(protocol.create_key(scopes=scopes, name=name, more=more))

    def keys(self) -> tuple[ApiKey, ...]:
        """The keys of the project, without their secrets."""
        return tuple(self._all(protocol.list_keys()))

    def delete_key(self, key_id: str) -> None:
        """Take a key back."""
        self.send(protocol.delete_key(key_id))

    # ---- studies

    def create_study(
        self,
        *,
        name: str,
        space: Mapping[str, Any],
        direction: str | None = None,
        objectives: Sequence[Mapping[str, Any]] | None = None,
        constraints: Sequence[Mapping[str, Any]] | None = None,
        algorithm: str | Mapping[str, Any] | None = None,
        budget: int | Mapping[str, Any] | None = None,
        lease: Mapping[str, Any] | None = None,
        parallelism: int | Mapping[str, Any] | None = None,
        noise: Mapping[str, Any] | None = None,
        seed: int | str | None = None,
        non_finite: Literal["reject", "infeasible"] | None = None,
        require_lease: bool | None = None,
        labels: Mapping[str, str] | None = None,
        **more: Any,
    ) -> StudyHandle:
        """Create a study, or get the existing one of the same name and spec.

        Parameters
        ----------
        name : unique in the project.
        space : parameter name -> ``{"type": "float", "low": ..., "high": ...}`` and so on.
        direction : ``"minimize"`` or ``"maximize"``; for several objectives give `objectives` instead.
        objectives, constraints : ``[{"name": ..., "direction": ...}]``, ``[{"name": ..., "upper": ...}]``.
        algorithm : a name, or ``{"name": ..., "options": {...}}``; the server's default is ``"auto"``.
        budget : number of evaluations, or ``{"evaluations", "max_cost", "deadline"}``.
        parallelism : most leases at a time, or ``{"max_leased": ...}``.
        seed : travels as text, so it may exceed 2**53.
        lease, noise, non_finite, require_lease, labels : as the interface has them.
        more : further fields, sent as they are.

        Raises
        ------
        StudySpecMismatch
            If the name is taken by a study with another spec.
        InvalidRequest
            If the server cannot use the spec; `errors` points at the fields.
        """
        call = protocol.create_study(
            name=name,
            space=space,
            direction=direction,
            objectives=objectives,
            constraints=constraints,
            algorithm=algorithm,
            budget=budget,
            lease=lease,
            parallelism=parallelism,
            noise=noise,
            seed=seed,
            non_finite=non_finite,
            require_lease=require_lease,
            labels=labels,
            more=more,
        )
        info = self.send(call)
        return StudyHandle(self, info.id, info)

    def study(self, study_id: str) -> StudyHandle:
        """A handle on a study known by its id. Sends nothing."""
        return StudyHandle(self, study_id)

    def studies(self, *, limit: int | None = None) -> Iterator[Study]:
        """All studies, page by page; `limit` is the size of a page."""
        return self._all(protocol.list_studies(limit=limit))


def _key_of_environment() -> str | None:
    key, path = os.environ.get("BLACKBOX_KEY"), os.environ.get("BLACKBOX_KEY_FILE")
    if key is not None or not path:
        return key
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"BLACKBOX_KEY_FILE names {path}, which cannot be read as a key: {error}") from None


class StudyHandle:
    """One study of a server.

    Parameters
    ----------
    client : where it lives.
    id : ``st_...``
    info : what the server said about it last, if anything.
    """

    def __init__(self, client: Client, id: str, info: Study | None = None) -> None:
        self.client = client
        self.id = id
        self._info = info
        self._vector_name: str | None = None

    def __repr__(self) -> str:
        return f"StudyHandle({self.id!r} at {self.client.url})"

    # ---- the study itself

    @property
    def info(self) -> Study:
        """What the server said about the study last; read once where nothing is known. `refresh` reads it anew."""
        return self._info or self.refresh()

    def refresh(self) -> Study:
        """Read the study."""
        return self._keep(self.client.send(protocol.get_study(self.id)))

    def update(self, *, if_match: str | None = None, **changes: Any) -> Study:
        """Change budget, labels or lease defaults; with `if_match` (an ETag) only if nobody else did meanwhile."""
        return self._keep(self.client.send(protocol.update_study(self.id, changes, if_match=if_match)))

    def delete(self) -> None:
        """Delete the study."""
        self.client.send(protocol.delete_study(self.id))

    def host(self, client: str, weight: float = 1.0) -> StudyHandle:
        """Take part in this federated study by evaluating only: the server runs the participant's machine.

        Parameters
        ----------
        client : name of the participant, unique in the study; the same after a restart.
        weight : its share in means, such as its number of examples.

        Returns
        -------
        The study to ask and tell, with a `Worker` or by hand. Its points and values are seen by the server.
        """
        joined = self.client.send(protocol.host(self.id, client, weight))
        return self.client.study(str(joined["hosted"]["study"]))

    def pause(self, reason: str | None = None) -> Study:
        """Hand nothing out until `resume`."""
        return self._keep(self.client.send(protocol.change_state(self.id, "pause", reason=reason)))

    def resume(self) -> Study:
        """Go on after a pause, or after a failure of the algorithm."""
        return self._keep(self.client.send(protocol.change_state(self.id, "resume")))

    def complete(self, reason: str | None = None) -> Study:
        """End the study: it is good enough."""
        return self._keep(self.client.send(protocol.change_state(self.id, "complete", reason=reason)))

    def cancel(self, reason: str | None = None) -> Study:
        """End the study: it is not wanted any more."""
        return self._keep(self.client.send(protocol.change_state(self.id, "cancel", reason=reason)))

    def snapshot(self) -> Snapshot:
        """Store the state now."""
        return self.client.send(protocol.snapshot(self.id))

    def fork(
        self,
        step: int | None = None,
        *,
        name: str | None = None,
        algorithm: str | Mapping[str, Any] | None = None,
        **more: Any,
    ) -> StudyHandle:
        """A branch of the study at a step (None: now)."""
        info = self.client.send(protocol.fork(self.id, step, name=name, algorithm=algorithm, more=more))
        return StudyHandle(self.client, info.id, info)

    def _keep(self, info: Study) -> Study:
        self._info = info
        return info

    # ---- ask and tell

    def ask(
        self,
        count: int = 1,
        worker: str | None = None,
        wait_seconds: float = 0.0,
        *,
        lease_seconds: float | str | None = None,
        resume: bool = False,
        encoding: Encoding = "values",
        idempotency_key: str | None = None,
    ) -> AskAnswer:
        """Lease up to `count` trials.

        Parameters
        ----------
        count : how many.
        worker : who evaluates; a name of your own.
        wait_seconds : how long the server may wait for something to give out, at most 30.
        lease_seconds : how long the lease lasts, or ``"auto"``; None: as the study has it.
        resume : first give back what this worker holds already.
        encoding : ``"seed"`` for recipes instead of numbers; see `materialise`.
        idempotency_key : to repeat an ask of an earlier process.

        Returns
        -------
        AskAnswer; an empty one is normal and says why (`reason`) and when to come back.
        """
        body = protocol.ask_body(
            count,
            worker=worker,
            lease_seconds=lease_seconds,
            wait_seconds=wait_seconds,
            resume=resume,
            encoding=encoding,
        )
        return self.client.send(protocol.ask(self.id, body, idempotency_key=idempotency_key))

    def tell(
        self,
        results: Result | Trial | int | str | Iterable[Result],
        value: Any = None,
        *,
        worker: str | None = None,
        ask: int | Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> TellAnswer:
        """Tell results; items succeed or fail one by one.

        Parameters
        ----------
        results : a trial (or its id) with its `value` beside, a `Result`, or several of them.
        value : the value, where `results` is a trial.
        worker : who evaluated.
        ask : so many trials more in the same answer, or the body of an ask.
        idempotency_key : to repeat a tell of an earlier process.

        Raises
        ------
        NonFiniteValue
            If a value is NaN or infinite; nothing is sent.
        """
        if isinstance(results, Trial | int | str):
            results = completed(results, value)
        elif value is not None:
            raise TypeError("value goes with a single trial; put the values into the results")
        batch = [results] if isinstance(results, Result) else list(results)
        body = protocol.ask_body(ask) if isinstance(ask, int) else ask
        return self.client.send(protocol.tell(self.id, batch, worker=worker, ask=body, idempotency_key=idempotency_key))

    def heartbeat(
        self, leases: Iterable[str | Trial], *, worker: str | None = None, extend_seconds: float | None = None
    ) -> HeartbeatAnswer:
        """Extend leases (tokens, or trials that carry one) and read what to do about each."""
        leases = list(leases)
        tokens = [lease for lease in leases if isinstance(lease, str)]
        tokens += [trial.lease.token for trial in leases if isinstance(trial, Trial) and trial.lease]
        return self.client.send(protocol.heartbeat(self.id, tokens, worker=worker, extend_seconds=extend_seconds))

    # ---- trials

    def enqueue(self, trials: Iterable[Mapping[str, Any]]) -> tuple[Trial, ...]:
        """Queue given points, ``{"params": {...}}``, or import finished ones with their `value`."""
        return self.client.send(protocol.enqueue(self.id, trials))

    def trials(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Trial]:
        """All trials, page by page; `limit` is the size of a page."""
        return self.client._all(protocol.list_trials(self.id, state=state, limit=limit))

    def trial(self, trial: TrialRef) -> Trial:
        """One trial."""
        return self.client.send(protocol.get_trial(self.id, trial))

    def cancel_trial(self, trial: TrialRef, reason: str | None = None) -> Json:
        """Withdraw a trial."""
        return self.client.send(protocol.change_trial(self.id, trial, "cancel", reason=reason))

    def requeue(self, trial: TrialRef, reason: str | None = None) -> Json:
        """Have a trial run again."""
        return self.client.send(protocol.change_trial(self.id, trial, "requeue", reason=reason))

    def invalidate(self, trial: TrialRef, reason: str | None = None) -> Json:
        """Take a result back: the study is replayed without it."""
        return self.client.send(protocol.change_trial(self.id, trial, "invalidate", reason=reason))

    def report(self, trial: TrialRef, step: int, value: Any, *, lease: str | None = None) -> ReportAnswer:
        """Send an interim value; the answer says whether to go on."""
        return self.client.send(protocol.report(self.id, trial, step, value, lease=lease))

    # ---- reading

    def best(self, k: int | None = None, view: View | None = None) -> Best:
        """The best trials: ``"observed"``, ``"recommended"`` or ``"pareto"``."""
        return self.client.send(protocol.best(self.id, k=k, view=view))

    def brief(self) -> str:
        """How it goes, in plain text, with the next command to run."""
        return self.client.send(protocol.brief(self.id))

    def events(
        self,
        after: int = 0,
        *,
        types: Iterable[str] | None = None,
        follow: bool = False,
        wait_seconds: float = 20.0,
    ) -> Iterator[Event]:
        """The log after a sequence number, oldest first.

        Parameters
        ----------
        after : sequence number of the last event already seen.
        types : only these.
        follow : wait for more instead of ending; the caller breaks off.
        wait_seconds : how long one request waits while following, at most 30.
        """
        types = list(types) if types else None
        while True:
            start = time.monotonic()
            page = self.event_page(after, types=types, wait_seconds=wait_seconds if follow else 0.0)
            yield from page.events
            if not page.events and page.next_after <= after:  # not where only events of other types were passed over
                if not follow:
                    return
                # do not spin where the server does not wait
                time.sleep(max(0.0, min(0.5, wait_seconds) - (time.monotonic() - start)))
            after = page.next_after

    def event_page(self, after: int = 0, *, types: Iterable[str] | None = None, wait_seconds: float = 0.0) -> EventPage:
        """One page of the log."""
        return self.client.send(protocol.events(self.id, after, wait_seconds=wait_seconds, types=types))

    def export(self, format: str = "ndjson", *, after_seq: int = 0) -> Iterator[str]:
        """The history line by line while it arrives: ``ndjson``, ``csv`` or ``optuna-journal``.

        Raises
        ------
        ConnectionFailed
            If the connection breaks in the middle. `history` goes on by itself.
        """
        with self.client._lines(protocol.export(self.id, format=format, after_seq=after_seq or None)) as lines:
            try:
                yield from lines
            except httpx.RequestError as error:
                raise ConnectionFailed(f"the export broke off: {error!r}; ask again with after_seq") from error

    def history(self, *, after_seq: int = 0) -> Iterator[Json]:
        """The rows of the ndjson export; resumed after the last row's `seq` when the connection breaks."""
        broken_at: int | None = None
        while True:
            try:
                for line in self.export(after_seq=after_seq):
                    row: Json = json.loads(line) if line.strip() else {}
                    if row and (broken_at is None or "seq" in row):  # the rows without were there before the break
                        yield row
                        after_seq = int(row.get("seq") or after_seq)
                return
            except (ConnectionFailed, json.JSONDecodeError):
                if broken_at == after_seq:  # no progress since the last break
                    raise
                broken_at = after_seq

    # ---- big vectors

    def base(self, version: int | str, *, dtype: str = "f32", sha256: str | None = None) -> recipes.Blob:
        """A base vector, fetched once and remembered while it is among the few used last.

        Parameters
        ----------
        version : as a seed-encoded trial names it.
        dtype : ``"f32"`` or ``"f64"``: what the raw bytes are.
        sha256 : digest it must have, see `recipes.blob_sha256`.

        Raises
        ------
        BaseMismatch
            If the digest differs, also after fetching it again.
        """
        return self.client._bases.get(self, version, dtype, sha256)

    def materialise(self, trial: Trial) -> NDArray[np.float32]:
        """The vector of a seed-encoded trial.

        Raises
        ------
        ValueError
            If the trial is not seed-encoded.
        recipes.RecipeError
            If it cannot be rebuilt here; release it.
        """
        candidate = trial.candidate
        if candidate is None:
            raise ValueError(f'{trial.id} is not seed-encoded; ask with encoding="seed", or read trial.params')
        base, factors = self.ingredients(candidate)
        return recipes.rebuild(candidate.raw, base, factors=factors, cache=self.client._prefixes)

    def ingredients(self, candidate: SeedCandidate) -> tuple[recipes.Blob | None, dict[str, recipes.Blob]]:
        """The vectors that a candidate is made of: its base and, by digest, the factors of its noise."""
        digest, dtype = candidate.base_sha256, candidate.dtype
        # by digest where it is known: several generations may share a base, and a number only names the newest of them
        version = digest or ("" if candidate.base_version is None else candidate.base_version)
        base = None if version == "" else self.base(version, dtype=dtype, sha256=digest or None)
        weights = {op["weight"] for op in candidate.ops if isinstance(op.get("weight"), str)}
        return base, {weight: self.base(weight, dtype=dtype, sha256=weight) for weight in weights}

    def arguments(self, trial: Trial) -> dict[str, Any]:
        """What an objective is called with: the parameters; a seed-encoded vector is rebuilt under its name."""
        params = dict(trial.params)
        if trial.candidate is not None:
            params[self.name_of_vector(trial.candidate)] = self.materialise(trial)
        return params

    def name_of_vector(self, candidate: SeedCandidate) -> str:
        """The parameter that a seed-encoded candidate is the value of."""
        named = candidate.raw.get("parameter")
        if isinstance(named, str):
            return named
        if self._vector_name is None:
            try:
                space = self.info.raw.get("space") or self.refresh().raw.get("space")
            except Forbidden:
                log.warning("this key may not read %s to learn the name of its vector: calling it theta", self.id)
                space = None
            space = space if isinstance(space, Mapping) else {}
            vectors = [
                name for name, entry in space.items() if isinstance(entry, Mapping) and entry.get("type") == "vector"
            ]
            self._vector_name = vectors[0] if len(vectors) == 1 else "theta"
        return self._vector_name


class _BaseCache:
    """The base vectors used last; fetched by one thread while the others wait for it."""

    def __init__(self, n_kept: int = 4) -> None:
        self._kept: OrderedDict[tuple[str, str, str], recipes.Blob] = OrderedDict()
        self._n_kept = n_kept
        self._lock = threading.Lock()

    def get(self, study: StudyHandle, version: int | str, dtype: str, sha256: str | None) -> recipes.Blob:
        name = (study.id, sha256 or str(version), dtype)  # generations may share a base
        with self._lock:
            blob = self._kept.pop(name, None)
            if blob is None or (sha256 is not None and blob.sha256 != sha256):
                blob = self._fetch(study, version, dtype, sha256)
            self._kept[name] = blob
            while len(self._kept) > self._n_kept:
                self._kept.popitem(last=False)
            return blob

    def _fetch(self, study: StudyHandle, version: int | str, dtype: str, sha256: str | None) -> recipes.Blob:
        if dtype not in ("f32", "f64"):
            raise recipes.UnknownEncoding(f"a base vector is f32 or f64, got {dtype!r}; update blackbox-zoo-client")
        itemsize = int(dtype[1:]) // 8
        said = ""
        for _ in range(2):
            body = study.client.send(protocol.base(study.id, version))
            if len(body) % itemsize:
                said = f"{len(body)} bytes are no whole number of {dtype}"
                continue
            vector = np.frombuffer(body, dtype=f"<f{itemsize}").astype(f"f{itemsize}", copy=False)
            blob = recipes.Blob.of(vector)
            if sha256 is None or blob.sha256 == sha256:
                return blob
            said = f"its sha256 is {blob.sha256}, not {sha256}"
        raise BaseMismatch(f"base {version} of {study.id} is not the promised one: {said}")


def _reply(response: httpx.Response, body: bytes) -> Reply:
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)


def _no_answer(error: httpx.RequestError, url: str) -> NoAnswer:
    """What went wrong on the way; an untrusted certificate or a bad address does not get better by repeating."""
    ours = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
    seen: BaseException | None = error
    while seen is not None and not ours:
        ours = isinstance(seen, ssl.SSLCertVerificationError)
        seen = seen.__cause__ or seen.__context__
    return NoAnswer(f"{type(error).__name__} from {url}: {error or 'no details'}", repeatable=not ours)
