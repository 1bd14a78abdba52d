"""The tables of jobs and what happens to them.

Jobs and outcomes are insert-only: the state of a job follows from its outcome and its chunk.
Counters are columns of chunks, where each worker writes its own rows, so no row is contended.
Requests and answers are `bytea`: the same bytes come back; only the search for tags looks inside, see job_records.py.
What is counted or filtered has a column of its own. Each table's comment says how its rows leave.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from pipeline.store.schema.columns import (
    INSTANT,
    count_column,
    id_column,
    instant_column,
    metadata,
    replay_column,
    tenant_column,
)

# Job ids are allocated in blocks, see ids.py.
job_id_blocks = sa.Sequence("job_id_blocks", metadata=metadata)

jobs = sa.Table(
    "jobs",
    metadata,
    id_column("job_id"),
    sa.Column("batch_id", sa.BigInteger),
    sa.Column("position", sa.Integer),
    sa.Column("kind", sa.Text, nullable=False),
    tenant_column(),
    sa.Column("deadline", INSTANT),
    instant_column(),
    sa.Column("streamed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("custom_id", sa.Text),
    postgresql_partition_by="RANGE (job_id)",
    comment="Accepted jobs, insert-only. Rows leave with their partition.",
)

sa.Index("ix_jobs_created_at", jobs.c.created_at, postgresql_using="brin", postgresql_with={"autosummarize": "on"})

# A unique constraint of a partitioned table must contain the partition key.
idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("idempotency_key", sa.Text, primary_key=True),
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("payload_hash", sa.LargeBinary, nullable=False),
    comment="Keys of single jobs. Rows stay as long as their jobs.",
)

sa.Index("ix_idempotency_keys_job_id", idempotency_keys.c.job_id)

chunks = sa.Table(
    "chunks",
    metadata,
    id_column("first_job_id"),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("batch_id", sa.BigInteger),
    tenant_column(),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    count_column("priority", sa.SmallInteger),
    sa.Column("deadline", INSTANT),
    sa.Column("reply_to", sa.Text),
    sa.Column("state", sa.Text, nullable=False, server_default="queued"),
    count_column("fence"),
    count_column("crashes", sa.SmallInteger),
    count_column("rounds", sa.SmallInteger),
    sa.Column("run_id", UUID(as_uuid=True)),
    sa.Column("worker", sa.Text),
    sa.Column("lease_expires_at", INSTANT),
    instant_column("due_at"),
    sa.Column("last_code", sa.Text),
    count_column("succeeded"),
    count_column("failed"),
    count_column("cancelled"),
    count_column("expired"),
    count_column("cached"),
    count_column("prompt_tokens", sa.BigInteger),
    count_column("completion_tokens", sa.BigInteger),
    instant_column(),
    sa.Column("started_at", INSTANT),
    sa.Column("finished_at", INSTANT),
    count_column("bytes", sa.BigInteger),
    sa.Column("input_window", sa.Integer),
    sa.CheckConstraint("state IN ('queued', 'running', 'done', 'cancelled')", name="ck_chunks_state"),
    sa.CheckConstraint("lane IN ('interactive', 'bulk')", name="ck_chunks_lane"),
    postgresql_with={"fillfactor": 50},
    comment="Consecutive jobs that are claimed together, and their counters. Rows stay as long as their jobs.",
)
sa.Index(
    "ix_chunks_queued",
    chunks.c.model,
    chunks.c.lane,
    sa.text("coalesce(batch_id, 0)"),
    chunks.c.priority,
    chunks.c.deadline,
    chunks.c.first_job_id,
    postgresql_where=sa.text("state = 'queued'"),
)
sa.Index(
    "ix_chunks_retried",
    chunks.c.model,
    chunks.c.lane,
    chunks.c.last_code,
    postgresql_where=sa.text("state = 'queued' AND last_code IS NOT NULL"),
)
_HAS_DEADLINE = sa.text("state = 'queued' AND deadline IS NOT NULL")
sa.Index("ix_chunks_deadline", chunks.c.deadline, postgresql_where=_HAS_DEADLINE)
sa.Index("ix_chunks_running", chunks.c.lease_expires_at, postgresql_where=sa.text("state = 'running'"))
sa.Index("ix_chunks_run_id", chunks.c.run_id, postgresql_where=sa.text("state = 'running'"))
sa.Index("ix_chunks_batch_id", chunks.c.batch_id, chunks.c.first_job_id)
sa.Index("ix_chunks_finished_at", chunks.c.model, chunks.c.finished_at, postgresql_where=sa.text("state = 'done'"))

processes = sa.Table(
    "processes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("models_hash", sa.Text, nullable=False),
    sa.Column("lease_seconds", sa.REAL, nullable=False),
    sa.Column("holds", sa.Integer, nullable=False),
    instant_column("started_at"),
    instant_column("seen_at"),
    comment="What each process says of itself every 5 s. Deleted when it stops, or a day after it was last heard of.",
)

# A trigger of chunks counts: whatever statement changes a chunk, the sum over the shards is what is queued.
queue_depths = sa.Table(
    "queue_depths",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("lane", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("jobs", sa.BigInteger, nullable=False),
    sa.Column("chunks", sa.BigInteger, nullable=False),
    postgresql_with={"fillfactor": 50},
    comment="Queued jobs and chunks, counted by a trigger of chunks. Rows stay: 16 a model, lane and tenant.",
)

outcomes = sa.Table(
    "outcomes",
    metadata,
    id_column("job_id"),
    replay_column(),
    tenant_column(),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    count_column("attempts", sa.SmallInteger),
    sa.Column("simulated", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("label", sa.Text),
    sa.Column("confidence", sa.REAL),
    sa.Column("score", sa.REAL),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("queue_wait_seconds", sa.REAL),
    sa.Column("batch_wait_seconds", sa.REAL),
    sa.Column("first_token_seconds", sa.REAL),
    sa.Column("engine_seconds", sa.REAL),
    sa.Column("total_seconds", sa.REAL),
    instant_column("settled_at"),
    sa.Column("code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("model_revision", sa.Text),
    sa.Column("endpoint", sa.Text),
    sa.Column("engine_version", sa.Text),
    sa.Column("template_hash", sa.Text),
    sa.Column("label_set_hash", sa.Text),
    sa.Column("cached_from", sa.BigInteger),
    sa.Column("batch_rows", sa.SmallInteger),
    sa.Column("answer", sa.LargeBinary),
    sa.Column("xid", sa.BigInteger, server_default=sa.text("pg_current_xact_id()::text::bigint")),
    postgresql_partition_by="RANGE (job_id)",
    comment="What became of jobs, one row a job and replay, insert-only. Rows leave with their partition.",
)
_UNSUCCESSFUL = sa.text("state <> 'succeeded'")
sa.Index("ix_outcomes_unsuccessful", outcomes.c.state, outcomes.c.job_id, postgresql_where=_UNSUCCESSFUL)

failed_attempts = sa.Table(
    "failed_attempts",
    metadata,
    id_column("job_id"),
    replay_column(),
    sa.Column("attempt", sa.SmallInteger, primary_key=True, autoincrement=False),
    tenant_column(),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text),
    instant_column("at"),
    comment="Engine attempts that failed and count against the job. Rows stay as long as their jobs.",
)

lost_runs = sa.Table(
    "lost_runs",
    metadata,
    id_column("first_job_id"),
    sa.Column("fence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.Integer, nullable=False),
    tenant_column(),
    sa.Column("worker", sa.Text),
    sa.Column("lives", sa.Boolean, nullable=False, server_default=sa.false()),
    instant_column("at"),
    comment="Workers that were lost while they held these jobs. Rows stay as long as their jobs.",
)

dead_letter_decisions = sa.Table(
    "dead_letter_decisions",
    metadata,
    id_column("job_id"),
    replay_column(),
    tenant_column(),
    sa.Column("decision", sa.Text, nullable=False),
    instant_column("at"),
    sa.CheckConstraint("decision IN ('replayed', 'discarded')", name="ck_dead_letter_decisions_decision"),
    comment="What a person decided about a failed outcome. Rows stay as long as their jobs.",
)

reply_outbox = sa.Table(
    "reply_outbox",
    metadata,
    id_column("job_id"),
    sa.Column("queue", sa.Text, primary_key=True),
    tenant_column(),
    sa.Column("job_key", sa.Text, nullable=False),
    instant_column(),
    comment="Outcomes that callers of the intake queue wait for. A row is deleted when its reply was sent.",
)

answer_cache = sa.Table(
    "answer_cache",
    metadata,
    sa.Column("key", UUID(as_uuid=True), primary_key=True),
    tenant_column(),
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("replay", sa.SmallInteger, nullable=False),
    instant_column(),
    comment="Which outcome answers a question. The key covers all that the answer depends on. Deleted after 30 days.",
)
sa.Index("ix_answer_cache_created_at", answer_cache.c.created_at, postgresql_using="brin")

endpoint_samples = sa.Table(
    "endpoint_samples",
    metadata,
    sa.Column("at", INSTANT, primary_key=True, server_default=sa.func.now()),
    sa.Column("worker", sa.Text, primary_key=True),
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("problem", sa.Text),
    sa.Column("in_flight", sa.Integer, nullable=False),
    sa.Column("limit_rows", sa.Integer, nullable=False),
    sa.Column("waiting_rows", sa.Integer, nullable=False),
    sa.Column("rows_per_second", sa.REAL, nullable=False),
    sa.Column("tokens_per_second", sa.REAL, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    sa.Column("engine_running", sa.REAL),
    sa.Column("engine_waiting", sa.REAL),
    sa.Column("kv_usage", sa.REAL),
    comment="How each worker process sees each endpoint, every 5 s. Deleted after 7 days.",
)
