"""Engines that refuse, hang, break, lie or change, with real workers: every job has one outcome, the right one."""

import asyncio
import json
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
from tests.support.exclusive import reserve_port
from tests.support.faulty_proxy import BATCH, CHAT, Proxy, always
from tests.support.sandbox import ROOT, Sandbox, Started, wait_for

MODEL = "chatglm3-6b"


def intents(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"kind": "intent", "text": f"我是第{i}位客户，我要退款。", "cache": False, **more} for i in range(count)]


def chats(count: int, max_tokens: int, words: str = "讲个故事") -> list[dict[str, Any]]:
    return [
        {
            "kind": "chat",
            "messages": [{"role": "user", "content": f"{words} {i}"}],
            "sampling": {"max_tokens": max_tokens},
        }
        for i in range(count)
    ]


def serve(
    sandbox: Sandbox,
    urls: Sequence[str],
    *,
    max_num_seqs: int = 256,
    model: str = MODEL,
    kinds: str = '"chat", "intent"',
) -> None:
    """Add a model with these endpoints to the models.toml of a test."""
    file = sandbox.home / "models.toml"
    entry = (
        f"[models.{model}]\nkinds = [{kinds}]\nport = 1\nmax_num_seqs = {max_num_seqs}\n"
        f"endpoints = {json.dumps(list(urls))}\n"
    )
    file.write_text(entry + (file.read_text() if file.exists() else ""))
    sandbox.environment["YYC3_MODELS_FILE"] = str(file)
    for name in ("AI_BASE_URL", "AI_MODEL"):
        sandbox.environment.pop(name, None)


@contextmanager
def bulk(sandbox: Sandbox, *models: str, **environment: str) -> Iterator[tuple[Client, Started]]:
    """Run a bulk worker, recovery, and a client."""
    with ExitStack() as stack:
        worker = stack.enter_context(sandbox.worker("bulk", *models, cwd=ROOT, **environment))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("YYC3_MODELS_FILE", sandbox.environment["YYC3_MODELS_FILE"])
        yield stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url)), worker


def outcomes(client: Client, batch: BatchId, seconds: float = 120) -> list[Outcome]:
    """Wait for a batch and return its outcomes; fails when it takes longer than a test may."""
    end = time.monotonic() + seconds
    for progress in client.watch_batch(batch):
        assert time.monotonic() < end, progress
    return list(client.batch_outcomes(batch))


def succeeded(found: Sequence[Outcome]) -> bool:
    return all(outcome.state is JobState.SUCCEEDED for outcome in found)


def samples(sandbox: Sandbox, what: str) -> list[tuple[Any, ...]]:
    return sandbox.query(f"SELECT {what} FROM endpoint_samples ORDER BY at")


