"""Engines that refuse, hang, break, lie or change, with real workers: every job has its one outcome, and the right one."""

import asyncio
import json
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web

from pipeline import Client
from schemas.errors import ErrorCode
from schemas.ids import BatchId
from schemas.results import JobState, Outcome
from tests.support.faulty_proxy import Proxy, always
from tests.support.sandbox import Sandbox, Simulator, wait_for

MODEL = "chatglm3-6b"
BATCH = "/v1/chat/completions/batch"


def jobs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"kind": "intent", "text": f"我是第{i}位客户，我要退款。", "cache": False, **more} for i in range(count)]


def serve(
    sandbox: Sandbox,
    urls: Sequence[str],
    *,
    max_num_seqs: int = 256,
    model: str = MODEL,
    kinds: str = '"chat", "intent"',
) -> None:
    """Let a models.toml name these endpoints."""
    file = sandbox.home / "models.toml"
    entry = (
        f"[models.{model}]\nkinds = [{kinds}]\nport = 1\nseats = {max_num_seqs}\nendpoints = {json.dumps(list(urls))}\n"
    )
    file.write_text(entry + (file.read_text() if file.exists() else ""))
    sandbox.environment["YYC3_MODELS_FILE"] = str(file)
    for name in ("AI_BASE_URL", "AI_MODEL"):
        sandbox.environment.pop(name, None)


@contextmanager
def bulk(sandbox: Sandbox, *models: str, **environment: str) -> Iterator[Client]:
    """A bulk worker, recovery, and a client."""
    with ExitStack() as stack:
        stack.enter_context(sandbox.worker("bulk", *models, **environment))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("YYC3_MODELS_FILE", sandbox.environment["YYC3_MODELS_FILE"])
        yield stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))


def outcomes(client: Client, batch: BatchId, seconds: float = 60) -> list[Outcome]:
    end = time.monotonic() + seconds
    for progress in client.watch_batch(batch):
        assert time.monotonic() < end, progress
    return list(client.batch_outcomes(batch))


def succeeded(found: Sequence[Outcome]) -> bool:
    return all(outcome.state is JobState.SUCCEEDED for outcome in found)


def weather(simulator: Simulator, *faults: str) -> None:
    """Let it fail from now on."""
    said = [fault.split(":") for fault in faults]
    entries = [
        {"kind": kind, "probability": float(rest[0]) if rest else 1.0, "seconds": float(rest[1]) if rest[1:] else None}
        for kind, *rest in said
    ]
    httpx.put(f"{simulator.url}/simulator/faults", json={"faults": entries}).raise_for_status()


def samples(sandbox: Sandbox, what: str) -> list[tuple[Any, ...]]:
    return sandbox.query(f"SELECT {what} FROM endpoint_samples ORDER BY at")


