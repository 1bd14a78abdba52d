"""Chunks by deadline, and replies that are owed to callers behind the intake queue. Only adds."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("CREATE INDEX ix_chunks_deadline ON chunks (deadline) WHERE state = 'queued' AND deadline IS NOT NULL")
    op.execute(
        """CREATE TABLE replies (
               job_id BIGINT NOT NULL,
               queue TEXT NOT NULL,
               job_key TEXT NOT NULL,
               created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
               CONSTRAINT pk_replies PRIMARY KEY (job_id, queue)
           )"""
    )
