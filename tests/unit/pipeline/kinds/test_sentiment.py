"""Sentiment: one constrained token, a score and a confidence."""

import pytest

from pipeline import kinds
from pipeline.kinds import Constraint
from schemas.errors import InvalidOutput
from schemas.results import SentimentResult
from tests.unit.pipeline.kinds.completions import build, completion


def test_a_request_asks_for_one_token_of_the_labels_with_alternatives() -> None:
    _, request = build({"kind": "sentiment", "text": "thank you so much"})
    assert request.template.parameters == {
        "temperature": 0.0,
        "structured_outputs": {"choice": ["good", "neutral", "bad"]},
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 7,
    }
    _, old = build({"kind": "sentiment", "text": "thank you"}, constraint=Constraint.GUIDED)
    assert old.template.parameters["guided_choice"] == ["good", "neutral", "bad"]
    assert "structured_outputs" not in old.template.parameters


def test_a_score_is_a_difference_of_probabilities_and_confidence_the_labels() -> None:
    job, request = build({"kind": "sentiment", "text": "ok then, thank you"})
    result = kinds.decode(
        job, request, completion("good", ("good", 0.5), ("g", 0.1), (" neutral", 0.1), ("bad", 0.1), ("the", 0.2))
    )
    assert isinstance(result, SentimentResult)
    assert result.confidence == pytest.approx(0.75)
    assert result.score == pytest.approx(0.75 - 0.125)


def test_without_probabilities_confidence_is_null_and_the_label_is_the_score() -> None:
    job, request = build({"kind": "sentiment", "text": "this is bad"})
    result = kinds.decode(job, request, completion("b"))
    assert isinstance(result, SentimentResult)
    assert (result.label, result.score, result.confidence, result.probabilities) == ("negative", -1.0, None, None)


@pytest.mark.parametrize("text", ["", " ", "x", "goodness me"])
def test_an_answer_outside_the_labels_fails_the_attempt(text: str) -> None:
    job, request = build({"kind": "sentiment", "text": "fine by me"})
    with pytest.raises(InvalidOutput):
        kinds.decode(job, request, completion(text))


def test_context_comes_before_the_utterance() -> None:
    context = [{"speaker": "agent", "text": "还需要别的吗？"}]
    _, request = build({"kind": "sentiment", "text": "不用了", "context": context})
    content = request.messages[0]["content"]
    assert content.index("坐席: 还需要别的吗？") < content.index("不用了")
