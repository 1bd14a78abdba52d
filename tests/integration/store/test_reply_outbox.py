"""Replies that are pending while their jobs run."""

import asyncio

from pipeline.store import Database, reply_outbox, settlement
from pipeline.store.reply_outbox import PendingReply
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_queued, store_batch, succeeded


async def test_a_reply_enqueued_while_it_is_sent_is_pending_again(database: Database, sandbox: Sandbox) -> None:
    stored = await store_batch(database, 1)
    await settlement.settle(database, [succeeded(await claim_queued(database))])
    reply = PendingReply(stored.job_ids[0], "crm", "default", "k")
    await reply_outbox.enqueue(database, [reply])
    async with reply_outbox.claim_due(database, [reply.job_id]) as (due, sent):
        assert due == [reply]
        again = asyncio.create_task(reply_outbox.enqueue(database, [reply]))
        async with asyncio.timeout(30):
            while not sandbox.query("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 - another connection's lock
                await asyncio.sleep(0.01)
        sent.append(reply)
    await again
    assert sandbox.query("SELECT count(*) FROM reply_outbox") == [(1,)]
