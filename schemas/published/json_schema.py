"""One JSON Schema of everything that a caller sends and receives."""

import json
import re
from inspect import cleandoc
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from schemas.doorbells import Doorbell
from schemas.errors import ErrorCode
from schemas.intake import MAX_KEY_CHARACTERS, QUEUE_PATTERN, CancelArguments, IntakeReply
from schemas.jobs import UtteranceJob, any_job, job_models
from schemas.results import JobError, JobState, Outcome, any_result
from schemas.streams import StreamEvent
from schemas.timings import Timings, Usage

_ABOUT = (
    "Everything that a caller of the YYC3 AI-Call pipeline sends and receives; see docs/submitting.md. The pipeline also "
    "checks what a schema cannot express: the texts of one job have at most 400,000 characters together, labels differ, "
    "the context of a sentiment job goes with text, images are images, an answer_schema is one, no text has a NUL character."
)
_Mode = Literal["validation", "serialization"]
_REPLY_QUEUE = {
    "type": "string",
    "pattern": QUEUE_PATTERN,
    "not": {
        "pattern": "^(yyc3\\.|_kombu|celery|unacked)|\\.pidbox$"
    },  # a lookahead would be shorter, but Go does not support it
}


def _published() -> tuple[tuple[str, _Mode, Any, str], ...]:
    """Return names, modes, types and descriptions: jobs as they may be sent, everything else as the pipeline sends it."""
    return (
        ("Job", "validation", any_job(), "What may be submitted, distinguished by `kind`."),
        ("Outcome", "serialization", Outcome, ""),
        ("Result", "serialization", any_result(), "The result of a job that succeeded, distinguished by `kind`."),
        ("JobError", "serialization", JobError, ""),
        ("JobState", "serialization", JobState, ""),
        ("ErrorCode", "serialization", ErrorCode, ""),
        ("Usage", "serialization", Usage, ""),
        ("Timings", "serialization", Timings, ""),
        ("StreamEvent", "serialization", StreamEvent, "One event of a streamed answer, distinguished by `event`."),
        (
            "IntakeReply",
            "serialization",
            IntakeReply,
            "Keyword arguments of the task `yyc3.reply`, distinguished by `event`.",
        ),
        ("CancelArguments", "validation", CancelArguments, ""),
        ("Doorbell", "validation", Doorbell, ""),
    )


class _Generator(GenerateJsonSchema):
    """Pydantic's schema, for readers who have nothing else."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - titles would only repeat names
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Require every field of what the pipeline sends, and the tag of what a caller sends."""
        return self.mode == "serialization" or _is_tag(field["schema"]) or super().field_is_required(field, total)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Show defaults only where a field may be left out."""
        if self.mode == "serialization" or _is_tag(schema):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Leave out `discriminator`: it is a word of OpenAPI, and the constants of the members mean the same."""
        made = super().tagged_union_schema(schema)
        return {keyword: value for keyword, value in made.items() if keyword != "discriminator"}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Describe a model; the docstring's description of a field goes to the field."""
        made, cls = super().model_schema(schema), schema["cls"]
        made["description"], _ = _read(cls)
        for base in reversed(cls.__mro__):
            for name, meaning in _read(base)[1].items():
                made["properties"][name].setdefault("description", meaning)
        if issubclass(cls, UtteranceJob):
            made["oneOf"] = [
                {"type": "object", "properties": {name: made["properties"][name]["anyOf"][0]}, "required": [name]}
                for name in ("text", "turns")
            ]
        # The tag first: the meaning of the other fields depends on it.
        made["properties"] = dict(sorted(made["properties"].items(), key=lambda field: "const" not in field[1]))
        return made


def _is_tag(schema: Any) -> bool:
    return bool(schema["type"] == "default" and schema["schema"]["type"] == "literal")


def _read(cls: type) -> tuple[str, dict[str, str]]:
    """Return what a docstring says of the whole, and of each attribute."""
    doc = cls.__dict__.get("__doc__") if cls is not BaseModel else None
    whole, _, attributes = cleandoc(doc or "").partition("\n\nAttributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return whole, {name: " ".join(meaning.split()) for name, meaning in found}


def json_schema() -> dict[str, Any]:
    """Return the schema, draft 2020-12; everything is in `$defs`, each definition after those that it uses."""
    published = _published()
    asked = [(name, mode, TypeAdapter(kind)) for name, mode, kind, _ in published]
    made, document = TypeAdapter.json_schemas(asked, schema_generator=_Generator)
    bare = {name: schema for (name, _), schema in made.items() if "$ref" not in schema}
    definitions = {name: _referring(schema, bare) for name, schema in document["$defs"].items()}
    about = {name: text for name, _, _, text in published}
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
    """Return a schema with `$ref` in place of a repeated union that has a name."""
    for name, union in bare.items():
        if schema == union:
            return {"$ref": f"#/$defs/{name}"}
    if isinstance(schema, dict):
        return {keyword: _referring(value, bare) for keyword, value in schema.items()}
    return [_referring(value, bare) for value in schema] if isinstance(schema, list) else schema


def _submit_arguments(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `yyc3.submit`, one schema for each kind: a job with `job_key` as its idempotency key."""
    key = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS}
    key["description"] = "the caller's name for the job; the same key with the same job is the same job"
    queue: dict[str, Any] = {
        "description": "the queue that gets the replies; without it no reply is sent",
        "default": None,
    }
    queue |= {"anyOf": [_REPLY_QUEUE, {"type": "null"}]}
    made: dict[str, Any] = {}
    for job in job_models():
        name, schema = job.__name__.replace("Job", "Arguments"), definitions[job.__name__]
        fields = {field: value for field, value in schema["properties"].items() if field != "idempotency_key"}
        fields = {"job_key": key, "reply_to": queue} | fields
        made[name] = schema | {"title": name, "properties": fields, "required": ["job_key", *schema["required"]]}
    about = "Keyword arguments of the task `yyc3.submit` on the queue `yyc3.intake`, distinguished by `kind`."
    members = [{"$ref": f"#/$defs/{name}"} for name in made]
    return made | {"SubmitArguments": {"title": "SubmitArguments", "description": about, "oneOf": members}}


def _in_reading_order(definitions: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Order definitions: those that a definition uses come before it."""
    ordered: dict[str, Any] = {}

    def visit(name: str) -> None:
        if name not in ordered:
            ordered[name] = definitions[name]
            for mentioned in re.findall(r'"#/\$defs/(\w+)"', json.dumps(definitions[name])):
                visit(mentioned)

    for name in names:
        visit(name)
    return ordered
