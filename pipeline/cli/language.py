"""English or Chinese at the terminal: YYC3_LANG, else the locale. JSON, logs and errors for programs stay English.

The code has its messages in English, where they arise. `messages.zh.json` has for each the Chinese form, by the English one
with `{}` in place of what varies:

    "job {} is stored; see: yyc3 jobs show {}": "任务 {} 已保存；查看：yyc3 jobs show {}"

`{0}`, `{1}` change the order. What fills a place is translated too if it is a message itself.
"""

import json
import os
import re
from functools import cache
from pathlib import Path

_CATALOGUE = Path(__file__).with_name("messages.zh.json")
_BETWEEN = {" · ": " · ", "; ": "；", " → ": " → ", ": ": ": ", ", ": "，"}
_AROUND = re.compile(r"(→ )?(.*?)( \([0-9.,]+ ms\))?", re.DOTALL)  # of a line of health
_URL = re.compile(r"https?://\S+ ")
_PLACE = re.compile(r"\{(\d*)\}")


def is_chinese() -> bool:
    """Whether people here read Chinese."""
    chosen = (os.environ.get(name, "") for name in ("YYC3_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    return next((one for one in chosen if one), "").lower().startswith("zh")


def translated(text: str) -> str:
    """Return a text of ours in the language of this terminal; one that is not in the catalogue as it is."""
    return _chinese(text) if is_chinese() else text


def _chinese(text: str) -> str:
    around = _AROUND.fullmatch(text.strip())
    if around is None or not around[2]:
        return text
    before, bare, after = (str(around[part] or "") for part in (1, 2, 3))
    return text.replace(text.strip(), before + _sentence(bare) + after)


def _sentence(bare: str) -> str:
    if " · " in bare:
        return _parts(bare)
    # What a sentence is about stands before it: a field, a file, an endpoint.
    subjects: list[str] = ["", *_URL.findall(bare)[:1], *(bare[: colon.end()] for colon in re.finditer(": ", bare))]
    for subject in subjects:
        rest = _whole(bare[len(subject) :]) if bare.startswith(subject) else None
        if rest is not None:
            about = subject.removesuffix(": ")
            return (_whole(about) or about) + subject[len(about) :] + rest
    return _parts(bare)


def _whole(text: str) -> str | None:
    """Return a text that is one message; what fills its places may not hold another sentence."""
    exact, patterns = _catalogue()
    if text in exact:
        return exact[text]
    for english, pattern, form in patterns:
        found = pattern.fullmatch(text) if english.count("; ") == text.count("; ") else None
        # What stands before a colon is a subject, unless the message has one itself.
        if found is not None and (": " in english or not any(": " in value for value in found.groups())):
            return _filled(form, [_chinese(value) for value in found.groups()])
    return None


def _parts(text: str) -> str:
    """Return a text that is put together of several messages."""
    for between, chinese in _BETWEEN.items():
        first, separator, rest = text.partition(between)
        if separator:
            return _chinese(first) + chinese + _chinese(rest)
    return text


def _filled(form: str, values: list[str]) -> str:
    following = iter(range(len(values)))
    return _PLACE.sub(lambda place: values[int(place[1]) if place[1] else next(following)], form)


@cache
def _catalogue() -> tuple[dict[str, str], list[tuple[str, re.Pattern[str], str]]]:
    """Return messages without places, and patterns of the others: those with more text of their own first."""
    messages: dict[str, str] = json.loads(_CATALOGUE.read_text(encoding="utf-8"))
    exact = {english: chinese for english, chinese in messages.items() if not _PLACE.search(english)}
    with_places = [(english, chinese) for english, chinese in messages.items() if english not in exact]
    with_places.sort(key=lambda one: -len(_PLACE.sub("", one[0])))
    return exact, [(english, _pattern(english), chinese) for english, chinese in with_places]


def _pattern(english: str) -> re.Pattern[str]:
    pieces = _PLACE.split(english)[::2]
    return re.compile("(.*?)".join(re.escape(piece) for piece in pieces), re.DOTALL)
