"""Stores that outlive the process: tables, the statements over them, and their migrations."""

from blackbox_server.store.sql import SqlStore

__all__ = ["SqlStore"]
