"""A handle on one study."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import httpx
import numpy as np
from numpy.typing import NDArray

from blackbox_client import protocol, recipes
from blackbox_client.client.connection import Connection
from blackbox_client.errors import BadAnswer, ConnectionFailed, Forbidden
from blackbox_client.models import (
    AskAnswer,
    Best,
    Event,
    EventPage,
    HealthItem,
    HeartbeatAnswer,
    Invalidated,
    Joined,
    Json,
    OpenPhase,
    PastRound,
    Queued,
    ReportAnswer,
    Result,
    SeedCandidate,
    Snapshot,
    Study,
    TellAnswer,
    Trial,
    TrialRef,
    bodies,
    completed,
)

log = logging.getLogger("blackbox_client")


class StudyHandle:
    """One study of a server.

    Parameters
    ----------
    client : of the server where it is.
    id : ``st_...``
    info : the study as the server described it last, if it did.
    """

    def __init__(self, client: Connection, id: str, info: Study | None = None) -> None:
        self.client = client
        self.id = id
        self._info = info
        self._vector_name: str | None = None

    def __repr__(self) -> str:
        return f"StudyHandle({self.id!r} at {self.client.url})"

    # ---- the study itself

    @property
    def info(self) -> Study:
        """The study as the server described it last, read once if nothing is known. `refresh` reads it again."""
        return self._info or self.refresh()

    def refresh(self) -> Study:
        """Read the study again."""
        return self._keep(self.client.send(protocol.get_study(self.id)))

    def update(
        self,
        *,
        budget: int | bodies.Budget | None = None,
        labels: Mapping[str, str] | None = None,
        lease: bodies.LeaseDefaults | None = None,
        parallelism: int | bodies.Parallelism | None = None,
        if_match: str | None = None,
    ) -> Study:
        """Edit the study while it runs. Each argument replaces the whole part of that name; None leaves it unchanged.

        Parameters
        ----------
        budget, labels, lease, parallelism : as in `Client.create_study`.
        if_match : the `etag` of the study as it was read, to change it only if nobody else has changed it since.

        Raises
        ------
        PreconditionFailed
            If somebody has changed it; `refresh` and decide again.
        """
        call = protocol.update_study(
            self.id, budget=budget, labels=labels, lease=lease, parallelism=parallelism, if_match=if_match
        )
        return self._keep(self.client.send(call))

    def delete(self) -> None:
        """Delete the study."""
        self.client.send(protocol.delete_study(self.id))

    def host(self, client: str, weight: float | None = None) -> StudyHandle:
        """Take part in this federated study by evaluating only: the server runs the participant's half.

        Parameters
        ----------
        client : name of the participant, unique in the study; the same after a restart.
        weight : its share in means, such as its number of examples; None: 1.

        Returns
        -------
        The study to ask and tell, with a `Worker` or by hand. Its points and values are seen by the server.
        """
        joined = self.client.send(protocol.host(self.id, client, weight))
        return StudyHandle(self.client, place_of(joined, self.id))

    def open_phase(self, *, after_step: int = -1, wait_seconds: float = 0.0) -> OpenPhase:
        """The open phase of this federated study; held until a step after `after_step` has begun."""
        return self.client.send(protocol.current_round(self.id, after_step=after_step, wait_seconds=wait_seconds))

    def past_round(self, round: int) -> PastRound:
        """A past round of this federated study: how its phases closed."""
        return self.client.send(protocol.past_round(self.id, round))

    def pause(self, reason: str | None = None) -> Study:
        """Hand out no trials until `resume`."""
        return self._keep(self.client.send(protocol.change_state(self.id, "pause", reason=reason)))

    def resume(self, reason: str | None = None) -> Study:
        """Go on after a pause, or after a failure of the algorithm."""
        return self._keep(self.client.send(protocol.change_state(self.id, "resume", reason=reason)))

    def complete(self, reason: str | None = None) -> Study:
        """End the study as completed."""
        return self._keep(self.client.send(protocol.change_state(self.id, "complete", reason=reason)))

    def cancel(self, reason: str | None = None) -> Study:
        """End the study and cancel its open trials."""
        return self._keep(self.client.send(protocol.change_state(self.id, "cancel", reason=reason)))

    def snapshot(self) -> Snapshot:
        """Store the state of the open step now."""
        return self.client.send(protocol.snapshot(self.id))

    def fork(
        self,
        step: int | None = None,
        *,
        name: str | None = None,
        algorithm: str | bodies.AlgorithmChoice | None = None,
    ) -> StudyHandle:
        """Fork: a new study that shares the past of this one.

        Parameters
        ----------
        step : where it leaves; None: now.
        name : of the fork; None: the server makes one up.
        algorithm : another one starts fresh, with the results as points it did not choose; None: the same goes on.
        """
        info = self.client.send(protocol.fork(self.id, step, name=name, algorithm=algorithm))
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
        lease_seconds: float | Literal["auto"] | None = None,
        resume: bool = False,
        encoding: bodies.Encoding = "values",
        idempotency_key: str | None = None,
    ) -> AskAnswer:
        """Lease up to `count` trials.

        Parameters
        ----------
        count : how many.
        worker : name of the evaluator, of your own choice.
        wait_seconds : how long the server may wait until it can lease something, at most 30.
        lease_seconds : length of the lease, or ``"auto"``; None: as the study says.
        resume : first return the trials that this worker holds already.
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
        results: Result | TrialRef | Iterable[Result],
        value: Any = None,
        *,
        worker: str | None = None,
        ask: int | bodies.Ask | None = None,
        idempotency_key: str | None = None,
    ) -> TellAnswer:
        """Tell results; items succeed or fail one by one.

        Parameters
        ----------
        results : a trial (or its id) with its `value` beside, a `Result`, or several of them.
        value : the value, where `results` is a trial.
        worker : who evaluated.
        ask : number of trials to lease in the same answer, or the body of an ask.
        idempotency_key : to repeat a tell of an earlier process.

        Raises
        ------
        NonFiniteValue
            If a value is NaN or infinite; nothing is sent.
        """
        batch = batch_of(results, value)
        body = protocol.ask_body(ask) if isinstance(ask, int) else ask
        return self.client.send(protocol.tell(self.id, batch, worker=worker, ask=body, idempotency_key=idempotency_key))

    def heartbeat(self, leases: Iterable[str | Trial], *, extend_seconds: float | None = None) -> HeartbeatAnswer:
        """Renew leases, given as tokens or as trials that carry one; the answer says for each whether to continue."""
        return self.client.send(protocol.heartbeat(self.id, tokens_of(leases), extend_seconds=extend_seconds))

    # ---- trials

    def enqueue(self, trials: Iterable[bodies.Enqueued]) -> tuple[Trial, ...]:
        """Queue points that you choose, or import finished ones.

        Parameters
        ----------
        trials : ``{"params": {...}}`` each, to be handed out before the algorithm's own points; or, all of them, with
            a `value` (or ``"status": "infeasible"``) besides, to be taken as told. `source` and `info` may say where
            such a result comes from.

        Raises
        ------
        InvalidRequest
            For the first one that was rejected; the others have been taken.
        """
        return tuple(taken(entry) for entry in self.client.send(protocol.enqueue(self.id, trials)).items)

    def trials(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Trial]:
        """All trials, page by page; `limit` is the size of a page."""
        return self.client.all(protocol.list_trials(self.id, state=state, limit=limit))

    def trial(self, trial: TrialRef) -> Trial:
        """One trial."""
        return self.client.send(protocol.get_trial(self.id, trial))

    def cancel_trial(self, trial: TrialRef, reason: str | None = None) -> Trial:
        """Withdraw an open trial."""
        return self.client.send(protocol.change_trial(self.id, trial, "cancel", reason=reason))

    def requeue(self, trial: TrialRef, reason: str | None = None) -> Trial:
        """Queue a trial that has no value once more."""
        return self.client.send(protocol.change_trial(self.id, trial, "requeue", reason=reason))

    def invalidate(self, trial: TrialRef, reason: str | None = None) -> Invalidated:
        """Take a result back: the study is replayed without it. `Client.quarantine` does so for a whole worker."""
        return self.client.send(protocol.invalidate(self.id, trial, reason=reason))

    def report(
        self, trial: TrialRef, step: int | None = None, value: Any = None, *, lease: str | None = None
    ) -> ReportAnswer:
        """Send an interim value; the answer says whether to continue, and until when the lease lasts now."""
        return self.client.send(protocol.report(self.id, trial, step, value, lease=lease))

    # ---- reading

    def best(self, k: int | None = None, view: bodies.View | None = None) -> Best:
        """The best points.

        Parameters
        ----------
        k : how many; from 2 on points are compared by the mean of their values, and come with an `estimate`.
        view : ``"observed"`` (the default), ``"recommended"``: the point to deploy, with an `estimate` where values are
            noisy, or ``"proposed"``: what the algorithm itself would deploy, which need not have been evaluated.
        """
        return self.client.send(protocol.best(self.id, k=k, view=view))

    def health(self) -> tuple[HealthItem, ...]:
        """What the study's owner should know, the most urgent first; () if all is well."""
        return self.client.send(protocol.health(self.id)).items

    def brief(self) -> str:
        """A summary of the study in plain text, with the next command to run."""
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
        types : show only events of these types.
        follow : wait for more at the end, until the caller stops iterating.
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

    def event_page(
        self,
        after: int = 0,
        *,
        types: Iterable[str] | None = None,
        wait_seconds: float = 0.0,
        limit: int | None = None,
    ) -> EventPage:
        """One page of the log, of at most `limit` events; held up to `wait_seconds` while there is nothing new."""
        return self.client.send(protocol.events(self.id, after, wait_seconds=wait_seconds, types=types, limit=limit))

    def export(self, format: bodies.ExportFormat | None = None, *, after_seq: int = 0) -> Iterator[str]:
        """The history as lines of JSON (``"ndjson"``), while they arrive.

        Raises
        ------
        ConnectionFailed
            If the connection breaks in the middle. `history` goes on by itself.
        """
        with self.client.lines(protocol.export(self.id, format=format, after_seq=after_seq or None)) as lines:
            try:
                yield from lines
            except httpx.RequestError as error:
                raise ConnectionFailed(f"the export broke off: {error!r}; ask again with after_seq") from error

    def history(self, *, after_seq: int = 0) -> Iterator[Json]:
        """The rows of the ndjson export; resumed after the last row's `seq` when the connection breaks."""
        rows = Rows(after_seq)
        while True:
            try:
                for line in self.export(after_seq=rows.after_seq):
                    if row := rows.read(line):
                        yield row
                return
            except (ConnectionFailed, json.JSONDecodeError):
                if rows.stuck():
                    raise

    # ---- big vectors

    def base(self, version: int | str, *, dtype: str = "f32", sha256: str | None = None) -> recipes.Blob:
        """A base vector, from the cache or fetched.

        Parameters
        ----------
        version : as a seed-encoded trial names it.
        dtype : ``"f32"`` or ``"f64"``: type of the raw numbers.
        sha256 : digest it must have, see `recipes.blob_sha256`.

        Raises
        ------
        BaseMismatch
            If the digest differs, also after fetching it again.
        """
        call = protocol.base(self.id, version)
        return self.client.bases.get(self.id, str(version), dtype, sha256, lambda: self.client.send(call))

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
        return recipes.rebuild(candidate.raw, base, factors=factors, cache=self.client.prefixes)

    def ingredients(self, candidate: SeedCandidate) -> tuple[recipes.Blob | None, dict[str, recipes.Blob]]:
        """The vectors that a candidate is made of: its base and, by digest, the factors of its noise."""
        digest, dtype = candidate.base_sha256, candidate.dtype
        # by digest: several steps may share a base, and a number only names the newest of them
        base = self.base(digest, dtype=dtype, sha256=digest) if digest else None
        weights = {op["weight"] for op in candidate.ops if isinstance(op.get("weight"), str)}
        return base, {weight: self.base(weight, dtype=dtype, sha256=weight) for weight in weights}

    def arguments(self, trial: Trial) -> dict[str, Any]:
        """The arguments of the objective: the parameters, with a seed-encoded vector rebuilt under its name."""
        params = dict(trial.params)
        if trial.candidate is not None:
            params[self.name_of_vector()] = self.materialise(trial)
        return params

    def name_of_vector(self) -> str:
        """The parameter that seed-encoded candidates are the value of: the only vector of the space."""
        if self._vector_name is None:
            try:
                space = self.info.space
            except Forbidden:
                log.warning(
                    "this key may not read %s to learn the name of its vector: calling it theta; a key with the scope "
                    "study:read may",
                    self.id,
                )
                space = {}
            self._vector_name = vector_of(space)
        return self._vector_name


