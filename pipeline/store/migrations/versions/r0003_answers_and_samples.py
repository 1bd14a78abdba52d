"""Answers by question, samples of endpoints, and what they tell of a job. Only adds."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("ALTER TABLE outcomes ADD COLUMN cached_from BIGINT, ADD COLUMN batch_rows SMALLINT")
    op.execute("ALTER TABLE chunks ADD COLUMN cached INTEGER DEFAULT 0 NOT NULL")
    op.execute(
        """CREATE TABLE answers (
               key UUID NOT NULL,
               job_id BIGINT NOT NULL,
               series SMALLINT NOT NULL,
               created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
               CONSTRAINT pk_answers PRIMARY KEY (key)
           )"""
    )
    op.execute("CREATE INDEX ix_answers_created_at ON answers USING brin (created_at)")
    op.execute(
        """CREATE TABLE endpoint_samples (
               at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
               worker TEXT NOT NULL,
               endpoint TEXT NOT NULL,
               model TEXT NOT NULL,
               lane TEXT NOT NULL,
               state TEXT NOT NULL,
               in_flight INTEGER NOT NULL,
               limit_rows INTEGER NOT NULL,
               waiting_rows INTEGER NOT NULL,
               rows_per_second REAL NOT NULL,
               tokens_per_second REAL NOT NULL,
               errors INTEGER NOT NULL,
               engine_running REAL,
               engine_waiting REAL,
               kv_usage REAL,
               CONSTRAINT pk_endpoint_samples PRIMARY KEY (at, worker, endpoint, model)
           )"""
    )
