"""How prompts of bulk are held back: the rule on a model of an engine whose steps grow with the prompts that they read."""

from collections import deque
from math import inf
from statistics import mean

import pytest

from pipeline.engine.prompt_pace import PromptPace

STEP, TOKEN = 0.015, 0.0001
AIM = 0.05
ROW = 59


def steps_of(pace: PromptPace, *, seconds: float = 60, chat_every: float = 1.0, rows_open: int = 64) -> list[float]:
    """Run an engine that answers each row with the step that reads it, while chats of 900 tokens come; returns its steps."""
    now, due, chat = 0.0, 1.0, chat_every
    waiting: deque[int] = deque()
    steps: list[float] = []
    since = 0
    while now < seconds:
        reading, waiting = waiting, deque()
        step = STEP + TOKEN * ROW * len(reading)
        if now >= chat:
            chat, step = chat + chat_every, step + TOKEN * 900
        end = now + step
        at = now  # rows leave during the step, and are read in the next one
        while at < end and len(waiting) + len(reading) < rows_open:
            if pace.room(at) > 0:
                pace.begin(ROW, at, short=True)
                waiting.append(ROW)
            at += max(0.001, pace.ready_in(at)) if pace.room(at) <= 0 else 0.0
        now = end
        steps.append(step)
        for row in reading:
            pace.end(row, short=True)
        if now >= due:
            pace.update(mean(steps[since:]), 1.0, has_backlog=True)
            due, since = due + 1.0, len(steps)
    return steps


def test_nearly_all_steps_are_as_long_as_the_entry_allows_and_few_are_empty() -> None:
    pace = PromptPace(AIM)
    pace.set_active(True)
    steps = steps_of(pace)[-600:]
    late = sum(step > AIM for step in steps) / len(steps)
    assert late < 0.09, "a prompt of a chat makes one long step a second, and a longer one after it"
    assert 0.75 * AIM < mean(steps) < AIM


def test_nothing_is_held_back_while_tokens_come_in_time() -> None:
    pace = PromptPace(AIM)
    pace.set_active(True)
    pace.begin(10, 0.0, short=False)
    pace.update(0.03, 1.0, has_backlog=True)
    assert pace.room(1.0) == inf


def test_without_demand_nothing_is_held_back() -> None:
    pace = PromptPace(AIM)
    assert pace.room(0.0) == inf
    pace.set_active(True)
    pace.begin(10_000, 0.0, short=True)
    pace.update(0.2, 1.0, has_backlog=True)
    assert pace.room(1.0) < inf
    pace.set_active(False)
    assert pace.room(1.0) == inf
    assert pace.ready_in(1.0) == 0.0


def test_a_long_prompt_is_sent_whole_and_paid_for_afterwards() -> None:
    pace = PromptPace(AIM)
    pace.set_active(True)
    pace.begin(2_000, 0.0, short=False)
    pace.update(0.2, 1.0, has_backlog=True)
    assert pace.room(1.0) > 0
    pace.begin(8_000, 1.0, short=False)
    assert pace.room(1.0) < 0
    assert pace.ready_in(1.0) == pytest.approx(8_000 / (2_000 * (0.043 / 0.2) ** (1 / 3)), rel=0.05)


def after_usual_work(seconds: int) -> PromptPace:
    """A pace that saw 5,000 tokens a second without demand."""
    pace = PromptPace(AIM)
    for second in range(seconds):
        pace.begin(5_000, float(second), short=False)
        pace.update(None, 1.0, has_backlog=True)
    return pace


def test_the_pace_begins_with_what_was_usual_when_rows_in_flight_drain_first() -> None:
    pace = after_usual_work(5)
    pace.set_active(True)
    pace.update(0.1, 1.0, has_backlog=True)  # nothing was sent in this second
    pace.begin(1_000, 6.0, short=False)
    assert pace.ready_in(6.0) < 0.5


def test_a_tenth_of_what_is_usual_is_sent_to_an_engine_that_is_slow_by_itself() -> None:
    pace = after_usual_work(20)
    pace.set_active(True)
    for _ in range(100):
        pace.begin(1, 20.0, short=False)
        pace.update(0.2, 1.0, has_backlog=True)
    pace.begin(1_000, 30.0, short=False)
    assert pace.ready_in(30.0) == pytest.approx(2.0, rel=0.1)


def test_an_engine_that_does_not_tell_its_time_between_tokens_is_not_paced() -> None:
    pace = PromptPace(AIM)
    pace.set_active(True)
    pace.begin(10_000, 0.0, short=True)
    pace.update(None, 1.0, has_backlog=True)
    assert pace.room(1.0) == inf
