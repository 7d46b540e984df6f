"""Evaluate in the calling thread, one point at a time."""

from __future__ import annotations

from typing import Any

from blackbox.backends import Done, Objective
from blackbox.backends.raised import exited


class Inline:
    """A backend without workers: `submit` evaluates the point itself."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._done: list[Done] = []

    @property
    def free(self) -> int:
        """1, or 0 while a finished call is waiting."""
        return 1 - len(self._done)

    def submit(self, ticket: int, *arguments: Any) -> None:
        """Call the objective with these arguments."""
        try:
            self._done.append(Done(ticket, self._objective(*arguments)))
        except SystemExit as error:
            self._done.append(Done(ticket, error=exited(error)))
        except Exception as error:
            self._done.append(Done(ticket, error=error))

    def wait(self) -> list[Done]:
        """The finished call, if there is one."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing to do."""
