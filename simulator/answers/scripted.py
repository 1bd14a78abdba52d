"""Scripted answers, from a file with one JSON object per line or from the admin route."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from simulator.errors import SimulatorError
from simulator.faults import Fault

_FIELDS = frozenset(("when", "answer", "status", "message", "fault", "seconds", "finish_reason", "times"))
_FINISH_REASONS = ("stop", "length", "abort")


@dataclass(slots=True)
class ScriptedAnswer:
    """Answer or fault for a row whose last user message contains `when`.

    Exactly one of `answer` and `fault` is set. `times_left` counts down where the entry sets
    `times`, else it is None.
    """

    when: str
    answer: str | None = None
    fault: Fault | None = None
    message: str | None = None
    finish_reason: str | None = None
    times_left: int | None = None


class Script:
    """Scripted answers in order; the first entry that matches is used."""

    def __init__(self, answers: list[ScriptedAnswer] | None = None) -> None:
        self._answers = answers or []

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, text: str) -> ScriptedAnswer | None:
        """Return the answer for this text and count one use of it; None when no entry matches."""
        for scripted in self._answers:
            if scripted.when in text and scripted.times_left != 0:
                if scripted.times_left is not None:
                    scripted.times_left -= 1
                return scripted
        return None


def read_script(path: Path) -> Script:
    """Read a file of scripted answers; blank lines are skipped.

    Raises:
        SimulatorError: the file is invalid; the sentence names the file and the line.

    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise SimulatorError(f"The answers file {path} cannot be read: {problem}; check --answers.") from problem
    answers = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                answers.append(_parse_line(line))
            except SimulatorError as problem:
                raise SimulatorError(f"Line {number} of the answers file {path} is invalid: {problem}") from problem
    return Script(answers)


def parse_script(body: Any) -> Script:
    """Parse `{"answers": [{...}, ...]}` of the admin route; each entry is like a line of the file.

    Raises:
        SimulatorError: an entry is invalid; the sentence gives its index.

    """
    entries = body.get("answers") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        raise SimulatorError('The body must have the form {"answers": [{"when": "order 7", "answer": "refund"}]}.')
    answers = []
    for index, entry in enumerate(entries):
        try:
            answers.append(_parse_entry(entry))
        except SimulatorError as problem:
            raise SimulatorError(f"Answer {index} is invalid: {problem}") from problem
    return Script(answers)


def _parse_line(line: str) -> ScriptedAnswer:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as problem:
        raise SimulatorError(f"it is not valid JSON ({problem}).") from problem
    return _parse_entry(entry)


def _parse_entry(entry: Any) -> ScriptedAnswer:
    if not isinstance(entry, dict) or not isinstance(entry.get("when"), str):
        raise SimulatorError('it must have "when", a part of the last user message.')
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise SimulatorError(f"it has the unknown field {unknown[0]!r}; use {', '.join(sorted(_FIELDS))}.")
    given = [name for name in ("answer", "status", "fault") if entry.get(name) is not None]
    if len(given) != 1:
        raise SimulatorError('it must have exactly one of "answer", "status" and "fault".')
    return _build_answer(entry, given[0])


def _build_answer(entry: dict[str, Any], kind: str) -> ScriptedAnswer:
    times, finish_reason = entry.get("times"), entry.get("finish_reason")
    if times is not None and (not isinstance(times, int) or times < 1):
        raise SimulatorError('"times" must be an integer of at least 1.')
    if finish_reason is not None and finish_reason not in _FINISH_REASONS:
        raise SimulatorError(f'"finish_reason" must be one of {", ".join(_FINISH_REASONS)}.')
    scripted = ScriptedAnswer(
        entry["when"], finish_reason=finish_reason, times_left=times, message=entry.get("message")
    )
    if kind == "answer":
        if not isinstance(entry["answer"], str):
            raise SimulatorError('"answer" must be a string.')
        scripted.answer = entry["answer"]
    else:
        scripted.fault = Fault(str(entry[kind]), 1.0, entry.get("seconds"))
    return scripted
