"""The client: the calls about the service and about all studies.

>>> from blackbox_client import Client, completed
>>> with Client("http://127.0.0.1:8800", key="zok_...") as client:  # doctest: +SKIP
...     study = client.create_study(name="demo", space={"x": {"type": "float", "low": -5, "high": 5}}, budget=50)
...     while not (answer := study.ask(wait_seconds=20)).study.ended:
...         study.tell([completed(trial, trial.params["x"] ** 2) for trial in answer.trials])
...     print(study.brief())
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blackbox_client import protocol
from blackbox_client.client.connection import Connection
from blackbox_client.client.study import StudyHandle
from blackbox_client.models import (
    AlgorithmInfo,
    ApiKey,
    FederatedInfo,
    Limits,
    ProblemInfo,
    Quarantined,
    ServiceDocument,
    Study,
    bodies,
)


class Client(Connection):
    """A connection to a server, and the calls about everything but a single study.

    Parameters, errors and use as a context manager are those of `Connection`.
    """

    # ---- the service

    def service(self) -> ServiceDocument:
        """The service document."""
        return self.send(protocol.service())

    def limits(self) -> Limits:
        """The limits of this key."""
        return self.send(protocol.limits())

    def algorithms(self) -> tuple[AlgorithmInfo, ...]:
        """The algorithms of the server that work on trials."""
        return self.send(protocol.algorithms()).algorithms

    def federated_algorithms(self) -> tuple[FederatedInfo, ...]:
        """The algorithms of the server that work in rounds of participants."""
        return self.send(protocol.algorithms()).federated

    def explain(self, code: str) -> ProblemInfo:
        """The meaning of the `code` of an error, independent of the request.

        Raises
        ------
        NotFound
            If there is no such code.
        """
        return self.send(protocol.problem(code))

    # ---- keys and workers

    def create_key(
        self,
        scopes: Sequence[str],
        *,
        name: str | None = None,
        project: str | None = None,
        expires_seconds: float | None = None,
    ) -> ApiKey:
        """A new key; its `secret` is shown this once.

        Parameters
        ----------
        scopes : some of ``"study:read"``, ``"study:evaluate"``, ``"study:admin"``, ``"project:admin"``,
            ``"keys:admin"``.
        name : for people.
        project : another one than this key's; only administrators of the root project may say so.
        expires_seconds : how long it is valid; None: until it is deleted.
        """
        return self.send(
            protocol.create_key(scopes=scopes, name=name, project=project, expires_seconds=expires_seconds)
        )

    def keys(self) -> tuple[ApiKey, ...]:
        """The keys of the project, without their secrets."""
        return tuple(self.all(protocol.list_keys()))

    def delete_key(self, key_id: str) -> None:
        """Revoke a key."""
        self.send(protocol.delete_key(key_id))

    def quarantine(self, worker: str, reason: str | None = None) -> Quarantined:
        """Take back all results of a worker that cannot be trusted, in every study of the project.

        Each study is replayed without them; federated studies are skipped. Later results of the worker are accepted
        again, so revoke its key, too.

        Parameters
        ----------
        worker : the name that it asked and told under.
        reason : for the log.
        """
        return self.send(protocol.quarantine(worker, reason=reason))

    # ---- studies

    def create_study(
        self,
        *,
        name: str,
        space: Mapping[str, Any],
        direction: bodies.Direction | None = None,
        algorithm: str | bodies.AlgorithmChoice | None = None,
        budget: int | bodies.Budget | None = None,
        target: float | None = None,
        lease: bodies.LeaseDefaults | None = None,
        parallelism: int | bodies.Parallelism | None = None,
        rounds: bodies.Rounds | None = None,
        start: bodies.StartPolicy | None = None,
        duplicates: bodies.DuplicatesPolicy | None = None,
        seed: int | str | None = None,
        noise: bodies.Noise | None = None,
        non_finite: bodies.NonFinitePolicy | None = None,
        require_lease: bool | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> StudyHandle:
        """Create a study, or get the existing one of the same name and spec. None means the default of the server.

        Parameters
        ----------
        name : unique in the project.
        space : parameter name -> ``{"type": "float", "low": ..., "high": ...}`` and so on.
        direction : ``"minimize"`` (the default) or ``"maximize"``.
        algorithm : a name, or ``{"name": ..., "options": {...}}``; by default ``"auto"`` chooses.
        budget : number of evaluations, or ``{"evaluations", "max_cost", "deadline"}``; the study ends with the first.
        target : a value at which the study ends, too.
        lease : ``{"default_seconds", "max_seconds", "max_attempts", "max_lost"}``: how long a worker may keep a trial
            without renewing it, how long it may ask for, and how many failures and lapsed leases a trial survives.
        parallelism : most leases at a time, or ``{"max_leased": ..., "workers": ...}``; for `workers` evaluations at a
            time the default population is at least as large.
        rounds : of a federated study, ``{"min_joined", "deadline_seconds", "keep"}``: participants that must have
            joined before the first round, seconds after which a phase closes with what has arrived, and whether
            contributions stay in the log (``"all"``) or only while they are needed (``"open"``).
        start : whether the start point (``init``, or the middle of the bounds) is the first trial: ``"evaluate"`` or
            ``"skip"``.
        duplicates : of a space of integers and choices only, whether a point that was told before is evaluated again:
            ``"evaluate"``, ``"reuse"`` its value, or ``"auto"``, which reuses once repeats have shown equal values.
        seed : of all randomness. It travels as text, so it may exceed 2**53.
        noise : whether two evaluations of a point may differ: ``"none"``, ``"present"``, or ``"auto"``, by which the
            study finds out.
        non_finite : what a NaN or infinity that is told means: ``"reject"`` or ``"infeasible"``. This client never
            sends one; see `Worker`'s argument of the same name.
        require_lease : whether a result must carry its lease's token. `completed(trial, ...)` and workers do so.
        labels : text by name, for people.

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
            algorithm=algorithm,
            budget=budget,
            target=target,
            lease=lease,
            parallelism=parallelism,
            rounds=rounds,
            start=start,
            duplicates=duplicates,
            seed=seed,
            noise=noise,
            non_finite=non_finite,
            require_lease=require_lease,
            labels=labels,
        )
        info = self.send(call)
        return StudyHandle(self, info.id, info)

    def study(self, study_id: str) -> StudyHandle:
        """A handle on a study known by its id. Sends nothing."""
        return StudyHandle(self, study_id)

    def studies(self, *, limit: int | None = None) -> Iterator[Study]:
        """All studies, page by page; `limit` is the size of a page."""
        return self.all(protocol.list_studies(limit=limit))
