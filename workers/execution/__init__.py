"""All that runs on the asyncio loop of a worker process.

worker          handles a doorbell: claim, run, settle; drains
claiming        claim the chunk of a doorbell
preparation     jobs to rows; cached answers
scheduler       rows to engines in micro-batches; failed attempts, split and retried
requests        the engine requests in flight: begun, ended, given up where an engine hangs
row_queue       rows that wait for capacity
single_flight   rows that ask the same question
sending         one request to an endpoint
run             one worker's hold on a chunk, and its rows
outcome_writer  store outcomes, notify callers
leases          renew the leases of held runs
notifications   cancelled jobs, interactive demand
sampling        how this process sees its endpoints
"""
