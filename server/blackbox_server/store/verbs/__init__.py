"""The row verbs of `blackbox.study.rows.Tx` as SQL: each module holds the statements of some tables beside their verbs.

The statements are SQL for the driver, because SQLAlchemy's expression layer costs more per call than SQLite does; the
schema and migrations use SQLAlchemy and Alembic (`tables`, `migrations`). What a verb promises is documented in `Tx`.
"""

from blackbox_server.store.verbs.log import LogVerbs
from blackbox_server.store.verbs.rounds import RoundVerbs
from blackbox_server.store.verbs.service import ServiceVerbs
from blackbox_server.store.verbs.studies import StudyVerbs
from blackbox_server.store.verbs.trials import TrialVerbs


class SqlTx(StudyVerbs, TrialVerbs, LogVerbs, RoundVerbs, ServiceVerbs):
    """`blackbox.study.rows.Tx` over one connection; beginning and ending the transaction is the caller's."""


__all__ = ["SqlTx"]
