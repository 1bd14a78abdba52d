"""Rows that wait: which is next, which share its request, and when a request waits for more capacity."""

from collections.abc import Hashable
from dataclasses import dataclass

import pytest

from workers.execution.row_queue import LARGEST_REQUEST_TOKENS, LONGEST_WAIT_SECONDS, RowQueue, request_size


@dataclass(eq=False)
class Item:
    name: str
    group: Hashable = "a"
    priority: int = 0
    tokens: int = 1
    sequence: int = 0
    tenant: str = "t"
    turn: int = 0


def queue_of(*items: Item) -> RowQueue[Item]:
    queue: RowQueue[Item] = RowQueue()
    for item in items:
        queue.add(item)
    return queue


def taken(queue: RowQueue[Item], rows: int) -> str:
    return "".join(item.name for item in queue.take(rows))


def test_rows_of_one_group_go_together_in_order_the_oldest_group_first() -> None:
    queue = queue_of(Item("1"), Item("2", "b"), Item("3"), Item("4", "c"), Item("5", "b"))
    assert len(queue) == 5
    assert [taken(queue, 8) for _ in range(3)] == ["13", "25", "4"]
    assert not queue
    assert queue.peek() is None
    assert queue.take(8) == []


def test_a_group_that_keeps_growing_does_not_keep_others_waiting() -> None:
    queue = queue_of(*[Item(str(i)) for i in range(4)], Item("x", "b"))
    assert taken(queue, 2) == "01"
    for name in "4567":
        queue.add(Item(name))
    assert [taken(queue, 2) for _ in range(3)] == ["23", "x", "45"]


def test_a_few_rows_of_one_tenant_are_not_behind_all_those_of_another() -> None:
    queue = queue_of(*[Item("a", ("a", i), tenant="a") for i in range(6)])
    assert taken(queue, 1) + taken(queue, 1) == "aa"
    for number in range(2):
        queue.add(Item("b", ("b", number), tenant="b"))
    assert "".join(taken(queue, 1) for _ in range(6)) == "abab" + "aa"


def test_urgent_rows_overtake_and_a_returned_row_has_its_old_position() -> None:
    queue = queue_of(Item("1"), Item("2"), Item("!", "c", priority=-5), Item("3", "b"))
    assert taken(queue, 8) == "!"
    back = queue.take(2)
    for item in reversed(back):
        queue.add(item)
    assert [taken(queue, 8), taken(queue, 8)] == ["12", "3"]


def test_a_row_that_returns_alone_is_before_those_that_came_later() -> None:
    queue = queue_of(Item("1"), Item("2"), Item("3", "b"))
    first = queue.take(1)[0]
    first.group = "alone"
    queue.add(first)
    assert [taken(queue, 8) for _ in range(3)] == ["1", "2", "3"]


def test_long_prompts_make_small_requests_but_at_least_of_one_row() -> None:
    half = LARGEST_REQUEST_TOKENS // 2
    queue = queue_of(Item("1", tokens=half), Item("2", tokens=half), Item("3", tokens=3 * half), Item("4"))
    assert [taken(queue, 8) for _ in range(3)] == ["12", "3", "4"]


def test_a_drained_queue_returns_every_row_and_is_empty() -> None:
    queue = queue_of(Item("1"), Item("2", "b"))
    assert {item.name for item in queue.drain()} == {"1", "2"}
    assert not queue
    assert queue.peek() is None


@pytest.mark.parametrize(
    ("waiting", "capacity", "most", "waited", "idle", "rows"),
    [
        (100, 200, 32, 0.0, False, 32),  # capacity for all that it could have
        (5, 200, 32, 0.0, False, 5),  # no more rows to wait for
        (100, 3, 32, 0.0, False, 0),  # a moment later there may be capacity for 32
        (100, 3, 32, LONGEST_WAIT_SECONDS, False, 3),  # but it does not wait longer
        (100, 3, 32, 0.0, True, 3),  # an idle engine is not kept waiting
        (100, 0, 32, 9.0, False, 0),
        (100, -4, 32, 9.0, True, 0),
    ],
)
def test_a_request_waits_for_capacity_but_not_for_long(
    waiting: int, capacity: int, most: int, waited: float, idle: bool, rows: int
) -> None:
    assert request_size(waiting, capacity, most, waited, idle=idle) == rows
