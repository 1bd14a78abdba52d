"""The baseline: batches, jobs, chunks, outcomes and what belongs to them.

Plain SQL, so that a migration keeps its meaning when tables.py changes. It stays as it is: further
migrations are added.
"""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = """
CREATE SEQUENCE job_id_blocks;
CREATE TABLE answer_cache (
    key UUID NOT NULL,
    tenant TEXT NOT NULL,
    job_id BIGINT NOT NULL,
    replay SMALLINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_answer_cache PRIMARY KEY (key)
);
CREATE INDEX ix_answer_cache_created_at ON answer_cache USING brin (created_at);
COMMENT ON TABLE answer_cache IS 'Which outcome answers a question. The key covers all that the answer depends on. Deleted after 30 days.';
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
COMMENT ON TABLE batches IS 'What callers submitted together. Rows stay: a key of a batch never names another one.';
CREATE TABLE chunks (
    first_job_id BIGINT NOT NULL,
    rows INTEGER NOT NULL,
    batch_id BIGINT,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    lane TEXT NOT NULL,
    priority SMALLINT DEFAULT '0' NOT NULL,
    deadline TIMESTAMP WITH TIME ZONE,
    reply_to TEXT,
    state TEXT DEFAULT 'queued' NOT NULL,
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
    cached INTEGER DEFAULT '0' NOT NULL,
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
CREATE INDEX ix_chunks_deadline ON chunks (deadline) WHERE state = 'queued' AND deadline IS NOT NULL;
CREATE INDEX ix_chunks_finished_at ON chunks (model, finished_at) WHERE state = 'done';
CREATE INDEX ix_chunks_queued ON chunks (model, lane, coalesce(batch_id, 0), priority, deadline, first_job_id)
    WHERE state = 'queued';
CREATE INDEX ix_chunks_retried ON chunks (model, lane, last_code) WHERE state = 'queued' AND last_code IS NOT NULL;
CREATE INDEX ix_chunks_run_id ON chunks (run_id) WHERE state = 'running';
CREATE INDEX ix_chunks_running ON chunks (lease_expires_at) WHERE state = 'running';
COMMENT ON TABLE chunks IS 'Consecutive jobs that are claimed together, and their counters. Rows stay as long as their jobs.';
CREATE TABLE dead_letter_decisions (
    job_id BIGINT NOT NULL,
    replay SMALLINT NOT NULL,
    tenant TEXT NOT NULL,
    decision TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_dead_letter_decisions PRIMARY KEY (job_id, replay),
    CONSTRAINT ck_dead_letter_decisions_decision CHECK (decision IN ('replayed', 'discarded'))
);
COMMENT ON TABLE dead_letter_decisions IS 'What a person decided about a failed outcome. Rows stay as long as their jobs.';
CREATE TABLE endpoint_samples (
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    worker TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    lane TEXT NOT NULL,
    state TEXT NOT NULL,
    problem TEXT,
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
);
COMMENT ON TABLE endpoint_samples IS 'How each worker process sees each endpoint, every 5 s. Deleted after 7 days.';
CREATE TABLE failed_attempts (
    job_id BIGINT NOT NULL,
    replay SMALLINT NOT NULL,
    attempt SMALLINT NOT NULL,
    tenant TEXT NOT NULL,
    code TEXT NOT NULL,
    endpoint TEXT,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_failed_attempts PRIMARY KEY (job_id, replay, attempt)
);
COMMENT ON TABLE failed_attempts IS 'Engine attempts that failed and count against the job. Rows stay as long as their jobs.';
CREATE TABLE idempotency_keys (
    tenant TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    job_id BIGINT NOT NULL,
    payload_hash BYTEA NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (tenant, idempotency_key)
);
COMMENT ON TABLE idempotency_keys IS 'Keys of single jobs. Rows stay as long as their jobs.';
CREATE TABLE jobs (
    job_id BIGINT NOT NULL,
    batch_id BIGINT,
    position INTEGER,
    kind TEXT NOT NULL,
    tenant TEXT NOT NULL,
    deadline TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    streamed BOOLEAN DEFAULT false NOT NULL,
    request BYTEA NOT NULL,
    CONSTRAINT pk_jobs PRIMARY KEY (job_id)
)
 PARTITION BY RANGE (job_id);
COMMENT ON TABLE jobs IS 'Accepted jobs, insert-only. Rows leave with their partition.';
CREATE TABLE outcomes (
    job_id BIGINT NOT NULL,
    replay SMALLINT NOT NULL,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts SMALLINT DEFAULT '0' NOT NULL,
    simulated BOOLEAN DEFAULT false NOT NULL,
    label TEXT,
    confidence REAL,
    score REAL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    queue_wait_seconds REAL,
    batch_wait_seconds REAL,
    first_token_seconds REAL,
    engine_seconds REAL,
    total_seconds REAL,
    settled_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    code TEXT,
    message TEXT,
    model TEXT,
    model_revision TEXT,
    endpoint TEXT,
    engine_version TEXT,
    template_hash TEXT,
    label_set_hash TEXT,
    cached_from BIGINT,
    batch_rows SMALLINT,
    answer BYTEA,
    CONSTRAINT pk_outcomes PRIMARY KEY (job_id, replay)
)
 PARTITION BY RANGE (job_id);
CREATE INDEX ix_outcomes_unsuccessful ON outcomes (state, job_id) WHERE state <> 'succeeded';
COMMENT ON TABLE outcomes IS 'What became of jobs, one row a job and replay, insert-only. Rows leave with their partition.';
CREATE TABLE processes (
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    version TEXT NOT NULL,
    models_hash TEXT NOT NULL,
    lease_seconds REAL NOT NULL,
    holds INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_processes PRIMARY KEY (name)
);
COMMENT ON TABLE processes IS 'What each process says of itself every 5 s. Deleted when it stops, or a day after it was last heard of.';
CREATE TABLE queue_depths (
    model TEXT NOT NULL,
    lane TEXT NOT NULL,
    tenant TEXT NOT NULL,
    shard SMALLINT NOT NULL,
    jobs BIGINT NOT NULL,
    chunks BIGINT NOT NULL,
    CONSTRAINT pk_queue_depths PRIMARY KEY (model, lane, tenant, shard)
)
 WITH (fillfactor = 50);
COMMENT ON TABLE queue_depths IS 'Queued jobs and chunks, counted by a trigger of chunks. Rows stay: 16 a model, lane and tenant.';
CREATE TABLE reply_outbox (
    job_id BIGINT NOT NULL,
    queue TEXT NOT NULL,
    tenant TEXT NOT NULL,
    job_key TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_reply_outbox PRIMARY KEY (job_id, queue)
);
COMMENT ON TABLE reply_outbox IS 'Outcomes that callers of the intake queue wait for. A row is deleted when its reply was sent.';
"""

