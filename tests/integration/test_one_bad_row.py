"""Where rows travel together, a refusal is found per row and costs only that row."""

import asyncio
from typing import Any

import pytest

from pipeline import Client
from pipeline.broker import Notifier
from pipeline.jobs.submit import Submitter
from pipeline.store import Database, queries, submission
from pipeline.streams import StreamWriter
from pipeline.wiring import Wiring
from schemas.errors import ErrorCode, UnstorableValue
from schemas.ids import JobId
from schemas.results import JobState
from tests.support.sandbox import Sandbox, wait_for
from tests.support.store_helpers import claim_queued, store_batch, succeeded
from workers.execution.outcome_writer import OutcomeWriter
from workers.execution.run import Run


@pytest.mark.parametrize("bad", [{0}, {7}, {39}, {3, 4}, set(range(40))])
async def test_a_result_that_cannot_be_stored_fails_alone(database: Database, sandbox: Sandbox, bad: set[int]) -> None:
    stored = await store_batch(database, 40, chunk_rows=40)
    run = Run(await claim_queued(database))
    rows = succeeded(run.claim).rows
    for number in bad:
        rows[number].label = "half \x00"
    run.unwritten = list(rows)
    run.unsettled.clear()
    run.end()
    notifier, streams = Notifier(sandbox.redis_url), StreamWriter(sandbox.redis_url)
    writer = OutcomeWriter(database, notifier, streams, asyncio.Event(), lambda *_: None)
    await writer.write_last(run)
    found = await queries.outcomes_of(database, list(stored.job_ids))
    assert {i for i, job_id in enumerate(stored.job_ids) if found[job_id].state is JobState.FAILED} == bad
    codes = {outcome.error.code for outcome in found.values() if outcome.error}
    assert codes == {ErrorCode.UNSTORABLE_VALUE}
    assert sandbox.query("SELECT state, succeeded, failed FROM chunks") == [("done", 40 - len(bad), len(bad))]
    await notifier.close()
    await streams.close()


async def test_a_job_that_the_database_refuses_costs_no_other(sandbox: Sandbox) -> None:
    """Whatever it is: no check of ours knows everything that a database may refuse."""
    sandbox.query(
        "ALTER TABLE jobs ADD CONSTRAINT picky CHECK (convert_from(request, 'UTF8') NOT LIKE '%%refuse me%%')"
    )
    sandbox.query(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN IF convert_from(NEW.request, 'UTF8') LIKE '%%refuse me%%' THEN
                  RAISE EXCEPTION 'no' USING ERRCODE = '22009'; END IF; RETURN NEW; END $$"""
    )
    sandbox.query("ALTER TABLE jobs DROP CONSTRAINT picky")
    sandbox.query("CREATE TRIGGER refuse BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
    wiring = Wiring.from_environment(database_url=sandbox.database_url, redis_url=sandbox.redis_url)
    async with wiring.adapters() as adapters:
        submitter: Submitter = adapters.submitter(None)
        texts = [f"row {i}" for i in range(41)]
        texts[20] = "refuse me"
        submits = [submitter.submit({"kind": "intent", "text": text}) for text in texts]
        found: list[JobId | BaseException] = await asyncio.gather(*submits, return_exceptions=True)
    refused = [i for i, one in enumerate(found) if isinstance(one, BaseException)]
    assert refused == [20]
    assert isinstance(found[20], UnstorableValue)
    assert sandbox.query("SELECT count(*) FROM jobs") == [(40,)]


def test_an_offset_that_a_database_does_not_know_is_a_time_all_the_same(sandbox: Sandbox) -> None:
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client:
        job_id = client.submit({"kind": "intent", "text": "x", "deadline": "2031-01-01T00:00:00+23:59"})
    assert sandbox.query("SELECT deadline = '2030-12-31 00:01:00+00' FROM jobs WHERE job_id = %s", job_id) == [(True,)]


def test_keys_in_opposite_order_never_deadlock(sandbox: Sandbox) -> None:
    jobs: list[dict[str, Any]] = [{"kind": "intent", "text": f"{i}", "idempotency_key": f"k{i}"} for i in range(60)]

    async def both() -> list[list[JobId]]:
        wiring = Wiring.from_environment(database_url=sandbox.database_url, redis_url=sandbox.redis_url)
        async with wiring.adapters() as one, wiring.adapters() as two:
            forth, back = one.submitter(None), two.submitter(None)
            first = asyncio.gather(*[forth.submit(job) for job in jobs])
            second = asyncio.gather(*[back.submit(job) for job in reversed(jobs)])
            return [await first, list(reversed(await second))]

    one, two = asyncio.run(both())
    assert one == two


def test_what_a_newer_version_stored_is_passed_on_or_handed_back(sandbox: Sandbox) -> None:
    with (
        sandbox.simulator(),
        Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as client,
        sandbox.process("pipeline.cli", "recover"),
    ):
        batch = client.submit_many([{"kind": "intent", "text": f"{i}"} for i in range(4)])
        sandbox.query(
            """UPDATE jobs SET request = '{"kind":"intent","text":"x","mood":"of a newer version"}' WHERE job_id = %s""",
            batch.job_ids[1],
        )
        with sandbox.worker("bulk"):
            wait_for(lambda: client.batch_progress(batch.batch_id).succeeded == 3, "the others")
            wait_for(
                lambda: sandbox.query("SELECT last_code FROM chunks WHERE state = 'queued'") == [("newer_version",)],
                "the chunk to wait for a newer worker",
            )
            assert "jobs of a newer version of this program wait" in sandbox.yyc3("health", check=None).stdout
        sandbox.query(
            """INSERT INTO outcomes (job_id, replay, tenant, kind, state, answer)
               VALUES (%s, 0, 'default', 'weather', 'succeeded', '{"kind":"weather","degrees":21}')""",
            batch.job_ids[1],
        )
        outcome = client.get(batch.job_ids[1])
        assert outcome.result is not None
        assert outcome.result.model_dump()["degrees"] == 21
        assert '"degrees":21' in outcome.model_dump_json()
        assert "degrees" in sandbox.yyc3("jobs", "show", str(batch.job_ids[1])).stdout


async def test_nothing_is_admitted_twice_because_of_a_refusal(database: Database) -> None:
    """The way in stays one statement: what was refused left nothing behind."""
    assert await queries.job_of_key(database, "default", "k") is None
    assert submission._INSERT.count("INSERT INTO") == 3
