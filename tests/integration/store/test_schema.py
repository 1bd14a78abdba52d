"""Migrations and tables agree, and every table says how its rows leave."""

import re

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pipeline.store import Database, queries
from pipeline.store.connecting import parse_url
from pipeline.store.schema import migrate
from pipeline.store.schema.tables import metadata
from schemas.errors import StoreUnavailable
from tests.support.sandbox import Sandbox

HEAD = "0004"


def test_the_tables_and_the_migrations_agree(sandbox: Sandbox) -> None:
    address = parse_url(sandbox.database_url)
    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(address.url, **address.arguments()),
        poolclass=sa.NullPool,
    )
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, metadata)
    assert differences == []


def test_upgrading_twice_changes_nothing(sandbox: Sandbox) -> None:
    assert migrate.upgrade(sandbox.database_url) == migrate.upgrade(sandbox.database_url) == HEAD


def test_an_upgrade_uses_the_host_that_answers(sandbox: Sandbox) -> None:
    user, rest = sandbox.database_url.rsplit("@", 1)
    address, name = rest.split("/")
    assert migrate.upgrade(f"{user}@127.0.0.1:9,{address}/{name}?target_session_attrs=read-write") == HEAD


async def test_an_error_about_missing_tables_names_the_command(sandbox: Sandbox) -> None:
    sandbox.query("DROP TABLE chunks")
    database = await Database(sandbox.database_url).open()
    with pytest.raises(StoreUnavailable, match="yyc3 db upgrade"):
        await queries.queue_states(database)
    await database.close()


def test_the_comment_of_every_table_says_how_its_rows_leave(sandbox: Sandbox) -> None:
    found = sandbox.query(
        """SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class c
           WHERE c.relnamespace = 'yyc3'::regnamespace AND c.relkind IN ('r', 'p')
             AND NOT c.relispartition AND c.relname <> 'alembic_version'"""
    )
    assert {name for name, _ in found} == set(metadata.tables)
    for name, comment in found:
        assert comment == metadata.tables[name].comment, name
        assert re.search(r"\b(Rows (stay|leave)|[Dd]eleted (after|when))\b", comment or ""), (name, comment)
