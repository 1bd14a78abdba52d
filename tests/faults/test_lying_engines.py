"""Engines and what stands before them, as public bug reports describe them: good answers are kept, no job pays for the way."""

import asyncio
import gzip
import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from schemas.errors import ErrorCode
from schemas.results import ChatResult, IntentResult, JobState
from tests.faults.test_engine_faults import bulk, intents, outcomes, serve, succeeded
from tests.support.faulty_proxy import BATCH, CHAT, Proxy, Rule, always
from tests.support.sandbox import Sandbox, wait_for

SECRET_PATH = "/oauth/start"


def redirected() -> web.Response:
    return web.Response(status=302, headers={"location": f"https://login.example{SECRET_PATH}?state=secret"})


WAYS: dict[str, Callable[[], web.Response]] = {
    "a login page": redirected,
    "a wrong route": lambda: web.Response(status=405, text="<html>"),
    "a plain 400": lambda: web.Response(status=400, text="<html>400 Bad Request</html>"),
    "a proxy's key": lambda: web.Response(status=407),
    "a teapot": lambda: web.Response(status=418),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_status_that_is_about_the_way_costs_no_attempt_and_is_named(sandbox: Sandbox, way: str) -> None:
    """The engine is healthy and lists its models; only the work is answered by somebody in between."""
    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        proxy.rules |= {CHAT: always(WAYS[way]), BATCH: always(WAYS[way])}
        with bulk(sandbox) as (client, _):
            batch = client.submit_many(intents(300)).batch_id
            wait_for(
                lambda: sandbox.query("SELECT count(*) FROM endpoint_samples WHERE problem IS NOT NULL")[0][0],
                "the endpoint's problem",
            )
            assert sandbox.settled() == 0
            if way == "a login page":
                for command in ("queues", "health"):
                    said = sandbox.yyc3(command, check=None).stdout
                    assert "redirects to login.example" in said
                    assert SECRET_PATH not in said
            proxy.rules.clear()
            found = outcomes(client, batch)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}


def test_a_job_that_somebody_in_between_dislikes_fails_alone(sandbox: Sandbox) -> None:
    async def firewall(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=403, text="blocked") if "禁词".encode() in await request.read() else None

    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        proxy.rules |= {CHAT: firewall, BATCH: firewall}
        with bulk(sandbox) as (client, _):
            jobs = intents(100)
            jobs[50]["text"] = "禁词"
            found = outcomes(client, client.submit_many(jobs).batch_id)
            failed = [outcome for outcome in found if outcome.state is JobState.FAILED]
            assert len(failed) == 1
            assert failed[0].error is not None
            assert failed[0].error.code is ErrorCode.ENGINE_FAILED
            assert "HTTP 403" in failed[0].error.message
            assert failed[0].job_id == found[50].job_id


def test_an_engine_that_fails_all_work_but_is_healthy_is_left_alone_until_it_works(sandbox: Sandbox) -> None:
    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        rule = always(lambda: web.Response(status=500))
        proxy.rules |= {CHAT: rule, BATCH: rule}
        with bulk(sandbox) as (client, _):
            batch = client.submit_many(intents(200)).batch_id
            # Far more probes than attempts that a job has.
            wait_for(lambda: proxy.count(CHAT) > 12, "probes that ask for work")
            proxy.rules.clear()
            found = outcomes(client, batch)
            assert succeeded(found)
            assert max(outcome.attempts for outcome in found) <= 2


def test_an_engine_that_hangs_is_given_up_and_no_job_pays(sandbox: Sandbox) -> None:
    """It accepts requests and answers nothing, and its metrics stand still: known in seconds, not after the time limit."""

    async def hang(_: web.Request) -> web.StreamResponse | None:
        await asyncio.Event().wait()
        raise AssertionError

    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox, AI_TIMEOUT_MS="300000") as (client, worker):
            assert succeeded(outcomes(client, client.submit_many(intents(40)).batch_id))
            proxy.rules |= {CHAT: hang, BATCH: hang}
            batch = client.submit_many(intents(200)).batch_id
            worker.wait_until_logged("endpoint hangs", "the engine that hangs")
            wait_for(
                lambda: sandbox.query("SELECT count(*) FROM chunks WHERE state = 'queued' AND last_code IS NOT NULL")[
                    0
                ][0],
                "the chunks to go back",
            )
            proxy.rules.clear()
            found = outcomes(client, batch)
            assert succeeded(found)
            assert {outcome.attempts for outcome in found} == {0}


