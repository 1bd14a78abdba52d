"""Following a streamed answer: frames say what is new, the store says what is true."""

import asyncio
from collections.abc import AsyncIterator

from pipeline.concurrency.cancellation import ended
from pipeline.jobs.wait import Waiter
from pipeline.kinds.code import taken_apart
from pipeline.streams.writer import Frame, StreamReader
from schemas.errors import InvalidOutput
from schemas.ids import JobId
from schemas.results import ChatResult, CodeResult, Outcome, VisionResult
from schemas.streams import EndEvent, RestartEvent, StreamEvent, TextEvent

_LAST_FRAMES_SECONDS = 1.0


class _Shown:
    """What the reader has seen so far, and the events that take it further."""

    def __init__(self, job_id: JobId) -> None:
        self._job_id = job_id
        self._text = ""
        self._try_number = 1

    @property
    def begun(self) -> bool:
        """Whether the reader has seen any of it."""
        return bool(self._text)

    def frame(self, frame: Frame) -> list[StreamEvent]:
        """Events of the next frame; after a gap none until a try begins anew, the stored result makes up for it."""
        if not frame.whole:
            return []
        events: list[StreamEvent] = []
        if frame.event == "restart" and self._text:
            events.append(self._restart(frame.try_number))
        self._try_number = frame.try_number
        return [*events, *self._more(frame.text)]

    def outcome(self, outcome: Outcome) -> list[StreamEvent]:
        """What is missing from the stored result, and the end."""
        events: list[StreamEvent] = []
        stored = _text_of(outcome)
        if isinstance(outcome.result, CodeResult) and _says(self._text, outcome.result):
            stored = None  # shown as the model wrote it, fence and all
        if stored is not None:
            if not stored.startswith(self._text):
                events.append(self._restart(self._try_number + 1))
            events += self._more(stored[len(self._text) :])
        return [*events, EndEvent(job_id=self._job_id, outcome=outcome)]

    def _restart(self, try_number: int) -> RestartEvent:
        self._text, self._try_number = "", try_number
        return RestartEvent(job_id=self._job_id, try_number=try_number)

    def _more(self, text: str) -> list[StreamEvent]:
        self._text += text
        return [TextEvent(job_id=self._job_id, text=text)] if text else []


def _says(text: str, result: CodeResult) -> bool:
    """Whether a text is the answer that a result was made of."""
    try:
        return taken_apart(text, result.language) == result
    except InvalidOutput:
        return False


def _text_of(outcome: Outcome) -> str | None:
    match outcome.result:
        case ChatResult() | VisionResult() as result:
            return result.text
        case CodeResult() as result:
            block = f"```{result.language}\n{result.code}\n```"
            return block if result.explanation is None else f"{block}\n\n{result.explanation}"
        case _:
            return None


async def follow(waiter: Waiter, reader: StreamReader, job_id: JobId) -> AsyncIterator[StreamEvent]:
    """The answer of a streamed job from its first piece on, then its outcome.

    Whatever is lost on the way, the text since the last restart is that of the stored result when the end comes. For a job
    that was not streamed, or whose stream is gone, the whole text comes in one piece.

    Raises:
        JobNotFound: there is no such job.
    """
    shown = _Shown(job_id)
    settled = asyncio.create_task(waiter.outcome(job_id))
    async with reader.follow(job_id) as frames:
        # One thing to wait for instead of two: a stream without an end, or a Redis that is away, keeps nobody.
        def last(_: object) -> None:
            # Word of the outcome may overtake the last frames; of code the stored text is not what they said.
            patience = _LAST_FRAMES_SECONDS if shown.begun or not frames.empty() else 0.0
            asyncio.get_running_loop().call_later(patience, frames.put_nowait, None)

        settled.add_done_callback(last)
        try:
            while (frame := await frames.get()) is not None and frame.event != "end":
                for event in shown.frame(frame):
                    yield event
            for event in shown.outcome(await settled):
                yield event
        finally:
            await ended(settled)


__all__ = ["follow"]
