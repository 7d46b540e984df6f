"""Creating studies by name and spec, and their ids."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from blackbox.errors import StudySpecMismatch
from blackbox.study import ledger
from blackbox.study.effects import Steps, write
from blackbox.study.rows import StudyHead, StudyRow, Tx
from blackbox.study.spec import Resolved, StudySpec, differences, parse_spec, resolve, spec_hash, under_todays_names


def new_head(project: str, resolved: Resolved, hashed: str, now: float, parent: str | None = None) -> StudyHead:
    """The head of a new study with a fresh id and secret; `hashed` is the hash of its spec, `now` in seconds."""
    study, secret = _identifier(now, secrets.token_bytes(10)), secrets.token_bytes(16)
    return StudyHead(study, project, resolved.spec.name, resolved.model_dump_json(), hashed, secret, now, parent)


def _identifier(now: float, random: bytes) -> str:
    """`st_` and 18 characters of lower-case base32hex: 8 of time in milliseconds (so ids sort by age), 10 of chance."""
    digits = "0123456789abcdefghijklmnopqrstuv"
    number = (int(now * 1000) & (2**40 - 1)) << 50 | int.from_bytes(random, "big") & (2**50 - 1)
    return "st_" + "".join(digits[number >> 5 * i & 31] for i in reversed(range(18)))


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
    resolved, _ = resolve(spec)
    head = new_head(project, resolved, wanted, now)

    def work(tx: Tx) -> tuple[StudyHead, bool]:
        existing = tx.find(project, spec.name)
        if existing is None:
            row = StudyRow(head.id)
            tx.insert_study(head, row)
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
