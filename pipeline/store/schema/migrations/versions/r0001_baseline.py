"""The first schema: batches, jobs, chunks, outcomes, failures.

Written as plain SQL: what a migration does must not change when tables.py does.
"""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = """
CREATE SEQUENCE job_blocks;
CREATE TABLE batches (
    batch_id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant TEXT NOT NULL,
    idempotency_key TEXT,
    payload_hash BYTEA NOT NULL,
    name TEXT NOT NULL,
    weight INTEGER DEFAULT '1' NOT NULL,
    jobs INTEGER NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_batches PRIMARY KEY (batch_id),
    CONSTRAINT uq_batches UNIQUE (tenant, idempotency_key)
);
CREATE TABLE chunks (
    first_job_id BIGINT NOT NULL,
    rows INTEGER NOT NULL,
    batch_id BIGINT,
    model TEXT NOT NULL,
    lane TEXT NOT NULL,
    priority SMALLINT DEFAULT '0' NOT NULL,
    deadline TIMESTAMP WITH TIME ZONE,
    reply_to TEXT,
    state TEXT DEFAULT 'queued' NOT NULL,
    series SMALLINT DEFAULT '1' NOT NULL,
    fence INTEGER DEFAULT '0' NOT NULL,
    crashes SMALLINT DEFAULT '0' NOT NULL,
    rounds SMALLINT DEFAULT '0' NOT NULL,
    run_id UUID,
    worker TEXT,
    lease_expires_at TIMESTAMP WITH TIME ZONE,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    last_code TEXT,
    succeeded INTEGER DEFAULT '0' NOT NULL,
    failed INTEGER DEFAULT '0' NOT NULL,
    cancelled INTEGER DEFAULT '0' NOT NULL,
    expired INTEGER DEFAULT '0' NOT NULL,
    prompt_tokens BIGINT DEFAULT '0' NOT NULL,
    completion_tokens BIGINT DEFAULT '0' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_chunks PRIMARY KEY (first_job_id),
    CONSTRAINT ck_chunks_state CHECK (state IN ('queued', 'running', 'done')),
    CONSTRAINT ck_chunks_lane CHECK (lane IN ('interactive', 'bulk'))
)
 WITH (fillfactor = 50);
CREATE INDEX ix_chunks_batch_id ON chunks (batch_id, first_job_id);
CREATE INDEX ix_chunks_finished_at ON chunks (model, finished_at) WHERE state = 'done';
CREATE INDEX ix_chunks_queued ON chunks (model, lane, priority, first_job_id) WHERE state = 'queued';
CREATE INDEX ix_chunks_run_id ON chunks (run_id) WHERE state = 'running';
CREATE INDEX ix_chunks_running ON chunks (lease_expires_at) WHERE state = 'running';
CREATE TABLE failures (
    job_id BIGINT NOT NULL,
    series SMALLINT NOT NULL,
    try_number SMALLINT NOT NULL,
    code TEXT NOT NULL,
    endpoint TEXT,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_failures PRIMARY KEY (job_id, series, try_number)
);
CREATE TABLE job_keys (
    tenant TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    job_id BIGINT NOT NULL,
    payload_hash BYTEA NOT NULL,
    CONSTRAINT pk_job_keys PRIMARY KEY (tenant, idempotency_key)
);
CREATE TABLE jobs (
    job_id BIGINT NOT NULL,
    batch_id BIGINT,
    line INTEGER,
    kind TEXT NOT NULL,
    tenant TEXT NOT NULL,
    deadline TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    request JSON NOT NULL,
    CONSTRAINT pk_jobs PRIMARY KEY (job_id)
)
 PARTITION BY RANGE (job_id);
CREATE TABLE outcomes (
    job_id BIGINT NOT NULL,
    series SMALLINT NOT NULL,
    state TEXT NOT NULL,
    tries SMALLINT DEFAULT '0' NOT NULL,
    simulated BOOLEAN DEFAULT false NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    queue_wait_seconds REAL,
    batch_wait_seconds REAL,
    first_token_seconds REAL,
    engine_seconds REAL,
    total_seconds REAL,
    settled_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    code TEXT,
    message TEXT,
    model TEXT,
    model_revision TEXT,
    endpoint TEXT,
    engine_version TEXT,
    template_hash TEXT,
    answer JSON,
    CONSTRAINT pk_outcomes PRIMARY KEY (job_id, series)
)
 PARTITION BY RANGE (job_id);
CREATE INDEX ix_outcomes_unsuccessful ON outcomes (state, job_id) WHERE state <> 'succeeded';
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split(";"):
        if statement.strip():
            op.execute(statement)
