"""Rows in line: who goes next, with whom, and when it is better to wait for more room."""

from collections.abc import Hashable
from dataclasses import dataclass

import pytest

from pipeline.policies.chunking import LARGEST_REQUEST_TOKENS, LONGEST_WAIT_SECONDS, RowQueue, request_size


@dataclass(eq=False)
class Item:
    name: str
    group: Hashable = "a"
    priority: int = 0
    tokens: int = 1
    sequence: int = 0


def line_of(*items: Item) -> RowQueue[Item]:
    line: RowQueue[Item] = RowQueue()
    for item in items:
        line.add(item)
    return line


def taken(line: RowQueue[Item], rows: int) -> str:
    return "".join(item.name for item in line.take(rows))


def test_rows_of_one_group_go_together_in_their_order_and_the_oldest_group_is_first() -> None:
    line = line_of(Item("1"), Item("2", "b"), Item("3"), Item("4", "c"), Item("5", "b"))
    assert [taken(line, 8) for _ in range(3)] == ["13", "25", "4"]
    assert not line
    assert line.peek() is None
    assert line.take(8) == []


def test_a_group_that_keeps_growing_does_not_keep_others_waiting() -> None:
    line = line_of(*[Item(str(i)) for i in range(4)], Item("x", "b"))
    assert taken(line, 2) == "01"
    for name in "4567":
        line.add(Item(name))
    assert [taken(line, 2) for _ in range(3)] == ["23", "x", "45"]


def test_urgent_rows_overtake_and_a_row_that_comes_back_has_its_old_place() -> None:
    line = line_of(Item("1"), Item("2"), Item("!", "c", priority=-5), Item("3", "b"))
    assert taken(line, 8) == "!"
    back = line.take(2)
    for item in reversed(back):
        line.add(item)
    assert [taken(line, 8), taken(line, 8)] == ["12", "3"]


def test_a_row_that_comes_back_alone_is_before_those_that_came_later() -> None:
    line = line_of(Item("1"), Item("2"), Item("3", "b"))
    first = line.take(1)[0]
    first.group = "alone"
    line.add(first)
    assert [taken(line, 8) for _ in range(3)] == ["1", "2", "3"]


def test_long_prompts_make_small_requests_but_never_none() -> None:
    half = LARGEST_REQUEST_TOKENS // 2
    line = line_of(Item("1", tokens=half), Item("2", tokens=half), Item("3", tokens=3 * half), Item("4"))
    assert [taken(line, 8) for _ in range(3)] == ["12", "3", "4"]


def test_everybody_leaves_at_once() -> None:
    line = line_of(Item("1"), Item("2", "b"))
    assert {item.name for item in line.drain()} == {"1", "2"}
    assert not line


@pytest.mark.parametrize(
    ("waiting", "room", "most", "waited", "idle", "rows"),
    [
        (100, 200, 32, 0.0, False, 32),  # room for all it could hold
        (5, 200, 32, 0.0, False, 5),  # nobody else to wait for
        (100, 3, 32, 0.0, False, 0),  # a moment later there may be room for 32
        (100, 3, 32, LONGEST_WAIT_SECONDS, False, 3),  # but not for ever
        (100, 3, 32, 0.0, True, 3),  # an idle engine is never kept waiting
        (100, 0, 32, 9.0, False, 0),
        (100, -4, 32, 9.0, True, 0),
    ],
)
def test_a_request_waits_for_room_but_not_for_long(
    waiting: int, room: int, most: int, waited: float, idle: bool, rows: int
) -> None:
    assert request_size(waiting, room, most, waited, idle=idle) == rows
