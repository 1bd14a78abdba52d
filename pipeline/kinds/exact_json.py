"""JSON of a model, parsed digit for digit or not at all. Pure."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from schemas.errors import InvalidOutput

_MAX_DEPTH = 100


def parse_exact(text: str) -> Any:
    """Return the value of a JSON text: whole numbers of any length, fractions only where a float holds all their digits.

    Raises:
        InvalidOutput: it is not JSON, or cannot be stored or written again as it was.
    """
    try:
        value = json.loads(text, parse_float=_fraction, parse_constant=_refuse_constant)
        text.encode()
    except RecursionError as error:
        raise InvalidOutput(_too_deep()) from error
    except UnicodeEncodeError as error:
        raise InvalidOutput("the engine's JSON has half a character") from error
    except ValueError as error:
        raise InvalidOutput("the engine's answer is not JSON") from error
    _check(value)
    return value


def _fraction(digits: str) -> float:
    value = float(digits)
    try:
        exact = Decimal(repr(value)) == Decimal(digits)
    except InvalidOperation:
        exact = False
    if not exact:
        raise InvalidOutput("the engine's JSON has a number with more digits than can be kept")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidOutput(f"the engine's JSON has {name}, which is not a number")


def _check(value: Any) -> None:
    """Refuse what pydantic cannot write again: its limit is some 250 levels, and half a character has no UTF-8."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            match one:
                case dict():
                    inner += [*one, *one.values()]
                case list():
                    inner += one
                case str() if not _is_text(one):
                    raise InvalidOutput("the engine's JSON has half a character")
        level = inner
        if not level:
            return
    raise InvalidOutput(_too_deep())


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep() -> str:
    return f"the engine's JSON is nested deeper than {_MAX_DEPTH} levels"
