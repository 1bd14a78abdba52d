"""A reader follows an answer while its worker, or Redis, goes away: the text at the end is the stored one."""

import json
from contextlib import ExitStack

import redis

from pipeline import Client
from schemas.results import ChatResult
from schemas.streams import EndEvent, RestartEvent, StreamEvent, TextEvent
from tests.support.sandbox import Sandbox

STORY = "从前有一座山，山里有一座庙。" * 12
JOB = {"kind": "chat", "messages": [{"role": "user", "content": "讲个故事"}], "sampling": {"max_tokens": 400}}


def story(sandbox: Sandbox) -> tuple[str, str]:
    answers = sandbox.home / "answers.jsonl"
    answers.write_text(json.dumps({"when": "故事", "answer": STORY}))
    return "--answers", str(answers)


def on_screen(events: list[StreamEvent]) -> str:
    """Return the text that a reader shows after these events."""
    shown = ""
    for event in events:
        shown = "" if isinstance(event, RestartEvent) else shown
        shown += event.text if isinstance(event, TextEvent) else ""
    return shown


def test_a_reader_ends_with_the_stored_text_after_its_worker_was_killed(sandbox: Sandbox) -> None:
    sandbox.environment["YYC3_LEASE_SECONDS"] = "1"
    with ExitStack() as stack:
        # The first engine needs 20 s for the rest of the story: the worker is killed in the middle.
        stack.enter_context(sandbox.simulator(*story(sandbox), speed=0.1))
        stack.enter_context(sandbox.process("pipeline.cli", "recover"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        with sandbox.worker("interactive") as first:
            stream = client.stream(JOB)
            events: list[StreamEvent] = []
            while len(on_screen(events)) < 30:  # the simulator's tokens are single characters
                events.append(next(stream))
            first.kill()
        stack.enter_context(sandbox.simulator(*story(sandbox), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        events += stream
        end = events[-1]
        assert isinstance(end, EndEvent)
        assert isinstance(end.outcome.result, ChatResult)
        assert end.outcome.result.text == STORY
        assert on_screen(events) == STORY
        (restart,) = [event for event in events if isinstance(event, RestartEvent)]
        assert restart.attempt == 2
        before = events[: events.index(restart)]
        assert 30 <= len(on_screen(before)) < len(STORY)
        assert sandbox.query("SELECT count(*) FROM outcomes") == [(1,)]
        late = list(client.follow(end.job_id))
        assert on_screen(late) == STORY


def test_a_reader_ends_with_the_stored_text_after_redis_lost_the_stream(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*story(sandbox), speed=1))
        stack.enter_context(sandbox.worker("interactive"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        stream = client.stream(JOB)
        events: list[StreamEvent] = []
        while len(on_screen(events)) < 20:
            events.append(next(stream))
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            broker.flushdb()
        late = client.follow(events[0].job_id)
        events += stream
        assert on_screen(events) == STORY
        assert on_screen(list(late)) == STORY


def test_an_answer_is_stored_although_its_stream_cannot_be_written(sandbox: Sandbox) -> None:
    with ExitStack() as stack:
        stack.enter_context(sandbox.simulator(*story(sandbox), speed=4))
        stack.enter_context(sandbox.worker("interactive"))
        client = stack.enter_context(Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url))
        with redis.Redis.from_url(sandbox.redis_url) as broker:
            stream = client.stream(JOB)
            first = next(stream)
            broker.delete(f"yyc3.stream.{first.job_id}")
            broker.set(f"yyc3.stream.{first.job_id}", "something else")  # every command on it fails from now on
            events = [first, *stream]
        assert on_screen(events) == STORY
        following = list(client.stream({**JOB, "messages": [{"role": "user", "content": "再讲个故事"}]}))
        assert on_screen(following) == STORY
