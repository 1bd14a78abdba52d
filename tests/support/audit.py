"""What every fault test ends with: each accepted job has one outcome, and the counters agree."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import LiteralString

import psycopg

from schemas.ids import JobId

_JOBS = "SELECT count(*) FROM jobs"
_WITHOUT_OUTCOME = "SELECT count(*) FROM jobs j WHERE NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.job_id = j.job_id)"
_NOT_STORED = """
SELECT count(*) FROM unnest(%s::bigint[]) a(job_id) WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.job_id = a.job_id)
"""
_DOUBLED = """
SELECT count(*) FROM (
    SELECT o.job_id FROM outcomes o
    LEFT JOIN dead_letter_decisions d
        ON d.job_id = o.job_id AND d.replay = o.replay AND d.decision = 'replayed'
    WHERE d.job_id IS NULL GROUP BY o.job_id HAVING count(*) > 1
) twice
"""
# Counters of a halved chunk stay with its first half: sums are right where its parts are taken together.
_MISCOUNTED = """
SELECT abs(c.succeeded - o.succeeded) + abs(c.others - o.others) FROM
    (SELECT coalesce(sum(succeeded), 0) AS succeeded,
            coalesce(sum(failed + cancelled + expired), 0) AS others FROM chunks) c,
    (SELECT count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
            count(*) FILTER (WHERE state <> 'succeeded') AS others
     FROM outcomes o WHERE NOT EXISTS (
         SELECT 1 FROM dead_letter_decisions d
         WHERE d.job_id = o.job_id AND d.replay = o.replay AND d.decision = 'replayed')) o
"""
_OPEN_CHUNKS = "SELECT count(*) FROM chunks WHERE state <> 'done'"


@dataclass(frozen=True, slots=True)
class Audit:
    """What a store holds.

    Attributes:
        lost: accepted jobs that are not stored, or have no outcome.
        doubled: jobs with more than one outcome that no replay explains.
        miscounted: by how much the counters differ from the outcomes.
        open_chunks: chunks that are not done.
    """

    jobs: int
    lost: int
    doubled: int
    miscounted: int
    open_chunks: int

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.miscounted or self.open_chunks)


def audit(database_url: str, accepted: Iterable[JobId] = ()) -> Audit:
    """Examine a store when everything should be settled; `accepted` are ids that a producer was given."""
    with psycopg.connect(database_url, autocommit=True) as connection:

        def one(statement: LiteralString, *arguments: object) -> int:
            row = connection.execute(statement, arguments).fetchone()
            assert row is not None
            return int(row[0])

        return Audit(
            jobs=one(_JOBS),
            lost=one(_WITHOUT_OUTCOME) + one(_NOT_STORED, list(accepted)),
            doubled=one(_DOUBLED),
            miscounted=one(_MISCOUNTED),
            open_chunks=one(_OPEN_CHUNKS),
        )


__all__ = ["Audit", "audit"]
