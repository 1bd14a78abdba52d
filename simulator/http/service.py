"""Parses request bodies and plans their answers; the rows are then ready for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

from simulator.answers.planner import AnswerPlanner, Plan
from simulator.answers.scripted import Script, ScriptedAnswer, read_script
from simulator.engine.core import Engine
from simulator.engine.metrics import Metrics
from simulator.engine.request_rows import RequestRows, Row
from simulator.engine.stepper import EngineStepper
from simulator.errors import RequestRejected, bad_request, error_for_status
from simulator.faults import Fault, FaultPlan
from simulator.options import SimulatorOptions
from simulator.requests.prompts import (
    Prompt,
    check_length,
    prompt_from_messages,
    prompt_from_text,
    prompt_from_tokens,
    truncate_prompt,
)
from simulator.requests.sampling import SamplingParams, read_sampling_params, validation_error
from simulator.requests.tokens import EOS, VOCABULARY_SIZE, Tokenizer

_NONSENSE = "@@ 银河系漫游指南 blorp ##"


@dataclass(slots=True)
class ParsedRequest:
    """A valid request, with its answers planned.

    Attributes:
        sampling: its sampling parameters.
        rows: rows in the order of the answer's `index`; the answers of one prompt are adjacent.
        per_prompt: number of answers per prompt (`n`).
        fault: the fault of the request; None when it does not fail.

    """

    sampling: SamplingParams
    rows: list[Row]
    per_prompt: int
    fault: Fault | None


class Service:
    """State of one simulator, and the parsing of its requests."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.tokenizer = Tokenizer()
        self.engine = Engine(options.limits)
        self.metrics = Metrics(options.model)
        self.stepper = EngineStepper(self.engine, self.metrics.record_step)
        self.faults = FaultPlan(options.faults, options.seed)
        self.created = int(time())
        self.load = 0
        self.requests = 0
        self.rows = 0
        self.faults_injected = 0
        self.script = read_script(options.answers) if options.answers else Script()
        self._planner = AnswerPlanner(options.seed, options.max_model_len, self.tokenizer)
        self._text_model = None if options.images else options.model

    def start_rows(self, parsed: ParsedRequest) -> RequestRows:
        """Count a request and return its rows, ready to be submitted."""
        self.requests += 1
        self.rows += len(parsed.rows)
        return RequestRows(parsed.rows, self.engine, self.stepper, self.metrics)

    def state(self) -> dict[str, Any]:
        """Return counters for tests."""
        totals = self.engine.totals
        return {
            "requests": self.requests,
            "rows": self.rows,
            "running": self.engine.running,
            "waiting": self.engine.waiting,
            "load": self.load,
            "finished": totals.finished,
            "aborted": totals.aborted,
            "rejected": totals.rejected,
            "steps": totals.steps,
            "faults_struck": self.faults_injected,
        }

    def check_model(self, body: dict[str, Any]) -> None:
        """Reject the name of another model; a request without a name is valid.

        Raises:
            RequestRejected: 404.

        """
        model = body.get("model")
        if model is not None and model != self.options.model:
            message = f"The model `{model}` does not exist. Valid aliases: {self.options.model}."
            raise RequestRejected(404, message, "NotFoundError", "model")

    def parse_chat(self, body: dict[str, Any]) -> ParsedRequest:
        """Parse the body of /v1/chat/completions; an invalid one raises RequestRejected."""
        messages = _read_list(body, "messages")
        sampling = self._read_sampling(body)
        self.check_model(body)
        if not messages:
            raise bad_request("Cannot apply chat template to an empty conversation. Provide at least one message.")
        if body.get("tools") and body.get("tool_choice", "auto") != "none":
            raise bad_request(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            )
        prompt = prompt_from_messages(messages, "messages", self._text_model, sampling.cache_salt)
        return self._plan_rows([prompt], sampling)

    def parse_batch(self, body: dict[str, Any]) -> ParsedRequest:
        """Parse the body of /v1/chat/completions/batch; one invalid row rejects all rows."""
        conversations = _read_list(body, "messages")
        if not conversations:
            raise _too_short("messages")
        for index, conversation in enumerate(conversations):
            location = f"messages.{index}"
            if not isinstance(conversation, list):
                raise validation_error("list_type", location, "Input should be a valid list", conversation)
            if not conversation:
                raise _too_short(location)
        sampling = self._read_sampling(body, ignores_stream=True)
        if sampling.n > 1:
            raise bad_request("Batch chat completions do not support `n > 1`. Please set `n` to 1.", "n", sampling.n)
        self.check_model(body)
        text_model, salt = self._text_model, sampling.cache_salt
        prompts = [
            prompt_from_messages(conversation, f"messages.{index}", text_model, salt)
            for index, conversation in enumerate(conversations)
        ]
        return self._plan_rows(prompts, sampling)

    def parse_completion(self, body: dict[str, Any]) -> ParsedRequest:
        """Parse the body of /v1/completions; the prompt is a text, token ids, or a list of them."""
        sampling = self._read_sampling(body, completion=True)
        self.check_model(body)
        given = body.get("prompt")
        if given is None or given == "":
            message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            raise RequestRejected(400, message, param="prompt")
        if not isinstance(given, str | list):
            raise validation_error("list_type", "prompt", "Input should be a valid list", given)
        if not given:
            raise bad_request("You must pass at least one prompt")
        several = isinstance(given, list) and not isinstance(given[0], int)
        prompts = [self._read_prompt(one, sampling) for one in (given if several else [given])]
        return self._plan_rows(prompts, sampling)

    def parse_tokenize(self, body: dict[str, Any]) -> Sequence[str]:
        """Parse the body of /tokenize and return the tokens of its prompt."""
        self.check_model(body)
        if "messages" in body:
            return prompt_from_messages(_read_list(body, "messages"), "messages", self._text_model).tokens
        if "prompt" not in body:
            problems = [
                {
                    "type": "missing",
                    "loc": f"body.{name}",
                    "msg": "Field required",
                    "input": f"<dict of {len(body)} items>",
                }
                for name in ("prompt", "messages")
            ]
            text = "".join(f"\n  {problem}" for problem in problems)
            raise RequestRejected(400, f"2 validation errors:{text}", "Bad Request", "body.prompt")
        if not isinstance(body["prompt"], str):
            raise validation_error("string_type", "prompt", "Input should be a valid string", body["prompt"])
        return prompt_from_text(body["prompt"]).tokens

    def _read_sampling(
        self, body: dict[str, Any], ignores_stream: bool = False, completion: bool = False
    ) -> SamplingParams:
        options = self.options
        return read_sampling_params(
            body,
            legacy=options.legacy,
            max_model_len=options.max_model_len,
            ignores_stream=ignores_stream,
            completion=completion,
        )

    def _read_prompt(self, given: Any, sampling: SamplingParams) -> Prompt:
        if isinstance(given, str):
            return prompt_from_text(given, sampling.cache_salt)
        if not isinstance(given, list) or not all(isinstance(one, int) for one in given):
            raise validation_error("string_type", "prompt", "Input should be a valid string", given)
        for token_id in given:
            if not 0 <= token_id < VOCABULARY_SIZE:
                raise bad_request(f"Token id {token_id} is out of vocabulary")
        return prompt_from_tokens(
            [self.tokenizer.id_to_token(token_id) or f"<{token_id}>" for token_id in given], sampling.cache_salt
        )

    def _plan_rows(self, prompts: list[Prompt], sampling: SamplingParams) -> ParsedRequest:
        limit, salt = self.options.max_model_len, sampling.cache_salt
        if sampling.truncate_prompt_tokens is not None:
            prompts = [truncate_prompt(prompt, sampling.truncate_prompt_tokens, limit, salt) for prompt in prompts]
        for prompt in prompts:
            check_length(prompt, limit)
        fault = self.faults.draw()
        rows = []
        for prompt in prompts:
            scripted = self.script.find(prompt.question) if self.script else None
            if scripted is not None and scripted.fault is not None and fault is None:
                fault = self._apply_scripted_fault(scripted)
            if self.faults.has_row_faults and self.faults.fails_row(prompt.question):
                self.faults_injected += 1
                raise bad_request("The fault badrow rejects this row; remove the row, or delete the fault.")
            for variant in range(sampling.n):
                rows.append(Row(prompt, self._plan_row(prompt, sampling, variant, scripted, fault)))
        self._apply_fault(fault)
        return ParsedRequest(sampling, rows, sampling.n, fault)

    def _apply_scripted_fault(self, scripted: ScriptedAnswer) -> Fault | None:
        fault = scripted.fault
        if fault is not None and fault.status is not None:
            self.faults_injected += 1
            raise error_for_status(
                fault.status, scripted.message or f"A scripted answer injects the status {fault.status}."
            )
        return fault

    def _apply_fault(self, fault: Fault | None) -> None:
        if fault is None:
            return
        self.faults_injected += 1
        if fault.status is not None:
            raise error_for_status(fault.status, f"A configured fault injects the status {fault.status}.")

    def _plan_row(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        variant: int,
        scripted: ScriptedAnswer | None,
        fault: Fault | None,
    ) -> Plan:
        kind = fault.kind if fault else ""
        if kind == "nonsense":
            return self._planner.plan_for_text(_NONSENSE, prompt, sampling)
        if kind == "empty":
            return Plan((EOS,), "", "stop")
        if scripted is None or scripted.answer is None:
            plan = self._planner.plan(prompt, sampling, variant)
        else:
            plan = self._planner.plan_for_text(scripted.answer, prompt, sampling)
            if scripted.finish_reason is not None:
                plan.finish_reason = scripted.finish_reason
        return plan.truncate(len(plan.tokens) // 2, "abort") if kind == "abort" else plan


def choose_response_id(body: dict[str, Any], header: str | None) -> str:
    """Return the part of the answer's id after the prefix: the caller's, else a random one."""
    return header or str(body.get("request_id") or uuid4().hex[:16])


def _read_list(body: dict[str, Any], name: str) -> list[Any]:
    if name not in body:
        raise validation_error("missing", name, "Field required", body)
    value = body[name]
    if not isinstance(value, list):
        raise validation_error("list_type", name, "Input should be a valid list", value)
    return value


def _too_short(location: str) -> RequestRejected:
    context = {"field_type": "List", "min_length": 1, "actual_length": 0}
    return validation_error(
        "too_short", location, "List should have at least 1 item after validation, not 0", [], context
    )
