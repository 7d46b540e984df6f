"""The client: connection, service and studies, one on top of the other."""

from blackbox_client.client.client import Client
from blackbox_client.client.connection import DEFAULT_URL, Connection
from blackbox_client.client.study import StudyHandle

__all__ = ["DEFAULT_URL", "Client", "Connection", "StudyHandle"]
