"""Rows that ask the same question share one flight: one leads, the others follow."""

from typing import Any
from uuid import UUID, uuid4

from pipeline import kinds
from pipeline.engine import Endpoint
from pipeline.engine.pacing import ConcurrencyLimit
from pipeline.kinds import Constraint, EndpointProfile, LabelForm
from pipeline.store.answer_cache import CachedAnswer
from pipeline.store.claims import Claim, ClaimedJob
from schemas.doorbells import Lane
from schemas.ids import JobId
from schemas.jobs import parse_job
from workers.execution.run import EngineRequest, Row, Run
from workers.execution.single_flight import SingleFlight

KEY = UUID(int=7)
PROFILE = EndpointProfile(LabelForm.WORD, Constraint.STRUCTURED_OUTPUTS, 8_192)


def claimed(job_id: int) -> ClaimedJob:
    return ClaimedJob(JobId(job_id), 0, "default", "intent", b"", 0.0, None, 0)


def rows_of(*keys: UUID | None, priority: int = 0) -> list[Row]:
    """Return rows of one run, each with the key of its question."""
    jobs = tuple(claimed(1_024 + index) for index in range(len(keys)))
    claim = Claim(uuid4(), JobId(1_024), 1, len(jobs), "m", Lane.BULK, None, priority, 0, None, jobs)
    run, job = Run(claim), parse_job({"kind": "intent", "text": "refund"})
    rows = [
        Row(run, one, job, kinds.build(job, PROFILE), PROFILE, key=key) for one, key in zip(jobs, keys, strict=True)
    ]
    run.rows = {row.job_id: row for row in rows}
    return rows


def send(*rows: Row) -> EngineRequest:
    """Put rows in flight together."""
    request = EngineRequest(list(rows), Endpoint("http://e", ConcurrencyLimit(8, None), None, 8), None)
    for row in rows:
        row.in_request, row.sent_at = request, 5.0
    return request


def answer_of(row: Row, **fields: Any) -> CachedAnswer:
    given: dict[str, Any] = dict.fromkeys(CachedAnswer.__dataclass_fields__)
    return CachedAnswer(**(given | {"job_id": row.job_id} | fields))


def test_rows_without_a_key_are_queued_themselves() -> None:
    flights = SingleFlight()
    first, second = rows_of(None, None)
    assert not flights.join(first)
    assert not flights.join(second)
    assert first.followers == []
    assert flights.answer_for(first) is None


def test_the_first_row_of_a_question_leads_and_later_ones_follow() -> None:
    flights = SingleFlight()
    leader, follower, other = rows_of(KEY, KEY, UUID(int=8))
    assert [flights.join(row) for row in (leader, follower, other)] == [False, True, False]
    assert leader.followers == [follower]
    assert not flights.join(leader), "a leader that is queued again leads on"


def test_an_urgent_row_does_not_wait_for_a_leader_that_is_still_queued() -> None:
    flights = SingleFlight()
    (leader,), (urgent,) = rows_of(KEY), rows_of(KEY, priority=-5)
    assert not flights.join(leader)
    assert not flights.join(urgent)
    assert leader.followers == []


def test_an_urgent_row_follows_a_leader_that_is_in_flight() -> None:
    flights = SingleFlight()
    (leader,), (urgent,) = rows_of(KEY), rows_of(KEY, priority=-5)
    flights.join(leader)
    send(leader)
    assert flights.join(urgent)
    assert leader.followers == [urgent]


def test_a_row_of_lower_priority_follows_a_queued_leader() -> None:
    flights = SingleFlight()
    (leader,), (patient,) = rows_of(KEY), rows_of(KEY, priority=5)
    flights.join(leader)
    assert flights.join(patient)


def test_the_request_of_a_cancelled_leader_goes_to_the_next_follower() -> None:
    flights = SingleFlight()
    leader, cancelled, pending, last = rows_of(KEY, KEY, KEY, KEY)
    for row in (leader, cancelled, pending, last):
        flights.join(row)
    request = send(leader)
    leader.run.cancel([leader.job_id, cancelled.job_id])
    assert flights.take_over(leader) is pending
    assert pending.in_request is request
    assert request.rows == [pending]
    assert pending.sent_at == leader.sent_at
    assert pending.followers == [cancelled, last]
    assert leader.followers == []
    (late,) = rows_of(KEY)
    assert flights.join(late)
    assert pending.followers[-1] is late, "it leads from now on"


def test_a_pending_leader_keeps_its_request() -> None:
    flights = SingleFlight()
    leader, follower = rows_of(KEY, KEY)
    flights.join(leader)
    flights.join(follower)
    request = send(leader)
    assert flights.take_over(leader) is None
    assert request.rows == [leader]
    assert leader.followers == [follower]


def test_no_row_takes_over_where_no_follower_is_pending() -> None:
    flights = SingleFlight()
    leader, follower = rows_of(KEY, KEY)
    flights.join(leader)
    flights.join(follower)
    send(leader)
    leader.run.cancel([leader.job_id, follower.job_id])
    assert flights.take_over(leader) is None


def test_an_answer_reaches_followers_and_later_rows_until_it_is_stored() -> None:
    flights = SingleFlight()
    leader, follower, late, latest = rows_of(KEY, KEY, KEY, KEY)
    flights.join(leader)
    flights.join(follower)
    send(leader)
    answer = answer_of(leader)
    assert flights.land(leader, answer) == ([follower], [])
    assert flights.answer_for(late) is answer
    flights.stored([None, KEY])
    assert flights.answer_for(late) is None
    assert not flights.join(latest), "the flight is over: it leads a new one"


def test_followers_of_a_failed_flight_ask_for_themselves() -> None:
    flights = SingleFlight()
    leader, second, third = rows_of(KEY, KEY, KEY)
    for row in (leader, second, third):
        flights.join(row)
    send(leader)
    assert flights.land(leader, None) == ([], [second, third])
    assert [second.key, third.key] == [None, None]
    assert leader.followers == []


def test_the_first_follower_of_a_leader_that_was_not_sent_leads() -> None:
    flights = SingleFlight()
    leader, second, third = rows_of(KEY, KEY, KEY)
    for row in (leader, second, third):
        flights.join(row)
    assert flights.land(leader, None) == ([], [second])
    assert second.followers == [third]
    assert second.key == KEY
    assert not flights.join(second), "it is queued as the leader"


def test_a_row_that_does_not_lead_ends_without_an_answer_for_others() -> None:
    flights = SingleFlight()
    (leader,), (urgent,) = rows_of(KEY), rows_of(KEY, priority=-5)
    flights.join(leader)
    flights.join(urgent)
    send(urgent)
    assert flights.land(urgent, answer_of(urgent)) == ([], [])
    assert flights.answer_for(leader) is None
    (late,) = rows_of(KEY, priority=5)
    assert flights.join(late), "the leader is still on its way"
