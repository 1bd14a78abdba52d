"""A deterministic tokenizer without a vocabulary file.

One token is a CJK character, an ASCII word with the space before it, up to three digits, or a
punctuation mark. Ids are hashes, so two processes agree on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from zlib import crc32

VOCABULARY_SIZE = 60_000
EOS = "</s>"
BOS = "<s>"

_SPECIAL_IDS = {
    "<unk>": 0,
    BOS: 1,
    EOS: 2,
    "<|system|>": 3,
    "<|user|>": 4,
    "<|assistant|>": 5,
    "<|observation|>": 6,
    "<|image|>": 7,
}
_SPECIAL_TOKENS = {token_id: token for token, token_id in _SPECIAL_IDS.items()}
_FIRST_ASCII_ID = 64
_FIRST_HASHED_ID = 512
_PATTERN = re.compile(r" ?[A-Za-z]+| ?[0-9]{1,3}|\n| +|.", re.DOTALL)

tokenize = _PATTERN.findall
"""Split a text into tokens; the tokens joined are the text."""


class Tokenizer:
    """Maps tokens to ids, and the ids that it has assigned back to tokens."""

    def __init__(self) -> None:
        self._tokens: dict[int, str] = dict(_SPECIAL_TOKENS)
        self._ids: dict[str, int] = dict(_SPECIAL_IDS)

    def token_to_id(self, token: str) -> int:
        """Return the id of a token, the same in every process.

        Two single ASCII characters never have the same id.
        """
        known = self._ids.get(token)
        if known is not None:
            return known
        if len(token) == 1 and token.isascii():
            token_id = _FIRST_ASCII_ID + ord(token)
        else:
            span = VOCABULARY_SIZE - _FIRST_HASHED_ID
            token_id = _FIRST_HASHED_ID + crc32(token.encode("utf-8", "surrogatepass")) % span
        if len(self._ids) > 4 * VOCABULARY_SIZE:
            # New texts would make the table grow without limit; ids are hashes, so dropping entries
            # does not change them.
            self._ids = dict(_SPECIAL_IDS)
        self._ids[token] = token_id
        self._tokens.setdefault(token_id, token)
        return token_id

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of tokens, in order."""
        return [self.token_to_id(token) for token in tokens]

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token that an id was assigned to; None when it was not assigned."""
        return self._tokens.get(token_id)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids; it omits unknown ids, as vLLM omits ids above its vocabulary."""
        return "".join(self._tokens.get(token_id, "") for token_id in token_ids)
