"""Code: one fenced block that does what the instruction says."""

import re

from pipeline.kinds.dialogue import language_of
from pipeline.kinds.free_text import opening, writing_shape, written
from pipeline.kinds.requests import Answer, Ask, Target
from schemas.calls import Language
from schemas.errors import InvalidOutput
from schemas.jobs import CodeJob
from schemas.results import CodeResult

_FORM = {
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
# A fence of three or more, what stands beside it, the code, and a fence at least as long; the last block may lack its end.
_BLOCK = re.compile(
    r"^ {0,3}(?P<fence>`{3,})(?P<tag>[^\n`]*)\n(?P<code>.*?)(?:^ {0,3}(?P=fence)`*[ \t]*$|\Z)", re.M | re.S
)


def build(job: CodeJob, target: Target) -> Ask:
    """The request for one piece of code."""
    form = _FORM[language_of(job.instruction)]
    language, file, existing, task, closing = form
    lines = [f"{language}{job.language}"]
    if job.file_name is not None:
        lines.append(f"{file}{job.file_name}")
    if job.context is not None:
        # Longer than any fence inside, so that the code cannot end its own block.
        longest = max((len(run) for run in re.findall(r"`{3,}", job.context)), default=2)
        fence = "`" * (longest + 1)
        lines += [existing, f"{fence}{job.language}", job.context, fence]
    lines += [f"{task}{job.instruction}", closing]
    shape = writing_shape(
        "code", job.sampling, target, max_tokens=2_048, words="\n".join((target.system_prompt or "", *form))
    )
    return Ask(shape, (*opening(target), {"role": "user", "content": "\n".join(lines)}))


def read(job: CodeJob, answer: Answer) -> CodeResult:
    """The code of an answer: the first block in the job's language, else the first.

    Raises:
        InvalidOutput: no code in it, or cut off by `max_tokens`.
    """
    text = written(answer)
    if answer.finish_reason == "length":
        raise InvalidOutput("the code was cut off; raise sampling.max_tokens or ask for less")
    return taken_apart(text, job.language)


def taken_apart(text: str, language: str) -> CodeResult:
    """Code and explanation of a whole answer; InvalidOutput where there is no code."""
    blocks = [block for block in _BLOCK.finditer(text) if block["code"].strip()]
    if not blocks:
        raise InvalidOutput("the engine answered without code")
    asked = language.casefold()
    chosen = next((block for block in blocks if _tag(block).casefold() == asked), blocks[0])
    around = (text[: chosen.start()].strip(), text[chosen.end() :].strip())
    return CodeResult(
        code=chosen["code"].removesuffix("\n"),
        language=_tag(chosen) or language,
        explanation="\n\n".join(part for part in around if part) or None,
    )


def _tag(block: re.Match[str]) -> str:
    """The language a fence names; what follows it may be a file name."""
    words = block["tag"].split()
    return words[0] if words else ""


__all__ = ["build", "read", "taken_apart"]
