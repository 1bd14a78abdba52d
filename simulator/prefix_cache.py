"""Which blocks of a prompt the engine has already computed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 16


def block_keys(tokens: Sequence[str], parent: int = 0) -> list[int]:
    """One key for every full block of 16 tokens; a key stands for the block and all that comes before it.

    Args:
        tokens: a prompt, or the part of it that follows `parent`.
        parent: key of the block before, or any number that separates caches (a salt).

    """
    keys = []
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        parent = hash((parent, *tokens[start : start + BLOCK_TOKENS]))
        keys.append(parent)
    return keys


class PrefixCache:
    """Blocks in the order of their last use; the oldest goes first."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.queried_tokens = 0
        self.hit_tokens = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def claim(self, keys: Sequence[int], prompt_tokens: int) -> int:
        """Count the tokens already computed, then remember all blocks of this prompt.

        Like vLLM it remembers when the prompt is scheduled, so two prompts of the same step share their prefix, and it
        never counts the whole prompt as a hit: the last token has to be computed to get logits.

        Returns:
            Tokens that need no prefill.

        """
        blocks = self._blocks
        hits = 0
        for key in keys:
            if key not in blocks:
                break
            blocks.move_to_end(key)
            hits += 1
        for key in keys[hits:]:
            blocks[key] = None
        while len(blocks) > self._capacity:
            blocks.popitem(last=False)
        if hits and hits * BLOCK_TOKENS >= prompt_tokens:
            hits = (prompt_tokens - 1) // BLOCK_TOKENS
        self.queried_tokens += prompt_tokens
        self.hit_tokens += hits * BLOCK_TOKENS
        return hits * BLOCK_TOKENS