def test_an_endpoint_that_refuses_connections_leaves_its_rows_to_the_other(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one:
        serve(sandbox, ["http://127.0.0.1:9", one.url])
        with bulk(sandbox) as (client, _):
            found = outcomes(client, client.submit_many(intents(400)).batch_id)
            assert succeeded(found)
            assert {outcome.endpoint for outcome in found} == {one.url}
            assert {outcome.attempts for outcome in found} == {0}


def test_an_endpoint_that_never_answers_costs_time_and_no_job(sandbox: Sandbox) -> None:
    with sandbox.simulator() as hanging, sandbox.simulator() as one:
        serve(sandbox, [hanging.url, one.url])
        hanging.inject_faults("hang")
        with bulk(sandbox, AI_TIMEOUT_MS="2000") as (client, _):
            found = outcomes(client, client.submit_many(intents(600)).batch_id)
            assert succeeded(found)
            assert {outcome.endpoint for outcome in found} == {one.url}


def test_an_answer_after_the_timeout_is_ignored(sandbox: Sandbox) -> None:
    with sandbox.simulator() as late, sandbox.simulator() as one:
        serve(sandbox, [late.url, one.url])
        late.inject_faults("slow:1:5")
        with bulk(sandbox, AI_TIMEOUT_MS="2000") as (client, _):
            found = outcomes(client, client.submit_many(intents(200)).batch_id)
            assert succeeded(found)
            assert {outcome.endpoint for outcome in found} == {one.url}
            assert sandbox.query("SELECT count(*) FROM outcomes") == [(200,)]


def test_a_row_that_breaks_the_engine_fails_alone(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, sandbox.simulator() as two:
        serve(sandbox, [one.url, two.url])
        for simulator in (one, two):
            simulator.script_answers({"when": "炸弹", "fault": "500"})
        with bulk(sandbox) as (client, _):
            mine = intents(100)
            mine[42]["text"] = "这是炸弹"
            found = outcomes(client, client.submit_many(mine).batch_id)
            bad = found.pop(42)
            assert succeeded(found)
            assert bad.state is JobState.FAILED
            assert bad.error is not None
            assert bad.error.code is ErrorCode.ENGINE_FAILED
            assert max(outcome.attempts for outcome in found) <= 1


def test_a_bad_row_is_found_by_halving_and_costs_the_others_no_attempt(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one:
        serve(sandbox, [one.url])
        one.inject_faults("badrow:0.02")
        with bulk(sandbox) as (client, _):
            found = outcomes(client, client.submit_many(intents(300)).batch_id)
            bad = [outcome for outcome in found if outcome.state is JobState.FAILED]
            assert 1 <= len(bad) <= 20
            assert {outcome.error.code for outcome in bad if outcome.error} == {ErrorCode.REQUEST_REJECTED}
            assert {outcome.batch_rows for outcome in bad} == {1}
            good = [outcome for outcome in found if outcome.state is JobState.SUCCEEDED]
            assert len(good) + len(bad) == 300
            assert {outcome.attempts for outcome in good} == {0}
            assert max(outcome.batch_rows or 0 for outcome in good) > 8


def test_a_storm_of_503_passes_without_a_failed_attempt(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one:
        serve(sandbox, [one.url])
        one.inject_faults("503:0.8")
        with bulk(sandbox) as (client, _):
            batch = client.submit_many(intents(1_200)).batch_id
            wait_for(lambda: one.state()["faults_struck"] > 20, "the storm")
            one.inject_faults()
            found = outcomes(client, batch)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}


def test_an_engine_with_a_short_queue_is_soon_sent_no_more_than_it_accepts(sandbox: Sandbox) -> None:
    short = ("--max-num-queued-reqs", "24", "--max-num-seqs", "16")
    with sandbox.simulator(*short, speed=20) as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox) as (client, _):
            found = outcomes(client, client.submit_many(intents(1_000)).batch_id)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}
            # Of a request that is refused each row is counted. The limit rises again with each poll of the
            # gauges, once a second: there are two on an idle machine, and more on a busy one.
            assert one.state()["rejected"] < 250 * max(2, proxy.count("/metrics"))


@pytest.mark.parametrize("fault", ["cut", "garbage", "empty", "abort", "nonsense"])
def test_rows_whose_answers_are_cut_or_nonsense_are_sent_again(sandbox: Sandbox, fault: str) -> None:
    with sandbox.simulator() as one, sandbox.simulator() as two:
        serve(sandbox, [one.url, two.url])
        wrong = {"answer": "银河系漫游指南"} if fault == "nonsense" else {"fault": fault}
        one.script_answers(*[{"when": words, "times": 2, **wrong} for words in ("退款", "你好")])
        with bulk(sandbox) as (client, _):
            mine = intents(60) + chats(40, 30, "你好")
            found = outcomes(client, client.submit_many(mine).batch_id)
            assert succeeded(found), [outcome for outcome in found if outcome.state is not JobState.SUCCEEDED][:3]
            assert max(outcome.attempts for outcome in found) >= 1


def test_rows_of_a_stopping_engine_are_answered_in_full_by_the_other(sandbox: Sandbox) -> None:
    with sandbox.simulator(speed=0.1) as one, sandbox.simulator(speed=3) as two:
        serve(sandbox, [one.url, two.url])
        with bulk(sandbox) as (client, _):
            batch = client.submit_many(chats(60, 200)).batch_id
            # The slow engine needs half a minute for an answer: it stops in the middle of several.
            wait_for(lambda: one.state()["running"] > 5 and two.state()["rows"] > 5, "both engines to have rows")
            one.started.process.send_signal(signal.SIGTERM)
            found = outcomes(client, batch)
            assert succeeded(found)
            assert max(outcome.attempts for outcome in found) <= 1


def test_an_engine_that_serves_another_model_waits_until_it_serves_ours(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox) as (client, _):
            assert succeeded(outcomes(client, client.submit_many(intents(50)).batch_id))
            body = {
                "error": {"message": "The model does not exist", "type": "NotFoundError", "param": "model", "code": 404}
            }
            gone = always(lambda: web.json_response(body, status=404))
            listing = always(lambda: web.json_response({"object": "list", "data": [{"id": "qwen"}]}))
            proxy.rules = {BATCH: gone, CHAT: gone, "/v1/models": listing}
            batch = client.submit_many(intents(50)).batch_id
            wait_for(
                lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code = 'engine_unavailable'"), "the chunk back"
            )
            proxy.rules = {}
            found = outcomes(client, batch)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}


