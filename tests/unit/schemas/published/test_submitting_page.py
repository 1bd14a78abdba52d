"""docs/submitting.md agrees with the schema: its examples, its limits, its other numbers."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.batches.submit import MAX_BATCH_JOBS
from pipeline.images.decoding import LONGEST_SIDE_PIXELS, MAX_PIXELS
from pipeline.policies.retries import MAX_ATTEMPTS
from schemas.answer_schema import check_answer_schema
from schemas.jobs import parse_job
from schemas.limits import MAX_DIALOGUE_CHARACTERS, MAX_IMAGE_BYTES, MAX_IMAGE_CHARACTERS
from tests.support.submitting_page import PAGE, json_examples, text
from tests.unit.schemas.published.documents import DEFINITIONS, accepts


def test_the_examples_of_the_page_are_valid() -> None:
    jobs = json_examples("job")
    assert {job["kind"] for job in jobs} == {"intent", "sentiment", "chat", "completion", "code", "vision"}
    for job in jobs:
        assert accepts("Job", job), job
        assert accepts("SubmitArguments", job | {"job_key": "a", "reply_to": "crm.replies"}), job
        assert parse_job(job)
    assert all(accepts("Result", result) for result in json_examples("result"))
    assert all(accepts("IntakeReply", reply) for reply in json_examples("reply"))


NUMBERS = ("minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "maximum", "exclusiveMinimum")


def numbers(schema: Any) -> set[int]:
    """Return every limit in a field's own schema."""
    if isinstance(schema, list):
        return set().union(*[numbers(value) for value in schema])
    if not isinstance(schema, dict):
        return set()
    found = {int(schema[word]) for word in NUMBERS if word in schema}
    found |= {int(most) for most in re.findall(r"\{1,(\d+)\}", schema.get("pattern", ""))}
    return found | numbers([value for word, value in schema.items() if word not in {"default", "description"}])


def limits(definition: str, above: str = "") -> Iterator[tuple[str, set[int]]]:
    """Yield the fields of a definition, and those of what it is made of, such as `turns.text`, with their limits."""
    for name, schema in DEFINITIONS[definition].get("properties", {}).items():
        yield above + name, numbers(schema) - {MAX_IMAGE_CHARACTERS}
        for inner in re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)):
            yield from limits(inner, f"{name}.")


def test_the_limits_on_the_page_are_those_of_the_schema() -> None:
    found = re.findall(r"^\| (`.*) \| (.*) \|$", text().partition("## Limits")[2].partition("## Errors")[0], re.M)
    rows = {(path, cell.partition("` of ")[2]): limit for cell, limit in found for path in re.findall("`(.*?)`", cell)}
    seen = set()
    for definition in [member["$ref"].rpartition("/")[2] for member in DEFINITIONS["SubmitArguments"]["oneOf"]]:
        for path, expected in limits(definition):
            own = (path, {"CodeArguments": "code", "SentimentArguments": "a sentiment"}.get(definition, ""))
            key = own if own in rows else (path, "")
            limit = rows.get(key, "")
            seen.add(key)
            for number in expected:
                assert re.search(rf"(?<![\d,-]){number:,}(?!,?\d)", limit), (
                    f"{definition}.{path}: {number:,} in {limit!r}"
                )
    named = {key for key in rows if key[0] not in {"idempotency_key", "submit_many", "answer_schema"}}
    assert named <= seen, f"no such fields: {named - seen}"
    assert f"together {MAX_DIALOGUE_CHARACTERS:,} characters" in rows["turns", ""]
    assert rows["messages", ""].endswith(rows["turns", ""].partition(", ")[2])
    assert f"{MAX_IMAGE_BYTES >> 20} MiB" in rows["images", ""]
    assert f"{MAX_BATCH_JOBS:,}" in text()


def test_other_numbers_of_the_page_are_those_of_the_code() -> None:
    page = " ".join(text().split())
    assert f"at most {MAX_IMAGE_BYTES >> 20} MiB and {MAX_PIXELS // 1_000_000} million pixels" in page
    assert f"longer than {LONGEST_SIDE_PIXELS:,} pixels" in page
    assert MAX_ATTEMPTS == 5
    assert "five in all" in page
    with pytest.raises(ValueError, match="20,000 bytes"):
        check_answer_schema({"const": "x" * 20_000})


def test_the_chinese_page_has_the_same_examples_tables_and_sections() -> None:
    chinese = PAGE.with_name("submitting.zh-CN.md").read_text(encoding="utf-8")
    for form in (r"^```.*?^```", r"^ {4}\S.*$", r"^<!--.*-->$"):
        assert re.findall(form, chinese, re.MULTILINE | re.DOTALL if "`" in form else re.MULTILINE) == re.findall(
            form, text(), re.MULTILINE | re.DOTALL if "`" in form else re.MULTILINE
        ), form
    for form in (r"^#+ ", r"^\|", r"^- "):
        assert len(re.findall(form, chinese, re.MULTILINE)) == len(re.findall(form, text(), re.MULTILINE)), form
    codes = r"^\| `([a-z_]+)` \|"
    assert re.findall(codes, chinese, re.MULTILINE) == re.findall(codes, text(), re.MULTILINE)
