"""The local servers under the accounts they may run as."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pipeline.local import postgres, valkey
from pipeline.local.servers import ServerError
from pipeline.store.schema import migrate
from tests.support.exclusive import reserve_port
from tests.support.sandbox import admin_url

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run Postgres as another account")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="yyc3-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@as_root
def test_root_without_user_namespaces_runs_postgres_as_the_account_nobody(
    monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    monkeypatch.setattr(postgres, "_account", lambda: "nobody")
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    port = reserve_port()
    for start in (1, 2):
        server = postgres.start_postgres(home, port)
        try:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS starts (n int)")
                connection.execute("INSERT INTO starts VALUES (%s)", (start,))
                assert connection.execute("SELECT count(*) FROM starts").fetchone() == (start,)
        finally:
            server.process.send_signal(server.stop_signal)
            server.process.wait(60)
    assert (home / "postgres").stat().st_uid != 0


@as_root
def test_a_folder_closed_to_other_accounts_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    monkeypatch.setattr(postgres, "_account", lambda: "nobody")
    closed = open_folder / "closed"
    (closed / "home").mkdir(parents=True)
    closed.chmod(0o700)
    message = rf"{closed} cannot be entered by other accounts: run as an ordinary user, set YYC3_HOME"
    with pytest.raises(ServerError, match=message):
        postgres.start_postgres(closed / "home")


def test_a_cluster_of_another_postgres_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ServerError, match="has a Postgres 15 cluster, this program brings 18"):
        postgres.start_postgres(tmp_path)
    assert [file.name for file in (tmp_path / "postgres").iterdir()] == ["PG_VERSION"]


def test_tables_that_an_earlier_version_made_as_the_superuser_become_the_applications(tmp_path: Path) -> None:
    server = postgres.start_postgres(tmp_path, reserve_port())
    try:
        migrate.upgrade(admin_url(tmp_path, server.tcp_url or ""))
    finally:
        server.process.send_signal(server.stop_signal)
        server.process.wait(60)
    (tmp_path / "postgres.app-password").unlink()
    server = postgres.start_postgres(tmp_path)
    try:
        assert migrate.upgrade(server.url)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SELECT nextval('yyc3.job_id_blocks')")
            connection.execute("ALTER TABLE yyc3.chunks ADD COLUMN more int")
            owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'yyc3'::regnamespace"
            assert connection.execute(owners).fetchall() == [("yyc3_app",)]
    finally:
        server.process.send_signal(server.stop_signal)
        server.process.wait(60)


def test_passwords_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    server = valkey.start_valkey(tmp_path, reserve_port())
    server.process.send_signal(server.stop_signal)
    server.process.wait(60)
    for name in ("valkey.password", "valkey.conf"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