# Each process of the server counts in one of 16 rows, so that few wait for each other; the rows in one order, so that
# none waits for one that waits for it. The rows of a chunk without an outcome are those of its counters.
_COUNTED = """
CREATE FUNCTION count_queued_{event}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO queue_depths AS d (model, lane, tenant, shard, jobs, chunks)
    SELECT model, lane, tenant, pg_backend_pid() % 16, sum(jobs), sum(chunks) FROM ({changes}) c
    GROUP BY model, lane, tenant HAVING sum(jobs) <> 0 OR sum(chunks) <> 0 ORDER BY model, lane, tenant
    ON CONFLICT (model, lane, tenant, shard) DO UPDATE SET jobs = d.jobs + excluded.jobs, chunks = d.chunks + excluded.chunks;
    RETURN NULL;
END $$;
CREATE TRIGGER count_queued_{event} AFTER {event} ON chunks REFERENCING {tables}
    FOR EACH STATEMENT EXECUTE FUNCTION count_queued_{event}()
"""
_OPEN = "least(rows, greatest(0, rows - succeeded - failed - cancelled - expired))"
_AFTER = f"SELECT model, lane, tenant, {_OPEN} AS jobs, 1 AS chunks FROM after_change WHERE state = 'queued'"
_BEFORE = f"SELECT model, lane, tenant, -{_OPEN} AS jobs, -1 AS chunks FROM before_change WHERE state = 'queued'"


def upgrade() -> None:
    for statement in _STATEMENTS.split(";"):
        if statement.strip():
            op.execute(statement)
    for event, changes, tables in (
        ("insert", _AFTER, "NEW TABLE AS after_change"),
        ("update", f"{_AFTER} UNION ALL {_BEFORE}", "OLD TABLE AS before_change NEW TABLE AS after_change"),
        ("delete", _BEFORE, "OLD TABLE AS before_change"),
    ):
        op.execute(_COUNTED.format(event=event, changes=changes, tables=tables))
