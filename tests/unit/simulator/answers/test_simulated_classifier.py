from __future__ import annotations

import pytest

from simulator.answers.classifier import get_scorer

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
    weights = get_scorer(options, instructions).probabilities(text, 0)
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
def test_a_mood_is_recognised_in_both_languages(options: tuple[str, ...], text: str, expected: int) -> None:
    assert best(options, text) == options[expected]


def test_the_instructions_define_the_meaning_of_codes() -> None:
    instructions = "Pick one.\n- A: refund — wants money back\n- B：物流\n1. C: human agent\nD: other"
    assert best(("A", "B", "C", "D"), "快递还没到", instructions) == "B"
    assert best(("A", "B", "C", "D"), "请转人工", instructions) == "C"
    assert best(("A", "B", "C", "D"), "zzz", instructions) == "D"


def test_words_of_an_unknown_option_are_found_in_the_text() -> None:
    instructions = "X: anything about elephants\nY: anything about giraffes"
    assert best(("X", "Y"), "three giraffes ran away", instructions) == "Y"


def test_customer_lines_weigh_more_than_agent_lines() -> None:
    dialogue = "agent: is it about your bill or an invoice?\ncustomer: no, I want a refund"
    assert best(ENGLISH, dialogue) == "refund"
    assert best(CHINESE, "坐席：是账单问题吗\n客户：不是，我要退款") == "退款"


def test_the_same_text_and_seed_give_the_same_probabilities() -> None:
    scorer = get_scorer(ENGLISH, "")
    assert scorer.probabilities("hello", 3) == scorer.probabilities("hello", 3) != scorer.probabilities("hello", 4)
