"""Jobs are found by the time they were submitted and by their key, and the history of a job has the workers that were lost."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE lost_runs (
            first_job_id BIGINT NOT NULL,
            fence INTEGER NOT NULL,
            rows INTEGER NOT NULL,
            tenant TEXT NOT NULL,
            worker TEXT,
            lives BOOLEAN DEFAULT false NOT NULL,
            at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT pk_lost_runs PRIMARY KEY (first_job_id, fence)
        )
    """)
    op.execute(
        "COMMENT ON TABLE lost_runs IS "
        "'Workers that were lost while they held these jobs. Rows stay as long as their jobs.'"
    )
    # Its rows lie in the order in which they came: a few bytes for each thousand of them.
    op.execute("CREATE INDEX ix_jobs_created_at ON jobs USING brin (created_at) WITH (autosummarize = on)")
    op.execute("CREATE INDEX ix_idempotency_keys_job_id ON idempotency_keys (job_id)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_idempotency_keys_job_id")
    op.execute("DROP INDEX ix_jobs_created_at")
    op.execute("DROP TABLE lost_runs")
