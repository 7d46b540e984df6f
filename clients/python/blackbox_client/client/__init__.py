"""The clients: a connection, the calls about the service on top of it, and handles of studies; also as coroutines."""

from blackbox_client.client.async_client import AsyncClient
from blackbox_client.client.async_connection import AsyncConnection
from blackbox_client.client.async_study import AsyncStudyHandle
from blackbox_client.client.client import Client
from blackbox_client.client.connection import DEFAULT_URL, Connection
from blackbox_client.client.study import StudyHandle

__all__ = ["DEFAULT_URL", "AsyncClient", "AsyncConnection", "AsyncStudyHandle", "Client", "Connection", "StudyHandle"]
