"""Writes a text that a simple regular expression accepts.

Literals, escapes, classes, groups, alternatives, and counts; no look-around, back references or anchors in the middle.
"""

from __future__ import annotations

import re
from random import Random

from simulator.errors import RequestRejected, bad_request

_CLASSES = {
    "d": "0123456789",
    "w": "abcdefghijklmnopqrstuvwxyz",
    "s": " ",
}
_CONTROL = {"n": "\n", "t": "\t", "r": "\r"}
_PRINTABLE = "".join(chr(code) for code in range(32, 127))
_COUNT = re.compile(r"\{(\d+)?(,)?(\d+)?\}")
_MORE = 2


def matching_text(pattern: str, random: Random) -> str:
    """A text that the whole pattern matches.

    Raises:
        RequestRejected: 400, for a broken pattern as vLLM does, and for one the simulator cannot follow.

    """
    try:
        compiled = re.compile(pattern)
    except re.error as problem:
        raise bad_request(f'Grammar error: invalid regex "{pattern}" (in regex): {problem}') from problem
    text = _Writer(pattern.removeprefix("^").removesuffix("$"), random).write()
    if not compiled.fullmatch(text):
        raise _beyond(pattern)
    return text


def _beyond(pattern: str) -> RequestRejected:
    return bad_request(
        f"The simulator follows literals, classes, groups, alternatives and counts in a regex; {pattern!r} needs more."
    )


class _Writer:
    """Reads a pattern from left to right and writes as it goes."""

    def __init__(self, pattern: str, random: Random) -> None:
        self._pattern = pattern
        self._random = random
        self._place = 0

    def write(self) -> str:
        text = self._alternatives()
        if self._place != len(self._pattern):
            raise _beyond(self._pattern)
        return text

    def _peek(self) -> str:
        return self._pattern[self._place] if self._place < len(self._pattern) else ""

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise _beyond(self._pattern)
        self._place += 1
        return character

    def _alternatives(self) -> str:
        texts = [self._sequence()]
        while self._peek() == "|":
            self._place += 1
            texts.append(self._sequence())
        return self._random.choice(texts)

    def _sequence(self) -> str:
        parts = []
        while self._peek() not in ("", "|", ")"):
            start = self._place
            part = self._atom()
            end = self._place
            for number in range(self._repeats()):
                after = self._place
                if number:
                    self._place = start
                    part = self._atom()
                    self._place = after if self._place == end else self._place
                parts.append(part)
        return "".join(parts)

    def _repeats(self) -> int:
        sign = self._peek()
        if sign in ("?", "*", "+"):
            self._place += 1
            low, high = {"?": (0, 1), "*": (0, _MORE), "+": (1, 1 + _MORE)}[sign]
        else:
            match = _COUNT.match(self._pattern, self._place)
            if match is None:
                return 1
            self._place = match.end()
            low = int(match.group(1) or 0)
            high = int(match.group(3)) if match.group(3) else low + _MORE if match.group(2) else low
        if self._peek() == "?":
            self._place += 1
        return self._random.randint(low, min(high, low + _MORE))

    def _atom(self) -> str:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._random.choice(self._class())
        if character == "\\":
            return self._random.choice(self._escape())
        if character == ".":
            return self._random.choice(_CLASSES["w"])
        if character in "^$*+?{":
            raise _beyond(self._pattern)
        return character

    def _group(self) -> str:
        if self._peek() == "?":
            if self._pattern[self._place : self._place + 2] != "?:":
                raise _beyond(self._pattern)
            self._place += 2
        text = self._alternatives()
        if self._take() != ")":
            raise _beyond(self._pattern)
        return text

    def _escape(self) -> str:
        character = self._take()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.isalnum() and character not in _CONTROL:
            raise _beyond(self._pattern)
        return _CONTROL.get(character, character)

    def _class(self) -> str:
        negated = self._peek() == "^"
        self._place += negated
        members = ""
        while self._peek() != "]" or not members:
            first = self._take()
            choices = self._escape() if first == "\\" else first
            if self._peek() == "-" and self._pattern[self._place + 1 : self._place + 2] not in ("]", ""):
                self._place += 1
                last = self._take()
                choices = "".join(chr(code) for code in range(ord(choices), min(ord(last), ord(choices) + 200) + 1))
            members += choices
        self._place += 1
        return "".join(sorted(set(_PRINTABLE) - set(members))) if negated else members