async def _compressed(request: web.Request, engine: str) -> web.StreamResponse:
    from aiohttp import ClientSession

    async with (
        ClientSession() as session,
        session.post(
            engine + request.path, data=await request.read(), headers={"content-type": "application/json"}
        ) as found,
    ):
        body = await found.read()
        kind = found.headers["content-type"]
    return web.Response(body=gzip.compress(body), headers={"content-encoding": "gzip", "content-type": kind})


def test_an_answer_that_somebody_compressed_is_read(sandbox: Sandbox) -> None:
    """Nobody asked for it: the product says that it takes no encoding."""
    seen: list[str] = []
    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:

        async def compress(request: web.Request) -> web.StreamResponse | None:
            seen.append(request.headers.get("accept-encoding", ""))
            return await _compressed(request, engine.url)

        serve(sandbox, [proxy.url])
        proxy.rules |= {CHAT: compress, BATCH: compress}
        with bulk(sandbox) as (client, _), sandbox.worker("interactive"):
            assert succeeded(outcomes(client, client.submit_many(intents(40)).batch_id))
            job = {"kind": "chat", "messages": [{"role": "user", "content": "你好"}]}
            outcome = client.result(client.submit(job), timeout=60)
            assert outcome.state is JobState.SUCCEEDED
            assert outcome.attempts == 0
        assert set(seen) == {"identity"}


def answering(*choices: dict[str, Any], **more: Any) -> Rule:
    """Return a rule that answers a single row with these choices, streamed where a stream is asked for."""

    async def rule(request: web.Request) -> web.StreamResponse | None:
        if "ping" in (await request.text()):
            return None
        if (await request.json()).get("stream"):
            events = [
                {"choices": [{"delta": choice["message"], "finish_reason": choice["finish_reason"]}]}
                for choice in choices
            ]
            lines = [b"data:" + orjson.dumps(event) + b"\r\n\r\n" for event in (*events, {"choices": [], **more})]
            return web.Response(body=b"".join([*lines, b"data:[DONE]\r\n\r\n"]), content_type="text/event-stream")
        return web.Response(
            body=json.dumps({"choices": list(choices), **more}).encode(), content_type="application/json"
        )

    return rule


def test_a_good_answer_is_kept_whatever_its_bookkeeping_says(sandbox: Sandbox) -> None:
    said = {"message": {"content": "好的"}, "finish_reason": "stop"}
    label = {
        "message": {"content": "退"},
        "finish_reason": "length",
        "logprobs": {
            "content": [
                {
                    "token": "退",
                    "logprob": -0.1,
                    "top_logprobs": [{"token": "查", "logprob": None}, {"token": "转", "logprob": -9}],
                }
            ]
        },
    }
    labels = [
        {"name": "refund", "word": "退款"},
        {"name": "query", "word": "查询"},
        {"name": "human", "word": "转人工"},
    ]
    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox) as (client, _), sandbox.worker("interactive"):
            proxy.rules[CHAT] = answering(said, usage={"prompt_tokens": 5.0, "completion_tokens": "three"})
            chat = client.result(
                client.submit({"kind": "chat", "messages": [{"role": "user", "content": "你好"}]}), timeout=60
            )
            proxy.rules[CHAT] = answering(label, usage={"prompt_tokens": -1})
            intent = client.result(client.submit({"kind": "intent", "text": "退钱", "labels": labels}), timeout=60)
    assert isinstance(chat.result, ChatResult)
    assert (chat.result.text, chat.attempts) == ("好的", 0)
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (None, None)
    assert isinstance(intent.result, IntentResult)
    assert (intent.result.label, intent.attempts) == ("refund", 0)
    assert intent.result.confidence is not None
    assert 0.9 < intent.result.confidence < 1


