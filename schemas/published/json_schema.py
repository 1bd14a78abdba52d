"""What programs in other languages build on: one JSON Schema of everything a caller meets, TypeScript types, a table of errors.

The committed copies are docs/schemas/ and a part of docs/submitting.md; `make types` renews them, a test compares them.
"""

import json
import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from schemas.doorbells import Doorbell
from schemas.errors import ErrorCode, PipelineError
from schemas.intake import MAX_KEY_CHARACTERS, QUEUE_PATTERN, CancelArguments, IntakeReply
from schemas.jobs import ChatJob, CodeJob, IntentJob, Job, SentimentJob, VisionJob
from schemas.published.typescript import typescript
from schemas.results import JobError, JobState, Outcome, Result
from schemas.streams import StreamEvent
from schemas.timings import Timings, Usage

_ABOUT = (
    "Everything that a caller of the YYC3 AI-Call pipeline sends and gets; see docs/submitting.md. Beside it the pipeline "
    "looks at what a schema cannot say: the texts of one job hold at most 400,000 characters together, labels differ, a "
    "sentiment's context goes with text, pictures are pictures, an answer_schema is one, and no text holds a NUL character."
)
_Mode = Literal["validation", "serialization"]
# Jobs as they may be sent, all else as we say it. A doorbell leaves its chunk out where it names none, as a sender may.
_PUBLISHED: tuple[tuple[str, _Mode, Any, str], ...] = (
    ("Job", "validation", Annotated[Job, Field(discriminator="kind")], "What may be submitted, told apart by `kind`."),
    ("Outcome", "serialization", Outcome, ""),
    ("Result", "serialization", Result, "What a job that succeeded came to, told apart by `kind`."),
    ("JobError", "serialization", JobError, ""),
    ("JobState", "serialization", JobState, ""),
    ("ErrorCode", "serialization", ErrorCode, ""),
    ("Usage", "serialization", Usage, ""),
    ("Timings", "serialization", Timings, ""),
    ("StreamEvent", "serialization", StreamEvent, "One event of a streamed answer, told apart by `event`."),
    ("IntakeReply", "serialization", IntakeReply, "Keyword arguments of the task `yyc3.reply`, told apart by `event`."),
    ("CancelArguments", "validation", CancelArguments, ""),
    ("Doorbell", "validation", Doorbell, ""),
)
_REPLY_QUEUE = {
    "type": "string",
    "pattern": QUEUE_PATTERN,
    "not": {
        "pattern": "^(yyc3\\.|_kombu|celery|unacked)|\\.pidbox$"
    },  # a lookahead says it shorter, and is unknown to Go
}


class _Generator(GenerateJsonSchema):
    """Pydantic's schema, for readers who have nothing else."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - titles would only repeat names
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        """We say every field; and a sender says the tag, though a Python caller need not."""
        return self.mode == "serialization" or _is_tag(field["schema"]) or super().field_is_required(field, total)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Defaults are for those who leave a field out."""
        if self.mode == "serialization" or _is_tag(schema):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Without `discriminator`: that is a word of OpenAPI, and the members' constants say the same."""
        made = super().tagged_union_schema(schema)
        return {keyword: value for keyword, value in made.items() if keyword != "discriminator"}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """A model; what its docstring says about a field stands at the field."""
        made, cls = super().model_schema(schema), schema["cls"]
        made["description"], _ = _read(cls)
        for base in reversed(cls.__mro__):
            for name, meaning in _read(base)[1].items():
                made["properties"][name].setdefault("description", meaning)
        if issubclass(cls, IntentJob | SentimentJob):
            made["oneOf"] = [
                {"type": "object", "properties": {name: made["properties"][name]["anyOf"][0]}, "required": [name]}
                for name in ("text", "turns")
            ]
        # The tag first: it says what the rest is.
        made["properties"] = dict(sorted(made["properties"].items(), key=lambda field: "const" not in field[1]))
        return made


def _is_tag(schema: Any) -> bool:
    return bool(schema["type"] == "default" and schema["schema"]["type"] == "literal")


