"""The schema. Migrations make it; a test holds the two equal.

Jobs and outcomes are insert-only: a job's state follows from its outcome and its chunk. Counters stand on chunks, where
each worker writes its own rows, so no row is hot. `json` rather than `jsonb`: the same bytes come back.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSON, TIMESTAMP, UUID

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s",
    }
)
_INSTANT = TIMESTAMP(timezone=True)


class _Xid8(sa.types.UserDefinedType[int]):
    """Postgres' 64-bit transaction id: the order in which outcomes became visible."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


# Job ids are handed out in blocks, see ids.py.
job_blocks = sa.Sequence("job_blocks", metadata=metadata)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("batch_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("payload_hash", sa.LargeBinary, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("weight", sa.Integer, nullable=False, server_default="1"),
    sa.Column("jobs", sa.Integer, nullable=False),
    sa.Column("created_at", _INSTANT, nullable=False, server_default=sa.func.now()),
    sa.UniqueConstraint("tenant", "idempotency_key"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", sa.BigInteger),
    sa.Column("line", sa.Integer),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("deadline", _INSTANT),
    sa.Column("created_at", _INSTANT, nullable=False, server_default=sa.func.now()),
    sa.Column("request", JSON, nullable=False),
    postgresql_partition_by="RANGE (job_id)",
)

# A partitioned table cannot hold a key unique that is not its partition key.
job_keys = sa.Table(
    "job_keys",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("idempotency_key", sa.Text, primary_key=True),
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("payload_hash", sa.LargeBinary, nullable=False),
)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("first_job_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("batch_id", sa.BigInteger),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("deadline", _INSTANT),
    sa.Column("reply_to", sa.Text),
    sa.Column("state", sa.Text, nullable=False, server_default="queued"),
    sa.Column("series", sa.SmallInteger, nullable=False, server_default="1"),  # unused: a series is a job's own
    sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("crashes", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("rounds", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("run_id", UUID(as_uuid=True)),
    sa.Column("worker", sa.Text),
    sa.Column("lease_expires_at", _INSTANT),
    sa.Column("due_at", _INSTANT, nullable=False, server_default=sa.func.now()),
    sa.Column("last_code", sa.Text),
    sa.Column("succeeded", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cancelled", sa.Integer, nullable=False, server_default="0"),
    sa.Column("expired", sa.Integer, nullable=False, server_default="0"),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_at", _INSTANT, nullable=False, server_default=sa.func.now()),
    sa.Column("started_at", _INSTANT),
    sa.Column("finished_at", _INSTANT),
    sa.Column("cached", sa.Integer, nullable=False, server_default="0"),
    sa.Column("tenant", sa.Text, nullable=False, server_default="default"),
    sa.CheckConstraint("state IN ('queued', 'running', 'done')", name="ck_chunks_state"),
    sa.CheckConstraint("lane IN ('interactive', 'bulk')", name="ck_chunks_lane"),
    postgresql_with={"fillfactor": 50},
)
sa.Index(
    "ix_chunks_queued",
    chunks.c.model,
    chunks.c.lane,
    chunks.c.priority,
    chunks.c.first_job_id,
    postgresql_where=sa.text("state = 'queued'"),
)
sa.Index(
    "ix_chunks_deadline",
    chunks.c.deadline,
    postgresql_where=sa.text("state = 'queued' AND deadline IS NOT NULL"),
)
sa.Index("ix_chunks_running", chunks.c.lease_expires_at, postgresql_where=sa.text("state = 'running'"))
sa.Index("ix_chunks_run_id", chunks.c.run_id, postgresql_where=sa.text("state = 'running'"))
sa.Index("ix_chunks_batch_id", chunks.c.batch_id, chunks.c.first_job_id)
sa.Index("ix_chunks_finished_at", chunks.c.model, chunks.c.finished_at, postgresql_where=sa.text("state = 'done'"))

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("series", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("tries", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("simulated", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("queue_wait_seconds", sa.REAL),
    sa.Column("batch_wait_seconds", sa.REAL),
    sa.Column("first_token_seconds", sa.REAL),
    sa.Column("engine_seconds", sa.REAL),
    sa.Column("total_seconds", sa.REAL),
    sa.Column("settled_at", _INSTANT, nullable=False, server_default=sa.func.now()),
    sa.Column("xid", _Xid8, nullable=False, server_default=sa.text("pg_current_xact_id()")),
    sa.Column("code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("model_revision", sa.Text),
    sa.Column("endpoint", sa.Text),
    sa.Column("engine_version", sa.Text),
    sa.Column("template_hash", sa.Text),
    sa.Column("answer", JSON),
    sa.Column("cached_from", sa.BigInteger),
    sa.Column("batch_rows", sa.SmallInteger),
    postgresql_partition_by="RANGE (job_id)",
)

sa.Index(
    "ix_outcomes_unsuccessful", outcomes.c.state, outcomes.c.job_id, postgresql_where=sa.text("state <> 'succeeded'")
)

failures = sa.Table(
    "failures",
    metadata,
    sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("series", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("try_number", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text),
    sa.Column("at", _INSTANT, nullable=False, server_default=sa.func.now()),
)

# What a person decided about a dead letter: an outcome that was replayed stays as history, and the next series begins.
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("series", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("at", _INSTANT, nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("decision IN ('replayed', 'discarded')", name="ck_decisions_decision"),
)

# Outcomes owed to callers behind the intake queue.
replies = sa.Table(
    "replies",
    metadata,
    sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("queue", sa.Text, primary_key=True),
    sa.Column("job_key", sa.Text, nullable=False),
    sa.Column("created_at", _INSTANT, nullable=False, server_default=sa.func.now()),
)

# Which job answered a question first; the key names everything that the answer depends on.
answers = sa.Table(
    "answers",
    metadata,
    sa.Column("key", UUID(as_uuid=True), primary_key=True),
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("series", sa.SmallInteger, nullable=False),
    sa.Column("created_at", _INSTANT, nullable=False, server_default=sa.func.now()),
)
sa.Index("ix_answers_created_at", answers.c.created_at, postgresql_using="brin")

# How each worker process found each endpoint, every few seconds.
endpoint_samples = sa.Table(
    "endpoint_samples",
    metadata,
    sa.Column("at", _INSTANT, primary_key=True, server_default=sa.func.now()),
    sa.Column("worker", sa.Text, primary_key=True),
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("in_flight", sa.Integer, nullable=False),
    sa.Column("limit_rows", sa.Integer, nullable=False),
    sa.Column("waiting_rows", sa.Integer, nullable=False),
    sa.Column("rows_per_second", sa.REAL, nullable=False),
    sa.Column("tokens_per_second", sa.REAL, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    sa.Column("engine_running", sa.REAL),
    sa.Column("engine_waiting", sa.REAL),
    sa.Column("kv_usage", sa.REAL),
)

__all__ = [
    "answers",
    "batches",
    "chunks",
    "decisions",
    "endpoint_samples",
    "failures",
    "job_blocks",
    "job_keys",
    "jobs",
    "metadata",
    "outcomes",
    "replies",
]
