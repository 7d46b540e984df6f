"""Fixtures of the end-to-end tests: real server processes on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.service import Service


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Service]:
    """A running server without keys, on a database of its own."""
    with Service(tmp_path) as service:
        yield service.start()


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[Service]:
    """The same with keys."""
    with Service(tmp_path, keys=True) as service:
        yield service.start()
