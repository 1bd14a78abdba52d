"""Rows that ask the same question share one flight through the engine: one leads, the others follow."""

from collections.abc import Iterable
from uuid import UUID

from pipeline.store.answer_cache import CachedAnswer
from workers.execution.run import Row


class SingleFlight:
    """Leaders by question, and answers that are on their way to the store."""

    def __init__(self) -> None:
        self._leaders: dict[UUID, Row] = {}
        self._answered: dict[UUID, CachedAnswer] = {}

    def answer_for(self, row: Row) -> CachedAnswer | None:
        """Return the answer to the same question, if it is on its way to the store."""
        return None if row.key is None else self._answered.get(row.key)

    def join(self, row: Row) -> bool:
        """Make a row follow the leader of its question; False if it is to be queued itself.

        A row of higher priority than a leader that is still queued does not wait for it.
        """
        if row.key is None:
            return False
        leader = self._leaders.setdefault(row.key, row)
        if leader is row or (leader.in_request is None and leader.priority > row.priority):
            return False
        leader.followers.append(row)
        return True

    def take_over(self, row: Row) -> Row | None:
        """Hand the request of a row that is not pending any more to its next follower; None if no follower is pending."""
        if row.is_pending:
            return None
        next_caller = next((follower for follower in row.followers if follower.is_pending), None)
        if next_caller is None:
            return None
        request = next_caller.in_request = row.in_request
        if request is not None:
            request.rows[request.rows.index(row)] = next_caller
        next_caller.followers = [follower for follower in row.followers if follower is not next_caller]
        row.followers = []
        next_caller.sent_at = next_caller.sent_at or row.sent_at
        if row.key is not None:
            self._leaders[row.key] = next_caller
        return next_caller

    def land(self, row: Row, answer: CachedAnswer | None) -> tuple[list[Row], list[Row]]:
        """End the flight of a row.

        Returns:
            Followers that get the answer, and rows to be queued: without an answer the followers ask
            for themselves.
        """
        if row.key is not None and self._leaders.get(row.key) is row:
            del self._leaders[row.key]
            if answer is not None:
                self._answered[row.key] = answer
        followers, row.followers = row.followers, []
        if answer is not None or not followers:
            return followers, []
        if row.key is not None and not row.sent_at:
            # It was never sent: cancelled or expired in the queue, or all rows go back. The next one takes its place.
            leader = self._leaders[row.key] = followers[0]
            leader.followers = followers[1:]
            return [], [leader]
        for follower in followers:
            follower.key = None  # what failed for one may fail for each: all at once, and each for itself
        return [], followers

    def stored(self, keys: Iterable[UUID | None]) -> None:
        """Forget answers that the store has now, or never will have."""
        for key in keys:
            if key is not None:
                self._answered.pop(key, None)
