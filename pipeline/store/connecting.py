"""How a connection to Postgres is made: the same for the pool, for migrations, and whatever the environment says.

`?pooler=transaction` in the URL says that a transaction pooler such as PgBouncer stands before the
database: then nothing is used that lives longer than a transaction.
"""

import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from schemas.errors import InvalidSetting

SCHEMA = "yyc3"
"""All our tables are here, so that a database may be shared with other programs."""

ANSWER_SECONDS = 25.0
"""A server that is silent for this long is given up: it was suspended, or its host vanished."""

_STATEMENT_SECONDS = 20
_LOCK_SECONDS = 4
_IDLE_SECONDS = 10
# What holds for every statement of ours. Written to the role by `db upgrade`, so that it also holds behind a pooler.
ROLE_SETTINGS = {
    "search_path": SCHEMA,
    "datestyle": "ISO",
    "statement_timeout": f"{_STATEMENT_SECONDS}s",
    "lock_timeout": f"{_LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{_IDLE_SECONDS}s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20s",
}
_TCP = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
}
# What libpq would take from PGSSLMODE and the like if the URL leaves it out: its own defaults.
_MODES = {
    "sslmode": "prefer",
    "gssencmode": "disable",
    "channel_binding": "prefer",
    "target_session_attrs": "any",
    "load_balance_hosts": "disable",
}
_SIGNS = "a sign such as % @ / : in its password is written %25 %40 %2F %3A"
_POOLER = re.compile(r"(?<=[?&])pooler=([^&]*)&?")


@dataclass(frozen=True, slots=True)
class Address:
    """A database URL, read.

    Attributes:
        url: for libpq.
        pooled: whether a transaction pooler stands before the database.
    """

    url: str
    pooled: bool

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments of psycopg's connect, beside the URL."""
        url = conninfo_to_dict(self.url)
        modes = {name: value for name, value in _MODES.items() if name not in url}
        found: dict[str, Any] = {"application_name": "yyc3", "client_encoding": "utf8", **_TCP, **modes}
        if self.pooled:
            return found | {"prepare_threshold": None}
        given = url.get("options") or ""
        ours = " ".join(f"-c {name}={value}" for name, value in ROLE_SETTINGS.items())
        return found | {"options": f"{given} {ours}".strip()}


def parse_url(database_url: str) -> Address:
    """Read a database URL; it may have SQLAlchemy's `+psycopg`, which libpq does not know.

    Raises:
        InvalidSetting: one sentence, without the URL, which has a password.
    """
    scheme, separator, rest = database_url.partition("://")
    url = f"{scheme.split('+')[0]}{separator}{rest}"
    pooler = _POOLER.search(url)
    if pooler is not None:
        if pooler[1] != "transaction":
            raise InvalidSetting("DATABASE_URL: pooler must be transaction, which also fits one that pools sessions")
        url = _POOLER.sub("", url, count=1).rstrip("?&")
    if url.partition("://")[2].partition("/")[0].count("@") > 1:
        raise InvalidSetting(f"DATABASE_URL cannot be read: {_SIGNS}")  # libpq would show what it takes for the host
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        name = re.search(r'invalid URI query parameter: "([A-Za-z_]{1,40})"', str(error))
        reason = f"libpq knows no parameter {name[1]}" if name else _SIGNS
        # Not the cause: libpq quotes what it cannot read, and that is often a part of the password.
        raise InvalidSetting(f"DATABASE_URL cannot be read: {reason}") from None
    return Address(url, pooler is not None)


def check_encoding(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Refuse a database that cannot keep every text.

    Raises:
        psycopg.OperationalError: says its encoding.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise psycopg.OperationalError(f"the database has the encoding {encoding}; create it with ENCODING 'UTF8'")


def has_iso_dates(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether dates come in the form that psycopg reads."""
    return (connection.info.parameter_status("DateStyle") or "").startswith("ISO")


def first_line(error: BaseException) -> str:
    """Return what the server, or libpq, said first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
