"""A job's series: 1, and one more for every replay. The outcome of an earlier series stays as history.

Which outcome stands follows from `decisions`: the one that nobody replayed. There is at most one of a job.
"""

LATEST_REPLAY = """
LEFT JOIN LATERAL (
    SELECT d.series, d.at FROM decisions d WHERE d.job_id = j.job_id AND d.decision = 'replayed' ORDER BY d.series DESC LIMIT 1
) r ON true
"""
"""Joined to `jobs j`: the job's current series is `coalesce(r.series + 1, 1)`, its wait began at `r.at`."""


def series_of(job_id: str) -> str:
    """SQL for the current series of a job, whose id is the SQL given."""
    return f"coalesce((SELECT max(d.series) + 1 FROM decisions d WHERE d.job_id = {job_id} AND d.decision = 'replayed'), 1)"


def stands(outcome: str) -> str:
    """SQL for whether an outcome, known by the alias given, is the one that counts."""
    return (
        f"({outcome}.state <> 'failed' OR NOT EXISTS (SELECT 1 FROM decisions d WHERE d.job_id = {outcome}.job_id "
        f"AND d.series = {outcome}.series AND d.decision = 'replayed'))"
    )


__all__ = ["LATEST_REPLAY", "series_of", "stands"]
