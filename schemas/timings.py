"""How long a job took, and how many tokens it used."""

from pydantic import BaseModel, ConfigDict


class Timings(BaseModel):
    """Seconds in the life of a job. The parts need not add up to the total: settling comes after the answer.

    Attributes:
        queue_wait_seconds: from stored to claimed, on the database clock.
        batch_wait_seconds: from claimed to sent to the engine.
        first_token_seconds: from sent to the first token; null if the answer was not streamed.
        engine_seconds: from sent to the whole answer; shared by all rows of a micro-batch.
        total_seconds: from stored to answered.
    """

    model_config = ConfigDict(frozen=True)

    queue_wait_seconds: float | None = None
    batch_wait_seconds: float | None = None
    first_token_seconds: float | None = None
    engine_seconds: float | None = None
    total_seconds: float | None = None


class Usage(BaseModel):
    """Tokens. In a micro-batch the engine reports one sum; its prompt tokens are divided by text length."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
