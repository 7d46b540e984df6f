"""Federated rounds: participants, what they contributed, and how the common point moved."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "members",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("joined_at", sa.Double(), nullable=False),
        sa.Column("left_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_members_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "client", name=op.f("pk_members")),
    )
    op.create_table(
        "contributions",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("step IS NOT NULL OR content IS NOT NULL", name=op.f("ck_contributions_content")),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_contributions_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "seq", name=op.f("pk_contributions")),
        sa.UniqueConstraint(
            "study", "client", "round", "phase", name=op.f("uq_contributions_study_client_round_phase")
        ),
    )
    op.create_index("contributions_waiting", "contributions", ["study", "seq"], sqlite_where=sa.text("step IS NULL"))
    op.create_table(
        "updates",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_updates_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "version", name=op.f("pk_updates")),
    )
