"""The schema, as SQLAlchemy Core tables.

Each table has one column per field of its row type in `blackbox.study.rows`, in the same order, so that a row of the
database is the row type's arguments. The CHECK constraints say what no bug above may break: a row that violates one is
not stored.

The statements over these tables are in `verbs`; the steps that upgrade an older database are in `migrations`. A change
here needs a migration there, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from blackbox.study.rows import COMPLETED, FAILED, INFEASIBLE, STOPPED, STUDY_STATES, TRIAL_STATES

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _is_one(column: str, words: Sequence[str]) -> str:
    """1 or 0. SQLite would build a table for every IN of more than two words, anew for each row it checks."""
    return f"CASE {column} {' '.join(f'WHEN {word!r} THEN 1' for word in words)} ELSE 0 END"


def _one_of(column: str, words: Sequence[str], name: str) -> CheckConstraint:
    return CheckConstraint(f"{_is_one(column, words)} = 1", name)


def _not_negative(*columns: str) -> list[CheckConstraint]:
    return [CheckConstraint(f"{column} >= 0", column) for column in columns]


def _of_study() -> Column[Any]:
    """The study a row belongs to: the row goes with it."""
    return Column("study", Text, ForeignKey("heads.id", ondelete="CASCADE"), nullable=False)


heads = Table(
    "heads",
    metadata,
    Column("id", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("resolved", Text, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("parent", Text),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("project", "name"),
)

studies = Table(
    "studies",
    metadata,
    Column("id", Text, ForeignKey("heads.id", ondelete="CASCADE"), nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("step", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("upto_seq", BigInteger, nullable=False),
    Column("waiting", BigInteger, nullable=False),
    Column("lanes", BigInteger, nullable=False),
    Column("trials", BigInteger, nullable=False),
    Column("queued", BigInteger, nullable=False),
    Column("leased", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("cost", Double, nullable=False),
    Column("best_trial", BigInteger),
    Column("best_value", Double),
    Column("asks", BigInteger, nullable=False),
    Column("lineage", Text, nullable=False),
    Column("late", BigInteger, nullable=False),
    Column("withdrawn", BigInteger, nullable=False),
    Column("health", Text, nullable=False),
    PrimaryKeyConstraint("id"),
    _one_of("state", STUDY_STATES, "state"),
    *_not_negative(
        "step", "epoch", "waiting", "lanes", "trials", "queued", "leased", "used", "asks", "late", "withdrawn"
    ),
    CheckConstraint("upto_seq BETWEEN 0 AND seq", "upto_seq"),
    CheckConstraint("queued + leased <= trials", "open"),
    sqlite_with_rowid=False,
)

# The partial indices hold only what is open or told, so a claim costs the same in a study of ten trials and of ten
# million. The unique key has only columns that never change: SQLite rewrites an index when a column of it is assigned,
# whether its value changes or not.
trials = Table(
    "trials",
    metadata,
    _of_study(),
    Column("number", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("lane", BigInteger, nullable=False),
    Column("replicate", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("worker", Text),
    Column("attempt", BigInteger, nullable=False),
    Column("until", Double),
    Column("ask_key", Text),
    Column("asked_at", Double, nullable=False),
    Column("leased_at", Double),
    Column("told_at", Double),
    Column("failures", BigInteger, nullable=False),
    Column("lost", BigInteger, nullable=False),
    Column("seq", BigInteger),
    Column("value", Double),
    Column("extra", Text),
    Column("source", Text),
    Column("invalid", SmallInteger, nullable=False),
    PrimaryKeyConstraint("study", "number"),
    UniqueConstraint("study", "step", "lane", "replicate"),
    _one_of("state", TRIAL_STATES, "state"),
    CheckConstraint("number >= 1", "number"),
    *_not_negative("step", "replicate", "attempt", "failures", "lost"),
    CheckConstraint("state <> 'LEASED' OR (until IS NOT NULL AND attempt >= 1)", "leased"),
    CheckConstraint(f"seq IS NOT NULL OR {_is_one('state', (COMPLETED, INFEASIBLE, FAILED, STOPPED))} = 0", "told"),
    CheckConstraint("invalid IN (0, 1)", "invalid"),
    sqlite_with_rowid=False,
)


def _partial(name: str, columns: Sequence[str], where: str) -> Index:
    return Index(
        name, *(trials.c[column] for column in columns), sqlite_where=text(where), postgresql_where=text(where)
    )


# Two, so that "enqueued points first, then by number" is read off in order.
_partial("trials_enqueued", ["study", "number"], "state = 'QUEUED' AND lane < 0")
_partial("trials_queued", ["study", "number"], "state = 'QUEUED' AND lane >= 0")
_partial("trials_leased", ["study", "until", "number"], "state = 'LEASED'")
_partial("trials_asked", ["study", "ask_key"], "state = 'LEASED' AND ask_key IS NOT NULL")
_partial("trials_told", ["study", "seq"], "seq IS NOT NULL")
_partial("trials_withdrawn", ["study", "until"], "state = 'SUPERSEDED' AND seq IS NULL AND until IS NOT NULL")

points = Table(
    "points",
    metadata,
    _of_study(),
    Column("number", BigInteger, nullable=False),
    Column("vector", LargeBinary),
    Column("recipe", Text),
    Column("params", Text),
    Column("note", LargeBinary, nullable=False),
    Column("payload", Text),
    PrimaryKeyConstraint("study", "number"),
    CheckConstraint("vector IS NOT NULL OR recipe IS NOT NULL OR params IS NOT NULL", "point"),
)

steps = Table(
    "steps",
    metadata,
    _of_study(),
    Column("step", BigInteger, nullable=False),
    Column("upto_seq", BigInteger, nullable=False),
    Column("why", Text, nullable=False),
    Column("digest", Text),
    Column("seq", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
    Column("told", BigInteger, nullable=False),
    PrimaryKeyConstraint("study", "step"),
    UniqueConstraint("study", "seq"),
    *_not_negative("step", "upto_seq", "told"),
    sqlite_with_rowid=False,
)

events = Table(
    "events",
    metadata,
    _of_study(),
    Column("seq", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("study", "seq"),
)

late = Table(
    "late",
    metadata,
    _of_study(),
    Column("seq", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("worker", Text),
    Column("at", Double, nullable=False),
    Column("value", Double),
    Column("extra", Text),
    PrimaryKeyConstraint("study", "seq"),
)

interim = Table(
    "interim",
    metadata,
    _of_study(),
    Column("number", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("study", "number", "attempt", "step"),
    sqlite_with_rowid=False,
)

snapshots = Table(
    "snapshots",
    metadata,
    _of_study(),
    Column("epoch", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("state", LargeBinary, nullable=False),
    PrimaryKeyConstraint("study", "epoch", "step"),
)

blobs = Table(
    "blobs",
    metadata,
    _of_study(),
    Column("digest", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),  # last, because columns behind a long value are slow to reach
    PrimaryKeyConstraint("study", "digest"),
    Index("blobs_step", "study", "step"),
)

members = Table(
    "members",
    metadata,
    _of_study(),
    Column("client", Text, nullable=False),
    Column("joined_at", Double, nullable=False),
    Column("left_at", Double),
    PrimaryKeyConstraint("study", "client"),
)

contributions = Table(
    "contributions",
    metadata,
    _of_study(),
    Column("seq", BigInteger, nullable=False),
    Column("client", Text, nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("phase", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("content", LargeBinary),
    Column("step", BigInteger),
    PrimaryKeyConstraint("study", "seq"),
    UniqueConstraint("study", "client", "round", "phase"),
    CheckConstraint("step IS NOT NULL OR content IS NOT NULL", "content"),
)
Index(
    "contributions_waiting",
    contributions.c.study,
    contributions.c.seq,
    sqlite_where=text("step IS NULL"),
    postgresql_where=text("step IS NULL"),
)

updates = Table(
    "updates",
    metadata,
    _of_study(),
    Column("version", BigInteger, nullable=False),
    Column("content", Text, nullable=False),
    PrimaryKeyConstraint("study", "version"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    PrimaryKeyConstraint("id"),
)

replies = Table(
    "replies",
    metadata,
    Column("project", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("project", "key"),
    Index("replies_at", "at"),
)
