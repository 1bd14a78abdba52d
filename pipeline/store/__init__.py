"""Everything that is durable: rows in Postgres. One module a step of a job's life.

submission   jobs, their keys and chunks come in
claims       a worker takes chunks, keeps them, loses them
settlement   outcomes are stored, each job once
recovery     lost leases go back; how much is queued
reading      outcomes, lists and progress for those who ask
"""

from pipeline.store.database import Database

__all__ = ["Database"]
