"""Taking part in federated rounds: a private objective that never leaves, and updates that do.

Needs the extra `federated` (`pip install 'blackbox-zoo-client[federated]'`), because a participant runs its half of the
algorithm. Nothing else of this package imports this module.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox import codec, federation
from blackbox.errors import CodecError, InvalidInput
from blackbox.recipes import digest
from blackbox.rng import Key
from blackbox.space import Space
from blackbox_client import protocol
from blackbox_client.client import StudyHandle
from blackbox_client.errors import CallInterrupted, Conflict, NotFound
from blackbox_client.models import ENDED

log = logging.getLogger("blackbox_client")

WAIT_SECONDS = 5.0
"""How long a poll for the next phase is held by the server; `stop` during a poll is heeded at its end."""


@dataclass(frozen=True, slots=True)
class Participation:
    """The work that a participant has done.

    Attributes
    ----------
    contributions : sent and counted.
    late : sent, but the phase had closed.
    declined : phases to which nothing was contributed, because none of their evaluations gave a value.
    flat : contributed phases in which all values were equal: the move of zero is right, if the objective is.
    error : the evaluator's last error, or why its last value was none; empty if there was none. It stays here: the
        study is told the type only.
    evaluations : of the private objective.
    sent_bytes, received_bytes : contributions, and vectors or updates of the common point, without HTTP around them.
    state : of the study at the end.
    """

    contributions: int = 0
    late: int = 0
    declined: int = 0
    flat: int = 0
    error: str = ""
    evaluations: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    state: str = "ACTIVE"


class Participant:
    """One participant of a federated study.

    Parameters
    ----------
    study : handle of the study.
    objective : gets the parameters of a point and returns a number (minimised), evaluated only here. NaN, infinity and
        exceptions mean that the point has no value. With `batched` it gets a list of them and returns as many numbers.
        Where no point of a phase has one, the phase is declined: nothing is contributed.
    client : name of this participant, unique in the study; the same after a restart.
    weight : its share in means, such as its number of examples. The coordinator learns it.
    folder : where the private state and the secret are kept, readable by the owner only, so that a restart goes on
        where it was. None: in memory.
    batched : see `objective`.
    stop : once set, `run` ends after the evaluation in hand, as by `stop()`; for signals that come while it joins.

    Notes
    -----
    What leaves is `federation.Contribution`: one update per phase, clipped and noised here where the study says so. No
    point that was evaluated and no value has a field to travel in.
    """

    def __init__(
        self,
        study: StudyHandle,
        objective: Callable[[Any], Any],
        *,
        client: str,
        weight: float = 1.0,
        folder: str | Path | None = None,
        batched: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self.study = study
        self.client = client
        self.participation = Participation()
        self._objective = objective
        self._batched = batched
        self._stop = threading.Event() if stop is None else stop
        self._folder = None if folder is None else Path(folder)
        self._error_type: str | None = None
        joined = study.client.send(protocol.join(study.id, client))
        self._token = joined.token
        invitation = federation.Invitation.from_json(joined.invitation.raw)
        self.space = Space.from_json(invitation.space)
        self._key = Key.from_hex(invitation.key)
        self._machine = federation.accept(invitation, client=client, weight=weight, secret=self._secret())
        self._own, self._settled = self._restored()
        self._point: tuple[Any, int] = (federation.project(self.space.initial, self.space), 0)
        """The common point and its version, as far as it was followed."""

    def stop(self) -> None:
        """Leave the loop of `run` after the evaluation in hand. May be called from another thread or a signal."""
        self._stop.set()

    def leave(self) -> None:
        """Tell the coordinator that rounds need not wait for this participant any more."""
        self.study.client.send(protocol.leave(self.study.id, self._token))

    def run(self, phases: int | None = None) -> Participation:
        """Take part until the study ends, `stop` is called, or so many phases were contributed to.

        It returns as well where the study is paused and this participant declined its last phase: the evaluator is to
        be mended first.
        """
        step, sent, declined = -1, 0, False
        self._finish()  # what a crash left between the contribution and its answer
        while not self._stop.is_set() and (phases is None or sent < phases):
            call = protocol.current_round(self.study.id, self._token, after_step=step, wait_seconds=WAIT_SECONDS)
            try:
                phase = self.study.client.send(call, interrupt=self._stop)
            except CallInterrupted:
                break
            self.participation = replace(self.participation, state=phase.state)
            if phase.state in ENDED or (phase.state == "PAUSED" and declined):
                break
            if phase.broadcast is None or phase.broadcast.step + declined <= step:
                continue  # a declined phase is open to this participant again after the study was resumed
            step = phase.broadcast.step
            if phase.invited and not phase.contributed:
                before = self.participation.declined
                done = self._take_part(phase.broadcast.raw)
                declined = self.participation.declined > before
                sent += done and not declined
        return self.participation

    # One phase

    def _take_part(self, raw: Mapping[str, Any]) -> bool:
        """Work on a phase and contribute to it; whether something was sent."""
        try:
            broadcast = self._received(raw)
        except NotFound:
            return False  # the phase has closed, and its vectors are gone
        again = self._machine.declines(self._own) and broadcast.step == self._own.work.broadcast
        self._settled = -1 if again else self._settled
        own = self._keep(self._machine.start(self._own, broadcast))
        seen: set[float] = set()  # two are enough to know that the objective is not flat here
        while len(points := self._machine.ask(own)):
            if self._stop.is_set():
                return False
            values = self._values(points)
            seen = {*seen, *(value for value in values if math.isfinite(value))} if len(seen) < 2 else seen
            own = self._machine.tell(own, values)
            self.participation = replace(self.participation, evaluations=self.participation.evaluations + len(points))
        self._keep(own)
        self._finish()
        if len(seen) == 1:
            log.warning("all values of %s in round %d are equal: the objective is flat", self.client, broadcast.round)
            self.participation = replace(self.participation, flat=self.participation.flat + 1)
        return True

    def _finish(self) -> None:
        """Send the contribution of a phase that is done, and settle it: once for every phase, whatever crashed.

        What was settled is not made again: a new vector under new noise would be another release of the same data.
        """
        own = self._own
        if not self._machine.done(own) or self._settled == own.work.broadcast:
            return
        if self._machine.declines(own):
            self._decline(own)
            return
        sent = self._machine.contribution(own).to_bytes()  # the same bytes as before a restart
        try:
            answer = self.study.client.send(protocol.contribute(self.study.id, own.work.round, self._token, sent))
            counted = answer.counted
        except Conflict as error:  # the study has ended, so that it was not counted and will not be
            log.info("the contribution of %s to round %d was not taken: %s", self.client, own.work.round, error)
            counted = False
        self._keep(self._machine.settle(own, counted), settled=True)
        done = self.participation
        self.participation = replace(
            done,
            contributions=done.contributions + counted,
            late=done.late + (not counted),
            sent_bytes=done.sent_bytes + len(sent),
        )

    def _decline(self, own: Any) -> None:
        """Say that the phase gave nothing to contribute, and why as far as that may leave."""
        work = own.work
        log.error(
            "%s declines phase %r of round %d: none of its %d evaluations gave a value; the last error was %s",
            *(self.client, work.phase, work.round, work.evaluations, self.participation.error or "before a restart"),
        )
        try:
            self.study.client.send(
                protocol.decline(self.study.id, work.round, self._token, work.phase, self._error_type)
            )
        except Conflict as error:
            log.info("the rounds of %s are over: %s", self.client, error)
        self._keep(self._machine.settle(own, False), settled=True)
        self.participation = replace(self.participation, declined=self.participation.declined + 1)

    def _received(self, raw: Mapping[str, Any]) -> federation.Broadcast:
        """The broadcast with its vectors: the common point by its updates where that is less to fetch."""
        plain = {**raw, "vectors": {n: {k: v for k, v in r.items() if k != "href"} for n, r in raw["vectors"].items()}}
        wanted = raw["vectors"]["x"]
        vectors = {}
        x = self._followed(int(raw["version"]), wanted["sha256"], int(wanted["length"]))
        if x is not None:
            vectors[wanted["sha256"]] = x
        for reference in raw["vectors"].values():
            name = reference["sha256"]
            if name not in vectors:
                content = self.study.client.send(protocol.base(self.study.id, name))
                vectors[name] = np.frombuffer(content, dtype=reference["dtype"]).copy()
                self._count(len(content))
        self._point = (vectors[wanted["sha256"]], int(raw["version"]))
        return federation.Broadcast.from_json(plain, vectors)

    def _followed(self, version: int, sha256: str, length: int) -> Any | None:
        """The common point from the one at hand and the updates since, if that gives the promised bytes."""
        x, at = self._point
        if version > at:
            raw = self.study.client.send(protocol.updates(self.study.id, at)).updates
            updates = [federation.Update.from_json(u) for u in raw if u["version"] <= version]
            self._count(sum(update.nbytes for update in updates))
            try:
                x, at = federation.catch_up(x, at, updates, self._key, self.space)
            except InvalidInput:
                return None
        return x if at == version and len(x) == length and digest(x) == sha256 else None

    def _count(self, n_bytes: int) -> None:
        self.participation = replace(self.participation, received_bytes=self.participation.received_bytes + n_bytes)

    def _values(self, points: Any) -> list[float]:
        params = [self.space.decode(point) for point in points]
        if not self._batched:
            return [self._value(partial(self._objective, item)) for item in params]
        try:
            values = list(self._objective(params))
        except Exception as error:
            self._failed(error)
            return [math.nan] * len(params)
        return [self._value(partial(_same, value)) for value in values]

    def _value(self, evaluate: Callable[[], Any]) -> float:
        try:
            value = float(evaluate())
        except Exception as error:
            self._failed(error)
            return math.nan
        if not math.isfinite(value):
            self._error_type = None
            self.participation = replace(self.participation, error=f"the value {value}")
        return value

    def _failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self.participation.error:  # one that repeats is said once
            log.warning("the objective of %s raised; the point has no value", self.client, exc_info=True)
        name = type(error).__name__
        self._error_type = name if name.isidentifier() and len(name) <= 100 else None
        self.participation = replace(self.participation, error=text)

    # What is kept

    def _secret(self) -> bytes:
        if self._folder is None:
            return secrets.token_bytes(32)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / "secret"
        if not path.exists():
            _write(path, secrets.token_bytes(32))
        return path.read_bytes()

    def _restored(self) -> tuple[Any, int]:
        """The private state, and the step of the broadcast that was settled last."""
        fresh = self._machine.init()
        if self._folder is None or not (path := self._folder / "state").exists():
            return fresh, -1
        kept = codec.decode(_Kept, path.read_bytes())
        try:
            return codec.decode(type(fresh), kept.state.tobytes()), kept.settled
        except CodecError as error:
            log.warning("%s begins anew, for another release kept its private state: %s", self.client, error)
            return fresh, kept.settled

    def _keep(self, own: Any, settled: bool = False) -> Any:
        self._own = own
        if settled:
            self._settled = int(own.work.broadcast)
        if self._folder is not None:
            kept = _Kept(self._settled, np.frombuffer(codec.encode(own), np.uint8))
            _write(self._folder / "state", codec.encode(kept))
        return own


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class _Kept:
    """The content of the file `state`: one file, so that a crash leaves both old or both new values."""

    settled: int
    state: NDArray[np.uint8]


def _write(path: Path, content: bytes) -> None:
    """Replace a private file, so that a crash leaves the old or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent)  # readable by the owner only
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


__all__ = ["Participant", "Participation"]
