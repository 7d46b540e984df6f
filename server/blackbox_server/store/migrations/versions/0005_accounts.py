"""What a study has spent on late results, what is out though its step has closed, what is counted for its health.

The table is written anew, so that a migrated database and a new one have the same text.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

COLUMN, CHECK = "lineage TEXT NOT NULL", "CONSTRAINT ck_studies_asks CHECK (asks >= 0)"
NEW = {
    COLUMN: ["late BIGINT NOT NULL", "withdrawn BIGINT NOT NULL", "health TEXT NOT NULL"],
    CHECK: [
        "CONSTRAINT ck_studies_late CHECK (late >= 0)",
        "CONSTRAINT ck_studies_withdrawn CHECK (withdrawn >= 0)",
    ],
}
OUT = "state = 'SUPERSEDED' AND seq IS NULL AND until IS NOT NULL"


def upgrade() -> None:
    connection = op.get_bind()
    found = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'studies'"))
    create = str(found.scalar_one())
    for old, new in NEW.items():
        if old not in create:
            raise RuntimeError(f"studies lacks {old}")
        create = create.replace(old, ", \n\t".join([old, *new]))
    op.execute("ALTER TABLE studies RENAME TO former_studies")
    connection.exec_driver_sql(create)
    op.execute("INSERT INTO studies SELECT *, 0, 0, '{}' FROM former_studies")
    op.execute("DROP TABLE former_studies")
    op.create_index("trials_withdrawn", "trials", ["study", "until"], sqlite_where=sa.text(OUT))
    counted = f"SELECT count(*) FROM trials WHERE study = studies.id AND {OUT}"
    op.execute(f"UPDATE studies SET withdrawn = ({counted})")
