from __future__ import annotations

import json
import re
from typing import Any

from simulator.answers.planner import AnswerPlanner, Plan
from simulator.requests.constraints import Choice, JsonText, Pattern
from simulator.requests.prompts import prompt_from_messages
from simulator.requests.sampling import SamplingParams
from simulator.requests.tokens import EOS, Tokenizer

LABELS = ("refund", "billing", "delivery", "other")


def ask(text: str, sampling: SamplingParams, instructions: str = "") -> Plan:
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
    return AnswerPlanner(0, 8192, Tokenizer()).plan(prompt_from_messages(messages, "messages", None), sampling)


def test_a_choice_ends_with_eos() -> None:
    plan = ask("我要退款", SamplingParams(Choice(("退款", "其他")), temperature=0))
    assert (plan.text, plan.finish_reason, list(plan.tokens)) == ("退款", "stop", ["退", "款", EOS])


def test_max_tokens_cuts_a_choice_after_its_first_token() -> None:
    plan = ask("我要退款", SamplingParams(Choice(("退款", "其他")), max_tokens=1, temperature=0))
    assert (plan.text, plan.finish_reason) == ("退", "length")


def test_temperature_zero_selects_the_most_probable_option() -> None:
    plan = ask("hello", SamplingParams(Choice(LABELS), temperature=0))
    assert plan.text == LABELS[list(plan.probabilities).index(max(plan.probabilities))]


def test_a_stop_string_ends_the_answer_before_it() -> None:
    plan = ask("hello", SamplingParams(stop=("answer]",)))
    assert plan.text == "[simulated "
    assert (plan.finish_reason, plan.stop_reason) == ("stop", "answer]")


def test_ignore_eos_fills_the_token_limit() -> None:
    plan = ask("hello", SamplingParams(max_tokens=500, ignore_eos=True))
    assert (len(plan.tokens), plan.finish_reason) == (500, "length")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["refund", "other"]},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
        "nested": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
        "short": {"type": "string", "maxLength": 3},
        "optional": {"type": "string"},
    },
    "required": ["intent", "score", "tags", "nested", "maybe", "code", "short"],
    "$defs": {"tag": {"type": "string", "minLength": 2}},
}


def test_json_contains_what_the_schema_requires() -> None:
    value = json.loads(ask("please refund me", SamplingParams(JsonText(SCHEMA))).text)
    assert set(value) == set(SCHEMA["required"])
    assert value["intent"] == "refund"
    assert 0 <= value["score"] <= 1
    assert len(value["tags"]) == 2
    assert isinstance(value["nested"]["on"], bool)
    assert re.fullmatch(r"[A-Z]{2}-\d{3}", value["code"])
    assert len(value["short"]) <= 3


def test_an_answer_matches_its_pattern_constraint() -> None:
    assert re.fullmatch("[A-C][0-9]", ask("x", SamplingParams(Pattern("[A-C][0-9]"))).text)
