"""What operates the pipeline.

recovery      requeue the chunks of lost workers, keep doorbells in every queue
pruning       delete what is kept for a limited time
dead_letters  replay or discard failed jobs at a bounded rate
queue_status  depth, throughput and time to empty of each queue
health        check every part, with advice
"""
