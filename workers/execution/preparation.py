"""Turn the jobs of a claim into rows to send; those with a cached answer, or past their deadline, are settled here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import structlog

from pipeline import kinds
from pipeline.concurrency.coalescer import Coalescer
from pipeline.engine import Capabilities, EnginePool
from pipeline.kinds import Constraint
from pipeline.kinds.cache_key import cache_key
from pipeline.models import LabelForm
from pipeline.observability.logging import safe_error_summary
from pipeline.store import Database, answer_cache
from pipeline.store.answer_cache import CachedAnswer
from pipeline.store.claims import ClaimedJob
from schemas.errors import ErrorCode, InvalidJob, StoreUnavailable
from schemas.job import Job
from schemas.jobs import StreamedJob, parse_job
from schemas.results import JobState
from workers.execution.run import Row, Run

_log = structlog.get_logger(__name__)
_ROUNDS_FOR_ANOTHER_VERSION = 12  # seven minutes, with the delays between them


class RowPreparer:
    """Prepares rows for the engines of one process.

    Args:
        database: where cached answers are.
        pools: engine pools by model.
    """

    def __init__(self, database: Database, pools: Mapping[str, EnginePool]) -> None:
        self._database = database
        self._pools = pools
        self._cached: Coalescer[list[UUID], dict[UUID, CachedAnswer]] = Coalescer(self._look_up, largest=256)

    async def prepare(self, run: Run) -> list[Row]:
        """Return the rows to send, neighbours by prefix.

        Raises:
            EngineError: no endpoint of the model answers.
        """
        jobs = _runnable(run)
        if not jobs:
            return []
        pool = self._pools[run.claim.model]
        capabilities = await pool.capabilities()
        rows = [
            row for claimed, job in jobs if (row := await self._row(run, claimed, job, pool, capabilities)) is not None
        ]
        return await self._uncached_rows(run, sorted(rows, key=Row.by_prefix))

    async def rows_to_retry_now(self, run: Run, rows: Sequence[Row]) -> list[Row]:
        """Return rows that are worth another request at once."""
        if not any(row.undecodable or row.too_long for row in rows):
            return []
        constraint = (await self._pools[run.claim.model].capabilities()).constraint
        again = [_with_another_request(row, constraint) for row in rows if row.job_id in run.unsettled]
        return [row for row in again if row is not None]

    async def _row(
        self, run: Run, claimed: ClaimedJob, job: Job, pool: EnginePool, capabilities: Capabilities
    ) -> Row | None:
        entry = pool.entry
        words = kinds.label_words(job)
        form = await pool.form_for(words) if words else LabelForm.WHOLE_WORD
        max_model_len = min(capabilities.max_model_len or entry.max_model_len, entry.max_model_len)
        profile = kinds.EndpointProfile(
            form, capabilities.constraint, max_model_len, entry.stop_token_ids, entry.system_prompt
        )
        try:
            request = kinds.build(job, profile)
        except Exception as bug:  # noqa: BLE001 - it costs this one job, and the log names it
            summary = safe_error_summary(bug)
            _log.error(
                "the engine request of a job could not be built", job=claimed.job_id, kind=job.kind, fault=summary
            )
            run.refuse(claimed, JobState.FAILED, ErrorCode.INTERNAL_ERROR, f"an internal error: {summary}")
            return None
        key, revision = None, pool.revision_of(capabilities)
        if job.cache and request.deterministic:
            key = cache_key(job.tenant, entry.name, revision, capabilities.simulated, request, entry.parameters)
        return Row(run, claimed, job, request, profile, key, capabilities, revision)

    async def _uncached_rows(self, run: Run, rows: list[Row]) -> list[Row]:
        """Settle rows that have a cached answer with a copy of it; returns the others."""
        keys = [row.key for row in rows if row.key is not None]
        if not keys:
            return rows
        try:
            found = await self._cached(keys)
        except StoreUnavailable as error:
            _log.warning("answers are not looked up in the cache", reason=error.message)
            return rows
        uncached = []
        for row in rows:
            answer = found.get(row.key) if row.key is not None else None
            if answer is None:
                uncached.append(row)
            else:
                run.copy(row, answer)
        return uncached

    async def _look_up(self, wanted: list[list[UUID]]) -> Sequence[dict[UUID, CachedAnswer]]:
        found = await answer_cache.look_up(self._database, list({key for keys in wanted for key in keys}))
        return [{key: found[key] for key in keys if key in found} for keys in wanted]


def _runnable(run: Run) -> list[tuple[ClaimedJob, Job]]:
    """Parse the jobs of a claim; unreadable ones and those past their deadline are settled."""
    jobs: list[tuple[ClaimedJob, Job]] = []
    for claimed in run.claim.jobs:
        try:
            job = parse_job(claimed.request)
        except InvalidJob as error:  # stored by another version of this program: a deploy may be under way
            if run.claim.rounds < _ROUNDS_FOR_ANOTHER_VERSION:
                run.last_code = ErrorCode.NEWER_VERSION
            else:
                run.refuse(claimed, JobState.FAILED, error.code, error.message)
            continue
        if isinstance(job, StreamedJob) and job.stream:
            run.streamed.add(claimed.job_id)
        if run.past_deadline(claimed):
            run.expire(claimed)
        else:
            jobs.append((claimed, job))
    return jobs


def _with_another_request(row: Row, constraint: Constraint) -> Row | None:
    """Return the same row with another request, to be sent at once; None if there is no other request.

    A constraint to words lets an engine begin with a piece of a character (seen on a real vLLM); a
    letter has no pieces. A dialogue that was too long loses more of its middle: tokenizers differ
    in how much fits.
    """
    profile = row.profile
    if row.too_long:
        profile = replace(profile, constraint=constraint, max_model_len=profile.max_model_len // 2)
    elif row.undecodable and profile.form is LabelForm.WORD:
        profile = replace(profile, constraint=constraint, form=LabelForm.CODE)
    else:
        return None
    request = kinds.build(row.job, profile)
    key = None if row.too_long else row.key  # with less of the dialogue it is another question
    known = (key, row.capabilities, row.revision)
    return Row(row.run, row.claimed, row.job, request, profile, *known, sent_at=row.sent_at)
