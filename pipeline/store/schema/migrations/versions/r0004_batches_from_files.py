"""Batches are read from files, have a life and are paused; their output is read while they run."""

from alembic import op

revision = "0004"
down_revision = "0003"


_BATCHES = """
ALTER TABLE batches
    ADD COLUMN options BYTEA,
    ADD COLUMN input_complete BOOLEAN DEFAULT true NOT NULL,
    ADD COLUMN input_seen_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN input_lines BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN input_hash BYTEA,
    ADD COLUMN submitter UUID,
    ADD COLUMN refused INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN not_before TIMESTAMP WITH TIME ZONE,
    ADD COLUMN expires_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN canary TEXT,
    ADD COLUMN canary_limit REAL,
    ADD COLUMN cancelled_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN failed_at TIMESTAMP WITH TIME ZONE
"""
_REFUSED_LINES = """
CREATE TABLE refused_lines (
    batch_id BIGINT NOT NULL,
    line BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    custom_id TEXT,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    CONSTRAINT pk_refused_lines PRIMARY KEY (batch_id, line)
)
"""
_PAUSES = """
CREATE TABLE pauses (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    by_whom TEXT NOT NULL,
    reason TEXT NOT NULL,
    CONSTRAINT pk_pauses PRIMARY KEY (scope, name),
    CONSTRAINT ck_pauses_scope CHECK (scope IN ('batch'))
)
"""
_USAGE = """
CREATE TABLE usage_hourly (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    lane TEXT NOT NULL,
    shard SMALLINT NOT NULL,
    succeeded BIGINT DEFAULT '0' NOT NULL,
    failed BIGINT DEFAULT '0' NOT NULL,
    cancelled BIGINT DEFAULT '0' NOT NULL,
    expired BIGINT DEFAULT '0' NOT NULL,
    cached BIGINT DEFAULT '0' NOT NULL,
    prompt_tokens BIGINT DEFAULT '0' NOT NULL,
    completion_tokens BIGINT DEFAULT '0' NOT NULL,
    queue_wait_seconds DOUBLE PRECISION DEFAULT '0' NOT NULL,
    engine_seconds DOUBLE PRECISION DEFAULT '0' NOT NULL,
    CONSTRAINT pk_usage_hourly PRIMARY KEY (hour, tenant, model, kind, lane, shard)
) WITH (fillfactor = 50)
"""


def upgrade() -> None:
    op.execute(_BATCHES)
    op.execute("ALTER TABLE jobs ADD COLUMN custom_id TEXT")
    op.execute("ALTER TABLE chunks ADD COLUMN input_window INTEGER")
    op.execute("ALTER TABLE chunks DROP CONSTRAINT ck_chunks_state")
    op.execute(
        "ALTER TABLE chunks ADD CONSTRAINT ck_chunks_state CHECK (state IN ('queued', 'running', 'done', 'cancelled'))"
    )
    # A default of its own, so that the rows that are there are not rewritten.
    op.execute("ALTER TABLE outcomes ADD COLUMN xid BIGINT")
    op.execute("ALTER TABLE outcomes ALTER COLUMN xid SET DEFAULT pg_current_xact_id()::text::bigint")
    op.execute(_REFUSED_LINES)
    op.execute(
        "COMMENT ON TABLE refused_lines IS 'Lines of batch files that are no jobs. Rows stay as long as their batch.'"
    )
    op.execute(_PAUSES)
    op.execute("COMMENT ON TABLE pauses IS 'What is paused, by whom and why. Rows leave when it goes on.'")
    op.execute(_USAGE)
    op.execute(
        "COMMENT ON TABLE usage_hourly IS 'Outcomes by hour, tenant, model, kind and lane, counted when they are stored. "
        "Deleted after 400 days.'"
    )
    op.execute("CREATE INDEX ix_batches_canary ON batches (batch_id) WHERE canary = 'running'")


def downgrade() -> None:
    op.execute("DROP INDEX ix_batches_canary")
    op.execute("DROP TABLE usage_hourly")
    op.execute("DROP TABLE pauses")
    op.execute("DROP TABLE refused_lines")
    op.execute("ALTER TABLE outcomes DROP COLUMN xid")
    op.execute("ALTER TABLE chunks DROP CONSTRAINT ck_chunks_state")
    op.execute("UPDATE chunks SET state = 'done' WHERE state = 'cancelled'")
    op.execute("ALTER TABLE chunks ADD CONSTRAINT ck_chunks_state CHECK (state IN ('queued', 'running', 'done'))")
    op.execute("ALTER TABLE chunks DROP COLUMN input_window")
    op.execute("ALTER TABLE jobs DROP COLUMN custom_id")
    op.execute("""
        ALTER TABLE batches
            DROP COLUMN options, DROP COLUMN input_complete, DROP COLUMN input_seen_at, DROP COLUMN input_lines,
            DROP COLUMN input_hash, DROP COLUMN submitter, DROP COLUMN refused, DROP COLUMN not_before, DROP COLUMN expires_at,
            DROP COLUMN cancelled_at, DROP COLUMN failed_at,
            DROP COLUMN canary, DROP COLUMN canary_limit
    """)
