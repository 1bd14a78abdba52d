"""How many bytes the requests of a chunk have, so that a worker claims no more than it has memory for."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE chunks ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE chunks DROP COLUMN bytes")
