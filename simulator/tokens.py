"""A made-up tokenizer whose answers never change.

A CJK character is one token, an ASCII word with the space before it is one token, up to three digits are one token, and
so is every punctuation mark. Ids are hashes, so two processes agree on them without a vocabulary file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from zlib import crc32

VOCABULARY_SIZE = 60_000
END = "</s>"
BEGIN = "<s>"

_SPECIAL = {
    "<unk>": 0,
    BEGIN: 1,
    END: 2,
    "<|system|>": 3,
    "<|user|>": 4,
    "<|assistant|>": 5,
    "<|observation|>": 6,
    "<|image|>": 7,
}
_SPECIAL_TEXTS = {number: text for text, number in _SPECIAL.items()}
_BYTES_START = 64
_HASHED_START = 512
_PATTERN = re.compile(r" ?[A-Za-z]+| ?[0-9]{1,3}|\n| +|.", re.DOTALL)

split = _PATTERN.findall
"""Cut a text into tokens; joined they are the text again."""


class Tokenizer:
    """Ids for tokens, and tokens for the ids given out so far."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = dict(_SPECIAL_TEXTS)
        self._ids: dict[str, int] = dict(_SPECIAL)

    def token_id(self, token: str) -> int:
        """The id of one token, the same in every process; single ASCII characters never share one."""
        known = self._ids.get(token)
        if known is not None:
            return known
        if len(token) == 1 and token.isascii():
            number = _BYTES_START + ord(token)
        else:
            span = VOCABULARY_SIZE - _HASHED_START
            number = _HASHED_START + crc32(token.encode("utf-8", "surrogatepass")) % span
        if len(self._ids) > 4 * VOCABULARY_SIZE:
            # Texts never seen before would let the table grow for ever; ids are hashes, so forgetting is harmless.
            self._ids = dict(_SPECIAL)
        self._ids[token] = number
        self._texts.setdefault(number, token)
        return number

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens, in order."""
        return [self.token_id(token) for token in tokens]

    def token(self, number: int) -> str | None:
        """The token an id was given out for; None when it never was."""
        return self._texts.get(number)

    def text(self, numbers: Sequence[int]) -> str:
        """The text of ids; unknown ones are left out, as vLLM leaves out ids beyond its vocabulary."""
        return "".join(self._texts.get(number, "") for number in numbers)
