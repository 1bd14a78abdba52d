"""Alembic's entry: runs on the connection of pipeline.store.schema.migrate."""

from alembic import context

from pipeline.store.connecting import SCHEMA
from pipeline.store.schema.tables import metadata

connection = context.config.attributes["connection"]
if connection is None:
    raise RuntimeError("migrations run through: yyc3 db upgrade")
context.configure(connection=connection, target_metadata=metadata, version_table_schema=SCHEMA)
with context.begin_transaction():
    context.run_migrations()
