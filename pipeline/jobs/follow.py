"""Follow a streamed answer: frames bring new text, the stored outcome decides."""

import asyncio
from collections.abc import AsyncGenerator

from pipeline import kinds
from pipeline.concurrency.cancellation import cancel_and_wait
from pipeline.jobs.wait import Waiter
from pipeline.streams import Frame, StreamReader
from schemas.ids import JobId
from schemas.results import Outcome
from schemas.streams import EndEvent, RestartEvent, StreamEvent, TextEvent

_LAST_FRAMES_SECONDS = 1.0


class _Transcript:
    """The text that the reader has, and the events that bring it further."""

    def __init__(self, job_id: JobId) -> None:
        self._job_id = job_id
        self._text = ""
        self._attempt = 1

    @property
    def started(self) -> bool:
        """Whether the reader has any text."""
        return bool(self._text)

    def frame(self, frame: Frame) -> list[StreamEvent]:
        """Return the events of the next frame; after a gap none until an attempt begins: the stored result fills it."""
        if not frame.whole:
            return []
        events: list[StreamEvent] = []
        if frame.event == "restart" and self._text:
            events.append(self._restart(frame.attempt))
        self._attempt = frame.attempt
        return [*events, *self._add(frame.text)]

    def outcome(self, outcome: Outcome) -> list[StreamEvent]:
        """Return what is missing of the stored result, and the end."""
        events: list[StreamEvent] = []
        result = outcome.result
        stored = None if result is None or kinds.is_answer(self._text, result) else kinds.text_of(result)
        if stored is not None:
            if not stored.startswith(self._text):
                events.append(self._restart(self._attempt + 1))
            events += self._add(stored[len(self._text) :])
        return [*events, EndEvent(job_id=self._job_id, outcome=outcome)]

    def _restart(self, attempt: int) -> RestartEvent:
        self._text, self._attempt = "", attempt
        return RestartEvent(job_id=self._job_id, attempt=attempt)

    def _add(self, text: str) -> list[StreamEvent]:
        self._text += text
        return [TextEvent(job_id=self._job_id, text=text)] if text else []


async def follow(waiter: Waiter, reader: StreamReader, job_id: JobId) -> AsyncGenerator[StreamEvent]:
    """Yield the answer of a streamed job from its first piece on, then its outcome.

    Whatever is lost on the way, at the end the text since the last restart is that of the stored
    result. For a job that was not streamed, or whose stream has expired, the whole text comes in one
    piece.

    Raises:
        JobNotFound: there is no such job.
    """
    transcript = _Transcript(job_id)
    settled = asyncio.create_task(waiter.outcome(job_id))
    async with reader.follow(job_id) as frames:
        # One queue to wait for instead of two events: a stream without an end, or an unavailable Redis, blocks no reader.
        def add_end(_: object) -> None:
            # The notification may overtake the last frames, and for code the stored text differs from what they say.
            patience = _LAST_FRAMES_SECONDS if transcript.started or not frames.empty() else 0.0
            asyncio.get_running_loop().call_later(patience, frames.put_nowait, None)

        settled.add_done_callback(add_end)
        try:
            while (frame := await frames.get()) is not None and frame.event != "end":
                for event in transcript.frame(frame):
                    yield event
            for event in transcript.outcome(await settled):
                yield event
        finally:
            await cancel_and_wait(settled)