def _read(cls: type) -> tuple[str, dict[str, str]]:
    """What a docstring says of the whole, and of each attribute."""
    doc = cls.__dict__.get("__doc__") if cls is not BaseModel else None
    whole, _, attributes = cleandoc(doc or "").partition("\n\nAttributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return whole, {name: " ".join(meaning.split()) for name, meaning in found}


def json_schema() -> dict[str, Any]:
    """Draft 2020-12; everything is in `$defs`, first what a caller asks for, behind it what that is made of."""
    asked = [(name, mode, TypeAdapter(published)) for name, mode, published, _ in _PUBLISHED]
    made, document = TypeAdapter.json_schemas(asked, schema_generator=_Generator)
    bare = {name: schema for (name, _), schema in made.items() if "$ref" not in schema}
    definitions = {name: _referring(schema, bare) for name, schema in document["$defs"].items()}
    about = {name: text for name, _, _, text in _PUBLISHED}
    definitions |= {name: {"title": name, "description": about[name], **schema} for name, schema in bare.items()}
    definitions |= _submit_arguments(definitions) | {"ErrorCode": _error_codes()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "YYC3 AI-Call pipeline",
        "description": _ABOUT,
        "$defs": _in_reading_order(definitions, ["Job", "SubmitArguments", *about]),
    }


def _error_codes() -> dict[str, Any]:
    members = [{"const": str(code), "description": code.meaning} for code in ErrorCode]
    return {"title": "ErrorCode", "description": _read(ErrorCode)[0], "type": "string", "oneOf": members}


def _referring(schema: Any, bare: dict[str, Any]) -> Any:
    """The same with `$ref` where pydantic repeats a union that has a name."""
    for name, union in bare.items():
        if schema == union:
            return {"$ref": f"#/$defs/{name}"}
    if isinstance(schema, dict):
        return {keyword: _referring(value, bare) for keyword, value in schema.items()}
    return [_referring(value, bare) for value in schema] if isinstance(schema, list) else schema


def _submit_arguments(definitions: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `yyc3.submit`, a schema a kind: a job's, with `job_key` in place of its idempotency key."""
    key = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS}
    key["description"] = "the caller's name for the job; the same key with the same job is the same job"
    queue: dict[str, Any] = {
        "description": "the queue that gets the replies; left out, nobody is told",
        "default": None,
    }
    queue |= {"anyOf": [_REPLY_QUEUE, {"type": "null"}]}
    made: dict[str, Any] = {}
    for job in (IntentJob, SentimentJob, ChatJob, CodeJob, VisionJob):
        name, schema = job.__name__.replace("Job", "Arguments"), definitions[job.__name__]
        fields = {field: value for field, value in schema["properties"].items() if field != "idempotency_key"}
        fields = {"job_key": key, "reply_to": queue} | fields
        made[name] = schema | {"title": name, "properties": fields, "required": ["job_key", *schema["required"]]}
    about = "Keyword arguments of the task `yyc3.submit` on the queue `yyc3.intake`, told apart by `kind`."
    members = [{"$ref": f"#/$defs/{name}"} for name in made]
    return made | {"SubmitArguments": {"title": "SubmitArguments", "description": about, "oneOf": members}}


def _in_reading_order(definitions: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Each definition before those that it mentions."""
    ordered: dict[str, Any] = {}

    def visit(name: str) -> None:
        if name not in ordered:
            ordered[name] = definitions[name]
            for mentioned in re.findall(r'"#/\$defs/(\w+)"', json.dumps(definitions[name])):
                visit(mentioned)

    for name in names:
        visit(name)
    return ordered


_AT_SUBMIT = "at submit: raised, or in a `refused` reply"
_IN_AN_OUTCOME = "in an outcome"
_WAITING = "while a job is queued: why its last try failed"
_IN_BOTH = f"{_IN_AN_OUTCOME}; {_WAITING}"
_MET = {
    ErrorCode.UNKNOWN_MODEL: _AT_SUBMIT,
    ErrorCode.INVALID_SETTING: "when a client or a command starts",
    ErrorCode.INVALID_JOB: _AT_SUBMIT,
    ErrorCode.DUPLICATE_JOB: _AT_SUBMIT,
    ErrorCode.QUEUE_SATURATED: f"{_AT_SUBMIT}; both say `retry_after_seconds`",
    ErrorCode.INVALID_CALL: "in `yyc3 calls analyze`",
    ErrorCode.BROKER_UNAVAILABLE: "in `yyc3 queues`; a submit goes through without Redis and broker",
    ErrorCode.UNDECODABLE_MESSAGE: "in a worker's log",
    ErrorCode.STORE_UNAVAILABLE: "in any call; the intake queue waits instead",
    ErrorCode.VALUE_REFUSED: _IN_AN_OUTCOME,
    ErrorCode.JOB_NOT_FOUND: "when a job is asked for",
    ErrorCode.ENGINE_UNAVAILABLE: f"{_WAITING}, for as long as it takes",
    ErrorCode.ENGINE_OVERLOADED: f"{_WAITING}, for as long as it takes",
    ErrorCode.ENGINE_TIMEOUT: _IN_BOTH,
    ErrorCode.ENGINE_FAILED: _IN_BOTH,
    ErrorCode.REQUEST_REJECTED: _IN_AN_OUTCOME,
    ErrorCode.PROMPT_TOO_LONG: _IN_AN_OUTCOME,
    ErrorCode.INVALID_OUTPUT: _IN_BOTH,
    ErrorCode.OWN_FAULT: f"{_IN_BOTH}; or in a `refused` reply",
    ErrorCode.WORKER_LOST: _WAITING,
    ErrorCode.CRASHED_WORKER: _IN_AN_OUTCOME,
    ErrorCode.DEADLINE_PASSED: "in an outcome whose state is `expired`",
    ErrorCode.CANCELLED: "in an outcome whose state is `cancelled`",
    ErrorCode.RESULT_TIMEOUT: "when a caller stops waiting",
    ErrorCode.OTHER: "wherever this version reads what a newer one wrote",
}
_TABLE = re.compile(r"(?<=<!-- error codes -->\n).*?(?=<!-- /error codes -->)", re.DOTALL)


def _classes(above: type[PipelineError] = PipelineError) -> Iterator[type[PipelineError]]:
    for cls in above.__subclasses__():
        yield cls
        yield from _classes(cls)


def error_table() -> str:
    """Every code in a Markdown table; a code without an exception of its own is one that nothing is done about again."""
    retryable = {cls.code for cls in _classes() if "code" in cls.__dict__ and cls.retryable}
    rows = [
        f"| `{code}` | {code.meaning} | {'yes' if code in retryable else 'no'} | {_MET[code]} |" for code in ErrorCode
    ]
    return "\n".join(["| code | what it means | retryable | where it is met |", "|---|---|---|---|", *rows]) + "\n"


def with_error_table(text: str) -> str:
    """A Markdown document with the table between its two markers as it is now."""
    return _TABLE.sub(lambda _: error_table(), text)


def files() -> dict[str, str]:
    """What is committed in docs/schemas/, by file name."""
    document = json_schema()
    head = "// Types of the YYC3 AI-Call pipeline, made from yyc3.schema.json by `make types`.\n\n"
    return {
        "yyc3.schema.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        "yyc3.d.ts": head + typescript(document["$defs"]),
    }


__all__ = ["error_table", "files", "json_schema", "with_error_table"]
