"""The simulated model server without its HTTP: from a request body to rows ready for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

from simulator.answers import Answerer, Plan
from simulator.clockwork import Clockwork
from simulator.conversation import (
    Prompt,
    check_length,
    prompt_of_messages,
    prompt_of_text,
    prompt_of_tokens,
    truncated,
)
from simulator.engine import Engine
from simulator.errors import RequestRejected, bad_request, by_status
from simulator.faults import Fault, FaultPlan
from simulator.generating import Row, Rows
from simulator.metrics import Metrics
from simulator.options import SimulatorOptions
from simulator.sampling import Sampling, read_sampling, validation_error
from simulator.script import Script, ScriptedAnswer, read_script
from simulator.tokens import END, VOCABULARY_SIZE, Tokenizer

_NONSENSE = "@@ 银河系漫游指南 blorp ##"


@dataclass(slots=True)
class Work:
    """A request that was understood.

    Attributes:
        rows: in the order of the answer's `index`; the answers of one prompt stand together.
        per_prompt: answers per prompt (`n`).
        fault: how it is going to go wrong, if it is.

    """

    sampling: Sampling
    rows: list[Row]
    per_prompt: int
    fault: Fault | None


class Service:
    """All state of one simulator."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.tokenizer = Tokenizer()
        self.engine = Engine(options.limits)
        self.metrics = Metrics(options.model)
        self.clockwork = Clockwork(self.engine, self.metrics.on_delivery)
        self.faults = FaultPlan(options.faults, options.seed)
        self.created = int(time())
        self.load = 0
        self.requests = 0
        self.rows = 0
        self.faults_struck = 0
        self.script = read_script(options.answers) if options.answers else Script()
        self._answerer = Answerer(options.seed, options.max_model_len, self.tokenizer)
        self._takes_images = None if options.images else options.model

    def rows_of(self, work: Work) -> Rows:
        """The rows, ready to be submitted."""
        self.requests += 1
        self.rows += len(work.rows)
        return Rows(work.rows, self.engine, self.clockwork, self.metrics)

    def state(self) -> dict[str, Any]:
        """Counts for tests."""
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
            "faults_struck": self.faults_struck,
        }

    def check_model(self, body: dict[str, Any]) -> None:
        """Refuse another model's name; a request without one is fine.

        Raises:
            RequestRejected: 404.

        """
        model = body.get("model")
        if model is not None and model != self.options.model:
            message = f"The model `{model}` does not exist. Valid aliases: {self.options.model}."
            raise RequestRejected(404, message, "NotFoundError", "model")

    def chat(self, body: dict[str, Any]) -> Work:
        """Understand /v1/chat/completions."""
        messages = _list_of(body, "messages")
        sampling = self._sampling(body)
        self.check_model(body)
        if not messages:
            raise bad_request("Cannot apply chat template to an empty conversation. Provide at least one message.")
        if body.get("tools") and body.get("tool_choice", "auto") != "none":
            raise bad_request(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            )
        prompt = prompt_of_messages(messages, "messages", self._takes_images, sampling.cache_salt)
        return self._work([prompt], sampling)

    def batch(self, body: dict[str, Any]) -> Work:
        """Understand /v1/chat/completions/batch: all rows or none."""
        conversations = _list_of(body, "messages")
        if not conversations:
            raise _too_short("messages")
        for number, conversation in enumerate(conversations):
            place = f"messages.{number}"
            if not isinstance(conversation, list):
                raise validation_error("list_type", place, "Input should be a valid list", conversation)
            if not conversation:
                raise _too_short(place)
        sampling = self._sampling(body, ignores_stream=True)
        if sampling.n > 1:
            raise bad_request("Batch chat completions do not support `n > 1`. Please set `n` to 1.", "n", sampling.n)
        self.check_model(body)
        takes_images, salt = self._takes_images, sampling.cache_salt
        prompts = [
            prompt_of_messages(conversation, f"messages.{number}", takes_images, salt)
            for number, conversation in enumerate(conversations)
        ]
        return self._work(prompts, sampling)

    def completion(self, body: dict[str, Any]) -> Work:
        """Understand /v1/completions: a text, token ids, or a list of either."""
        sampling = self._sampling(body, completion=True)
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
        prompts = [self._raw_prompt(one, sampling) for one in (given if several else [given])]
        return self._work(prompts, sampling)

    def prompt_to_count(self, body: dict[str, Any]) -> Sequence[str]:
        """Understand /tokenize; returns the tokens."""
        self.check_model(body)
        if "messages" in body:
            return prompt_of_messages(_list_of(body, "messages"), "messages", self._takes_images).tokens
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
        return prompt_of_text(body["prompt"]).tokens

    def _sampling(self, body: dict[str, Any], ignores_stream: bool = False, completion: bool = False) -> Sampling:
        options = self.options
        return read_sampling(
            body,
            legacy=options.legacy,
            max_model_len=options.max_model_len,
            ignores_stream=ignores_stream,
            completion=completion,
        )

    def _raw_prompt(self, given: Any, sampling: Sampling) -> Prompt:
        if isinstance(given, str):
            return prompt_of_text(given, sampling.cache_salt)
        if not isinstance(given, list) or not all(isinstance(one, int) for one in given):
            raise validation_error("string_type", "prompt", "Input should be a valid string", given)
        for one in given:
            if not 0 <= one < VOCABULARY_SIZE:
                raise bad_request(f"Token id {one} is out of vocabulary")
        return prompt_of_tokens([self.tokenizer.token(one) or f"<{one}>" for one in given], sampling.cache_salt)

    def _work(self, prompts: list[Prompt], sampling: Sampling) -> Work:
        limit, salt = self.options.max_model_len, sampling.cache_salt
        if sampling.truncate_prompt_tokens is not None:
            prompts = [truncated(prompt, sampling.truncate_prompt_tokens, limit, salt) for prompt in prompts]
        for prompt in prompts:
            check_length(prompt, limit)
        fault = self.faults.draw()
        rows = []
        for prompt in prompts:
            scripted = self.script.find(prompt.question) if self.script else None
            if scripted is not None and scripted.fault is not None and fault is None:
                fault = self._scripted_fault(scripted)
            if self.faults.picks_rows and self.faults.strikes_row(prompt.question):
                self.faults_struck += 1
                raise bad_request("The simulator was told to refuse this row (fault badrow).")
            for variant in range(sampling.n):
                rows.append(Row(prompt, self._plan(prompt, sampling, variant, scripted, fault)))
        self._refuse_by_fault(fault)
        return Work(sampling, rows, sampling.n, fault)

    def _scripted_fault(self, scripted: ScriptedAnswer) -> Fault | None:
        fault = scripted.fault
        if fault is not None and fault.status is not None:
            self.faults_struck += 1
            raise by_status(fault.status, scripted.message or f"The simulator was told to answer {fault.status}.")
        return fault

    def _refuse_by_fault(self, fault: Fault | None) -> None:
        if fault is None:
            return
        self.faults_struck += 1
        if fault.status is not None:
            raise by_status(fault.status, f"The simulator was told to answer {fault.status}.")

    def _plan(
        self, prompt: Prompt, sampling: Sampling, variant: int, scripted: ScriptedAnswer | None, fault: Fault | None
    ) -> Plan:
        kind = fault.kind if fault else ""
        if kind == "nonsense":
            return self._answerer.said(_NONSENSE, prompt, sampling)
        if kind == "empty":
            return Plan((END,), "", "stop")
        if scripted is None or scripted.answer is None:
            plan = self._answerer.plan(prompt, sampling, variant)
        else:
            plan = self._answerer.said(scripted.answer, prompt, sampling)
            if scripted.finish_reason is not None:
                plan.finish_reason = scripted.finish_reason
        return plan.cut(len(plan.tokens) // 2, "abort") if kind == "abort" else plan


def new_identity(body: dict[str, Any], header: str | None) -> str:
    """The part of the answer's id after the prefix: the caller's, else a random one."""
    return header or str(body.get("request_id") or uuid4().hex[:16])


def _list_of(body: dict[str, Any], name: str) -> list[Any]:
    if name not in body:
        raise validation_error("missing", name, "Field required", body)
    value = body[name]
    if not isinstance(value, list):
        raise validation_error("list_type", name, "Input should be a valid list", value)
    return value


def _too_short(place: str) -> RequestRejected:
    extra = {"field_type": "List", "min_length": 1, "actual_length": 0}
    return validation_error("too_short", place, "List should have at least 1 item after validation, not 0", [], extra)
