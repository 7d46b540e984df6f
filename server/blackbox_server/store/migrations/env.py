"""Run by Alembic, with the connection of `upgrade` in the package above."""

import logging

from alembic import context

from blackbox_server.store.tables import metadata

logging.getLogger("alembic").setLevel(logging.WARNING)  # opening a database is not news

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite's DDL is transactional; alembic supposes that the driver gets in the way, and `upgrade` keeps it out of it.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
