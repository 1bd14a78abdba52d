from __future__ import annotations

import json
import re
from random import Random

import pytest

from simulator.answers import Answerer
from simulator.classifier import scorer_for
from simulator.constraints import Choice, JsonText, Pattern
from simulator.conversation import prompt_of_messages
from simulator.errors import RequestRejected
from simulator.json_values import ValueWriter, check_schema
from simulator.logprobs import positions
from simulator.patterns import matching_text
from simulator.sampling import Sampling
from simulator.speech import reply
from simulator.tokens import END, Tokenizer, split

ENGLISH = (
    "refund", "billing", "delivery", "technical", "account", "complaint", "human_agent", "cancellation", "inquiry",
    "booking", "other",
)  # fmt: skip
CHINESE = ("退款", "账单", "物流", "故障", "账号", "投诉", "转人工", "取消", "咨询", "预约", "其他")
CALLS = [
    ("I want my money back for this phone", 0),
    ("you charged me twice on the last invoice", 1),
    ("my parcel has still not arrived", 2),
    ("the router is not working since monday", 3),
    ("I forgot my password", 4),
    ("I want to file a complaint about your staff", 5),
    ("please let me speak to someone, a real person", 6),
    ("please unsubscribe me", 7),
    ("what are your opening hours?", 8),
    ("can I make an appointment for friday", 9),
    ("blue elephants", 10),
    ("我要退款，钱还没到账", 0),
    ("这个月账单多扣了二十块", 1),
    ("快递怎么还没到", 2),
    ("宽带断网了，连不上", 3),
    ("忘记密码登录不了账号", 4),
    ("我要投诉你们的服务态度", 5),
    ("帮我转人工客服", 6),
    ("请帮我取消这个业务，退订", 7),
    ("请问你们营业时间是几点", 8),
    ("我想预约明天上门", 9),
    ("嗯嗯", 10),
]


def best(options: tuple[str, ...], text: str, instructions: str = "") -> str:
    weights = scorer_for(options, instructions).probabilities(text, 0)
    assert sum(weights) == pytest.approx(1.0)
    return options[weights.index(max(weights))]


@pytest.mark.parametrize("options", [ENGLISH, CHINESE], ids=["english labels", "chinese labels"])
@pytest.mark.parametrize(("text", "expected"), CALLS)
def test_a_call_gets_the_label_of_its_concept(options: tuple[str, ...], text: str, expected: int) -> None:
    assert best(options, text) == options[expected]


@pytest.mark.parametrize(
    "options", [("positive", "neutral", "negative"), ("正面", "中性", "负面"), ("good", "neutral", "bad")]
)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thank you so much, great service", 0),
        ("my order number is 12", 1),
        ("this is terrible, I am very disappointed", 2),
        ("I am not happy", 2),
        ("太好了，非常感谢", 0),
        ("我的订单号是十二", 1),
        ("我对你们非常不满意", 2),
    ],
)
def test_a_mood_is_read_in_both_languages(options: tuple[str, ...], text: str, expected: int) -> None:
    assert best(options, text) == options[expected]


def test_codes_mean_what_the_instructions_say() -> None:
    instructions = "Pick one.\n- A: refund — wants money back\n- B：物流\n1. C: human agent\nD: other"
    assert best(("A", "B", "C", "D"), "快递还没到", instructions) == "B"
    assert best(("A", "B", "C", "D"), "请转人工", instructions) == "C"
    assert best(("A", "B", "C", "D"), "zzz", instructions) == "D"


def test_words_of_an_unknown_option_are_found_in_the_text() -> None:
    instructions = "X: anything about elephants\nY: anything about giraffes"
    assert best(("X", "Y"), "three giraffes ran away", instructions) == "Y"


def test_what_the_customer_says_weighs_more_than_the_agent() -> None:
    dialogue = "agent: is it about your bill or an invoice?\ncustomer: no, I want a refund"
    assert best(ENGLISH, dialogue) == "refund"
    assert best(CHINESE, "坐席：是账单问题吗\n客户：不是，我要退款") == "退款"


def test_the_same_text_and_seed_give_the_same_probabilities() -> None:
    scorer = scorer_for(ENGLISH, "")
    assert scorer.probabilities("hello", 3) == scorer.probabilities("hello", 3) != scorer.probabilities("hello", 4)


def answerer() -> Answerer:
    return Answerer(0, 8192, Tokenizer())


