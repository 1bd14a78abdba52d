"""The Celery worker processes: Celery outside, one asyncio loop inside.

main       a worker process: starts both and connects them
intake     a process of its own: jobs that arrive as messages, and their replies
loop       the asyncio loop in its thread
delivery   all that Celery sees
execution  all that runs on the loop
"""
