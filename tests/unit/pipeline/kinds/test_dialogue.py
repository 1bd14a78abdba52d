"""Turns as prompt text: their language, and how much of a long call a model reads."""

from pipeline import kinds
from pipeline.kinds import EndpointProfile, LabelForm
from pipeline.kinds.dialogue import fit_to_context, language_of
from schemas.calls import Language, Speaker, Turn
from schemas.jobs import parse_job
from tests.unit.pipeline.kinds.completions import STRUCTURED


def test_a_long_call_keeps_its_beginning_and_end_and_is_marked_truncated() -> None:
    turns = [Turn(speaker=Speaker.CUSTOMER, text=f"第{i}句" + "话" * 50) for i in range(200)]
    text, truncated = fit_to_context(turns, Language.CHINESE, 8192)
    assert truncated
    assert len(text) < 8192
    assert "第0句" in text
    assert "第199句" in text
    assert "第60句" not in text
    job = parse_job({"kind": "sentiment", "turns": [turn.model_dump() for turn in turns]})
    assert kinds.build(job, EndpointProfile(LabelForm.WORD, STRUCTURED, 8192)).truncated


def test_one_very_long_turn_still_fits() -> None:
    text, truncated = fit_to_context([Turn(speaker=Speaker.AGENT, text="长" * 8_000)], Language.CHINESE, 2_048)
    assert truncated
    assert len(text) < 2_048


def test_a_long_text_is_shortened_like_turns_and_says_so() -> None:
    for kind in ("intent", "sentiment"):
        job = parse_job({"kind": kind, "text": "头" + "中" * 8_098 + "尾"})
        request = kinds.build(job, EndpointProfile(LabelForm.WORD, STRUCTURED, 8_192))
        assert request.truncated
        (message,) = request.messages
        assert message["content"].startswith("头")
        assert message["content"].endswith("尾")
        assert len(message["content"]) < 8_192 * 0.95
        assert not kinds.build(
            parse_job({"kind": kind, "text": "中" * 5_000}), EndpointProfile(LabelForm.WORD, STRUCTURED, 8_192)
        ).truncated


def test_language_is_that_of_the_text() -> None:
    assert language_of("我的 iPhone 15 Pro Max 坏了") is Language.CHINESE
    assert language_of("Where is my order?") is Language.ENGLISH
