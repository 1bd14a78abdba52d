"""JSON bodies and stream events, field for field as vLLM writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from simulator.answers.logprobs import RankedTokens, compute_logprobs, format_chat_logprobs, format_completion_logprobs
from simulator.engine.request_rows import Row
from simulator.requests.sampling import SamplingParams
from simulator.requests.tokens import Tokenizer


@dataclass(frozen=True, slots=True)
class Envelope:
    """Fields that all bodies and events of one answer share."""

    response_id: str
    model: str
    fingerprint: str
    sampling: SamplingParams
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time()))


def count_usage(rows: Sequence[Row], completion_tokens: int | None = None, per_prompt: int = 1) -> dict[str, int]:
    """Count the tokens of all rows; the prompt of `n` answers counts once."""
    prompt_tokens = sum(len(row.prompt.tokens) for row in rows[::per_prompt])
    if completion_tokens is None:
        completion_tokens = sum(len(row.plan.tokens) for row in rows)
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def _build_usage(rows: Sequence[Row], per_prompt: int) -> dict[str, Any]:
    return {**count_usage(rows, None, per_prompt), "prompt_tokens_details": None, "completion_tokens_details": None}


def build_chat_response(
    envelope: Envelope, rows: Sequence[Row], per_prompt: int = 1, batch: bool = False
) -> dict[str, Any]:
    """Build the body of /v1/chat/completions and of its batch route.

    The `index` of a choice is the index of its row.
    """
    sampling = envelope.sampling
    ids = envelope.tokenizer.tokens_to_ids(rows[0].prompt.tokens) if sampling.return_token_ids and not batch else None
    return {
        "id": f"chatcmpl-{envelope.response_id}",
        "object": "chat.completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [_build_chat_choice(envelope, index, row) for index, row in enumerate(rows)],
        "service_tier": None,
        "system_fingerprint": envelope.fingerprint,
        "usage": _build_usage(rows, per_prompt),
        "prompt_logprobs": None,
        "prompt_token_ids": ids,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
        "simulated": True,
    }


def _build_chat_choice(envelope: Envelope, index: int, row: Row) -> dict[str, Any]:
    plan = row.plan
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": plan.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": _build_chat_logprobs(envelope, row, 0, len(plan.tokens)),
        "finish_reason": plan.finish_reason,
        "stop_reason": plan.stop_reason,
        "token_ids": envelope.tokenizer.tokens_to_ids(plan.tokens) if envelope.sampling.return_token_ids else None,
        "routed_experts": None,
    }


def _build_chat_logprobs(envelope: Envelope, row: Row, start: int, end: int) -> dict[str, Any] | None:
    computed = _compute_logprobs(envelope, row, start, end)
    if computed is None:
        return None
    return format_chat_logprobs(computed, row.plan.tokens[start:end])


def _compute_logprobs(envelope: Envelope, row: Row, start: int, end: int) -> list[tuple[float, RankedTokens]] | None:
    """Compute the logprobs of a range of tokens; None if they were not requested."""
    sampling = envelope.sampling
    if sampling.top_logprobs is None:
        return None
    wanted = sampling.logprob_token_ids
    return compute_logprobs(row.plan, range(start, end), sampling.top_logprobs, wanted, envelope.tokenizer)


def build_completion_response(envelope: Envelope, rows: Sequence[Row], per_prompt: int, echo: bool) -> dict[str, Any]:
    """Build the body of /v1/completions."""
    return {
        "id": f"cmpl-{envelope.response_id}",
        "object": "text_completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [_build_completion_choice(envelope, index, row, echo) for index, row in enumerate(rows)],
        "service_tier": None,
        "system_fingerprint": envelope.fingerprint,
        "usage": _build_usage(rows, per_prompt),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
        "simulated": True,
    }


def _build_completion_choice(envelope: Envelope, index: int, row: Row, echo: bool) -> dict[str, Any]:
    plan, sampling, tokenizer = row.plan, envelope.sampling, envelope.tokenizer
    return {
        "index": index,
        "text": row.prompt.question + plan.text if echo else plan.text,
        "logprobs": _build_completion_logprobs(envelope, row, 0, len(plan.tokens)),
        "finish_reason": plan.finish_reason,
        "stop_reason": plan.stop_reason,
        "token_ids": tokenizer.tokens_to_ids(plan.tokens) if sampling.return_token_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": tokenizer.tokens_to_ids(row.prompt.tokens) if sampling.return_token_ids else None,
        "routed_experts": None,
    }


def _build_completion_logprobs(envelope: Envelope, row: Row, start: int, end: int) -> dict[str, Any] | None:
    computed = _compute_logprobs(envelope, row, start, end)
    if computed is None:
        return None
    return format_completion_logprobs(computed, row.plan.tokens[start:end], len(row.plan.text_up_to(start)))


class ChunkBuilder:
    """Builds the events of a streamed answer."""

    def __init__(self, envelope: Envelope, rows: Sequence[Row], per_prompt: int, chat: bool) -> None:
        self._envelope = envelope
        self._rows = rows
        self._per_prompt = per_prompt
        self._chat = chat
        self._written = [0] * len(rows)

    def role_chunk(self, index: int) -> dict[str, Any]:
        """Build the first event of a chat row: the role without text."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self._build_chunk([choice], index)
        return {**chunk, "prompt_token_ids": self._prompt_token_ids(index), "prompt_text": None, "simulated": True}

    def token_chunk(self, index: int, count: int) -> dict[str, Any]:
        """Build the event for the tokens of a row from the last event up to `count`."""
        row, start = self._rows[index], self._written[index]
        plan = row.plan
        self._written[index] = count
        text = plan.text_up_to(count)[len(plan.text_up_to(start)) :]
        ended = count >= len(plan.tokens)
        envelope = self._envelope
        token_ids = (
            envelope.tokenizer.tokens_to_ids(plan.tokens[start:count]) if envelope.sampling.return_token_ids else None
        )
        choice: dict[str, Any]
        if self._chat:
            logprobs = _build_chat_logprobs(envelope, row, start, count)
            choice = {"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None}
        else:
            logprobs = _build_completion_logprobs(envelope, row, start, count)
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None, "stop_reason": None}
            choice["prompt_token_ids"] = self._prompt_token_ids(index) if start == 0 else None
        if ended:
            choice["finish_reason"] = plan.finish_reason
            choice["stop_reason"] = plan.stop_reason
        choice["token_ids"] = token_ids
        chunk = self._build_chunk([choice], index)
        if self._chat and ended and not envelope.sampling.include_usage:
            chunk["system_fingerprint"] = envelope.fingerprint
        return chunk

    def usage_chunk(self) -> dict[str, Any]:
        """Build the last event of a stream with `include_usage`."""
        chunk = self._build_base([])
        chunk["usage"] = count_usage(self._rows, None, self._per_prompt)
        chunk["system_fingerprint"] = self._envelope.fingerprint
        return chunk

    def _build_chunk(self, choices: list[dict[str, Any]], index: int) -> dict[str, Any]:
        chunk = self._build_base(choices)
        if self._envelope.sampling.continuous_usage and self._envelope.sampling.include_usage:
            usage: dict[str, Any] = dict(count_usage([self._rows[index]], self._written[index]))
            chunk["usage"] = {**usage, "completion_tokens_details": None}
        return chunk

    def _build_base(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        envelope = self._envelope
        return {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{envelope.response_id}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": envelope.created,
            "model": envelope.model,
            "choices": choices,
        }

    def _prompt_token_ids(self, index: int) -> list[int] | None:
        if not self._envelope.sampling.return_token_ids:
            return None
        return self._envelope.tokenizer.tokens_to_ids(self._rows[index].prompt.tokens)