def ask(text: str, sampling: Sampling, instructions: str = "") -> object:
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
    return answerer().plan(prompt_of_messages(messages, "messages", None), sampling)


def test_a_choice_ends_with_the_end_token() -> None:
    plan = ask("我要退款", Sampling(Choice(("退款", "其他")), temperature=0))
    assert (plan.text, plan.finish_reason, list(plan.tokens)) == ("退款", "stop", ["退", "款", END])


def test_max_tokens_cuts_a_choice_after_its_first_token() -> None:
    plan = ask("我要退款", Sampling(Choice(("退款", "其他")), max_tokens=1, temperature=0))
    assert (plan.text, plan.finish_reason) == ("退", "length")


def test_temperature_zero_takes_the_likeliest_option() -> None:
    plan = ask("hello", Sampling(Choice(ENGLISH), temperature=0))
    assert plan.text == ENGLISH[list(plan.weights).index(max(plan.weights))]


def test_a_stop_text_ends_the_answer_before_it() -> None:
    plan = ask("hello", Sampling(stop=("answer]",)))
    assert plan.text == "[simulated "
    assert (plan.finish_reason, plan.stop_reason) == ("stop", "answer]")


def test_an_answer_that_may_not_end_fills_its_limit() -> None:
    plan = ask("hello", Sampling(max_tokens=500, ignore_eos=True))
    assert (len(plan.tokens), plan.finish_reason) == (500, "length")


@pytest.mark.parametrize("text", ["你好，我要退款", "my parcel is late", "write a python function", "写一段代码"])
def test_a_free_answer_says_that_it_is_simulated_and_stays_short(text: str) -> None:
    said = reply(text, 0)
    assert "模拟" in said or "simulated" in said
    assert 15 <= len(split(said)) <= 80
    assert said == reply(text, 0)


def test_alternatives_after_a_shared_first_token_add_up() -> None:
    plan = ask("x", Sampling(Choice(("退款", "退货")), temperature=0, top_logprobs=4))
    found = positions(plan, range(len(plan.tokens)), 4, None, Tokenizer())
    assert found[0][0] == pytest.approx(0.0)
    assert {token for token, _ in found[1][1][:2]} == {"款", "货"}
    assert found[2][0] == pytest.approx(0.0)


SCHEMA = {
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


def test_json_holds_what_the_schema_requires() -> None:
    value = json.loads(ask("please refund me", Sampling(JsonText(SCHEMA))).text)
    assert set(value) == set(SCHEMA["required"])
    assert value["intent"] == "refund"
    assert 0 <= value["score"] <= 1
    assert len(value["tags"]) == 2
    assert isinstance(value["nested"]["on"], bool)
    assert re.fullmatch(r"[A-Z]{2}-\d{3}", value["code"])
    assert len(value["short"]) <= 3


def test_a_schema_that_never_ends_is_refused() -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}}
    writer = ValueWriter(schema, lambda options, _: options[0], Random(0), "x")
    with pytest.raises(RequestRejected, match="16 levels"):
        writer.value()


def test_an_unknown_type_is_refused_as_vllm_does() -> None:
    with pytest.raises(RequestRejected, match="Grammar error: Invalid type: nonsense"):
        check_schema({"type": "object", "properties": {"a": {"type": "nonsense"}}})


@pytest.mark.parametrize(
    "pattern",
    [
        "abc",
        "[0-9]{3}-[a-z]{2}",
        "(yes|no)",
        "a?b*c+",
        r"\d{2,4}",
        "(?:ab){2}",
        "[^a-z]",
        r"\(x\)",
        "^(正面|负面)$",
        r"[\w]+",
        ".",
    ],
)
def test_a_written_text_matches_its_pattern(pattern: str) -> None:
    for seed in range(20):
        assert re.fullmatch(pattern, matching_text(pattern, Random(seed)))


def test_a_pattern_beyond_the_simulator_is_refused_honestly() -> None:
    with pytest.raises(RequestRejected, match="The simulator follows"):
        matching_text("(?=a)b", Random(0))
    with pytest.raises(RequestRejected, match="Grammar error"):
        matching_text("(", Random(0))


def test_a_pattern_constraint_is_kept() -> None:
    assert re.fullmatch("[A-C][0-9]", ask("x", Sampling(Pattern("[A-C][0-9]"))).text)
