"""SIGTERM and SIGINT of a worker: the first drains, the second, or too long after the first, releases and leaves."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger("blackbox_client.worker")


class LeaveNow(BaseException):
    """Raised by the second signal inside an evaluation or an ask in the caller's thread."""


class Signals:
    """Counts signals and passes them on.

    Parameters
    ----------
    stop : called with ``now=False`` for the first signal and ``now=True`` for the second.
    grace_seconds : after so long the first signal is followed by a second one, for an evaluation that hangs would wait
        for ever; None: it is not.
    """

    def __init__(self, stop: Callable[..., None], grace_seconds: float | None) -> None:
        self._stop = stop
        self._grace_seconds = grace_seconds
        self.count = 0
        self.interruptible = False
        """Whether the caller's thread may be thrown out of what it does."""

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Handle them in this block; outside the main thread they are not ours to handle."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A handler runs between any two bytecodes of the main thread, perhaps inside an Event, so it only touches a
        # SimpleQueue (reentrant); a thread of its own sets the events.
        relay: queue.SimpleQueue[int | None] = queue.SimpleQueue()

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.count += 1
            relay.put(self.count)
            if self.count >= 2 and self.interruptible:
                raise LeaveNow

        threading.Thread(target=self._pass_on, args=(relay,), name="blackbox-signals", daemon=True).start()
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            relay.put(None)

    def _pass_on(self, relay: queue.SimpleQueue[int | None]) -> None:
        patience = None
        while True:
            try:
                count = relay.get(timeout=patience)
            except queue.Empty:
                log.warning("what is leased was not finished in %.0f s", patience)
                patience = None
                os.kill(os.getpid(), signal.SIGTERM)
                continue
            if count is None:
                return
            log.warning("finishing what is leased; a second signal releases it" if count == 1 else "releasing")
            self._stop(now=count >= 2)
            patience = self._grace_seconds if count == 1 else None

    def interruptibly(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do something in the caller's thread that the second signal may break off.

        Raises
        ------
        LeaveNow
            If it came, before or meanwhile.
        """
        try:
            if self.count >= 2:
                raise LeaveNow
            self.interruptible = True
            outcome = work(*arguments)
            self.interruptible = False
            return outcome
        finally:
            self.interruptible = False
