"""What the tables share: their naming convention, and columns that several have."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TIMESTAMP

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s",
    }
)
INSTANT = TIMESTAMP(timezone=True)


def id_column(name: str) -> sa.Column[int]:
    """A key that is allocated elsewhere."""
    return sa.Column(name, sa.BigInteger, primary_key=True, autoincrement=False)


def replay_column() -> sa.Column[int]:
    """The replay number: 0, and one more for every replay of a dead letter."""
    return sa.Column("replay", sa.SmallInteger, primary_key=True, autoincrement=False)


def tenant_column() -> sa.Column[str]:
    """Whose row it is."""
    return sa.Column("tenant", sa.Text, nullable=False)


def instant_column(name: str = "created_at") -> sa.Column[object]:
    """A moment, by default that of the transaction."""
    return sa.Column(name, INSTANT, nullable=False, server_default=sa.func.now())


def count_column(name: str, kind: type[sa.Integer] = sa.Integer) -> sa.Column[int]:
    """A number that begins at 0."""
    return sa.Column(name, kind, nullable=False, server_default="0")
