"""The prefix cache: which blocks of a prompt the engine has computed already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from simulator.requests.prompts import BLOCK_TOKENS


class PrefixCache:
    """Blocks in the order of their last use; the least recently used one is evicted first."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.queried_tokens = 0
        self.hit_tokens = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def match_and_insert(self, keys: Sequence[int], prompt_tokens: int) -> int:
        """Count the tokens that are computed already, then insert all blocks of this prompt.

        Like vLLM, it inserts when the prompt is scheduled, so two prompts of the same step share
        their prefix. Like vLLM, it does not count the whole prompt as a hit: the last token must be
        computed to get logits.

        Returns:
            Number of tokens that need no prefill.

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
