"""What projects have: the number of their studies, and the memory of those that are open.

One process serves a database, so both are known here without asking it again.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any, Protocol
from weakref import WeakSet

from blackbox.errors import StoreUnavailable
from blackbox.study.base import BaseStudy
from blackbox.study.rows import Tx
from blackbox_server.limits import QUOTAS, memory_of
from blackbox_server.settings import Settings
from blackbox_server.store.front import AsyncStore


class Opened(Protocol):
    """An open study."""

    study: BaseStudy
    memory: int
    """The estimate of its memory, in bytes."""


class Usage:
    """What the projects of a store have.

    Attributes
    ----------
    alive : open studies, and what requests still use of those that were closed.
    """

    def __init__(self, settings: Settings, store: AsyncStore) -> None:
        self._settings = settings
        self._store = store
        self.alive: WeakSet[Opened] = WeakSet()
        self._n_studies: dict[str, int] = {}

    # Memory -----------------------------------------------------------------------------------------------------------

    def open_bytes(self, project: str | None) -> int:
        """The sum of the memory estimates of a project's open studies; None: of all."""
        return sum(each.memory for each in self.alive if project in (None, each.study.head.project))

    def make_room(self, study: BaseStudy, opened: MutableMapping[str, Any]) -> int:
        """Close the studies used longest ago until the estimates allow for one more; returns its estimate.

        Those in use count until their requests have ended. A single study is bounded by `max_algorithm_bytes`.

        Parameters
        ----------
        opened : the open studies, that used longest ago first.

        Raises
        ------
        TooMuchAtOnce, StoreUnavailable
        """
        memory, own, settings = memory_of(study.resolved, study.space), study.head.project, self._settings
        self._close(opened, own, settings.max_open_bytes - memory)
        if (used := self.open_bytes(own)) and used + memory > settings.max_open_bytes:
            raise QUOTAS["open_bytes"].reached(settings, used)
        self._close(opened, None, settings.max_all_open_bytes - memory)
        if (used := self.open_bytes(None)) and used + memory > settings.max_all_open_bytes:
            raise StoreUnavailable(
                "the studies that are open take all the memory there is for them", hint="Send it again in a second."
            )
        return memory

    def _close(self, opened: MutableMapping[str, Any], project: str | None, most: int) -> None:
        names: Iterable[str] = [n for n, each in opened.items() if project in (None, each.study.head.project)]
        for name in names:
            if self.open_bytes(project) <= most:
                return
            del opened[name]

    # Studies ----------------------------------------------------------------------------------------------------------

    async def n_studies(self, project: str) -> int:
        """The number of a project's studies. They are counted once, and then as they come and go."""
        if project not in self._n_studies:

            def count(tx: Tx) -> int:
                n, after = 0, ""
                while page := tx.studies(project, after, 100):
                    n, after = n + len(page), page[-1][0].id
                return n

            self._n_studies.setdefault(project, await self._store.read(count, long=True))
        return self._n_studies[project]

    async def check_studies(self, project: str, name: str) -> None:
        """Raise if the project has as many studies as it may, unless one of that name is among them.

        Raises
        ------
        QuotaExceeded
        """
        n = await self.n_studies(project)
        if n >= self._settings.max_studies and await self._store.read(lambda tx: tx.find(project, name)) is None:
            raise QUOTAS["studies"].reached(self._settings, n)

    def made(self, project: str, n: int = 1) -> None:
        """Count n new studies, or (negative) fewer."""
        if project in self._n_studies:
            self._n_studies[project] += n
