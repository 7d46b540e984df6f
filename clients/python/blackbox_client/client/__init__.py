"""The client: a connection, the calls about the service on top of it, and handles of studies."""

from blackbox_client.client.client import Client
from blackbox_client.client.connection import DEFAULT_URL, Connection
from blackbox_client.client.study import StudyHandle

__all__ = ["DEFAULT_URL", "Client", "Connection", "StudyHandle"]
