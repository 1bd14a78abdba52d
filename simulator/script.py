"""Answers written down beforehand, one JSON object a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from simulator.errors import SimulatorError
from simulator.faults import Fault

_FIELDS = frozenset(("when", "answer", "status", "message", "fault", "seconds", "finish_reason", "times"))
_FINISHES = ("stop", "length", "abort")


@dataclass(slots=True)
class ScriptedAnswer:
    """What happens to a row whose last user message contains `when`.

    Exactly one of `answer` and `fault` is set; `times_left` counts down where the line limits it.
    """

    when: str
    answer: str | None = None
    fault: Fault | None = None
    message: str | None = None
    finish_reason: str | None = None
    times_left: int | None = None


class Script:
    """The scripted answers of a run; the first line that matches wins."""

    def __init__(self, answers: list[ScriptedAnswer] | None = None) -> None:
        self._answers = answers or []

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, text: str) -> ScriptedAnswer | None:
        """The answer for this text, and one use less of it."""
        for scripted in self._answers:
            if scripted.when in text and scripted.times_left != 0:
                if scripted.times_left is not None:
                    scripted.times_left -= 1
                return scripted
        return None


def read_script(path: Path) -> Script:
    """Read a file of scripted answers; blank lines are skipped.

    Raises:
        SimulatorError: names the file and the line.

    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise SimulatorError(f"The answers file {path} cannot be read: {problem}.") from problem
    answers = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                answers.append(_read_line(line))
            except SimulatorError as problem:
                raise SimulatorError(f"Line {number} of the answers file {path} cannot be used: {problem}") from problem
    return Script(answers)


def script_from_json(body: Any) -> Script:
    """A script given as `{"answers": [{...}, ...]}`, each like a line of the file.

    Raises:
        SimulatorError: names the entry.

    """
    entries = body.get("answers") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        raise SimulatorError('The body must be like {"answers": [{"when": "order 7", "answer": "refund"}]}.')
    answers = []
    for number, entry in enumerate(entries):
        try:
            answers.append(_read_entry(entry))
        except SimulatorError as problem:
            raise SimulatorError(f"Answer {number} cannot be used: {problem}") from problem
    return Script(answers)


def _read_line(line: str) -> ScriptedAnswer:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as problem:
        raise SimulatorError(f"it is not JSON ({problem}).") from problem
    return _read_entry(entry)


def _read_entry(entry: Any) -> ScriptedAnswer:
    if not isinstance(entry, dict) or not isinstance(entry.get("when"), str):
        raise SimulatorError('it needs "when", a part of the last user message.')
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise SimulatorError(f"it has the unknown field {unknown[0]!r}.")
    given = [name for name in ("answer", "status", "fault") if entry.get(name) is not None]
    if len(given) != 1:
        raise SimulatorError('it needs exactly one of "answer", "status" and "fault".')
    return _checked(entry, given[0])


def _checked(entry: dict[str, Any], kind: str) -> ScriptedAnswer:
    times, finish = entry.get("times"), entry.get("finish_reason")
    if times is not None and (not isinstance(times, int) or times < 1):
        raise SimulatorError('"times" must be a whole number from 1.')
    if finish is not None and finish not in _FINISHES:
        raise SimulatorError(f'"finish_reason" must be one of {", ".join(_FINISHES)}.')
    scripted = ScriptedAnswer(entry["when"], finish_reason=finish, times_left=times, message=entry.get("message"))
    if kind == "answer":
        if not isinstance(entry["answer"], str):
            raise SimulatorError('"answer" must be text.')
        scripted.answer = entry["answer"]
    else:
        scripted.fault = Fault(str(entry[kind]), 1.0, entry.get("seconds"))
    return scripted
