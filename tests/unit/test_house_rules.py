"""Rules of the house that no linter checks: sizes of modules and functions, and words that were dropped."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandbox import ROOT

PRODUCT = ("schemas", "pipeline", "workers", "simulator")
PROSE = ("README.md", "README.zh-CN.md", ".env.template", "pipeline/models.toml", "Makefile")
PROSE_FOLDERS = ("docs", "compose")
MAX_MODULE_LINES = 300
MAX_TEST_MODULE_LINES = 500
MAX_FUNCTION_LINES = 50
MAX_LOOSE_MODULES = 9

DROPPED_WORDS = frozenset(
    {
        *("bell", "bells", "whisper", "whispers", "whispered", "knock", "knocks", "aside"),
        *("permit", "permits", "seat", "seats", "series", "beat", "beats", "door", "doors", "tidy"),
        *("twin", "twins", "heir", "heirs", "hungry", "crumb", "crumbs", "owe", "owes", "owed", "owing"),
        *("somebody", "nobody", "whoever", "anew"),
    }
)
DROPPED_PHRASES = re.compile(r"\b(?:for(?:\s|#)+ever|so(?:\s|#)+many|try_number)\b", re.IGNORECASE)
"""Also across the end of a line."""

DROPPED_NAME = re.compile(r"\btries\b")
"""As a name: in Python's names, in backticks or in quotes. A worker that tries again is fine."""

FOREIGN_NAMES = re.compile(r"\bgenerate_series\b")
"""A function of Postgres."""

ALLOWED = {
    ("pipeline/local/servers.py", "nobody"): "the Unix account",
    ("pipeline/local/postgres.py", "nobody"): "the Unix account",
    ("pipeline/kinds/sentiment.py", "nobody"): "an example of what a customer says",
    ("simulator/answers/lexicon.py", "nobody"): "a word of customers",
}
"""Dropped words that may stay in a file, with the reason."""

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
NAMED = re.compile(r"`[^`]+`|\"[^\"\s]+\"|'[^'\s]+'")


def modules(*folders: str) -> list[Path]:
    """Return the Python modules of some folders."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT))


def prose() -> list[Path]:
    """Return the documents and settings that are written in prose."""
    found = [ROOT / name for name in PROSE]
    for folder in PROSE_FOLDERS:
        found += sorted(file for file in (ROOT / folder).rglob("*") if file.is_file())
    return found


def words_of(line: str) -> list[str]:
    """Return the words of a line, also those within snake_case and CamelCase names, in lower case."""
    return [word.lower() for word in WORD.findall(FOREIGN_NAMES.sub("", line))]


def names_of(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of what is a name of code: Python's names, and what a text has in backticks or quotes."""
    if file.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string
    for number, line in enumerate(text.splitlines(), start=1):
        for name in NAMED.findall(line):
            yield number, name


def dropped_in(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the word of every dropped word; line 0 is the name of the file."""
    for number, line in enumerate([shown(file) if file.is_relative_to(ROOT) else "", *text.splitlines()]):
        for word in words_of(line):
            if word in DROPPED_WORDS:
                yield number, word
    for found in DROPPED_PHRASES.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[0].lower().replace("#", " ").split())
    for number, name in names_of(file, text):
        for word in DROPPED_NAME.findall(name):
            yield number, word


def hits_in(files: list[Path]) -> tuple[list[str], set[tuple[str, str]]]:
    """Return the dropped words that are not allowed, as file:line:word, and the allowed ones that occur."""
    hits: list[str] = []
    used: set[tuple[str, str]] = set()
    for file in files:
        for number, word in dropped_in(file, file.read_text(encoding="utf-8")):
            if (shown(file), word) in ALLOWED:
                used.add((shown(file), word))
            else:
                hits.append(f"{shown(file)}:{number}:{word}")
    return hits, used


def test_product_modules_are_short() -> None:
    long = {shown(file): lines_of(file) for file in modules(*PRODUCT) if lines_of(file) > MAX_MODULE_LINES}
    assert long == {}


def test_test_modules_are_short() -> None:
    long = {shown(file): lines_of(file) for file in modules("tests") if lines_of(file) > MAX_TEST_MODULE_LINES}
    assert long == {}


@pytest.mark.parametrize("folder", PRODUCT)
def test_functions_are_short(folder: str) -> None:
    long = {}
    for file in modules(folder):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *[decorator.lineno for decorator in node.decorator_list]])
                lines = (node.end_lineno or first) - first + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{shown(file)}:{first}:{node.name}"] = lines
    assert long == {}


def test_few_modules_are_outside_the_rooms_of_the_pipeline() -> None:
    loose = [file.name for file in (ROOT / "pipeline").glob("*.py")]
    assert len(loose) <= MAX_LOOSE_MODULES, sorted(loose)


def test_dropped_words_stay_out_of_the_code() -> None:
    hits, _ = hits_in(modules(*PRODUCT))
    assert not hits, "\n".join(["", *hits])


def test_dropped_words_stay_out_of_documents_and_settings() -> None:
    hits, _ = hits_in(prose())
    assert not hits, "\n".join(["", *hits])


def test_every_allowed_word_occurs() -> None:
    _, used = hits_in([*modules(*PRODUCT), *prose()])
    assert set(ALLOWED) - used == set(), "remove what is not needed"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ring_bell = WhisperDoor()", ["bell", "whisper", "door"]),
        ("a doorbell, a heartbeat, permitted, seated", []),
        ("ASIDE and yyc3.aside", ["aside", "aside"]),
        ("set aside For ever, so many", ["aside", "for ever", "so many"]),
        ("kept for\n# ever", ["for ever"]),
        ("attempts = try_number + 1  # it tries again", ["try_number"]),
        ("row.tries = 1", ["tries"]),
        ('# the key "tries"', ["tries"]),
        ("SELECT generate_series(1, 2), time_series", ["series"]),
        ("try:\n    pass\nexcept OSError:\n    pass", []),
        ("# the column `tries`", ["tries"]),
        ("MAX_SEATS, numSeats, seat3", ["seats", "seats", "seat"]),
    ],
)
def test_a_dropped_word_is_found_in_names_and_texts(line: str, words: list[str]) -> None:
    source = line if "=" in line or "try:" in line else f"# {line}"
    assert [word for _, word in dropped_in(Path("module.py"), source)] == words
