"""Generates a text that a simple regular expression matches.

Supported are literals, escapes, classes, groups, alternatives and counts; not supported are
look-around, back references, and anchors in the middle.
"""

from __future__ import annotations

import re
from random import Random

from simulator.errors import RequestRejected, bad_request

_ESCAPED_CLASSES = {
    "d": "0123456789",
    "w": "abcdefghijklmnopqrstuvwxyz",
    "s": " ",
}
_CONTROL_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r"}
_PRINTABLE = "".join(chr(code) for code in range(32, 127))
_COUNT = re.compile(r"\{(\d+)?(,)?(\d+)?\}")
_MAX_EXTRA = 2


def generate_match(pattern: str, random: Random) -> str:
    """Generate a text that the whole pattern matches.

    Raises:
        RequestRejected: 400, for an invalid pattern as in vLLM, and for one that the simulator does
            not support.

    """
    try:
        compiled = re.compile(pattern)
    except re.error as problem:
        raise bad_request(f'Grammar error: invalid regex "{pattern}" (in regex): {problem}') from problem
    text = _Generator(pattern.removeprefix("^").removesuffix("$"), random).generate()
    if not compiled.fullmatch(text):
        raise _unsupported(pattern)
    return text


def _unsupported(pattern: str) -> RequestRejected:
    return bad_request(
        "The simulator supports only literals, classes, groups, alternatives and counts in a regex, "
        f"but {pattern!r} contains more; use a simpler one."
    )


class _Generator:
    """Parses a pattern from left to right and generates the text while it parses."""

    def __init__(self, pattern: str, random: Random) -> None:
        self._pattern = pattern
        self._random = random
        self._position = 0

    def generate(self) -> str:
        text = self._generate_alternatives()
        if self._position != len(self._pattern):
            raise _unsupported(self._pattern)
        return text

    def _peek(self) -> str:
        return self._pattern[self._position] if self._position < len(self._pattern) else ""

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise _unsupported(self._pattern)
        self._position += 1
        return character

    def _generate_alternatives(self) -> str:
        texts = [self._generate_sequence()]
        while self._peek() == "|":
            self._position += 1
            texts.append(self._generate_sequence())
        return self._random.choice(texts)

    def _generate_sequence(self) -> str:
        parts = []
        while self._peek() not in ("", "|", ")"):
            start = self._position
            part = self._generate_atom()
            end = self._position
            for number in range(self._draw_count()):
                after = self._position
                if number:
                    self._position = start
                    part = self._generate_atom()
                    self._position = after if self._position == end else self._position
                parts.append(part)
        return "".join(parts)

    def _draw_count(self) -> int:
        sign = self._peek()
        if sign in ("?", "*", "+"):
            self._position += 1
            low, high = {"?": (0, 1), "*": (0, _MAX_EXTRA), "+": (1, 1 + _MAX_EXTRA)}[sign]
        else:
            match = _COUNT.match(self._pattern, self._position)
            if match is None:
                return 1
            self._position = match.end()
            low = int(match.group(1) or 0)
            high = int(match.group(3)) if match.group(3) else low + _MAX_EXTRA if match.group(2) else low
        if self._peek() == "?":
            self._position += 1
        return self._random.randint(low, min(high, low + _MAX_EXTRA))

    def _generate_atom(self) -> str:
        character = self._next()
        if character == "(":
            return self._generate_group()
        if character == "[":
            return self._random.choice(self._read_class())
        if character == "\\":
            return self._random.choice(self._read_escape())
        if character == ".":
            return self._random.choice(_ESCAPED_CLASSES["w"])
        if character in "^$*+?{":
            raise _unsupported(self._pattern)
        return character

    def _generate_group(self) -> str:
        if self._peek() == "?":
            if self._pattern[self._position : self._position + 2] != "?:":
                raise _unsupported(self._pattern)
            self._position += 2
        text = self._generate_alternatives()
        if self._next() != ")":
            raise _unsupported(self._pattern)
        return text

    def _read_escape(self) -> str:
        character = self._next()
        if character in _ESCAPED_CLASSES:
            return _ESCAPED_CLASSES[character]
        if character.isalnum() and character not in _CONTROL_CHARACTERS:
            raise _unsupported(self._pattern)
        return _CONTROL_CHARACTERS.get(character, character)

    def _read_class(self) -> str:
        negated = self._peek() == "^"
        self._position += negated
        members = ""
        while self._peek() != "]" or not members:
            first = self._next()
            choices = self._read_escape() if first == "\\" else first
            if self._peek() == "-" and self._pattern[self._position + 1 : self._position + 2] not in ("]", ""):
                self._position += 1
                last = self._next()
                choices = "".join(chr(code) for code in range(ord(choices), min(ord(last), ord(choices) + 200) + 1))
            members += choices
        self._position += 1
        return "".join(sorted(set(_PRINTABLE) - set(members))) if negated else members
