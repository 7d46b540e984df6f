"""The kinds of study: which kind a stored study is, and whether it supports a request."""

from __future__ import annotations

import json
from typing import TypeVar

from blackbox.errors import IncompatibleProblem, StudyNotFound
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.study.base import BaseStudy
from blackbox.study.editing import Study
from blackbox.study.effects import Steps, read
from blackbox.study.hosting import HostedStudy
from blackbox.study.rounds import FederatedStudy
from blackbox.study.rows import StudyHead

K = TypeVar("K", bound=BaseStudy)


def kind_of(head: StudyHead) -> type[BaseStudy]:
    """The class of a study: federated, a hosted participant of a federated one, or neither."""
    resolved = json.loads(head.resolved)
    if resolved.get("federated"):
        return FederatedStudy
    return HostedStudy if resolved.get("hosted") else Study


def open_study(study: str, slicer: Slicer = WHOLE) -> Steps[BaseStudy]:
    """The study with this id, as an instance of its kind; `slicer` computes the parts of large sums.

    Raises
    ------
    StudyNotFound
    """
    head = yield from read(lambda tx: tx.head(study))
    if head is None:
        raise StudyNotFound(f"there is no study {study}")
    return kind_of(head)(head, slicer)


def as_kind(study: BaseStudy, kind: type[K]) -> K:
    """The study, checked to be of a kind: `TrialStudy` to ask and tell, `Study` to change points and past,
    `FederatedStudy` for rounds. Callers that open studies of any kind check once, before using what only one kind has.

    Raises
    ------
    IncompatibleProblem
        If it is of another kind; says which, and which requests it takes.
    """
    if isinstance(study, kind):
        return study
    method = study.resolved.algorithm
    if issubclass(kind, FederatedStudy):
        raise IncompatibleProblem(
            f"{method} works on trials, not in federated rounds",
            hint="ask for trials and tell their values; rounds need a federated algorithm",
        )
    if isinstance(study, HostedStudy):
        raise study.not_its_own()
    raise IncompatibleProblem(
        f"{method} works in federated rounds: there are no trials to ask for or to tell",
        hint="join it as a participant, with blackbox_client.participant.Participant or `blackbox participant`",
    )