# ---- what the handles of both kinds of clients share


def batch_of(results: Result | TrialRef | Iterable[Result], value: Any) -> list[Result]:
    """The results of a tell, whose arguments these are."""
    if isinstance(results, Trial | int | str):
        return [completed(results, value)]
    if value is not None:
        raise TypeError("value goes with a single trial; put the values into the results")
    return [results] if isinstance(results, Result) else list(results)


def tokens_of(leases: Iterable[str | Trial]) -> list[str]:
    """The tokens of leases, given as such or as trials that carry one."""
    held = (lease.lease if isinstance(lease, Trial) else lease for lease in leases)
    return [lease if isinstance(lease, str) else lease.token for lease in held if lease is not None]


def place_of(joined: Joined, study: str) -> str:
    """The id of the study in which a hosted participant asks and tells."""
    if joined.hosted is None:
        raise BadAnswer(f"{study} did not say where {joined.client} is hosted; is the server older than this client?")
    return joined.hosted.study


def vector_of(space: Mapping[str, Any]) -> str:
    """The name of the only vector of a space; ``theta`` where there is none or several."""
    names = [name for name, entry in space.items() if isinstance(entry, Mapping) and entry.get("type") == "vector"]
    return names[0] if len(names) == 1 else "theta"


def taken(entry: Queued) -> Trial:
    """A point that was queued; raises its problem if it was not."""
    if entry.id is None:
        raise entry.problem or BadAnswer(f"rejected without a reason: {dict(entry.raw)!r:.200}")
    return Trial.of(entry.raw)


class Rows:
    """The rows of an export that may break: where to go on, and whether there was any progress since the last break."""

    def __init__(self, after_seq: int) -> None:
        self.after_seq = after_seq
        self._broken_at: int | None = None

    def read(self, line: str) -> Json:
        """The row of a line; nothing if it was there before the break."""
        row: Json = json.loads(line) if line.strip() else {}
        if not row or (self._broken_at is not None and "seq" not in row):
            return {}
        self.after_seq = int(row.get("seq") or self.after_seq)
        return row

    def stuck(self) -> bool:
        """Note a break; whether it was at the same row as the one before."""
        again = self._broken_at == self.after_seq
        self._broken_at = self.after_seq
        return again
