"""Interim values: what an evaluation reports while it is under way."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "interim",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["heads.id"], name=op.f("fk_interim_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "number", "attempt", "step", name=op.f("pk_interim")),
        sqlite_with_rowid=False,
    )
