"""Fixtures of the whole suite: a store of each kind, and one BLAS thread so that timings and bits do not wander."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from blackbox.study.memory import MemoryStore


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    """A fresh store of each kind."""
    if request.param == "memory":
        yield MemoryStore()
        return
    from blackbox_server.store import SqlStore

    opened = SqlStore(tmp_path / "blackbox.db")
    yield opened
    opened.close()
