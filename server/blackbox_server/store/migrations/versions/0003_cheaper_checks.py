"""States are checked by CASE: for an IN of more than two words SQLite builds a table, anew for each row.

It cannot change a constraint, so each table is written anew under its old name, with its indices.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TRIAL_STATES = (
    "QUEUED", "LEASED", "COMPLETED", "INFEASIBLE", "FAILED", "STOPPED", "SUPERSEDED", "CANCELLED",
)  # fmt: skip
STUDY_STATES = ("ACTIVE", "PAUSED", "COMPLETED", "CANCELLED", "FAILED")
TOLD = ("COMPLETED", "INFEASIBLE", "FAILED", "STOPPED")


def case(words: tuple[str, ...]) -> str:
    return "CASE state " + " ".join(f"WHEN '{word}' THEN 1" for word in words) + " ELSE 0 END"


def listed(words: tuple[str, ...]) -> str:
    return f"({', '.join(repr(word) for word in words)})"


CHANGES = {
    "studies": {f"CHECK (state IN {listed(STUDY_STATES)})": f"CHECK ({case(STUDY_STATES)} = 1)"},
    "trials": {
        f"CHECK (state IN {listed(TRIAL_STATES)})": f"CHECK ({case(TRIAL_STATES)} = 1)",
        f"CHECK (state NOT IN {listed(TOLD)} OR seq IS NOT NULL)": f"CHECK (seq IS NOT NULL OR {case(TOLD)} = 0)",
    },
}


def upgrade() -> None:
    connection = op.get_bind()
    for table, changes in CHANGES.items():
        found = connection.execute(
            sa.text(f"SELECT type, sql FROM sqlite_master WHERE tbl_name = '{table}' AND sql > ''")
        )
        schema = found.fetchall()
        (create,) = (sql for kind, sql in schema if kind == "table")
        for old, new in changes.items():
            if old not in create:
                raise RuntimeError(f"{table} lacks {old}")
            create = create.replace(old, new)
        op.execute(f"ALTER TABLE {table} RENAME TO former_{table}")
        connection.exec_driver_sql(create)
        op.execute(f"INSERT INTO {table} SELECT * FROM former_{table}")
        op.execute(f"DROP TABLE former_{table}")
        for kind, sql in schema:
            if kind == "index":
                connection.exec_driver_sql(sql)
