"""How large chunks are. Pure."""

from collections.abc import Iterator, Sequence

_CHUNK_SECONDS = 3.0
_FIRST_CHUNK_ROWS = 256
_SMALLEST_CHUNK_ROWS = 32
LARGEST_CHUNK_ROWS = 1_024
"""A block of ids, see store/ids.py: the rows of a chunk have consecutive ids of one block."""

INTERACTIVE_CHUNK_ROWS = 64
LARGEST_CHUNK_BYTES = 32 * 1024 * 1024
"""Requests that are claimed together are in the memory of one worker together; images are large."""


def chunk_rows(jobs: int, rows_per_second: float | None, slots: int = 0) -> int:
    """Return the rows of a bulk chunk: about 3 s of work, so that a small batch never waits long behind one.

    A batch smaller than four chunks is cut in four, because its last chunk ends alone. The chunks of one worker together
    fill the slots of an engine also where answers are long: otherwise the rate falls, and with it the next chunks.

    Args:
        jobs: jobs of the batch.
        rows_per_second: what one chunk of the model finished lately; without it a chunk has 256 rows.
        slots: rows that an engine of the model answers at once, its `max_num_seqs`.
    """
    by_time = _FIRST_CHUNK_ROWS if rows_per_second is None else int(rows_per_second * _CHUNK_SECONDS)
    by_time = max(by_time, slots // 2)
    by_share = -(-jobs // 4)
    return max(_SMALLEST_CHUNK_ROWS, min(by_time, by_share, LARGEST_CHUNK_ROWS))


def split_by_weight(weights: Sequence[int], heaviest: int) -> Iterator[int]:
    """Yield lengths of runs of neighbours: each as long as possible, at most `heaviest` together, or a single one."""
    length = total = 0
    for weight in weights:
        if length and total + weight > heaviest:
            yield length
            length = total = 0
        length += 1
        total += weight
    if length:
        yield length