def test_a_server_with_a_dead_engine_is_only_probed_and_fails_no_job(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        broken = always(lambda: web.json_response({"error": {"message": "EngineCore died", "code": 500}}, status=500))
        proxy.rules = {
            BATCH: broken,
            CHAT: broken,
            "/health": always(lambda: web.Response(status=503)),
        }
        with bulk(sandbox) as (client, _):
            batch = client.submit_many(intents(120)).batch_id
            wait_for(
                lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code = 'engine_unavailable'"), "the chunk back"
            )
            sent, probes = proxy.count(BATCH, CHAT), proxy.count("/health")
            wait_for(lambda: proxy.count("/health") >= probes + 3, "some more probes")
            asked = proxy.count("/health") - probes + 1  # one may be on its way
            assert proxy.count(BATCH, CHAT) <= sent + 2 * asked, "it is sent no rows, and probed with one row each way"
            proxy.rules = {}
            found = outcomes(client, batch)
            assert succeeded(found)
            assert max(outcome.attempts for outcome in found) <= 2


def test_a_changed_revision_is_stored_and_answers_nothing_from_the_cache(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        same = [{"kind": "intent", "text": "我要退款"}]

        def listing(root: str) -> web.Response:
            entry = {"id": MODEL, "root": root, "owned_by": "simulator", "max_model_len": 8192}
            return web.json_response({"object": "list", "data": [entry]})

        with bulk(sandbox) as (client, _):
            first = outcomes(client, client.submit_many(same).batch_id)[0]
            again = outcomes(client, client.submit_many(same).batch_id)[0]
            assert again.cached_from == first.job_id
            assert again.model_revision == first.model_revision
            proxy.rules["/v1/models"] = always(lambda: listing("weights-2"))
            broken = always(lambda: web.Response(status=401))
            proxy.rules[CHAT] = broken  # the endpoint is probed again
            client.submit_many([{"kind": "intent", "text": "别的"}])
            wait_for(lambda: proxy.count(CHAT) > 1, "the refusal")
            del proxy.rules[CHAT]
            wait_for(lambda: sandbox.query("SELECT count(*) FROM outcomes")[0][0] == 3, "the other job")
            renewed = outcomes(client, client.submit_many(same).batch_id)[0]
            assert renewed.cached_from is None
            assert renewed.model_revision == "weights-2"


def test_an_engine_that_loses_its_batch_route_is_sent_single_rows(sandbox: Sandbox) -> None:
    with sandbox.simulator() as one, Proxy(one.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox) as (client, _):
            assert succeeded(outcomes(client, client.submit_many(intents(100)).batch_id))
            proxy.rules[BATCH] = always(lambda: web.json_response({"detail": "Not Found"}, status=404))
            before = proxy.count(BATCH)
            found = outcomes(client, client.submit_many(intents(100)).batch_id)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}
            assert {outcome.batch_rows for outcome in found} == {1}
            assert proxy.count(BATCH) - before <= 8, "those in flight, and none after"


def test_a_slow_endpoint_gets_fewer_rows_and_delays_no_other(sandbox: Sandbox) -> None:
    # A step of the fast ones takes 4 ms: their speed does not depend on how busy this machine is.
    with sandbox.simulator(speed=4) as one, sandbox.simulator(speed=4) as two, sandbox.simulator(speed=0.4) as slow:
        serve(sandbox, [one.url, two.url, slow.url], max_num_seqs=32)
        with bulk(sandbox) as (client, _):
            found = outcomes(client, client.submit_many(chats(400, 100)).batch_id)
            assert succeeded(found)
            rows = {url: sum(outcome.endpoint == url for outcome in found) for url in (one.url, two.url, slow.url)}
            assert rows[slow.url] * 2 < min(rows[one.url], rows[two.url]), rows


@pytest.mark.parametrize("metrics", ["missing", "late", "frozen"])
def test_rows_are_sent_on_without_usable_metrics(sandbox: Sandbox, metrics: str) -> None:
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
        with bulk(sandbox) as (client, _):
            batch = client.submit_many(chats(1_000, 200)).batch_id
            wait_for(lambda: samples(sandbox, "engine_running"), "a sample")
            assert succeeded(outcomes(client, batch))
            wait_for(lambda: proxy.count("/metrics") >= 3, "three polls")
            limits = [limit for (limit,) in samples(sandbox, "limit_rows")]
            assert min(limits) >= 16, limits


def test_a_worker_without_endpoints_for_a_model_serves_others_and_resumes(sandbox: Sandbox) -> None:
    port = str(reserve_port())
    with ExitStack() as stack:
        one = stack.enter_context(sandbox.simulator("--port", port))
        other = stack.enter_context(sandbox.simulator(model="other"))
        serve(sandbox, [one.url])
        serve(sandbox, [other.url], model="other", kinds='"code"')
        client, worker = stack.enter_context(bulk(sandbox, MODEL, "other"))
        assert succeeded(outcomes(client, client.submit_many(intents(50)).batch_id))
        one.started.kill()
        waiting = client.submit_many(intents(50)).batch_id
        wait_for(lambda: sandbox.query("SELECT 1 FROM chunks WHERE last_code = 'engine_unavailable'"), "the chunk back")
        wait_for(lambda: worker.logged("consumes no jobs: no endpoint answers"), "the worker to pause the queue")
        fences = "SELECT sum(fence) FROM chunks WHERE model = %s"
        before = sandbox.query(fences, MODEL)[0][0]
        code = {"kind": "code", "instruction": "add", "language": "python", "model": "other"}
        assert succeeded(outcomes(client, client.submit_many([code] * 3).batch_id))
        assert sandbox.query(fences, MODEL)[0][0] <= before + 1
        stack.enter_context(sandbox.process("simulator", "--model", MODEL, "--port", port, "--speed", "100"))
        found = outcomes(client, waiting)
        assert succeeded(found)
        assert {outcome.attempts for outcome in found} == {0}
        assert worker.logged("consumes jobs again")
