"""The store in memory keeps the contract of all stores."""

import pytest
from contracts.store import StoreContract

from blackbox.study.memory import MemoryStore


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()
