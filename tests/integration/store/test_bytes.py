"""Requests and answers are bytes: they come back as they were stored, and no statement looks inside them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import pipeline.store
from pipeline.store import Database, answer_cache, queries, settlement
from pipeline.store.settlement import ChunkState, SettledRow, Settlement
from schemas.doorbells import Lane
from schemas.results import IntentResult, JobState
from tests.support.sandbox import Sandbox
from tests.support.store_helpers import claim_queued, new_job, store_batch, store_jobs

UNUSUAL = [
    b'{ "kind" :\t"intent",\r\n  "text":"a"   ,"text": "b" }',  # spaces, and the same key twice
    '{"kind":"intent","text":"东西我不要了，我要退款。"}'.encode(),
    '{"text":"😀👩\u200d👩\u200d👧 \u00e9 e\u0301","kind":"intent"}'.encode(),
    rb'{"kind":"intent","text":"\u4e1c\u897f \ud83d\ude00 \u0000 \\ \" \/"}',  # escapes stay escapes
    b'{"kind":"intent","n":1.50e+03,"m":-0,"big":123456789012345678901234567890}',
    b"\x00\xff\\x41 not JSON, not even UTF-8",
]


async def test_interactive_requests_come_back_byte_for_byte(database: Database, sandbox: Sandbox) -> None:
    await store_jobs(database, [new_job(request=request) for request in UNUSUAL])
    claim = await claim_queued(database, Lane.INTERACTIVE)
    assert [job.request for job in claim.jobs] == UNUSUAL
    assert [request for (request,) in sandbox.query("SELECT request FROM jobs ORDER BY job_id")] == UNUSUAL


async def test_requests_of_a_batch_come_back_byte_for_byte(database: Database, sandbox: Sandbox) -> None:
    await store_batch(database, [new_job(request=request) for request in UNUSUAL])
    claim = await claim_queued(database)
    assert [job.request for job in claim.jobs] == UNUSUAL
    assert [request for (request,) in sandbox.query("SELECT request FROM jobs ORDER BY job_id")] == UNUSUAL


async def test_requests_of_a_later_claim_come_back_byte_for_byte(database: Database) -> None:
    await store_batch(database, [new_job(request=request) for request in UNUSUAL])
    claim = await claim_queued(database)
    await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence, next_state=ChunkState.QUEUED)])
    again = await claim_queued(database)
    assert again.fence == 2
    assert [job.request for job in again.jobs] == UNUSUAL


async def test_answers_come_back_byte_for_byte(database: Database, sandbox: Sandbox) -> None:
    stored = await store_batch(database, len(UNUSUAL))
    claim = await claim_queued(database)
    keys = [uuid4() for _ in UNUSUAL]
    rows = [
        SettledRow(job.job_id, 0, job.tenant, job.kind, JobState.SUCCEEDED, answer, cache_key=key)
        for job, answer, key in zip(claim.jobs, UNUSUAL, keys, strict=True)
    ]
    await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence, rows, next_state=ChunkState.DONE)])
    assert [answer for (answer,) in sandbox.query("SELECT answer FROM outcomes ORDER BY job_id")] == UNUSUAL
    found = await answer_cache.look_up(database, keys)
    assert [found[key].answer for key in keys] == UNUSUAL
    assert [found[key].job_id for key in keys] == list(stored.job_ids)


@pytest.mark.parametrize("label", ["退款", "😀 refund", "a\u200db", 'q"uo\\te'])
async def test_a_result_of_an_unusual_answer_is_parsed(database: Database, label: str) -> None:
    (job_id,) = (await store_batch(database, 1)).job_ids
    claim = await claim_queued(database)
    answer = b' {\n"label" : ' + IntentResult(label=label).model_dump_json().encode().split(b'"label":')[1]
    answer = answer.replace(b" {\n", b' {\n"kind":"intent",  ')
    row = SettledRow(job_id, 0, "default", "intent", JobState.SUCCEEDED, answer, label=label)
    await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence, [row])])
    assert (await queries.outcomes_of(database, [job_id]))[job_id].result == IntentResult(label=label)


async def test_a_settlement_without_answers_is_stored(database: Database, sandbox: Sandbox) -> None:
    """The array of answers has only nulls then, or no element."""
    await store_batch(database, 2)
    claim = await claim_queued(database)
    await settlement.settle(database, [Settlement(claim.first_job_id, claim.fence)])
    rows = [SettledRow(job.job_id, 0, job.tenant, job.kind, JobState.EXPIRED) for job in claim.jobs]
    done = Settlement(claim.first_job_id, claim.fence, rows, next_state=ChunkState.DONE)
    assert (await settlement.settle(database, [done])).written == {(claim.first_job_id, claim.fence)}
    assert sandbox.query("SELECT state, answer FROM outcomes") == [("expired", None)] * 2


def statements() -> Iterator[tuple[str, str]]:
    """Yield the module and the text of every SQL statement of the store, or part of one."""
    for path in sorted(Path(pipeline.store.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            if re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|JOIN|COPY|WHERE|AND|CREATE|ALTER)\b", text):
                yield path.name, text


def test_no_statement_looks_inside_requests_and_answers() -> None:
    """JSON travels only as an argument that is a list of rows, and no row of it has a request or an answer."""
    arguments = re.compile(r"json_to_recordset\(%\((?:jobs|chunks|settlements|rows|failures)\)s::json\)")
    found = list(statements())
    assert {name for name, text in found if arguments.search(text)} == {"submission.py", "settlement.py"}
    assert {"claims.py", "queries.py", "answer_cache.py", "batches.py", "recovery.py", "cancellation.py"} <= {
        name for name, _ in found
    }
    for name, text in found:
        assert not re.search(r"json|->|#>|@>|\bconvert_from\b|\bencode\b|\bdecode\b", arguments.sub("", text)), (
            name,
            text,
        )
        assert not re.search(r"\b(request|answer)\b *(::|\|\||~|LIKE|=|<|>)(?! *%)", text), (name, text)
        assert not re.search(r"\b(request|answer) (json|jsonb|text)\b", text), (name, text)
    columns = settlement._OUTCOME
    assert "answer" not in columns
    assert "json" not in " ".join(columns.values())