def test_half_an_answer_never_passes_for_a_whole_one(sandbox: Sandbox) -> None:
    cases = {
        ErrorCode.CONTENT_FILTERED: {"message": {"content": "我不"}, "finish_reason": "content_filter"},
        ErrorCode.INVALID_OUTPUT: {"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"},
    }
    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        with bulk(sandbox) as (client, _), sandbox.worker("interactive"):
            for code, choice in cases.items():
                proxy.rules[CHAT] = answering(choice)
                before = proxy.count(CHAT)
                job = {"kind": "chat", "messages": [{"role": "user", "content": f"你好 {code}"}]}
                outcome = client.result(client.submit(job), timeout=60)
                assert outcome.state is JobState.FAILED
                assert outcome.error is not None
                assert outcome.error.code is code
                assert proxy.count(CHAT) == before + 1, "asked again, it would be paid for again"


def test_an_entry_may_name_the_engines_own_name_and_its_template_arguments(sandbox: Sandbox) -> None:
    bodies: list[dict[str, Any]] = []

    async def keep(request: web.Request) -> web.StreamResponse | None:
        bodies.append(await request.json())
        return None

    with sandbox.simulator(model="Qwen/Qwen3-0.6B") as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        file = sandbox.home / "models.toml"
        more = 'served_name = "Qwen/Qwen3-0.6B"\nchat_template_kwargs = { enable_thinking = false }\n'
        file.write_text(file.read_text() + more)
        proxy.rules |= {CHAT: keep, BATCH: keep}
        with bulk(sandbox) as (client, _):
            assert succeeded(outcomes(client, client.submit_many(intents(40)).batch_id))
            assert "ok   chatglm3-6b at" in sandbox.yyc3("health", check=None).stdout
    asked = [body for body in bodies if body.get("messages") and "chat_template_kwargs" in body]
    assert {body["model"] for body in asked} == {"Qwen/Qwen3-0.6B"}
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in asked)
    assert asked


@contextmanager
def https_engine(folder: Path, target: str) -> Iterator[tuple[str, Path]]:
    """Run a proxy that speaks TLS with a certificate of its own."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Proxy(target, context) as proxy:
        yield proxy.url, certificate


def test_a_private_certificate_is_named_and_can_be_trusted(sandbox: Sandbox) -> None:
    with sandbox.simulator() as engine, https_engine(sandbox.home, engine.url) as (url, certificate):
        serve(sandbox, [url])
        said = sandbox.yyc3("health", check=3).stdout
        assert "shows a certificate that is not trusted" in said
        assert "SSL_CERT_FILE" in said
        sandbox.environment["SSL_CERT_FILE"] = str(certificate)
        assert f"ok   chatglm3-6b at {url}" in sandbox.yyc3("health", check=None).stdout
        with bulk(sandbox) as (client, _):
            assert succeeded(outcomes(client, client.submit_many(intents(40)).batch_id))


def test_a_key_with_a_line_end_is_a_key_and_a_strange_one_is_refused(sandbox: Sandbox) -> None:
    async def locked(request: web.Request) -> web.StreamResponse | None:
        return None if request.headers.get("authorization") == "Bearer sk-abc" else web.Response(status=401)

    with sandbox.simulator() as engine, Proxy(engine.url) as proxy:
        serve(sandbox, [proxy.url])
        proxy.rules |= {"/v1/models": locked, CHAT: locked}
        assert "needs another API key" in sandbox.yyc3("health", check=3).stdout
        assert f"ok   chatglm3-6b at {proxy.url}" in sandbox.yyc3("health", check=None, AI_API_KEY=" sk-abc\n").stdout
        refused = sandbox.yyc3("health", check=2, AI_API_KEY="sk-\u00e9\n")
        assert "AI_API_KEY" in refused.stderr
        assert "Traceback" not in refused.stderr
