"""Send one request with its rows to an endpoint: alone, streamed, or as a micro-batch."""

from collections.abc import Sequence

from pipeline.engine import Endpoint, EnginePool
from pipeline.kinds import Completion
from pipeline.streams import ATTEMPTS_PER_RUN, StreamWriter
from schemas.doorbells import Lane
from schemas.errors import EngineError
from workers.execution.run import Row, Run

BULK_PRIORITY = 100
"""Added to the engine priority of bulk rows, so that chat goes first if the engine schedules by priority."""


class Sender:
    """Sends rows to the endpoints of a pool, and writes the streams of those that a reader follows."""

    def __init__(self, pool: EnginePool, streams: StreamWriter) -> None:
        self._client = pool.client
        self._pool = pool
        self._streams = streams

    async def send(self, rows: Sequence[Row], endpoint: Endpoint) -> Sequence[Completion | EngineError]:
        """Return one completion or failed attempt a row, in order.

        Raises:
            EngineError: the whole request failed.
            BatchRouteMissing: the endpoint needs single requests.
        """
        if len(rows) == 1:
            return [await self._one(rows[0], endpoint)]
        requests = [row.request for row in rows]
        return await self._client.complete_batch(
            endpoint.url,
            self._pool.entry.engine_name,
            requests,
            _priority(rows[0].run),
            parameters=self._pool.entry.parameters,
        )

    async def _one(self, row: Row, endpoint: Endpoint) -> Completion:
        run, on_text = row.run, None
        if row.job_id in run.streamed:
            # A later claim has a higher fence, a later attempt of this run a higher number.
            order = run.claim.fence * ATTEMPTS_PER_RUN + min(row.times_sent, ATTEMPTS_PER_RUN - 1)
            on_text = self._streams.begin(row.job_id, order)
            row.times_sent += 1
        # The first token of a bulk row is not read by anyone, and a stream costs a hundred times as much as one body.
        template = row.request.template
        read = run.claim.lane is Lane.INTERACTIVE or on_text is not None
        streamed = template.free_text and read and not template.whole_body  # a stream has no whole body
        return await self._client.complete(
            endpoint.url,
            self._pool.entry.engine_name,
            row.request,
            _priority(run),
            parameters=self._pool.entry.parameters,
            streamed=streamed,
            on_text=on_text,
        )


def _priority(run: Run) -> int:
    return run.claim.priority + (BULK_PRIORITY if run.claim.lane is Lane.BULK else 0)
