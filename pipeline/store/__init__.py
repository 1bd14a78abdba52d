"""Everything durable: rows in Postgres, one module for each step in the life of a job.

database          the connection pool; foreign errors translated
ids               job ids, allocated in blocks; partitions
new_rows          jobs and chunks on their way into the store
submission        store jobs that callers wait for
batch_rows        the jobs of a batch before they are stored
batches           store batches; their progress and outcomes
claims            claim chunks, renew leases
settlement        store outcomes, each job once
cancellation      settle a job without a run
replays           SQL for replay numbers and current outcomes
recovery          requeue lost chunks, expire jobs, count runnable chunks
dead_letters      list, replay and discard failed outcomes
job_records       find jobs; all that is stored of one, and its history
queries           read-only questions about jobs and queues
queue_depths      queued jobs by model, lane and tenant
answer_cache      answers by question
reply_outbox      replies to callers of the intake queue
endpoint_samples  how workers see their endpoints
schema            tables and migrations
"""

from pipeline.store.database import Database

__all__ = ["Database"]
