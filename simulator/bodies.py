"""The JSON of answers, field for field as vLLM writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from simulator.generating import Row
from simulator.logprobs import chat_shape, completion_shape, positions
from simulator.sampling import Sampling
from simulator.tokens import Tokenizer


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all JSON of one answer has in common."""

    identity: str
    model: str
    fingerprint: str
    sampling: Sampling
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time()))


def usage_of(rows: Sequence[Row], completion_tokens: int | None = None, per_prompt: int = 1) -> dict[str, int]:
    """Token counts of all rows together; a prompt with `n` answers counts once."""
    prompt_tokens = sum(len(row.prompt.tokens) for row in rows[::per_prompt])
    if completion_tokens is None:
        completion_tokens = sum(len(row.plan.tokens) for row in rows)
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def _full_usage(rows: Sequence[Row], per_prompt: int) -> dict[str, Any]:
    return {**usage_of(rows, None, per_prompt), "prompt_tokens_details": None, "completion_tokens_details": None}


def chat_answer(envelope: Envelope, rows: Sequence[Row], per_prompt: int = 1, batch: bool = False) -> dict[str, Any]:
    """The body of /v1/chat/completions and of its batch route; `index` is the place of the row."""
    sampling = envelope.sampling
    ids = envelope.tokenizer.ids(rows[0].prompt.tokens) if sampling.return_token_ids and not batch else None
    return {
        "id": f"chatcmpl-{envelope.identity}",
        "object": "chat.completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [_chat_choice(envelope, place, row) for place, row in enumerate(rows)],
        "service_tier": None,
        "system_fingerprint": envelope.fingerprint,
        "usage": _full_usage(rows, per_prompt),
        "prompt_logprobs": None,
        "prompt_token_ids": ids,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
        "simulated": True,
    }


def _chat_choice(envelope: Envelope, place: int, row: Row) -> dict[str, Any]:
    plan = row.plan
    return {
        "index": place,
        "message": {
            "role": "assistant",
            "content": plan.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": _chat_logprobs(envelope, row, 0, len(plan.tokens)),
        "finish_reason": plan.finish_reason,
        "stop_reason": plan.stop_reason,
        "token_ids": envelope.tokenizer.ids(plan.tokens) if envelope.sampling.return_token_ids else None,
        "routed_experts": None,
    }


def _chat_logprobs(envelope: Envelope, row: Row, start: int, end: int) -> dict[str, Any] | None:
    sampling = envelope.sampling
    if sampling.top_logprobs is None:
        return None
    tokenizer = envelope.tokenizer
    found = positions(row.plan, range(start, end), sampling.top_logprobs, sampling.logprob_token_ids, tokenizer)
    return chat_shape(found, row.plan.tokens[start:end])


def completion_answer(envelope: Envelope, rows: Sequence[Row], per_prompt: int, echo: bool) -> dict[str, Any]:
    """The body of /v1/completions."""
    return {
        "id": f"cmpl-{envelope.identity}",
        "object": "text_completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [_completion_choice(envelope, place, row, echo) for place, row in enumerate(rows)],
        "service_tier": None,
        "system_fingerprint": envelope.fingerprint,
        "usage": _full_usage(rows, per_prompt),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
        "simulated": True,
    }


def _completion_choice(envelope: Envelope, place: int, row: Row, echo: bool) -> dict[str, Any]:
    plan, sampling, tokenizer = row.plan, envelope.sampling, envelope.tokenizer
    return {
        "index": place,
        "text": row.prompt.question + plan.text if echo else plan.text,
        "logprobs": _completion_logprobs(envelope, row, 0, len(plan.tokens)),
        "finish_reason": plan.finish_reason,
        "stop_reason": plan.stop_reason,
        "token_ids": tokenizer.ids(plan.tokens) if sampling.return_token_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": tokenizer.ids(row.prompt.tokens) if sampling.return_token_ids else None,
        "routed_experts": None,
    }


def _completion_logprobs(envelope: Envelope, row: Row, start: int, end: int) -> dict[str, Any] | None:
    sampling = envelope.sampling
    if sampling.top_logprobs is None:
        return None
    tokenizer = envelope.tokenizer
    found = positions(row.plan, range(start, end), sampling.top_logprobs, sampling.logprob_token_ids, tokenizer)
    return completion_shape(found, row.plan.tokens[start:end], len(row.plan.text_of(start)))


class ChunkWriter:
    """The events of a streamed answer."""

    def __init__(self, envelope: Envelope, rows: Sequence[Row], per_prompt: int, chat: bool) -> None:
        self._envelope = envelope
        self._rows = rows
        self._per_prompt = per_prompt
        self._chat = chat
        self._written = [0] * len(rows)

    def opening(self, place: int) -> dict[str, Any]:
        """The first event of a chat row: the role, no text."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": place, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self._chunk([choice], place)
        return {**chunk, "prompt_token_ids": self._prompt_ids(place), "prompt_text": None, "simulated": True}

    def step(self, place: int, count: int) -> dict[str, Any]:
        """The event for the tokens of a row up to `count`."""
        row, start = self._rows[place], self._written[place]
        plan = row.plan
        self._written[place] = count
        text = plan.text_of(count)[len(plan.text_of(start)) :]
        ended = count >= len(plan.tokens)
        envelope = self._envelope
        token_ids = envelope.tokenizer.ids(plan.tokens[start:count]) if envelope.sampling.return_token_ids else None
        choice: dict[str, Any]
        if self._chat:
            logprobs = _chat_logprobs(envelope, row, start, count)
            choice = {"index": place, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None}
        else:
            logprobs = _completion_logprobs(envelope, row, start, count)
            choice = {"index": place, "text": text, "logprobs": logprobs, "finish_reason": None, "stop_reason": None}
            choice["prompt_token_ids"] = self._prompt_ids(place) if start == 0 else None
        if ended:
            choice["finish_reason"] = plan.finish_reason
            choice["stop_reason"] = plan.stop_reason
        choice["token_ids"] = token_ids
        chunk = self._chunk([choice], place)
        if self._chat and ended and not envelope.sampling.include_usage:
            chunk["system_fingerprint"] = envelope.fingerprint
        return chunk

    def closing(self) -> dict[str, Any]:
        """The last event when usage was asked for."""
        chunk = self._base([])
        chunk["usage"] = usage_of(self._rows, None, self._per_prompt)
        chunk["system_fingerprint"] = self._envelope.fingerprint
        return chunk

    def _chunk(self, choices: list[dict[str, Any]], place: int) -> dict[str, Any]:
        chunk = self._base(choices)
        if self._envelope.sampling.continuous_usage and self._envelope.sampling.include_usage:
            usage: dict[str, Any] = dict(usage_of([self._rows[place]], self._written[place]))
            chunk["usage"] = {**usage, "completion_tokens_details": None}
        return chunk

    def _base(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        envelope = self._envelope
        return {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{envelope.identity}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": envelope.created,
            "model": envelope.model,
            "choices": choices,
        }

    def _prompt_ids(self, place: int) -> list[int] | None:
        if not self._envelope.sampling.return_token_ids:
            return None
        return self._envelope.tokenizer.ids(self._rows[place].prompt.tokens)
