"""Where a run in process keeps its study: in memory, or in a database file that the service opens too."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from blackbox.errors import InvalidInput, StudySpecMismatch
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.study.creation import create
from blackbox.study.editing import Study
from blackbox.study.effects import perform
from blackbox.study.memory import MemoryStore
from blackbox.study.rows import FAILED, LEASED, PAUSED, Store
from blackbox.study.settling import Report
from blackbox.study.spec import Budget, Resolved

GROUP = "blackbox.stores"
"""Entry points that open a database by its path, by the scheme of its URL."""
PROJECT = "default"
"""The project of the service's first key, so that `blackbox serve` shows the studies of a file."""

StoreLike = Store | str | os.PathLike[str] | None


def opened(store: StoreLike) -> Store:
    """The store that a path or URL names, which the caller closes; a store as it is; None is a new one in memory.

    Raises
    ------
    InvalidInput
        If nothing that is installed opens such a database.
    StoreUnavailable
        If another process has it open.
    """
    if store is None:
        return MemoryStore()
    if isinstance(store, str | os.PathLike):
        return _open(os.fspath(store))
    if not hasattr(store, "read"):
        raise InvalidInput(f"store must be the path of a file, or an open store, got {reprlib.repr(store)}")
    return store


def _open(address: str) -> Store:
    scheme = address.partition("://")[0] if "://" in address else "sqlite"
    kinds = {entry.name: entry for entry in entry_points(group=GROUP)}
    try:
        return kinds[scheme].load()(address)  # type: ignore[no-any-return]
    except KeyError:
        known = f"those installed open {', '.join(sorted(kinds))}" if kinds else "none is installed"
        hint = "name a file" if "sqlite" in kinds else "pip install 'blackbox-zoo[server]'"
        raise InvalidInput(f"no store for {scheme}: databases: {known}", hint=hint) from None
    except IsADirectoryError:
        raise InvalidInput(f"{address} is a folder; name a file in it, such as run.db") from None
    except ImportError as error:
        raise InvalidInput(
            f"a {scheme} file needs packages of the service: {error}", hint="pip install 'blackbox-zoo[server]'"
        ) from None


def study_in(store: Store, spec: Mapping[str, Any], now: float, worker: str, slicer: Slicer = WHOLE) -> Study:
    """The study of this spec: a new one, or the one of this name, which goes on.

    Budget and number of workers are no part of what is compared: a run may go on with more or fewer of either, with the
    options that were right for the first. Leases of `worker` are those of a process that is no more, and their points
    are queued again; a study that was paused or failed is resumed.

    Raises
    ------
    StudySpecMismatch
        If there is a study of this name with another spec; says in what they differ.
    """
    existing = store.read(lambda tx: tx.find(PROJECT, spec["name"]))
    budget = Budget.model_validate(spec["budget"])
    if existing is not None:
        first = Resolved.model_validate_json(existing.resolved).spec
        parallelism = {**spec["parallelism"], "workers": first.parallelism.workers}
        spec = {**spec, "parallelism": parallelism, "budget": first.budget.model_dump()}
    try:
        head, created = perform(store, create(PROJECT, spec, now))
    except StudySpecMismatch as error:
        said = "; ".join(f"{field.pointer[1:]}: {field.message}" for field in error.errors)
        raise StudySpecMismatch(
            f"{error.detail}: {said}",
            hint="give another name, or the arguments of the first call to go on with it",
            errors=error.errors,
        ) from None
    study = Study(head, slicer)
    if not created:
        if budget != study.spec.budget:
            perform(store, study.edit(budget=budget))
        if perform(store, study.row()).state in (PAUSED, FAILED):
            perform(store, study.resume(now=now))
        open_trials = store.read(lambda tx: tx.open_trials(study.id))
        left = [trial for trial in open_trials if trial.state == LEASED and trial.worker == worker]
        if reports := [Report(trial.number, None, "released") for trial in left]:
            perform(store, study.tell(reports, now=now, worker=worker))
    return study
