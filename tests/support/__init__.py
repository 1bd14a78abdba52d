"""What tests share.

sandbox         a database, a Redis and a home of one test; processes started in it
servers         Postgres, Valkey, Redis and RabbitMQ that a test kills and starts again
store_helpers   the store alone: jobs, claims and settlements without a worker
faulty_proxy    a proxy in front of an engine that fails as a rule says
exclusive       locks and ports between the processes of one test run
audit           compares jobs, outcomes and counters
fuzz            random input for everything that parses what others wrote
submitting_page the examples of docs/submitting.md
"""