def test_an_endpoint_that_refuses_leaves_its_work_to_the_other(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one:
        serve(sandbox, ["http://127.0.0.1:9", one.url])
        with bulk(sandbox) as client:
            found = outcomes(client, client.submit_many(jobs(400)).batch_id)
            assert succeeded(found)
            assert {outcome.endpoint for outcome in found} == {one.url}
            assert {outcome.attempts for outcome in found} == {0}


def test_one_that_accepts_and_never_answers_costs_time_and_no_job(sandbox: Sandbox) -> None:
    with sandbox.simulator() as deaf, sandbox.simulator() as one:
        serve(sandbox, [deaf.url, one.url])
        weather(deaf, "hang")
        with bulk(sandbox, AI_TIMEOUT_MS="1000") as client:
            found = outcomes(client, client.submit_many(jobs(600)).batch_id)
            assert succeeded(found)
            assert {outcome.endpoint for outcome in found} == {one.url}


def test_an_answer_after_the_timeout_is_no_answer(sandbox: Sandbox) -> None:
    with sandbox.simulator() as late, sandbox.simulator() as one:
        serve(sandbox, [late.url, one.url])
        weather(late, "slow:1:2")
        with bulk(sandbox, AI_TIMEOUT_MS="600") as client:
            found = outcomes(client, client.submit_many(jobs(200)).batch_id)
            assert succeeded(found)
            assert {outcome.endpoint for outcome in found} == {one.url}
            assert sandbox.query("SELECT count(*) FROM outcomes") == [(200,)]


def test_a_row_that_breaks_the_engine_breaks_it_for_nobody_else(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, sandbox.simulator() as two:
        serve(sandbox, [one.url, two.url])
        for simulator in (one, two):
            script = {"answers": [{"when": "炸弹", "fault": "500"}]}
            httpx.put(f"{simulator.url}/simulator/answers", json=script).raise_for_status()
        with bulk(sandbox) as client:
            mine = jobs(100)
            mine[42]["text"] = "这是炸弹"
            found = outcomes(client, client.submit_many(mine).batch_id)
            bad = found.pop(42)
            assert succeeded(found)
            assert bad.state is JobState.FAILED
            assert bad.error is not None
            assert bad.error.code is ErrorCode.ENGINE_FAILED
            assert max(outcome.attempts for outcome in found) <= 1


def test_a_bad_row_is_found_by_halving_and_costs_the_others_no_try(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one:
        serve(sandbox, [one.url])
        weather(one, "badrow:0.02")
        with bulk(sandbox) as client:
            found = outcomes(client, client.submit_many(jobs(300)).batch_id)
            bad = [outcome for outcome in found if outcome.state is JobState.FAILED]
            assert 1 <= len(bad) <= 20
            assert {outcome.error.code for outcome in bad if outcome.error} == {ErrorCode.REQUEST_REJECTED}
            assert {outcome.batch_rows for outcome in bad} == {1}
            good = [outcome for outcome in found if outcome.state is JobState.SUCCEEDED]
            assert len(good) + len(bad) == 300
            assert {outcome.attempts for outcome in good} == {0}
            assert max(outcome.batch_rows or 0 for outcome in good) > 8


def test_a_storm_of_503_passes_without_a_failed_try(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one:
        serve(sandbox, [one.url])
        weather(one, "503:0.8")
        with bulk(sandbox) as client:
            batch = client.submit_many(jobs(600)).batch_id
            wait_for(lambda: one.state()["faults_struck"] > 20, "the storm")
            weather(one)
            found = outcomes(client, batch)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}


def test_an_engine_with_a_short_queue_is_never_sent_more_than_it_takes_for_long(sandbox: Sandbox) -> None:
    with sandbox.simulator("--max-num-queued-reqs", "24", "--max-num-seqs", "16", speed=20) as one:
        serve(sandbox, [one.url])
        with bulk(sandbox) as client:
            found = outcomes(client, client.submit_many(jobs(1_000)).batch_id)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}
            # Of a request that is refused each row is counted.
            assert one.state()["rejected"] < 500


@pytest.mark.parametrize("fault", ["cut", "garbage", "empty", "abort", "nonsense"])
def test_answers_that_are_cut_or_nonsense_are_asked_again(sandbox: Sandbox, fault: str) -> None:
    with sandbox.simulator() as one, sandbox.simulator() as two:
        serve(sandbox, [one.url, two.url])
        wrong = {"answer": "银河系漫游指南"} if fault == "nonsense" else {"fault": fault}
        script = {"answers": [{"when": words, "times": 2, **wrong} for words in ("退款", "你好")]}
        httpx.put(f"{one.url}/simulator/answers", json=script).raise_for_status()
        with bulk(sandbox) as client:
            mine = jobs(60) + [
                {"kind": "chat", "messages": [{"role": "user", "content": f"你好 {i}"}], "sampling": {"max_tokens": 30}}
                for i in range(40)
            ]
            found = outcomes(client, client.submit_many(mine).batch_id, 90)
            assert succeeded(found), [outcome for outcome in found if outcome.state is not JobState.SUCCEEDED][:3]
            assert max(outcome.attempts for outcome in found) >= 1


def test_an_engine_that_is_told_to_stop_answers_half_and_the_other_one_whole(sandbox: Sandbox) -> None:
    with sandbox.simulator(speed=3) as one, sandbox.simulator(speed=3) as two:
        serve(sandbox, [one.url, two.url])
        with bulk(sandbox) as client:
            chats = [
                {
                    "kind": "chat",
                    "messages": [{"role": "user", "content": f"讲个故事 {i}"}],
                    "sampling": {"max_tokens": 200},
                }
                for i in range(60)
            ]
            batch = client.submit_many(chats).batch_id
            wait_for(lambda: one.state()["running"] > 5 and two.state()["running"] > 5, "both at work")
            one.started.process.send_signal(signal.SIGTERM)
            found = outcomes(client, batch)
            assert succeeded(found)
            assert max(outcome.attempts for outcome in found) <= 1


def test_an_engine_that_serves_another_model_is_left_alone_until_it_serves_ours(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox) as client:
            assert succeeded(outcomes(client, client.submit_many(jobs(50)).batch_id))
            body = {
                "error": {"message": "The model does not exist", "type": "NotFoundError", "param": "model", "code": 404}
            }
            gone = always(lambda: web.json_response(body, status=404))
            listing = always(lambda: web.json_response({"object": "list", "data": [{"id": "qwen"}]}))
            proxy.rules = {BATCH: gone, "/v1/chat/completions": gone, "/v1/models": listing}
            batch = client.submit_many(jobs(50)).batch_id
            wait_for(
                lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code = 'engine_unavailable'"), "the chunk back"
            )
            proxy.rules = {}
            found = outcomes(client, batch)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}


def test_a_server_whose_engine_is_dead_is_left_alone_until_that_lives_and_buries_no_job(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        broken = always(lambda: web.json_response({"error": {"message": "EngineCore died", "code": 500}}, status=500))
        proxy.rules = {
            BATCH: broken,
            "/v1/chat/completions": broken,
            "/health": always(lambda: web.Response(status=503)),
        }
        with bulk(sandbox) as client:
            batch = client.submit_many(jobs(120)).batch_id
            wait_for(
                lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code = 'engine_unavailable'"), "the chunk back"
            )
            asked = proxy.count(BATCH) + proxy.count("/v1/chat/completions")
            wait_for(lambda: proxy.count("/health") >= 4, "some more probes")
            assert proxy.count(BATCH) + proxy.count("/v1/chat/completions") <= asked + 4, "it is not asked, but probed"
            proxy.rules = {}
            found = outcomes(client, batch)
            assert succeeded(found)
            assert max(outcome.attempts for outcome in found) <= 2


def test_a_revision_that_changes_is_told_and_its_answers_are_not_taken_for_the_old_ones(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        same = [{"kind": "intent", "text": "我要退款"}]

        def listing(root: str) -> web.Response:
            entry = {"id": MODEL, "root": root, "owned_by": "simulator", "max_model_len": 8192}
            return web.json_response({"object": "list", "data": [entry]})

        with bulk(sandbox) as client:
            first = outcomes(client, client.submit_many(same).batch_id)[0]
            again = outcomes(client, client.submit_many(same).batch_id)[0]
            assert again.cached_from == first.job_id
            assert again.model_revision == first.model_revision
            proxy.rules["/v1/models"] = always(lambda: listing("weights-2"))
            broken = always(lambda: web.Response(status=401))
            proxy.rules["/v1/chat/completions"] = broken  # what was known of it is asked again
            client.submit_many([{"kind": "intent", "text": "别的"}])
            wait_for(lambda: proxy.count("/v1/chat/completions") > 1, "the refusal")
            del proxy.rules["/v1/chat/completions"]
            wait_for(lambda: sandbox.query("SELECT count(*) FROM outcomes")[0][0] == 3, "the other job")
            renewed = outcomes(client, client.submit_many(same).batch_id)[0]
            assert renewed.cached_from is None
            assert renewed.model_revision == "weights-2"


def test_an_engine_that_loses_its_batch_route_is_asked_singly(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox) as client:
            assert succeeded(outcomes(client, client.submit_many(jobs(100)).batch_id))
            proxy.rules[BATCH] = always(lambda: web.json_response({"detail": "Not Found"}, status=404))
            before = proxy.count(BATCH)
            found = outcomes(client, client.submit_many(jobs(100)).batch_id)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}
            assert {outcome.batch_rows for outcome in found} == {1}
            assert proxy.count(BATCH) - before <= 8, "those that were under way, and none after"


def test_a_slow_endpoint_gets_fewer_rows_and_stalls_nobody(sandbox: Sandbox) -> None:
    with sandbox.simulator(speed=20) as one, sandbox.simulator(speed=20) as two, sandbox.simulator(speed=2) as slow:
        serve(sandbox, [one.url, two.url, slow.url], max_num_seqs=32)
        with bulk(sandbox) as client:
            chats = [
                {
                    "kind": "chat",
                    "messages": [{"role": "user", "content": f"讲个故事 {i}"}],
                    "sampling": {"max_tokens": 100},
                }
                for i in range(400)
            ]
            found = outcomes(client, client.submit_many(chats).batch_id)
            assert succeeded(found)
            rows = {url: sum(outcome.endpoint == url for outcome in found) for url in (one.url, two.url, slow.url)}
            assert rows[slow.url] * 2 < min(rows[one.url], rows[two.url]), rows


async def _stale(page: list[bytes], request: web.Request) -> web.StreamResponse | None:
    """The first page for ever."""
    del request
    return web.Response(body=page[0]) if page else None


@pytest.mark.parametrize("metrics", ["missing", "late", "frozen"])
def test_without_metrics_the_work_goes_on(sandbox: Sandbox, metrics: str) -> None:
    with sandbox.simulator(speed=30) as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url], max_num_seqs=64)
        page = httpx.get(f"{one.url}/metrics").content

        async def late(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(5)
            return web.Response(body=page)

        proxy.rules["/metrics"] = {
            "missing": always(lambda: web.Response(status=404)),
            "late": late,
            "frozen": always(lambda: web.Response(body=page)),
        }[metrics]
        with bulk(sandbox) as client:
            chats = [
                {
                    "kind": "chat",
                    "messages": [{"role": "user", "content": f"讲个故事 {i}"}],
                    "sampling": {"max_tokens": 200},
                }
                for i in range(1_000)
            ]
            batch = client.submit_many(chats).batch_id
            wait_for(lambda: samples(sandbox, "engine_running"), "a sample")
            assert succeeded(outcomes(client, batch))
            assert proxy.count("/metrics") >= 3
            limits = [limit for (limit,) in samples(sandbox, "limit_rows")]
            assert min(limits) >= 16, limits


def test_when_all_endpoints_of_a_model_are_out_its_worker_serves_the_others_and_returns_by_itself(
    sandbox: Sandbox,
) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(sandbox.simulator())
        other = stack.enter_context(sandbox.simulator(model="other"))
        port = int(one.url.rpartition(":")[2])
        serve(sandbox, [one.url])
        serve(sandbox, [other.url], model="other", kinds='"code"')
        client = stack.enter_context(bulk(sandbox, MODEL, "other"))
        assert succeeded(outcomes(client, client.submit_many(jobs(50)).batch_id))
        one.started.kill()
        lost = client.submit_many(jobs(50)).batch_id
        wait_for(lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code = 'engine_unavailable'"), "the chunk back")
        log = wait_for(lambda: next(sandbox.home.glob("workers.main-bulk-*.log"), None), "the log")
        wait_for(lambda: re.search("takes no jobs", log.read_text()), "the word")
        fences = sandbox.query("SELECT sum(fence) FROM chunks WHERE model = %s", MODEL)
        code = {"kind": "code", "instruction": "add", "language": "python", "model": "other"}
        assert succeeded(outcomes(client, client.submit_many([code] * 3).batch_id))
        assert sandbox.query("SELECT sum(fence) FROM chunks WHERE model = %s", MODEL)[0][0] <= fences[0][0] + 1
        arguments = ("simulator", "--model", MODEL, "--port", str(port), "--speed", "100")
        stack.enter_context(sandbox.process(*arguments))
        found = outcomes(client, lost)
        assert succeeded(found)
        assert {outcome.attempts for outcome in found} == {0}
        assert "takes jobs again" in log.read_text()
