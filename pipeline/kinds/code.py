"""Code: one fenced block that does what the instruction says."""

import re

from pipeline.kinds.dialogue import language_of
from pipeline.kinds.free_text import free_text_template, require_text, system_messages
from pipeline.kinds.kind import Kind
from pipeline.kinds.requests import Completion, CompletionRequest, EndpointProfile
from schemas.calls import Language
from schemas.errors import InvalidOutput
from schemas.jobs import CodeJob
from schemas.results import CodeResult

_WORDS = {
    Language.CHINESE: (
        "编程语言：",
        "文件：",
        "已有代码：",
        "要求：",
        "请把完整代码放在一个代码块里，之后可以附简短说明。",
    ),
    Language.ENGLISH: (
        "Language: ",
        "File: ",
        "Existing code:",
        "Task: ",
        "Put the whole code in one fenced block; a short explanation may follow it.",
    ),
}
# A fence of three or more, its info string, the code, and a fence at least as long; the last block may lack its end.
_BLOCK = re.compile(
    r"^ {0,3}(?P<fence>`{3,})(?P<tag>[^\n`]*)\n(?P<code>.*?)(?:^ {0,3}(?P=fence)`*[ \t]*$|\Z)", re.M | re.S
)


def build(job: CodeJob, profile: EndpointProfile) -> CompletionRequest:
    """Return the request of one piece of code."""
    words = _WORDS[language_of(job.instruction)]
    language, file, existing, task, closing = words
    lines = [f"{language}{job.language}"]
    if job.file_name is not None:
        lines.append(f"{file}{job.file_name}")
    if job.context is not None:
        # Longer than any fence inside, so that the code cannot end its own block.
        longest = max((len(run) for run in re.findall(r"`{3,}", job.context)), default=2)
        fence = "`" * (longest + 1)
        lines += [existing, f"{fence}{job.language}", job.context, fence]
    lines += [f"{task}{job.instruction}", closing]
    template = free_text_template(
        "code", job.sampling, profile, max_tokens=2_048, words="\n".join((profile.system_prompt or "", *words))
    )
    return CompletionRequest(template, (*system_messages(profile), {"role": "user", "content": "\n".join(lines)}))


def decode(job: CodeJob, _request: CompletionRequest, completion: Completion) -> CodeResult:
    """Return the code of an answer: the first block in the job's language, else the first block.

    Raises:
        InvalidOutput: it has no code, or `max_tokens` cut it.
    """
    text = require_text(completion)
    if completion.finish_reason == "length":
        raise InvalidOutput("the code was cut off; raise sampling.max_tokens or ask for less")
    return extract_code(text, job.language)


def extract_code(text: str, language: str) -> CodeResult:
    """Split a whole answer into code and explanation; InvalidOutput where it has no code."""
    blocks = [block for block in _BLOCK.finditer(text) if block["code"].strip()]
    if not blocks:
        raise InvalidOutput("the engine answered without code")
    wanted = language.casefold()
    chosen = next((block for block in blocks if _tag(block).casefold() == wanted), blocks[0])
    around = (text[: chosen.start()].strip(), text[chosen.end() :].strip())
    return CodeResult(
        code=chosen["code"].removesuffix("\n"),
        language=_tag(chosen) or language,
        explanation="\n\n".join(part for part in around if part) or None,
    )


def _tag(block: re.Match[str]) -> str:
    """Return the language that a fence names; a file name may follow it."""
    words = block["tag"].split()
    return words[0] if words else ""


def _headline(result: CodeResult) -> str:
    return result.code if result.explanation is None else f"{result.code}\n\n{result.explanation}"


def _text(result: CodeResult) -> str:
    block = f"```{result.language}\n{result.code}\n```"
    return block if result.explanation is None else f"{block}\n\n{result.explanation}"


def _is_answer(text: str, result: CodeResult) -> bool:
    """Whether a text, with its fences, has this code and explanation."""
    try:
        return extract_code(text, result.language) == result
    except InvalidOutput:
        return False


KIND = Kind("code", CodeJob, CodeResult, build, decode, headline=_headline, text=_text, is_answer=_is_answer)
