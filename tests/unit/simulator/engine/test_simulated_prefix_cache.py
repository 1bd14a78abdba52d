from __future__ import annotations

from simulator.engine.prefix_cache import PrefixCache
from simulator.requests.prompts import BLOCK_TOKENS, block_keys


def test_the_last_token_of_a_cached_prompt_is_prefilled() -> None:
    cache = PrefixCache(100)
    keys = block_keys(["same"] * 32)
    cache.match_and_insert(keys, 32)
    assert cache.match_and_insert(keys, 32) == BLOCK_TOKENS


def test_a_block_matches_only_after_the_same_blocks() -> None:
    cache = PrefixCache(100)
    cache.match_and_insert(block_keys(["a"] * 16 + ["b"] * 16), 33)
    assert cache.match_and_insert(block_keys(["c"] * 16 + ["b"] * 16), 33) == 0


def test_prompts_with_different_salts_share_no_block() -> None:
    cache = PrefixCache(100)
    cache.match_and_insert(block_keys(["a"] * 32, 1), 33)
    assert cache.match_and_insert(block_keys(["a"] * 32, 2), 33) == 0


def test_the_least_recently_used_block_is_evicted_first() -> None:
    cache = PrefixCache(2)
    first, second, third = (block_keys([name] * 16) for name in "abc")
    cache.match_and_insert(first, 17)
    cache.match_and_insert(second, 17)
    cache.match_and_insert(first, 17)
    cache.match_and_insert(third, 17)
    assert len(cache) == 2
    assert cache.match_and_insert(first, 17) == BLOCK_TOKENS
    assert cache.match_and_insert(second, 17) == 0
