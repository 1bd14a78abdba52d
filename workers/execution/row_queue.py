"""Rows that wait for capacity at an engine, and how many of them go into the next request. Pure."""

from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

LARGEST_REQUEST_TOKENS = 16_384
"""Prompt tokens of one request with several rows: it is answered when its slowest row is."""

LONGEST_WAIT_SECONDS = 0.05


def request_size(waiting: int, capacity: int, most: int, waited_seconds: float, *, idle: bool) -> int:
    """Return how many rows of one group go into the next request; 0 if it is better to wait for more capacity.

    At an idle endpoint no row waits. Elsewhere a request waits until there is capacity for all that it
    could have, but at most 50 ms: capacity that becomes free in small pieces would otherwise cut the
    requests into pieces as small.

    Args:
        waiting: rows that may share a request.
        capacity: rows that may be sent to the endpoint now.
        most: rows that the endpoint accepts in one request.
        waited_seconds: how long the capacity has been too small.
        idle: whether the endpoint has no rows of this process.
    """
    wanted = min(waiting, most)
    if capacity >= wanted or idle or waited_seconds >= LONGEST_WAIT_SECONDS:
        return max(0, min(capacity, wanted))
    return 0


class QueuedRow(Protocol):
    """A row of a queue.

    Attributes:
        group: rows of equal groups may share a request.
        priority: lower goes first; of equal priority tenants take turns, and rows of one in the order in which they came.
        tenant: whose row it is.
        turn, sequence: set by the queue when the row first comes; a row that comes back keeps them.
        tokens: of its prompt, estimated.
    """

    group: Hashable
    priority: int
    tenant: str
    turn: int
    sequence: int
    tokens: int


QueuedT = TypeVar("QueuedT", bound=QueuedRow)


class RowQueue(Generic[QueuedT]):
    """Rows that wait for capacity. Requests are put together when there is capacity, not before.

    A row has the turn after the last one of its tenant, or the present one if its tenant has none waiting: so a few rows
    of one tenant are not behind all those of another that came first.
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, deque[QueuedT]] = {}
        self._heads: list[tuple[int, int, int, int, Hashable]] = []
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._sequences = self._entries = 0

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, row: QueuedT) -> None:
        """Add a row at the end; a row that was queued before returns to its former position."""
        again = row.sequence > 0
        if not again:
            self._sequences += 1
            row.sequence = self._sequences
            row.turn = self._turns[row.tenant] = max(self._turn, self._turns.get(row.tenant, 0)) + 1
        group = self._groups.get(row.group)
        if group is None:
            self._groups[row.group] = deque((row,))
        elif again:
            group.appendleft(row)
        else:
            group.append(row)
            return
        self._push(row)

    def peek(self) -> tuple[QueuedT, int] | None:
        """Return the next row, and how many rows may share its request."""
        while self._heads:
            priority, turn, sequence, _, key = self._heads[0]
            group = self._groups.get(key)
            if group and (group[0].priority, group[0].turn, group[0].sequence) == (priority, turn, sequence):
                return group[0], len(group)
            heappop(self._heads)  # pushed for a row that is not the head any more
        return None

    def take(self, rows: int, tokens: float = LARGEST_REQUEST_TOKENS) -> list[QueuedT]:
        """Take rows of the next group: at most `rows`, fewer if their prompts have more `tokens`, but at least one."""
        found = self.peek()
        if found is None:
            return []
        group = self._groups[found[0].group]
        taken = [group.popleft()]
        self._turn = max(self._turn, taken[0].turn)
        room = min(tokens, LARGEST_REQUEST_TOKENS) - taken[0].tokens
        while group and len(taken) < rows and group[0].tokens <= room:
            room -= group[0].tokens
            taken.append(group.popleft())
        if group:
            self._push(group[0])
        else:
            del self._groups[taken[0].group]
            if not self._groups:
                self._turns.clear()
        return taken

    def drain(self) -> list[QueuedT]:
        """Take all rows."""
        rows = [row for group in self._groups.values() for row in group]
        self._groups.clear()
        self._heads.clear()
        self._turns.clear()
        return rows

    def _push(self, row: QueuedT) -> None:
        self._entries += 1
        heappush(self._heads, (row.priority, row.turn, row.sequence, self._entries, row.group))
