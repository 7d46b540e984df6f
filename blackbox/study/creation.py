"""Creating studies by name and spec, and their ids."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

from blackbox.algorithm import build
from blackbox.errors import StudySpecMismatch
from blackbox.recipes import digest
from blackbox.records import JSON, NOTHING_PENDING, Points, Recipe, Recipes, dense, no_note
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.study import ledger
from blackbox.study.effects import Steps, compute, write
from blackbox.study.open_step import prepared
from blackbox.study.pace import SECONDS_PER_COORDINATE
from blackbox.study.reading import encoded
from blackbox.study.rows import START, PointRow, StudyHead, StudyRow, TrialRow, Tx
from blackbox.study.spec import (
    Resolved,
    StudySpec,
    differences,
    parse_spec,
    resolve,
    spec_hash,
    stored_algorithm,
    under_todays_names,
)


def new_head(project: str, resolved: Resolved, hashed: str, now: float, parent: str | None = None) -> StudyHead:
    """The head of a new study with a fresh id and secret; `hashed` is the hash of its spec, `now` in seconds."""
    study, secret = _identifier(now, secrets.token_bytes(10)), secrets.token_bytes(16)
    return StudyHead(study, project, resolved.spec.name, resolved.model_dump_json(), hashed, secret, now, parent)


def _identifier(now: float, random: bytes) -> str:
    """`st_` and 18 characters of lower-case base32hex: 8 of time in milliseconds (so ids sort by age), 10 of chance."""
    digits = "0123456789abcdefghijklmnopqrstuv"
    number = (int(now * 1000) & (2**40 - 1)) << 50 | int.from_bytes(random, "big") & (2**50 - 1)
    return "st_" + "".join(digits[number >> 5 * i & 31] for i in reversed(range(18)))


def _start(head: StudyHead, resolved: Resolved, space: Space) -> tuple[PointRow, Mapping[str, bytes]] | None:
    """The start as the point of trial 1, with the vector that its recipe names by digest.

    None where it has no trial: in federated studies, for points that are no vectors, where the spec says so, and where
    the algorithm evaluates it by itself.
    """
    stored = stored_algorithm(resolved, space)
    if resolved.federated or resolved.spec.start == "skip" or stored.cls is None or stored.options is None:
        return None
    encoding = stored.cls.traits.encoding
    if encoding == "structured" or stored.cls.evaluates_start(stored.options):
        return None
    points: Points = dense(space.initial[None])
    blobs: dict[str, bytes] = {}
    payload: JSON = None
    if encoding == "recipe":
        algorithm = build(resolved.algorithm, space, stored.options, Key.from_seed(resolved.spec.seed))
        state = algorithm.init()
        asked = algorithm.ask(state, [0], NOTHING_PENDING).payload  # what evaluators of its first step get
        base, payload = algorithm.base(state), asked[0] if asked else None
        blobs = {} if base is None else encoded({digest(base): base})
        points = Recipes((Recipe(next(iter(blobs), None), ()),), note=no_note(1))
    (ready,) = prepared(space, points)
    said = None if payload is None else json.dumps(payload)
    return PointRow(head.id, 1, ready.vector, ready.recipe, ready.params, payload=said), blobs


def create(project: str, raw: Mapping[str, Any] | StudySpec, now: float) -> Steps[tuple[StudyHead, bool]]:
    """Create a study, or find the one of the same name and spec.

    Parameters
    ----------
    project : names are unique within a project.
    raw : the spec, parsed or not.
    now : seconds since the epoch.

    Returns
    -------
    The head, and whether this call created the study.

    Raises
    ------
    StudySpecMismatch
        If a study of this name has another spec; lists the fields.
    InvalidInput
        (and its subclasses) If the spec cannot be used.
    """
    spec = raw if isinstance(raw, StudySpec) else parse_spec(raw)
    wanted = spec_hash(spec)
    resolved, space = resolve(spec)
    head = new_head(project, resolved, wanted, now)
    start = yield from compute(partial(_start, head, resolved, space), SECONDS_PER_COORDINATE * space.dim)

    def work(tx: Tx) -> tuple[StudyHead, bool]:
        existing = tx.find(project, spec.name)
        if existing is None:
            row = StudyRow(head.id)
            tx.insert_study(head, row)
            if start is not None:
                point, blobs = start
                row.trials = row.queued = 1
                for name, content in blobs.items():
                    tx.put_blob(head.id, name, 0, content)
                tx.insert_trials([TrialRow(head.id, 1, 0, -1, asked_at=now, source=START)], [point])
            ledger.log_event(tx, row, "study.created", now, name=spec.name)
            tx.put_study(row)
            return head, True
        if existing.spec_hash == wanted:
            return existing, False
        old = under_todays_names(Resolved.model_validate_json(existing.resolved))
        if spec_hash(old) == wanted:  # an option has another name since the study was created
            return existing, False
        raise StudySpecMismatch(
            f'a study named "{spec.name}" exists ({existing.id}) with another spec',
            hint="choose another name, or send the same spec to get that study",
            errors=differences(old, spec),
        )

    return (yield from write(work))
