"""The store as the service sees it: transactions to await."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from blackbox.study.rows import Tx

T = TypeVar("T")


class AsyncStore(Protocol):
    """The promises of `blackbox.study.rows.Store`, for an event loop.

    No caller knows which store it has. `embedded.EmbeddedStore` is a database of this process; a store that is reached
    over a network would be another implementation.
    """

    async def write(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work in a transaction: durable when this returns, rolled back if the work raises.

        Parameters
        ----------
        long : the work may touch very many rows, and must not delay other works.

        Raises
        ------
        StoreUnavailable
            If the database cannot take it.
        """
        ...

    async def read(self, work: Callable[[Tx], T], long: bool = False) -> T:
        """Run a work on a snapshot of what is committed.

        Parameters
        ----------
        long : the work may read very many rows or bytes.

        Raises
        ------
        StoreUnavailable
        """
        ...

    def close(self) -> None:
        """Release all resources, after the works under way. No other method may be called after that."""
        ...
