"""Replay numbers: 0, and one more each time a dead letter of the job is replayed.

The outcome of an earlier replay stays as history. The current outcome is the one that was not
replayed, which follows from `dead_letter_decisions`; a job has at most one.
"""

LATEST_REPLAY = """
LEFT JOIN LATERAL (
    SELECT d.replay, d.at FROM dead_letter_decisions d
    WHERE d.job_id = j.job_id AND d.decision = 'replayed' ORDER BY d.replay DESC LIMIT 1
) r ON true
"""
"""Joined to `jobs j`: the current replay number is `coalesce(r.replay + 1, 0)`; the job was queued again at `r.at`."""


def current_replay(job_id: str) -> str:
    """SQL for the current replay number of a job; `job_id` is SQL too."""
    return (
        f"coalesce((SELECT max(d.replay) + 1 FROM dead_letter_decisions d WHERE d.job_id = {job_id} "
        "AND d.decision = 'replayed'), 0)"
    )


def is_current(outcome: str) -> str:
    """SQL for whether an outcome is the current one of its job; `outcome` is its table alias."""
    return (
        f"({outcome}.state = 'succeeded' OR NOT EXISTS (SELECT 1 FROM dead_letter_decisions d "
        f"WHERE d.job_id = {outcome}.job_id AND d.replay = {outcome}.replay AND d.decision = 'replayed'))"
    )
