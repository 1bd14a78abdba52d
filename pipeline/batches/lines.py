"""A line of a batch file is a job: OpenAI's form, or ours. Pure."""

from typing import Any, NamedTuple
from zlib import crc32

import orjson

from pipeline.batches.reading import Line
from schemas.batches import BatchSettings
from schemas.completions import UsageMode
from schemas.job import can_be_stored

LONGEST_CUSTOM_ID = 512
_ROUTE = "/v1/chat/completions"
_OPENAI_FIELDS = {"method", "url", "body"}


class RefusedLine(Exception):  # noqa: N818 - it describes a line
    """A line is no job.

    Attributes:
        reason: one clause that names the field.
        custom_id: of the line, if it could be read.
    """

    def __init__(self, reason: str, custom_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.custom_id = custom_id


class JobLine(NamedTuple):
    """A line that may be a job.

    Attributes:
        custom_id: of the line.
        body: of a line in OpenAI's form; its job is that of `shared_fields` with this body.
        job: of a line in our form, as a caller would submit it.
    """

    custom_id: str
    body: Any = None
    job: dict[str, Any] | None = None


def shared_fields(settings: BatchSettings) -> dict[str, Any]:
    """Return what the settings add to every line in OpenAI's form, without defaults."""
    fields: dict[str, Any] = {}
    if settings.priority:
        fields["priority"] = settings.priority
    if settings.model is not None:
        fields["model"] = settings.model
    if not settings.cache:
        fields["cache"] = False
    if settings.usage_mode is not UsageMode.EXACT:
        fields["usage_mode"] = settings.usage_mode
    return fields


def is_within(line: Line, share: float) -> bool:
    """Whether a line belongs to a share of all lines: the same ones each time, spread over the file."""
    return crc32(line.number.to_bytes(8, "little")) < share * 2**32


def parse_line(line: Line, settings: BatchSettings) -> JobLine:
    """Return the job of a line, as far as can be said without looking into it.

    Raises:
        RefusedLine: it is none.
    """
    if line.problem is not None:
        raise RefusedLine(line.problem)
    try:
        value = orjson.loads(line.text)
    except orjson.JSONDecodeError as error:
        raise RefusedLine(f"is not JSON: {error.msg} at character {error.pos + 1:,}") from None
    if not isinstance(value, dict):
        raise RefusedLine("is JSON, but not an object")
    custom_id = _custom_id(value)
    if "kind" not in value:
        return JobLine(custom_id, body=_of_openai(value, custom_id))
    if "idempotency_key" in value:
        raise RefusedLine("idempotency_key: in a batch only the batch has a key; leave it out", custom_id)
    value.setdefault("priority", settings.priority)
    if settings.model is not None:
        value["model"] = settings.model
    if not settings.cache:
        value["cache"] = False
    return JobLine(custom_id, job=value)


def _custom_id(value: dict[str, Any]) -> str:
    custom_id = value.pop("custom_id", None)
    if custom_id is None:
        raise RefusedLine("custom_id: is missing")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_CUSTOM_ID:
        raise RefusedLine(f"custom_id: must be text of 1 to {LONGEST_CUSTOM_ID} characters")
    if not can_be_stored(custom_id):
        raise RefusedLine("custom_id: has a NUL character, which cannot be stored")
    return custom_id


def _of_openai(value: dict[str, Any], custom_id: str) -> Any:
    if "body" not in value:
        raise RefusedLine("body: is missing; or write kind, for a job of ours", custom_id)
    if value.get("url") != _ROUTE:
        raise RefusedLine(f"url: must be {_ROUTE}, the one route of batches", custom_id)
    if value.get("method", "POST") != "POST":
        raise RefusedLine("method: must be POST", custom_id)
    if not value.keys() <= _OPENAI_FIELDS:
        name = next(name for name in value if name not in _OPENAI_FIELDS)
        raise RefusedLine(f"{name if name.isidentifier() else 'a field'}: is not a field here", custom_id)
    return value["body"]
