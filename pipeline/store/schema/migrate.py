"""Create and upgrade the tables: Alembic, run from code so that no ini file is needed."""

import time
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from pipeline.store.connecting import ROLE_SETTINGS, SCHEMA, Address, check_encoding, first_line, parse_url
from schemas.errors import InvalidSetting, StoreUnavailable

_MIGRATION_LOCK = 0x79796335
_TABLE_LOCK_SECONDS = 2
_RETRY_SECONDS = 1.0
_LONGEST_SECONDS = 600.0


def alembic_config(connection: sa.Connection | None = None) -> Config:
    """Return the configuration of Alembic; env.py reads the connection from its attributes."""
    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))  # it is read by a ConfigParser
    config.attributes["connection"] = connection
    return config


def upgrade(database_url: str) -> str:
    """Upgrade the database to the newest revision; does nothing if it has it. Several processes may call it at once.

    Also writes to our role what holds for its connections to this database, see `connecting.ROLE_SETTINGS`.

    Returns:
        The revision of the database.

    Raises:
        StoreUnavailable: no database, or it refuses.
        InvalidSetting: the URL is that of a pooler.
    """
    address = parse_url(database_url)
    if address.pooled:
        raise InvalidSetting(
            "DATABASE_URL: migrations need the direct URL of Postgres, not that of a transaction pooler"
        )
    # Connected by psycopg itself: SQLAlchemy does not parse a URL with several hosts.
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: _connect(address), poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            _lock(connection)
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            connection.commit()
            _run(connection)
            write_role_settings(connection)
            connection.commit()
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        unreachable = isinstance(error, sa.exc.OperationalError | psycopg.OperationalError)
        raise StoreUnavailable(f"Postgres {'cannot be reached' if unreachable else 'refuses'}: {reason}") from error
    except CommandError as error:
        raise StoreUnavailable(
            f"the schema {SCHEMA} is not of this program, or of a newer version: {first_line(error)}"
        ) from error
    finally:
        engine.dispose()
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None
    return head


def _connect(address: Address) -> psycopg.Connection[Any]:
    connection = psycopg.connect(address.url, **address.arguments())
    try:
        check_encoding(connection)
        # A step may take long, and so may the wait for another process that migrates; locks of tables are tried again.
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


def _lock(connection: sa.Connection) -> None:
    """Wait for other processes that migrate."""
    connection.exec_driver_sql("SET lock_timeout = 0")
    connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    connection.exec_driver_sql(f"SET lock_timeout = '{_TABLE_LOCK_SECONDS}s'")
    connection.commit()


def _run(connection: sa.Connection) -> None:
    """Run the migrations. A table that is being read is not waited for long: all others would wait behind this process."""
    end = time.monotonic() + _LONGEST_SECONDS
    while True:
        try:
            command.upgrade(alembic_config(connection), "head")
            connection.commit()
            return
        except sa.exc.OperationalError as error:
            connection.rollback()
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable) or time.monotonic() > end:
                raise
            time.sleep(_RETRY_SECONDS)


def write_role_settings(connection: sa.Connection) -> None:
    """Write to our role what holds for its connections to this database."""
    database = connection.exec_driver_sql("SELECT quote_ident(current_database())").scalar_one()
    for name, value in ROLE_SETTINGS.items():
        connection.exec_driver_sql(f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET {name} = '{value}'")
