"""The Celery worker process: Celery outside, one asyncio loop inside.

main       starts both and ties them together
intake     a process of its own: jobs that come as messages, and their replies
guarding   messages that other programs wrote
loop       the asyncio loop in its thread
tasks      the one Celery task: a doorbell comes in
process    take a chunk, run it, settle it
run        one worker's hold on a chunk, and what it has to say
scheduler  rows to the engine in micro-batches; failed tries, split and judged
leases     what this process holds, kept alive
"""
