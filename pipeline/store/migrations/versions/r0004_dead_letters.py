"""What a person decided about dead letters, and whose chunks wait. Only adds."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        """CREATE TABLE decisions (
               job_id BIGINT NOT NULL,
               series SMALLINT NOT NULL,
               decision TEXT NOT NULL,
               at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
               CONSTRAINT pk_decisions PRIMARY KEY (job_id, series),
               CONSTRAINT ck_decisions_decision CHECK (decision IN ('replayed', 'discarded'))
           )"""
    )
    op.execute("ALTER TABLE chunks ADD COLUMN tenant TEXT DEFAULT 'default' NOT NULL")
