"""How the service reaches its store: by awaiting works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from blackbox.study.rows import Tx

T = TypeVar("T")


class AsyncStore(Protocol):
    """What `blackbox.study.rows.Store` promises, for an event loop.

    Nothing above knows which one it has: `embedded.EmbeddedStore` is the database of this process; one that is reached
    over a network would be another.
    """

    async def write(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work in a transaction; returns when it is durable, and undoes what it did if it raises.

        Parameters
        ----------
        long : it may touch very many rows, and must not hold up other works.

        Raises
        ------
        StoreUnavailable
            If the database cannot take it.
        """
        ...

    async def read(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work on what is committed.

        Parameters
        ----------
        long : it may read very many rows or bytes.

        Raises
        ------
        StoreUnavailable
        """
        ...

    def close(self) -> None:
        """Let go of what this front holds, after the works in hand. Nothing may be asked of it after that."""
        ...
