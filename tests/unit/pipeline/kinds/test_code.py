"""Code: one fenced block, and the explanation around it."""

import pytest

from pipeline import kinds
from pipeline.kinds import Completion, EndpointProfile, LabelForm
from schemas.errors import InvalidOutput
from schemas.jobs import parse_job
from schemas.results import CodeResult
from tests.unit.pipeline.kinds.completions import STRUCTURED, build


def decoded(text: str, finish_reason: str = "stop", language: str = "python") -> CodeResult:
    job, request = build({"kind": "code", "instruction": "add", "language": language})
    result = kinds.decode(job, request, Completion(text=text, finish_reason=finish_reason))
    assert isinstance(result, CodeResult)
    return result


@pytest.mark.parametrize(
    ("text", "code", "language", "explanation"),
    [
        ("```python\nx = 1\n```", "x = 1", "python", None),
        ("Here:\n```python\nx = 1\ny = 2\n```\nThat is all.", "x = 1\ny = 2", "python", "Here:\n\nThat is all."),
        ("```\nx = 1\n```", "x = 1", "python", None),
        ("```bash\npip install y\n```\n```Python\nx = 1\n```", "x = 1", "Python", "```bash\npip install y\n```"),
        ("```js app.js\nlet x\n```", "let x", "js", None),
        ("````markdown\n```\ninner\n```\n````", "```\ninner\n```", "markdown", None),
        ("```python\nx = 1", "x = 1", "python", None),
        ("```python\n\n    x = 1\n\n```", "\n    x = 1\n", "python", None),
        ("```\n\n```\n```python\nx = 1\n```", "x = 1", "python", "```\n\n```"),
    ],
)
def test_code_is_taken_out_of_its_fence(text: str, code: str, language: str, explanation: str | None) -> None:
    result = decoded(text)
    assert (result.code, result.language, result.explanation) == (code, language, explanation)


@pytest.mark.parametrize("text", ["", "I would rather not.", "```python\n```", "`x = 1`"])
def test_an_answer_without_code_fails_the_attempt(text: str) -> None:
    with pytest.raises(InvalidOutput):
        decoded(text)


def test_code_that_was_cut_off_fails_the_attempt() -> None:
    with pytest.raises(InvalidOutput, match=r"raise sampling\.max_tokens"):
        decoded("```python\nx = 1\n```", "length")


def test_existing_code_cannot_end_its_block_and_the_system_prompt_is_first() -> None:
    job = parse_job(
        {
            "kind": "code",
            "instruction": "更正它",
            "language": "markdown",
            "context": "```\na\n````",
            "file_name": "a.md",
        }
    )
    profile = EndpointProfile(LabelForm.WORD, STRUCTURED, 8192, stop_token_ids=(5, 6), system_prompt="你是编程助手。")
    request = kinds.build(job, profile)
    system, user = request.messages
    assert system == {"role": "system", "content": "你是编程助手。"}
    assert "`````markdown\n```\na\n````\n`````" in user["content"]
    assert "文件：a.md" in user["content"]
    assert request.template.parameters["stop_token_ids"] == [5, 6]
    assert request.template.parameters["max_tokens"] == 2_048
    other = kinds.build(job, EndpointProfile(LabelForm.WORD, STRUCTURED, 8192))
    assert other.template.template_hash != request.template.template_hash
    assert "stop_token_ids" not in other.template.parameters
