"""Which failures are final, and the delay before a retry."""

from datetime import timedelta

from pipeline.policies import retries
from schemas.errors import EngineFailed, EngineUnavailable, PromptTooLong


def test_delays_double_up_to_a_minute_with_jitter() -> None:
    for number, full in ((1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (60, 60.0)):
        delays = [retries.delay(number) for _ in range(200)]
        assert timedelta(seconds=full / 2) <= min(delays)
        assert max(delays) <= timedelta(seconds=full)
        assert len(set(delays)) > 100


def test_a_final_error_ends_a_job_at_once_others_after_five_attempts() -> None:
    assert retries.is_final(PromptTooLong("x"), 1)
    assert not retries.is_final(EngineFailed("x"), retries.MAX_ATTEMPTS - 1)
    assert retries.is_final(EngineFailed("x"), retries.MAX_ATTEMPTS)
    assert not EngineUnavailable.consumes_attempt
