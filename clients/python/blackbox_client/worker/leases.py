"""The leases of a worker: renewed until their results are told, and released if there is no result."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from blackbox_client import protocol
from blackbox_client.client import StudyHandle
from blackbox_client.errors import AnsweredWithError, BadAnswer, BlackboxClientError, NonFiniteValue
from blackbox_client.models import AskAnswer, Trial, released

log = logging.getLogger("blackbox_client.worker")

_RENEWED_SECONDS = 60.0  # at least so often: the answer also says which trials nobody waits for any more


@dataclass(eq=False)
class Held:
    """A trial in our hands, from ask until its result is told."""

    trial: Trial
    interval: float  # seconds between renewals
    due: float  # monotonic time of the next one
    directive: str = "continue"

    @property
    def token(self) -> str | None:
        """The token that renews its lease, if there is one."""
        return self.trial.lease.token if self.trial.lease else None


class Leases:
    """The trials that a worker holds, and the thread that renews them.

    Parameters
    ----------
    study, worker : whose trials, and who holds them.
    lease_seconds : how long a renewal is to last; ``"auto"`` or None: as the study has it.
    on_change : called in the renewing thread after each renewal, because a trial may have been abandoned.
    """

    def __init__(
        self,
        study: StudyHandle,
        worker: str,
        lease_seconds: float | Literal["auto"] | None,
        on_change: Callable[[], None],
    ) -> None:
        self._study = study
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._on_change = on_change
        self._held: dict[str, Held] = {}  # by trial id
        self._lock = threading.Lock()  # around _held
        self._changed = threading.Event()
        self._closed = False

    def start(self) -> None:
        """Begin to renew."""
        threading.Thread(target=self._renew, name="blackbox-leases", daemon=True).start()

    def take(self, answer: AskAnswer | None) -> list[Held]:
        """Hold the trials of an answer; returns those that were not held before."""
        taken = []
        for trial in answer.trials if answer is not None else ():
            interval = trial.lease.heartbeat_seconds if trial.lease else None
            if interval is None:
                interval = self._lease_seconds / 3 if isinstance(self._lease_seconds, int | float) else 20.0
            taken.append(Held(trial, interval, time.monotonic() + min(interval, _RENEWED_SECONDS)))
        with self._lock:
            taken = [held for held in taken if held.trial.id not in self._held]
            self._held.update({held.trial.id: held for held in taken})
        self._changed.set()
        return taken

    def forget(self, trial_id: str) -> None:
        """Stop holding a trial: its result is told, or nobody needs it."""
        with self._lock:
            self._held.pop(trial_id, None)

    def abandoned(self, trial_ids: Sequence[str]) -> list[str]:
        """The trials among these that nobody needs any more."""
        with self._lock:
            return [name for name in trial_ids if self._held[name].directive == "abandon"]

    def close(self, give_up_seconds: float) -> int:
        """Stop renewing, and release the trials that are left; returns how many were released.

        If the server cannot be reached for `give_up_seconds`, the leases lapse.
        """
        self._closed = True
        self._changed.set()
        with self._lock:
            held = [one for one in self._held.values() if one.directive != "abandon"]
            self._held = {}
        if not held:
            return 0
        call = protocol.tell(self._study.id, [released(one.trial) for one in held], worker=self._worker)
        try:
            answer = self._study.client.send(call, give_up_seconds=give_up_seconds)
        except BlackboxClientError as error:
            log.warning("%d trial(s) could not be released and will lapse: %s", len(held), error)
            return 0
        return sum(outcome.outcome == "released" for outcome in answer.outcomes)

    def _renew(self) -> None:
        """Renew what is held, each lease at a third of its length, all of them when the first is due."""
        while not self._closed:
            with self._lock:
                renewable = [held for held in self._held.values() if held.token and held.directive != "abandon"]
            if not renewable:
                self._changed.wait()
            elif not self._changed.wait(max(0.0, min(held.due for held in renewable) - time.monotonic())):
                self._heartbeat(renewable)
            self._changed.clear()

    def _heartbeat(self, renewable: Sequence[Held]) -> None:
        by_token = {held.token: held for held in renewable if held.token}
        interval = min(held.interval for held in renewable)
        extend = self._lease_seconds if isinstance(self._lease_seconds, int | float) else None
        call = protocol.heartbeat(self._study.id, by_token, extend_seconds=extend)
        try:
            answer = self._study.client.send(call, give_up_seconds=interval)
        except (BlackboxClientError, RuntimeError) as error:  # RuntimeError: the client was closed after the run
            if not self._closed:
                log.warning("the leases of %d trial(s) were not renewed: %s", len(by_token), error)
            now = time.monotonic()
            for held in renewable:
                held.due = now + held.interval / 2 if isinstance(error, AnsweredWithError | BadAnswer) else now + 1.0
            return
        now = time.monotonic()
        for held in renewable:
            held.due = now + min(held.interval, _RENEWED_SECONDS)
        for lease in answer.leases:
            found = by_token.get(lease.token)
            if found is not None and lease.directive != "continue":
                log.info("%s of %s", lease.directive, found.trial.id)
                found.directive = lease.directive
        self._on_change()


class Evaluation:
    """The trial under evaluation, for objectives that want more than its parameters (``with_trial=True``).

    Attributes
    ----------
    trial : the leased trial, with its seed for common random numbers in `trial.eval_seed`, and what the algorithm says
        beside the point, if it says anything, in `trial.payload`.
    """

    def __init__(self, study: StudyHandle, held: Held) -> None:
        self.trial = held.trial
        self._study = study
        self._held = held

    @property
    def should_stop(self) -> bool:
        """Whether nobody needs the value any more; then return what there is as a ``stopped`` result."""
        return self._held.directive != "continue"

    def report(self, step: int | None = None, value: Any = None) -> str:
        """Send an interim value, which extends the lease.

        Returns
        -------
        ``"continue"`` or ``"abandon"``. A report that cannot be sent is logged; the evaluation goes on.

        Raises
        ------
        NonFiniteValue
            If the value is NaN or infinite.
        """
        try:
            call = protocol.report(self._study.id, self.trial, step, value)
            answer = self._study.client.send(call, give_up_seconds=self._held.interval)
        except NonFiniteValue:
            raise
        except BlackboxClientError as error:
            log.warning("a report of %s was not delivered: %s", self.trial.id, error)
            return self._held.directive
        self._held.due = time.monotonic() + self._held.interval
        if answer.directive != "continue":
            self._held.directive = answer.directive
        return answer.directive
