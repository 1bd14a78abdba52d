"""All that Celery sees.

tasks          the one task of a worker: a doorbell arrives
consumption    which queues a process consumes
message_guard  messages of other programs; those that cannot be processed are quarantined
"""
