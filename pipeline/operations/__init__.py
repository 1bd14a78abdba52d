"""What keeps the pipeline running: recovery, pruning, dead letters, queue status, health."""
