"""Stores that outlive the process: tables, the statements over them, their migrations and their upkeep."""

from blackbox_server.store.sql import SqlStore

__all__ = ["SqlStore"]
