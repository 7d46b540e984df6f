"""Client of the blackbox optimization service.

`Client` and `StudyHandle` for calls by hand, `AsyncClient` and `AsyncStudyHandle` for the same as coroutines, `Worker`
for the loop of asking, evaluating and telling, `errors` for what can go wrong, `models` for what is sent and answered,
`protocol` for the same without input and output. `participant` takes part in federated rounds; it alone needs the extra
`federated`.
"""

from blackbox_client.client import AsyncClient, AsyncStudyHandle, Client, StudyHandle
from blackbox_client.errors import BlackboxClientError
from blackbox_client.models import (
    AskAnswer,
    Best,
    Event,
    Health,
    HealthItem,
    Lease,
    Outcome,
    Progress,
    Result,
    Study,
    TellAnswer,
    Trial,
    completed,
    failed,
    infeasible,
    injected,
    released,
    stopped,
)
from blackbox_client.protocol import RetryPolicy
from blackbox_client.worker import Evaluation, Infeasible, Summary, Worker

__version__ = "0.3.0"

__all__ = [
    "AskAnswer",
    "AsyncClient",
    "AsyncStudyHandle",
    "Best",
    "BlackboxClientError",
    "Client",
    "Evaluation",
    "Event",
    "Health",
    "HealthItem",
    "Infeasible",
    "Lease",
    "Outcome",
    "Progress",
    "Result",
    "RetryPolicy",
    "Study",
    "StudyHandle",
    "Summary",
    "TellAnswer",
    "Trial",
    "Worker",
    "completed",
    "failed",
    "infeasible",
    "injected",
    "released",
    "stopped",
]
