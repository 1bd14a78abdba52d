"""The messages that a person may read at a terminal, collected from the source: what the Chinese catalogue must have.

A message is the first argument of an error of ours, of what prints, or of a help text; in modules whose work it is to make
sentences, every string that looks like a sentence. What varies is `{}`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PRINTING = {"say", "tell", "goes_on", "_say", "on_step", "_on_step", "add_note", "Finding", "sentence"}
# Whose strings are sentences for people, wherever they stand.
_SENTENCES = [
    "pipeline/cli/*.py",
    "pipeline/operations/health.py",
    "pipeline/calls/readers/recognition.py",
    "pipeline/images/decoding.py",
    "pipeline/batches/reading.py",
    "pipeline/batches/lines.py",
    "pipeline/stack.py",
    "pipeline/client/asynchronous.py",
    "pipeline/local/supervisor.py",
    "pipeline/broker/errors.py",
    "pipeline/local/sockets.py",
    "pipeline/engine/errors.py",
    "pipeline/engine/responses.py",
    "schemas/problems.py",
]
_OTHERS = ["pipeline/**/*.py", "schemas/**/*.py"]
_LEFT_OUT = re.compile(r"migrations/|/schema/|published/|testing\.py|flower/|language\.py")
_PLACES = re.compile(r"\{[a-z_]*:?,?\}")
_SENTENCE = re.compile(r"[A-Za-z(…→{ ].*[a-z].* .*[a-z]{2}", re.DOTALL)
_NO_SENTENCE = re.compile(
    r"^\s*(SELECT|INSERT|WITH|UPDATE|UNION|FROM|JOIN|LEFT JOIN)\b|%\(\w+\)s|--no-|^\.venv|^ *at (line|character)|^[a-z_.]+$"
)


def messages() -> dict[str, str]:
    """Return every message, and a file that has it."""
    found: dict[str, str] = {}
    for file, sentences in _files():
        name = str(file.relative_to(ROOT))
        for message in _messages_of(ast.parse(file.read_text(encoding="utf-8")), sentences=sentences):
            if re.search(r"[A-Za-z]{2}", message) and not _NO_SENTENCE.search(message):
                found.setdefault(_PLACES.sub("{}", message.strip()), name)
    return {message: name for message, name in found.items() if re.search(r"[A-Za-z]{2}", message.replace("{}", ""))}


def _files() -> Iterator[tuple[Path, bool]]:
    sentences = {file for pattern in _SENTENCES for file in ROOT.glob(pattern)}
    others = {file for pattern in _OTHERS for file in ROOT.glob(pattern)} - sentences
    for file in sorted(sentences | others):
        if not _LEFT_OUT.search(str(file.relative_to(ROOT))):
            yield file, file in sentences


def _messages_of(tree: ast.AST, *, sentences: bool) -> Iterator[str]:
    docstrings = {id(node) for node in _docstrings(tree)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_command(node):
            yield " ".join((ast.get_docstring(node) or "").split())
        elif sentences and isinstance(node, ast.JoinedStr | ast.Constant):
            if id(node) in docstrings or (isinstance(node, ast.Constant) and id(node) in inside):
                continue
            yield from (text for text in _templates(node) if _SENTENCE.match(text))


def _of_call(node: ast.Call) -> Iterator[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    is_error = bool(re.fullmatch(r"[A-Z]\w+", name)) and name in _ERRORS
    if node.args and (is_error or name in _PRINTING):
        yield from _templates(node.args[0])
    if name == "table":
        yield from (text for argument in node.args[:2] for part in ast.walk(argument) for text in _constant(part))
    for keyword in node.keywords:
        if keyword.arg == "help":
            yield from _templates(keyword.value)


_ERRORS = {
    "ValueError",
    "ServerError",
    "InvalidSetting",
    "UnwritableFile",
    "UnknownModel",
    "InvalidJob",
    "InvalidBatchFile",
    "BatchTakenOver",
    "RefusedLine",
    "DuplicateJob",
    "QueueSaturated",
    "InvalidCall",
    "BadLine",
    "StoreUnavailable",
    "BrokerUnavailable",
    "JobNotFound",
    "BatchNotFound",
    "EngineUnavailable",
    "EndpointRefused",
    "EngineOverloaded",
    "EngineTimeout",
    "EngineFailed",
    "RequestRejected",
    "PromptTooLong",
    "InvalidOutput",
    "OnlyReasoning",
    "AnswerFiltered",
    "ResultTimeout",
}


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {getattr(one, "id", getattr(one, "attr", "")) for one in node.decorator_list}
    names |= {getattr(getattr(one, "func", None), "attr", "") for one in node.decorator_list}
    return "command" in names


def _templates(node: ast.AST) -> Iterator[str]:
    """Yield the templates of an expression: of each branch, with {} for what varies, and of strings within."""
    if isinstance(node, ast.IfExp):
        yield from _templates(node.body)
        yield from _templates(node.orelse)
    elif isinstance(node, ast.Constant):
        yield from _constant(node)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.IfExp):
                yield from (text for text in _templates(part.value) if " " in text.strip())


def _constant(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value
