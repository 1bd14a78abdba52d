"""Databases that other people run: poolers, other encodings and dates, other programs' tables, wrong passwords."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import sqlalchemy as sa

from pipeline import Client
from pipeline.store.schema import migrate
from schemas.results import JobState
from tests.support.audit import audit
from tests.support.sandbox import Sandbox, wait_for
from tests.support.servers import PGBOUNCER, PgBouncer, Postgres


@contextmanager
def database(sandbox: Sandbox, name: str, options: str = "") -> Iterator[str]:
    """An empty database of another owner on the same server."""
    server = sandbox.database_url.rsplit("/", 1)[0]
    owner = urlsplit(sandbox.database_url).username
    with psycopg.connect(sandbox.admin_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER {owner} {options}")
    try:
        yield f"{server}/{name}"
    finally:
        with psycopg.connect(sandbox.admin_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def jobs(count: int, kind: str = "intent") -> list[dict[str, object]]:
    return [{"kind": kind, "text": f"我是第{i}位客户，我要退款。", "cache": False} for i in range(count)]


def test_everything_works_behind_a_transaction_pooler(sandbox: Sandbox, tmp_path: Path) -> None:
    if not Path(PGBOUNCER).exists():
        assert not os.environ.get("CI"), "CI installs pgbouncer"
        pytest.skip("pgbouncer is not installed")
    folder = tmp_path / "pooler"
    folder.mkdir()
    with sandbox.simulator(), PgBouncer(folder, sandbox.database_url) as pooler:
        pooled = f"{pooler.url}?pooler=transaction"
        sandbox.environment["DATABASE_URL"] = pooled
        with (
            sandbox.worker("bulk"),
            sandbox.worker("interactive"),
            sandbox.process("pipeline.cli", "recover"),
            Client(database_url=pooled, redis_url=sandbox.redis_url) as client,
        ):
            ids = [client.submit(job) for job in jobs(40)]  # more often than psycopg waits before it prepares
            assert {client.result(job_id, timeout=60).state for job_id in ids} == {JobState.SUCCEEDED}
            batch = client.submit_many(jobs(600))
            *_, last = client.watch_batch(batch.batch_id)
            assert last.succeeded == 600
            assert client.submit({**jobs(1)[0], "idempotency_key": "k"}) == client.submit(
                {**jobs(1)[0], "idempotency_key": "k"}
            )
        assert "no prepared statement" not in sandbox.yyc3("queues").stdout
        refused = sandbox.yyc3("db", "upgrade", check=2).stderr
        assert "direct URL" in refused
    assert audit(sandbox.database_url).lost == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda url: url.replace(urlsplit(url).password, "wrong"), "password authentication failed"),
        (lambda url: url.rsplit("/", 1)[0] + "/nothere", 'database "nothere" does not exist'),
        (lambda url: url.replace("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid"),
        (lambda url: url + "?sslmode=require", "SSL"),
        (lambda url: url.replace(urlsplit(url).password, "pa%ss%zz"), "DATABASE_URL cannot be read"),
        (lambda url: url.replace(urlsplit(url).password, "pa#ss/zz"), "DATABASE_URL"),
        (lambda url: url + "?nonsense=1", "libpq knows no parameter nonsense"),
        (lambda url: url + "?pooler=maybe", "pooler must be"),
    ],
)
@pytest.mark.parametrize("command", [["queues"], ["health"], ["db", "upgrade"]])
def test_the_servers_own_reason_is_said_and_never_the_password(
    sandbox: Sandbox, change: "object", reason: str, command: list[str]
) -> None:
    assert callable(change)
    done = sandbox.yyc3(*command, check=None, DATABASE_URL=change(sandbox.database_url))
    said = done.stdout + done.stderr
    assert done.returncode in {2, 3}
    assert reason in said
    assert "Traceback" not in said
    for secret in ("wrong", "pa%ss", "pa#ss", "zz", urlsplit(sandbox.database_url).password):
        assert secret is not None
        assert secret not in said


def test_a_password_may_have_any_sign(sandbox: Sandbox) -> None:
    server = sandbox.database_url.rsplit("/", 1)[0]
    password = "p%a#s/s:w@o r&d?"
    with psycopg.connect(sandbox.admin_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE odd LOGIN SUPERUSER PASSWORD '{password}'")
    address = server.rpartition("@")[2]
    name = sandbox.database_url.rsplit("/", 1)[1]
    url = f"postgresql+psycopg://odd:{quote(password, safe='')}@{address}/{name}"
    assert "chatglm3-6b" in sandbox.yyc3("queues", DATABASE_URL=url).stdout
    with psycopg.connect(sandbox.admin_url, autocommit=True) as connection:
        connection.execute("DROP ROLE odd")


def test_other_programs_share_the_database(sandbox: Sandbox) -> None:
    with database(sandbox, "shared") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num varchar(32)); CREATE TABLE jobs (id text)")
            connection.execute("CREATE TABLE chunks (id text)")
            connection.execute("INSERT INTO alembic_version VALUES ('f00dfeed')")
        for _ in range(2):
            assert sandbox.yyc3("db", "upgrade", DATABASE_URL=url).returncode == 0
        with Client(database_url=url, redis_url=sandbox.redis_url) as client:
            assert client.submit(jobs(1)[0]) > 0
        assert "chatglm3-6b" in sandbox.yyc3("queues", DATABASE_URL=url).stdout
        with psycopg.connect(url, options="-c search_path=public") as connection:
            assert connection.execute("SELECT count(*) FROM jobs").fetchall() == [(0,)]
            assert connection.execute("SELECT * FROM alembic_version").fetchall() == [("f00dfeed",)]


def test_a_database_that_cannot_keep_every_text_is_refused(sandbox: Sandbox) -> None:
    with database(sandbox, "ascii", "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0") as url:
        for command in (["db", "upgrade"], ["queues"]):
            done = sandbox.yyc3(*command, check=3, DATABASE_URL=url)
            assert "SQL_ASCII" in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY"])
def test_dates_of_another_style_are_read(sandbox: Sandbox, style: str) -> None:
    name = sandbox.database_url.rsplit("/", 1)[1]
    sandbox.query(f"ALTER DATABASE {name} SET datestyle = '{style}'")
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        job_id = client.submit({**jobs(1)[0], "deadline": "2030-02-01T00:00:00+00:00"})
    sandbox.query(
        """INSERT INTO outcomes (job_id, replay, tenant, kind, state, code, message)
           VALUES (%s, 0, 'default', 'intent', 'failed', 'engine_failed', 'x')""",
        job_id,
    )
    (listed,) = sandbox.yyc3("dead-letters", "list", "--json", PGDATESTYLE=style).stdout.splitlines()
    assert json.loads(listed)["newest_job"] == job_id


def test_an_upgrade_waits_for_a_reader_and_nobody_waits_behind_it(tmp_path: Path) -> None:
    """Such as pg_dump, which reads all tables for hours: renewals never queue behind a migration."""
    with Postgres(tmp_path / "postgres") as server, ThreadPoolExecutor() as pool:
        with psycopg.connect(server.url) as reader:
            reader.execute("SELECT count(*) FROM yyc3.chunks")
            server.query("UPDATE yyc3.alembic_version SET version_num = '0000'")
            migrated = pool.submit(migrate_with, server.url, "ALTER TABLE chunks ADD COLUMN more int")
            wait_for(
                lambda: server.query("SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"),
                "the migration to ask for its lock",
            )
            for _ in range(3):
                started = time.monotonic()
                server.query("UPDATE yyc3.chunks SET rows = rows")
                assert time.monotonic() - started < 10, "behind the reader, and the migration that waits for it"
            assert not migrated.done()
        migrated.result(60)
        assert server.query("SELECT count(more) FROM yyc3.chunks") == [(0,)]


def migrate_with(url: str, statement: str) -> None:
    """Upgrade with a migration that needs a table to itself."""

    def upgrade(connection: sa.Connection) -> None:
        connection.exec_driver_sql(statement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.store.schema.migrate.command.upgrade", lambda config, _: upgrade(config.attributes["connection"])
        )
        migrate.upgrade(url)
