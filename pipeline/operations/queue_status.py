"""What waits, what moves, and when it will be done: queues from the store, speed from what the workers sampled."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.store.endpoint_samples import EndpointSample
from pipeline.store.queries import QueueState
from schemas.doorbells import Lane, queue_name


@dataclass(frozen=True, slots=True)
class Queue:
    """One model and lane.

    Attributes:
        queued_jobs, running_jobs: without an outcome, in chunks that wait and in chunks that a worker has.
        oldest_seconds: how long the oldest queued chunk waits.
        messages: doorbells in the Celery queue; there may be fewer than chunks, for each takes the best one.
        in_flight: rows at engines now.
        jobs_per_second: answered by the engines lately, in this lane.
        seconds_to_empty: at that rate; None where nothing moves, or nothing waits.
        last_code: the code of what a queued chunk is waiting for.
    """

    queue: str
    model: str
    lane: str
    messages: int
    queued_jobs: int
    running_jobs: int
    oldest_seconds: float | None
    in_flight: int
    jobs_per_second: float
    seconds_to_empty: float | None
    last_code: str | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def queues(
    states: Iterable[QueueState], depths: dict[tuple[str, Lane], int], samples: Sequence[EndpointSample]
) -> list[Queue]:
    """One entry a model and lane, in the order of `depths`."""
    by_queue = {(state.model, state.lane): state for state in states}
    return [
        _queue(model, lane, messages, by_queue.get((model, lane)), samples)
        for (model, lane), messages in depths.items()
    ]


def _queue(model: str, lane: Lane, messages: int, state: QueueState | None, samples: Sequence[EndpointSample]) -> Queue:
    mine = [sample for sample in samples if (sample.model, sample.lane) == (model, lane)]
    rate = sum(sample.rows_per_second for sample in mine)
    queued, running = (state.queued_jobs, state.running_jobs) if state else (0, 0)
    oldest = (datetime.now(UTC) - state.oldest_at).total_seconds() if state and state.oldest_at else None
    return Queue(
        queue=queue_name(model, lane),
        model=model,
        lane=lane,
        messages=messages,
        queued_jobs=queued,
        running_jobs=running,
        oldest_seconds=oldest,
        in_flight=sum(sample.in_flight for sample in mine),
        jobs_per_second=round(rate, 2),
        seconds_to_empty=(queued + running) / rate if rate and queued + running else None,
        last_code=state.last_code if state else None,
    )


__all__ = ["Queue", "queues"]
