"""The jobs of a call."""

from pipeline.calls.plan import plan
from schemas.calls import Call
from tests.unit.pipeline.calls.call import CALL


def test_a_call_has_an_intent_a_sentiment_and_one_a_customer_turn() -> None:
    planned = plan(Call.model_validate(CALL))
    assert [job.kind for job in planned.jobs] == ["intent", "sentiment", "sentiment", "sentiment"]
    assert planned.turn_indexes == [None, None, 1, 2]
