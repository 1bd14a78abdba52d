"""Response bodies to answers. Shapes as recorded from vLLM 0.32; unknown fields are ignored."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from pipeline.kinds.requests import Answer, Ask
from schemas.errors import EngineError, EngineFailed, InvalidOutput


def loaded(body: bytes) -> dict[str, Any]:
    """The JSON object of a 200."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidOutput("the engine answered with something that is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidOutput("the engine answered with JSON that is no object")
    return value


_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError)
_MAX_COUNT = 2**31 - 1


def first_token(choice: dict[str, Any]) -> tuple[tuple[tuple[str, float], ...], int | None]:
    """Alternatives of the first position, the sampled one among them, and how many tokens there are."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return (), None
    head = content[0]
    entries = [head, *(head.get("top_logprobs") or ())]
    return tuple([(str(entry["token"]), _logprob(entry["logprob"])) for entry in entries]), len(content)


def _logprob(value: Any) -> float:
    """The logarithm of a probability. ValueError where it cannot be one; rounding may leave it a little above zero."""
    found = float(value)
    if not found <= 0.01:
        raise ValueError("not the logarithm of a probability")
    return found


def text_of(value: Any) -> str:
    """A string that can be stored; null is empty. TypeError where it is something else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a text")
    if "\x00" in value:
        raise InvalidOutput("the engine answered with a NUL character, which cannot be stored")
    return value


def count_of(value: Any) -> int | None:
    """A token count, None where there is none. TypeError where it is something else."""
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise TypeError("not a count")
    return value


def is_simulated(value: dict[str, Any]) -> bool:
    """Whether the answer itself says that a simulator made it."""
    return str(value.get("system_fingerprint") or "").startswith("simulator-")


def check_finish(finish_reason: Any) -> str:
    """Refuse answers that the engine broke off (vLLM does on SIGTERM, with HTTP 200 and half a text)."""
    if finish_reason is not None and not isinstance(finish_reason, str):
        raise InvalidOutput("the engine ended its answer for a reason that is no text")
    if finish_reason in {"abort", "error"}:
        raise EngineFailed("the engine broke off in the middle of the answer")
    return finish_reason or "stop"


def _answer(
    choice: dict[str, Any], prompt_tokens: int | None, completion_tokens: int | None, seconds: float, simulated: bool
) -> Answer:
    finish = check_finish(choice.get("finish_reason"))
    alternatives, tokens = first_token(choice)
    return Answer(
        text=text_of(choice["message"].get("content")),
        finish_reason=finish,
        first_token=alternatives,
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens if completion_tokens is None else completion_tokens,
        engine_seconds=seconds,
        simulated=simulated,
    )


def read_single(body: bytes, seconds: float) -> Answer:
    """The answer of a plain chat completion."""
    value = loaded(body)
    try:
        usage = value.get("usage") or {}
        prompt_tokens, completion_tokens = (
            count_of(usage.get("prompt_tokens")),
            count_of(usage.get("completion_tokens")),
        )
        return _answer(value["choices"][0], prompt_tokens, completion_tokens, seconds, is_simulated(value))
    except _UNREADABLE as error:
        raise InvalidOutput("the engine's answer is not a chat completion") from error


_EVENT, _DONE = b"data: ", b"data: [DONE]"


class Said:
    """A streamed answer, event by event."""

    def __init__(self) -> None:
        self.done = False
        self._pieces: list[str] = []
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}
        self._simulated = False

    def hear(self, lines: Iterable[bytes], endpoint: str) -> str:
        """The text that whole lines of the stream add to the answer."""
        before = len(self._pieces)
        for line in lines:
            if not line.startswith(_EVENT):
                continue
            if line.startswith(_DONE):
                self.done = True
                break
            event = loaded(line[len(_EVENT) :])
            if "error" in event:
                raise EngineFailed(f"{endpoint} broke while it worked", endpoint=endpoint)
            self._simulated = self._simulated or is_simulated(event)
            self._usage = event.get("usage") or self._usage
            try:
                for choice in event["choices"][:1]:
                    self._finish = choice.get("finish_reason") or self._finish
                    if text := text_of(choice["delta"].get("content")):
                        self._pieces.append(text)
            except _UNREADABLE as error:
                raise InvalidOutput("the engine's stream is not a chat completion") from error
        return "".join(self._pieces[before:])

    def answer(self, seconds: float, first_token_seconds: float | None, endpoint: str) -> Answer:
        """The whole answer, if it came to its end."""
        if not self.done:
            raise EngineFailed(f"{endpoint} cut the stream", endpoint=endpoint)
        try:
            prompt_tokens = count_of(self._usage.get("prompt_tokens"))
            completion_tokens = count_of(self._usage.get("completion_tokens"))
        except _UNREADABLE as error:
            raise InvalidOutput("the engine's token counts are no counts") from error
        return Answer(
            text="".join(self._pieces),
            finish_reason=check_finish(self._finish),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            engine_seconds=seconds,
            first_token_seconds=first_token_seconds,
            simulated=self._simulated,
        )


def read_batch(body: bytes, asks: Sequence[Ask], seconds: float) -> list[Answer | EngineError]:
    """One answer or failed try a row, in the order of the asks.

    The engine reports one sum of prompt tokens; it is shared out by the length of the rows' own text, so that the shares
    add up to the sum.
    """
    value = loaded(body)
    try:
        usage = value.get("usage") or {}
        shares = _shares(count_of(usage.get("prompt_tokens")), [ask.characters for ask in asks])
        completions = _shares(count_of(usage.get("completion_tokens")), [1] * len(asks))
        rows: list[Answer | EngineError] = [InvalidOutput("the engine left this row out of its answer") for _ in asks]
        for choice in value["choices"]:
            index = choice["index"]
            rows[index] = _row(choice, shares[index], completions[index], seconds, is_simulated(value))
        return rows
    except _UNREADABLE as error:
        raise InvalidOutput("the engine's answer is not a batch of chat completions") from error


def _row(
    choice: dict[str, Any], prompt_tokens: int | None, share: int | None, seconds: float, simulated: bool
) -> Answer | EngineError:
    """One row of a batch; what is wrong with it fails it alone."""
    try:
        content = (choice.get("logprobs") or {}).get("content")
        return _answer(choice, prompt_tokens, len(content) if content else share, seconds, simulated)
    except EngineError as error:
        return error
    except _UNREADABLE:
        return InvalidOutput("the engine's answer for this row is not a chat completion")


def _shares(total: int | None, weights: Sequence[int]) -> list[int | None]:
    if total is None:
        return [None] * len(weights)
    # Every row carries the same prefix; only the rest differs. Rounding is carried on, so the sum holds.
    whole = sum(weight + 1 for weight in weights)
    shares: list[int | None] = []
    given = passed = 0
    for weight in weights:
        passed += weight + 1
        upto = total * passed // whole
        shares.append(upto - given)
        given = upto
    return shares


__all__ = ["Said", "count_of", "loaded", "read_batch", "read_single", "text_of"]
