"""Depth, throughput and estimated time to empty of each queue, from the store and the samples of the workers."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.store.endpoint_samples import EndpointSample
from pipeline.store.queries import QueueState
from schemas.doorbells import Lane, queue_name


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One model and lane.

    Attributes:
        queued_jobs, running_jobs: without an outcome, in queued chunks and in running ones.
        oldest_seconds: age of the oldest queued chunk.
        oldest_running_seconds: since the oldest running chunk was first claimed.
        messages: doorbells in the Celery queue; there may be fewer than chunks, because each claims the best one.
        in_flight: rows at engines now.
        jobs_per_second: answered by the engines in this lane, in the last seconds.
        seconds_to_empty: at that rate; None where nothing moves, or nothing is queued.
        last_code: why a queued chunk waits for another attempt.
    """

    queue: str
    model: str
    lane: str
    messages: int
    queued_jobs: int
    running_jobs: int
    oldest_seconds: float | None
    oldest_running_seconds: float | None
    in_flight: int
    jobs_per_second: float
    seconds_to_empty: float | None
    last_code: str | None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object for `--json`."""
        return asdict(self)


def queue_status(
    states: Iterable[QueueState], depths: dict[tuple[str, Lane], int], samples: Sequence[EndpointSample]
) -> list[QueueStatus]:
    """Return one entry for each model and lane, in the order of `depths`."""
    by_queue = {(state.model, state.lane): state for state in states}
    return [
        _status(model, lane, messages, by_queue.get((model, lane)), samples)
        for (model, lane), messages in depths.items()
    ]


def _status(
    model: str, lane: Lane, messages: int, state: QueueState | None, samples: Sequence[EndpointSample]
) -> QueueStatus:
    own = [sample for sample in samples if (sample.model, sample.lane) == (model, lane)]
    rate = sum(sample.rows_per_second for sample in own)
    queued, running = (state.queued_jobs, state.running_jobs) if state else (0, 0)
    now = datetime.now(UTC)
    oldest = (now - state.oldest_at).total_seconds() if state and state.oldest_at else None
    running_since = state.oldest_running_at if state else None
    return QueueStatus(
        queue=queue_name(model, lane),
        model=model,
        lane=lane,
        messages=messages,
        queued_jobs=queued,
        running_jobs=running,
        oldest_seconds=oldest,
        oldest_running_seconds=(now - running_since).total_seconds() if running_since else None,
        in_flight=sum(sample.in_flight for sample in own),
        jobs_per_second=round(rate, 2),
        seconds_to_empty=(queued + running) / rate if rate and queued + running else None,
        last_code=state.last_code if state else None,
    )
