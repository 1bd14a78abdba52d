"""Response bodies to completions. Shapes as recorded from vLLM 0.32; unknown fields are ignored."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from pipeline.kinds.requests import Completion, CompletionRequest
from schemas.errors import EngineError, EngineFailed, InvalidOutput

_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError)
_MAX_COUNT = 2**31 - 1
_EVENT, _DONE = b"data: ", b"data: [DONE]"


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a 200."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidOutput("the engine's answer is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidOutput("the engine's answer is JSON, but not an object")
    return value


def parse_text(value: Any) -> str:
    """Return a text that can be stored; null is empty. TypeError if it is not a text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a text")
    if "\x00" in value:
        raise InvalidOutput("the engine's answer has a NUL character, which cannot be stored")
    return value


def parse_count(value: Any) -> int | None:
    """Return a token count, None if there is none. TypeError if it is not a count."""
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise TypeError("not a count")
    return value


def parse_single(body: bytes, seconds: float) -> Completion:
    """Return the completion of a single request that took this many seconds."""
    value = parse_object(body)
    try:
        usage = value.get("usage") or {}
        prompt_tokens = parse_count(usage.get("prompt_tokens"))
        completion_tokens = parse_count(usage.get("completion_tokens"))
        return _completion(value["choices"][0], prompt_tokens, completion_tokens, seconds, _is_simulated(value))
    except _UNREADABLE as error:
        raise InvalidOutput("the engine's answer is not a chat completion") from error


def parse_batch(body: bytes, requests: Sequence[CompletionRequest], seconds: float) -> list[Completion | EngineError]:
    """Return one completion or failed attempt a row, in the order of the requests.

    The engine reports one sum of prompt tokens; it is divided by the length of each row's own text, so
    that the shares add up to the sum.
    """
    value = parse_object(body)
    try:
        usage = value.get("usage") or {}
        shares = _shares(parse_count(usage.get("prompt_tokens")), [request.characters for request in requests])
        completions = _shares(parse_count(usage.get("completion_tokens")), [1] * len(requests))
        rows: list[Completion | EngineError] = [InvalidOutput("the engine's answer lacks this row") for _ in requests]
        for choice in value["choices"]:
            index = choice["index"]
            rows[index] = _row(choice, shares[index], completions[index], seconds, _is_simulated(value))
        return rows
    except _UNREADABLE as error:
        raise InvalidOutput("the engine's answer is not a batch of chat completions") from error


class StreamedCompletion:
    """A streamed answer, event by event."""

    def __init__(self, endpoint: str) -> None:
        self.done = False
        self._endpoint = endpoint
        self._pieces: list[str] = []
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}
        self._simulated = False

    def feed(self, lines: Iterable[bytes]) -> str:
        """Add whole lines of the stream; returns the text that they add."""
        before = len(self._pieces)
        for line in lines:
            if not line.startswith(_EVENT):
                continue
            if line.startswith(_DONE):
                self.done = True
                break
            self._add(parse_object(line[len(_EVENT) :]))
        return "".join(self._pieces[before:])

    def _add(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise EngineFailed(f"{self._endpoint} failed during the request", endpoint=self._endpoint)
        self._simulated = self._simulated or _is_simulated(event)
        self._usage = event.get("usage") or self._usage
        try:
            for choice in event["choices"][:1]:
                self._finish = choice.get("finish_reason") or self._finish
                if text := parse_text(choice["delta"].get("content")):
                    self._pieces.append(text)
        except _UNREADABLE as error:
            raise InvalidOutput("the engine's stream is not a chat completion") from error

    def result(self, seconds: float, first_token_seconds: float | None) -> Completion:
        """Return the completion.

        Raises:
            EngineFailed: the stream ended before its end.
        """
        if not self.done:
            raise EngineFailed(f"{self._endpoint} cut the stream", endpoint=self._endpoint)
        try:
            prompt_tokens = parse_count(self._usage.get("prompt_tokens"))
            completion_tokens = parse_count(self._usage.get("completion_tokens"))
        except _UNREADABLE as error:
            raise InvalidOutput("the engine's token counts are not counts") from error
        return Completion(
            text="".join(self._pieces),
            finish_reason=_check_finish(self._finish),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            engine_seconds=seconds,
            first_token_seconds=first_token_seconds,
            simulated=self._simulated,
        )


def _completion(
    choice: dict[str, Any], prompt_tokens: int | None, completion_tokens: int | None, seconds: float, simulated: bool
) -> Completion:
    finish = _check_finish(choice.get("finish_reason"))
    alternatives, tokens = _first_token(choice)
    return Completion(
        text=parse_text(choice["message"].get("content")),
        finish_reason=finish,
        first_token=alternatives,
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens if completion_tokens is None else completion_tokens,
        engine_seconds=seconds,
        simulated=simulated,
    )


def _row(
    choice: dict[str, Any], prompt_tokens: int | None, share: int | None, seconds: float, simulated: bool
) -> Completion | EngineError:
    """Return one row of a batch; a fault in it fails this row alone."""
    try:
        content = (choice.get("logprobs") or {}).get("content")
        return _completion(choice, prompt_tokens, len(content) if content else share, seconds, simulated)
    except EngineError as error:
        return error
    except _UNREADABLE:
        return InvalidOutput("the engine's answer for this row is not a chat completion")


def _first_token(choice: dict[str, Any]) -> tuple[tuple[tuple[str, float], ...], int | None]:
    """Return the alternatives of the first position, the sampled one among them, and the number of tokens."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return (), None
    head = content[0]
    entries = [head, *(head.get("top_logprobs") or ())]
    return tuple([(str(entry["token"]), _logprob(entry["logprob"])) for entry in entries]), len(content)


def _logprob(value: Any) -> float:
    """Return the logarithm of a probability; ValueError if it cannot be one. Rounding may leave it a little above zero."""
    found = float(value)
    if not found <= 0.01:
        raise ValueError("not the logarithm of a probability")
    return found


def _is_simulated(value: dict[str, Any]) -> bool:
    """Whether the answer is marked as a simulator's."""
    return str(value.get("system_fingerprint") or "").startswith("simulator-")


def _check_finish(finish_reason: Any) -> str:
    """Refuse answers that the engine aborted (vLLM does so on SIGTERM, with HTTP 200 and half a text)."""
    if finish_reason is not None and not isinstance(finish_reason, str):
        raise InvalidOutput("the engine's finish_reason is not a text")
    if finish_reason in {"abort", "error"}:
        raise EngineFailed("the engine aborted the answer")
    return finish_reason or "stop"


def _shares(total: int | None, weights: Sequence[int]) -> list[int | None]:
    if total is None:
        return [None] * len(weights)
    # Every row has the same prefix; only the rest differs. Rounding is carried over, so the sum holds.
    whole = sum(weight + 1 for weight in weights)
    shares: list[int | None] = []
    given = passed = 0
    for weight in weights:
        passed += weight + 1
        upto = total * passed // whole
        shares.append(upto - given)
        given = upto
    return shares
