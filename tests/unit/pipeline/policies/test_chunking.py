"""How large chunks are."""

import pytest

from pipeline.policies.chunking import LARGEST_CHUNK_ROWS, chunk_rows, split_by_weight


@pytest.mark.parametrize(
    ("jobs", "rate", "rows"),
    [
        (100_000, None, 256),
        (100_000, 10.0, 32),
        (100_000, 200.0, 600),
        (100_000, 9_999.0, 1_024),
        (200, None, 50),
        (3, None, 32),
    ],
)
def test_a_chunk_is_about_three_seconds_of_the_measured_rate(jobs: int, rate: float | None, rows: int) -> None:
    assert chunk_rows(jobs, rate) == rows
    assert LARGEST_CHUNK_ROWS == 1_024


def test_the_chunks_of_a_worker_fill_the_slots_of_an_engine_whose_answers_are_long() -> None:
    assert chunk_rows(100_000, 10.0, slots=256) == 128
    assert chunk_rows(100_000, 200.0, slots=256) == 600
    assert chunk_rows(200, 10.0, slots=256) == 50  # a small batch is cut in four all the same


@pytest.mark.parametrize(
    ("weights", "lengths"),
    [
        ([], []),
        ([5, 5, 5], [2, 1]),
        ([99, 1, 99], [1, 1, 1]),  # one that is too heavy goes alone
        ([1, 99, 1, 1], [1, 1, 2]),
        ([10], [1]),
    ],
)
def test_neighbours_share_a_run_up_to_the_heaviest_weight(weights: list[int], lengths: list[int]) -> None:
    assert list(split_by_weight(weights, 10)) == lengths
