"""Response bodies to completions. Shapes as recorded from vLLM 0.32; unknown fields are ignored."""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from pipeline.engine.events import DONE, EventReader
from pipeline.kinds.requests import Completion, CompletionRequest
from schemas.errors import AnswerFiltered, EngineError, EngineFailed, InvalidOutput

_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError)
_MAX_COUNT = 2**31 - 1
_ROUNDING = 0.01
LONGEST_ANSWER = 8 * 1024 * 1024
"""Bytes of one row's answer, or characters if it is streamed: an engine may ignore `max_tokens`, memory has an end."""

# Why an answer ended, as engines and gateways write it; what is not here fails the attempt.
_FINISHED = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls", "function_call"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), "length"),
}
_FILTERED = {"content_filter", "safety", "sensitive", "recitation", "blocklist", "prohibited_content", "refusal"}
_ABORTED = {"abort", "error", "cancelled", "network_error", "insufficient_system_resource"}


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a 200."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(body)  # Python's own servers write NaN and Infinity, which are not JSON
        except (ValueError, RecursionError) as error:
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
    """Return a token count; None if there is none, or something that is not a count."""
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else None


def _usage(value: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return tokens of prompt and completion: bookkeeping, which never costs the answer."""
    usage = value.get("usage")
    if not isinstance(usage, dict):
        return None, None
    return parse_count(usage.get("prompt_tokens")), parse_count(usage.get("completion_tokens"))


def parse_single(body: bytes, seconds: float) -> Completion:
    """Return the completion of a single request that took this many seconds."""
    value = parse_object(body)
    try:
        prompt_tokens, completion_tokens = _usage(value)
        found = _completion(value["choices"][0], prompt_tokens, completion_tokens, seconds, _is_simulated(value))
        found.body = value
        return found
    except _UNREADABLE as error:
        raise InvalidOutput("the engine's answer is not a chat completion") from error


def parse_batch(body: bytes, requests: Sequence[CompletionRequest], seconds: float) -> list[Completion | EngineError]:
    """Return one completion or failed attempt a row, in the order of the requests.

    The engine reports one sum of prompt tokens; it is divided by the length of each row's own text, so
    that the shares add up to the sum.
    """
    value = parse_object(body)
    try:
        prompt_tokens, completion_tokens = _usage(value)
        shares = _shares(prompt_tokens, [request.characters for request in requests])
        completions = _shares(completion_tokens, [1] * len(requests))
        rows: list[Completion | EngineError | None] = [None] * len(requests)
        for choice in value["choices"]:
            index = choice.get("index") if isinstance(choice, dict) else None
            if type(index) is not int or not 0 <= index < len(rows):
                continue  # whose it is cannot be known; the others are good
            if rows[index] is not None:
                rows[index] = InvalidOutput("the engine's answer has this row twice")
                continue
            row = rows[index] = _row(choice, shares[index], completions[index], seconds, _is_simulated(value))
            if requests[index].template.whole_body and isinstance(row, Completion):
                row.body = _alone(value, choice, row)
        return [InvalidOutput("the engine's answer lacks this row") if row is None else row for row in rows]
    except _UNREADABLE as error:
        raise InvalidOutput("the engine's answer is not a batch of chat completions") from error


class StreamedCompletion:
    """A streamed answer, event by event."""

    def __init__(self, endpoint: str) -> None:
        self.done = False
        self._endpoint = endpoint
        self._events = EventReader()
        self._pieces: list[str] = []
        self._length = 0
        self._finish: str | None = None
        self._reasoning = False
        self._usage: dict[str, Any] = {}
        self._simulated = False

    def feed(self, piece: bytes) -> str:
        """Add a piece of the body; returns the text that it adds."""
        before = len(self._pieces)
        for data in self._events.feed(piece):
            self._take(data)
        if max(self._length, self._events.held_bytes) > LONGEST_ANSWER:
            raise InvalidOutput(f"the engine's answer is longer than {LONGEST_ANSWER // 1024**2} MiB")
        return "".join(self._pieces[before:])

    def _take(self, data: bytes) -> None:
        if self.done or data == DONE:
            self.done = True
            return
        for event in _objects(data):
            if event is None:
                self.done = True
                return
            self._add(event)

    def _add(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            raise EngineFailed(f"{self._endpoint} failed during the request", endpoint=self._endpoint)
        self._simulated = self._simulated or _is_simulated(event)
        if event.get("usage"):
            self._usage = event
        try:
            for choice in (event.get("choices") or ())[:1]:
                self._finish = choice.get("finish_reason") or self._finish
                delta = choice.get("delta") or {}
                self._reasoning = self._reasoning or _has_reasoning(delta)
                if text := parse_text(delta.get("content")):
                    self._pieces.append(text)
                    self._length += len(text)
        except _UNREADABLE as error:
            raise InvalidOutput("the engine's stream is not a chat completion") from error

    def result(self, seconds: float, first_token_seconds: float | None) -> Completion:
        """Return the completion.

        Raises:
            EngineFailed: the stream ended before its end.
        """
        if not self.done:
            for data in self._events.close():
                self._take(data)
        if not self.done:
            raise EngineFailed(f"{self._endpoint} cut the stream", endpoint=self._endpoint)
        prompt_tokens, completion_tokens = _usage(self._usage)
        return Completion(
            text="".join(self._pieces),
            finish_reason=_finish(self._finish),
            reasoning=self._reasoning,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            engine_seconds=seconds,
            first_token_seconds=first_token_seconds,
            simulated=self._simulated,
        )


def _completion(
    choice: dict[str, Any], prompt_tokens: int | None, completion_tokens: int | None, seconds: float, simulated: bool
) -> Completion:
    finish = _finish(choice.get("finish_reason"))
    alternatives, tokens = _first_token(choice)
    return Completion(
        text=parse_text(choice["message"].get("content")),
        finish_reason=finish,
        reasoning=_has_reasoning(choice["message"]),
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
        content = _positions(choice)
        return _completion(choice, prompt_tokens, len(content) if content else share, seconds, simulated)
    except EngineError as error:
        return error
    except _UNREADABLE:
        return InvalidOutput("the engine's answer for this row is not a chat completion")


def _alone(value: dict[str, Any], choice: dict[str, Any], row: Completion) -> dict[str, Any]:
    """Return the answer of one row of a batch as if it had been sent alone; its prompt tokens are its share."""
    prompt, answer = row.prompt_tokens or 0, row.completion_tokens or 0
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return value | {"choices": [choice | {"index": 0}], "usage": usage}


def _objects(data: bytes) -> list[dict[str, Any] | None]:
    """Return the objects of one event, None for its end: some servers end every event with a single line end."""
    try:
        return [parse_object(data)]
    except InvalidOutput:
        lines = data.split(b"\n")
        if len(lines) == 1:
            raise
        return [None if line == DONE else parse_object(line) for line in lines if line]


def _positions(choice: dict[str, Any]) -> list[Any]:
    """Return the log probabilities by position, empty where there are none that can be read."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else []


def _first_token(choice: dict[str, Any]) -> tuple[tuple[tuple[str, float], ...], int | None]:
    """Return the alternatives of the first position, the sampled one among them, and the number of tokens.

    An alternative without a usable number is left out: servers write null for an impossible one.
    """
    content = _positions(choice)
    if not content:
        return (), None
    head = content[0] if isinstance(content[0], dict) else {}
    others = head.get("top_logprobs")
    entries = [head, *(others if isinstance(others, list) else ())]
    return tuple([found for entry in entries if (found := _alternative(entry)) is not None]), len(content)


def _alternative(entry: Any) -> tuple[str, float] | None:
    """Return token and log probability; None if one is missing. Rounding may leave it a little above zero."""
    token, logprob = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    return (token, float(logprob)) if -1e300 < logprob <= _ROUNDING else None


def _has_reasoning(message: dict[str, Any]) -> bool:
    """Whether the engine put tokens into reasoning; its parsers use both names."""
    return bool(message.get("reasoning_content") or message.get("reasoning"))


def _is_simulated(value: dict[str, Any]) -> bool:
    """Whether the answer is marked as a simulator's."""
    return str(value.get("system_fingerprint") or "").startswith("simulator-")


def _finish(reason: Any) -> str:
    """Return `stop` or `length`; any other reason means that this is not the answer.

    vLLM aborts on SIGTERM with HTTP 200 and half a text. Without a reason the answer is taken as whole.
    """
    if reason is None:
        return "stop"
    if not isinstance(reason, str):
        raise InvalidOutput("the engine's finish_reason is not a text")
    known = reason.lower()
    if known in _FILTERED:
        raise AnswerFiltered("a filter of the engine cut the answer off")
    if known in _ABORTED:
        raise EngineFailed("the engine aborted the answer")
    if known not in _FINISHED:
        raise InvalidOutput("the engine ended the answer for a reason that is not known here")
    return _FINISHED[known]


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
