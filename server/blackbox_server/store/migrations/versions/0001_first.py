"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "heads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("resolved", sa.Text(), nullable=False),
        sa.Column("spec_hash", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_heads")),
        sa.UniqueConstraint("project", "name", name=op.f("uq_heads_project_name")),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
    )
    op.create_table(
        "replies",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project", "key", name=op.f("pk_replies")),
    )
    op.create_index("replies_at", "replies", ["at"], unique=False)
    op.create_table(
        "blobs",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_blobs_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "digest", name=op.f("pk_blobs")),
    )
    op.create_index("blobs_step", "blobs", ["study", "step"], unique=False)
    op.create_table(
        "events",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_events_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "seq", name=op.f("pk_events")),
    )
    op.create_table(
        "late",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("extra", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_late_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "seq", name=op.f("pk_late")),
    )
    op.create_table(
        "points",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
        sa.Column("recipe", sa.Text(), nullable=True),
        sa.Column("params", sa.Text(), nullable=True),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "vector IS NOT NULL OR recipe IS NOT NULL OR params IS NOT NULL", name=op.f("ck_points_point")
        ),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_points_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "number", name=op.f("pk_points")),
    )
    op.create_table(
        "snapshots",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_snapshots_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "epoch", "step", name=op.f("pk_snapshots")),
    )
    op.create_table(
        "steps",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("upto_seq", sa.BigInteger(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("told", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("step >= 0", name=op.f("ck_steps_step")),
        sa.CheckConstraint("told >= 0", name=op.f("ck_steps_told")),
        sa.CheckConstraint("upto_seq >= 0", name=op.f("ck_steps_upto_seq")),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_steps_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "step", name=op.f("pk_steps")),
        sa.UniqueConstraint("study", "seq", name=op.f("uq_steps_study_seq")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "studies",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("upto_seq", sa.BigInteger(), nullable=False),
        sa.Column("waiting", sa.BigInteger(), nullable=False),
        sa.Column("lanes", sa.BigInteger(), nullable=False),
        sa.Column("trials", sa.BigInteger(), nullable=False),
        sa.Column("queued", sa.BigInteger(), nullable=False),
        sa.Column("leased", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.Column("best_trial", sa.BigInteger(), nullable=True),
        sa.Column("best_value", sa.Double(), nullable=True),
        sa.Column("asks", sa.BigInteger(), nullable=False),
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state IN ('ACTIVE', 'PAUSED', 'COMPLETED', 'CANCELLED', 'FAILED')", name=op.f("ck_studies_state")
        ),
        sa.CheckConstraint("asks >= 0", name=op.f("ck_studies_asks")),
        sa.CheckConstraint("epoch >= 0", name=op.f("ck_studies_epoch")),
        sa.CheckConstraint("lanes >= 0", name=op.f("ck_studies_lanes")),
        sa.CheckConstraint("leased >= 0", name=op.f("ck_studies_leased")),
        sa.CheckConstraint("queued + leased <= trials", name=op.f("ck_studies_open")),
        sa.CheckConstraint("queued >= 0", name=op.f("ck_studies_queued")),
        sa.CheckConstraint("step >= 0", name=op.f("ck_studies_step")),
        sa.CheckConstraint("trials >= 0", name=op.f("ck_studies_trials")),
        sa.CheckConstraint("upto_seq BETWEEN 0 AND seq", name=op.f("ck_studies_upto_seq")),
        sa.CheckConstraint("used >= 0", name=op.f("ck_studies_used")),
        sa.CheckConstraint("waiting >= 0", name=op.f("ck_studies_waiting")),
        sa.ForeignKeyConstraint(["id"], ["heads.id"], name=op.f("fk_studies_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "trials",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("lane", sa.BigInteger(), nullable=False),
        sa.Column("replicate", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Double(), nullable=True),
        sa.Column("ask_key", sa.Text(), nullable=True),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("leased_at", sa.Double(), nullable=True),
        sa.Column("told_at", sa.Double(), nullable=True),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("lost", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("extra", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("invalid", sa.SmallInteger(), nullable=False),
        sa.CheckConstraint("state <> 'LEASED' OR (until IS NOT NULL AND attempt >= 1)", name=op.f("ck_trials_leased")),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'LEASED', 'COMPLETED', 'INFEASIBLE', 'FAILED', 'STOPPED', 'SUPERSEDED', 'CANCELLED')",
            name=op.f("ck_trials_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('COMPLETED', 'INFEASIBLE', 'FAILED', 'STOPPED') OR seq IS NOT NULL",
            name=op.f("ck_trials_told"),
        ),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_trials_attempt")),
        sa.CheckConstraint("failures >= 0", name=op.f("ck_trials_failures")),
        sa.CheckConstraint("invalid IN (0, 1)", name=op.f("ck_trials_invalid")),
        sa.CheckConstraint("lost >= 0", name=op.f("ck_trials_lost")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_trials_number")),
        sa.CheckConstraint("replicate >= 0", name=op.f("ck_trials_replicate")),
        sa.CheckConstraint("step >= 0", name=op.f("ck_trials_step")),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_trials_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "number", name=op.f("pk_trials")),
        sa.UniqueConstraint("study", "step", "lane", "replicate", name=op.f("uq_trials_study_step_lane_replicate")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "trials_asked",
        "trials",
        ["study", "ask_key"],
        unique=False,
        sqlite_where=sa.text("state = 'LEASED' AND ask_key IS NOT NULL"),
        postgresql_where=sa.text("state = 'LEASED' AND ask_key IS NOT NULL"),
    )
    op.create_index(
        "trials_enqueued",
        "trials",
        ["study", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED' AND lane < 0"),
        postgresql_where=sa.text("state = 'QUEUED' AND lane < 0"),
    )
    op.create_index(
        "trials_leased",
        "trials",
        ["study", "until", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'LEASED'"),
        postgresql_where=sa.text("state = 'LEASED'"),
    )
    op.create_index(
        "trials_queued",
        "trials",
        ["study", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'QUEUED' AND lane >= 0"),
        postgresql_where=sa.text("state = 'QUEUED' AND lane >= 0"),
    )
    op.create_index(
        "trials_told",
        "trials",
        ["study", "seq"],
        unique=False,
        sqlite_where=sa.text("seq IS NOT NULL"),
        postgresql_where=sa.text("seq IS NOT NULL"),
    )
