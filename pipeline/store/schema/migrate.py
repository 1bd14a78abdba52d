"""Create and upgrade the tables: Alembic, run from code so that no ini file is needed."""

from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from pipeline.store.database import plain_url
from schemas.errors import StoreUnavailable

_MIGRATION_LOCK = 0x79796335


def alembic_config(connection: sa.Connection | None = None) -> Config:
    """Return the configuration of Alembic; env.py reads the connection from its attributes."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    return config


def sqlalchemy_url(database_url: str) -> str:
    """Return a URL for SQLAlchemy with psycopg 3."""
    return (
        plain_url(database_url)
        .replace("postgresql://", "postgresql+psycopg://", 1)
        .replace("postgres://", "postgresql+psycopg://", 1)
    )


def upgrade(database_url: str) -> str:
    """Upgrade the database to the newest revision; does nothing if it has it. Several processes may call it at once.

    Returns:
        The revision of the database.

    Raises:
        StoreUnavailable: no database.
    """
    # Connected by psycopg itself: SQLAlchemy does not parse a URL with several hosts.
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(plain_url(database_url)), poolclass=sa.NullPool
    )
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            connection.commit()
            command.upgrade(alembic_config(connection), "head")
            connection.commit()
    except (sa.exc.DBAPIError, psycopg.OperationalError) as error:
        reason = next(iter(str(getattr(error, "orig", error)).strip().splitlines()), "no reason given")
        unreachable = isinstance(error, sa.exc.OperationalError | psycopg.OperationalError)
        raise StoreUnavailable(f"Postgres {'cannot be reached' if unreachable else 'refuses'}: {reason}") from error
    finally:
        engine.dispose()
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None
    return head
