"""The kinds of study, and which of them a stored study is."""

from __future__ import annotations

import json

from blackbox.errors import StudyNotFound
from blackbox.study.effects import Steps, read
from blackbox.study.hosting import HostedStudy
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import StudyHead
from blackbox.study.trials import Study


def kind_of(head: StudyHead) -> type[Study]:
    """The class of a study: one whose method works in rounds, a hosted participant of such a one, or neither."""
    resolved = json.loads(head.resolved)
    if resolved.get("federated"):
        return FederatedStudy
    return HostedStudy if resolved.get("hosted") else Study


def open_study(study: str) -> Steps[Study]:
    """The study of that id, as what it is.

    Raises
    ------
    StudyNotFound
    """
    head = yield from read(lambda tx: tx.head(study))
    if head is None:
        raise StudyNotFound(f"there is no study {study}", hint="GET /v1/studies lists yours")
    return kind_of(head)(head)
