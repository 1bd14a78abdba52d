"""The tables of batches and usage: what was submitted together, refused lines, what is paused, what was done for whom."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from pipeline.store.schema.columns import INSTANT, count_column, instant_column, metadata, tenant_column

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("batch_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    tenant_column(),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("payload_hash", sa.LargeBinary, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("weight", sa.Integer, nullable=False, server_default="1"),
    sa.Column("jobs", sa.Integer, nullable=False),
    instant_column(),
    sa.Column("options", sa.LargeBinary),
    sa.Column("input_complete", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("input_seen_at", INSTANT),
    count_column("input_lines", sa.BigInteger),
    sa.Column("input_hash", sa.LargeBinary),
    sa.Column("submitter", UUID(as_uuid=True)),
    count_column("refused"),
    sa.Column("not_before", INSTANT),
    sa.Column("expires_at", INSTANT),
    sa.Column("canary", sa.Text),
    sa.Column("canary_limit", sa.REAL),
    sa.Column("cancelled_at", INSTANT),
    sa.Column("failed_at", INSTANT),
    sa.UniqueConstraint("tenant", "idempotency_key"),
    comment="What callers submitted together. Rows stay: a key of a batch never names another one.",
)
sa.Index("ix_batches_canary", batches.c.batch_id, postgresql_where=sa.text("canary = 'running'"))

refused_lines = sa.Table(
    "refused_lines",
    metadata,
    sa.Column("batch_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("line", sa.BigInteger, primary_key=True, autoincrement=False),
    tenant_column(),
    sa.Column("custom_id", sa.Text),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    comment="Lines of batch files that are no jobs. Rows stay as long as their batch.",
)

usage_hourly = sa.Table(
    "usage_hourly",
    metadata,
    sa.Column("hour", INSTANT, primary_key=True),
    *[sa.Column(name, sa.Text, primary_key=True) for name in ("tenant", "model", "kind", "lane")],
    sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
    *[count_column(name, sa.BigInteger) for name in ("succeeded", "failed", "cancelled", "expired", "cached")],
    *[count_column(name, sa.BigInteger) for name in ("prompt_tokens", "completion_tokens")],
    *[
        sa.Column(name, sa.Double, nullable=False, server_default="0")
        for name in ("queue_wait_seconds", "engine_seconds")
    ],
    comment="Outcomes by hour, tenant, model, kind and lane, counted when they are stored. Deleted after 400 days.",
)

pauses = sa.Table(
    "pauses",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    instant_column("since"),
    sa.Column("by_whom", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.CheckConstraint("scope IN ('batch')", name="ck_pauses_scope"),
    comment="What is paused, by whom and why. Rows leave when it goes on.",
)
