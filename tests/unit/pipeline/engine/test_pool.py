"""Which endpoint of a model the next rows go to."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from pipeline.engine import Capabilities, Endpoint, EngineClient, EnginePool
from pipeline.kinds import Constraint
from pipeline.models import ModelEntry
from schemas.errors import EngineFailed, EngineOverloaded, EngineUnavailable, RequestRejected

CAPABILITIES = Capabilities("0.32.0", True, Constraint.STRUCTURED_OUTPUTS, "r", 8_192, True)


def pool_of(*names: str, max_num_seqs: int = 64, batch_rows: int = 32) -> EnginePool:
    entry = ModelEntry(
        name="m",
        kinds=("chat",),
        port=1,
        endpoints=tuple(f"http://{name}" for name in names),
        max_num_seqs=max_num_seqs,
        micro_batch_rows=batch_rows,
    )
    pool = EnginePool(entry, EngineClient(timedelta(seconds=1)), gives_way=True)
    for endpoint in pool.endpoints:
        endpoint.capabilities = CAPABILITIES
    return pool


def chosen(pool: EnginePool, prefix: str = "", *excluded: str) -> str | None:
    endpoint = pool.choose(prefix, [f"http://{name}" for name in excluded])
    return endpoint.url[-1] if endpoint else None


def test_the_endpoint_with_the_least_load_in_tokens_is_next() -> None:
    pool = pool_of("a", "b")
    a, b = pool.endpoints
    a.in_flight, a.tokens = 1, 50_000
    b.in_flight, b.tokens = 20, 2_000
    assert chosen(pool) == "b"
    assert chosen(pool, "", "b") == "a"
    b.in_flight = b.limit.rows
    assert chosen(pool) == "a"
    a.in_flight = a.limit.rows
    assert chosen(pool) is None


def test_rows_with_a_known_prefix_go_where_it_was_read_while_loads_are_even() -> None:
    pool = pool_of("a", "b")
    a, b = pool.endpoints
    b.tokens = 10
    assert chosen(pool, "call 1") == "a"
    a.tokens = 5_000
    assert [chosen(pool, "call 1"), chosen(pool, "call 2")] == ["a", "b"]
    a.tokens = 50_000
    assert chosen(pool, "call 1") == "b"
    a.tokens = 0
    assert chosen(pool, "call 1") == "b", "it was read there last"
    b.record_failure(EngineUnavailable("away"), 1, 0.0)
    assert chosen(pool, "call 1") == "a"


def test_an_endpoint_that_was_never_reached_is_not_used() -> None:
    pool = pool_of("a")
    pool.endpoints[0].capabilities = None
    assert not pool.available
    assert chosen(pool) is None
    assert not pool.has_alternative(())


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("pipeline.engine.endpoint.time", SimpleNamespace(monotonic=made.monotonic))
    return made


def test_three_failures_open_the_breaker() -> None:
    pool = pool_of("a", "b")
    for _ in range(3):
        pool.endpoints[0].record_failure(EngineFailed("cut"), 1, 0.0)
    assert (chosen(pool), pool.has_alternative(["http://b"]), pool.available) == ("b", False, True)


def test_a_refusal_shrinks_limit_and_batch_and_pauses_the_endpoint(clock: Clock) -> None:
    pool = pool_of("b", max_num_seqs=256)
    (b,) = pool.endpoints
    limit = b.limit.rows
    for rows in (32, 32, 1):  # sent together, refused together: one refusal
        b.record_failure(EngineOverloaded("full"), rows, clock.now - 1)
    assert (b.largest_batch, b.capacity) == (16, 0)
    assert b.limit.rows < limit
    assert pool.has_alternative(()), "it is used again in a moment"
    clock.now = b.breaker.until - 0.001
    assert b.capacity == 0
    clock.now = b.breaker.until
    assert b.capacity == b.limit.rows


def test_a_rejected_request_does_not_count_against_its_endpoint() -> None:
    pool = pool_of("a")
    for _ in range(5):
        pool.endpoints[0].record_failure(RequestRejected("bad"), 1, 0.0)
    assert chosen(pool) == "a"


@pytest.mark.parametrize(("max_num_seqs", "batch_rows", "rows"), [(256, 32, 32), (256, 8, 8), (64, 32, 8), (4, 32, 1)])
def test_a_micro_batch_takes_at_most_an_eighth_of_the_sequences(max_num_seqs: int, batch_rows: int, rows: int) -> None:
    endpoint: Endpoint = pool_of("a", max_num_seqs=max_num_seqs, batch_rows=batch_rows).endpoints[0]
    assert endpoint.largest_batch == rows
    endpoint.lose_batch_route()
    assert endpoint.largest_batch == 1


def test_the_name_of_the_weights_changes_with_each_start_unless_something_proves_them() -> None:
    pool = pool_of("a", "b")
    a, b = pool.endpoints
    a.started_at, b.started_at = 100.0, 200.0
    before = pool.revision_of(CAPABILITIES)
    a.started_at = 150.0
    assert pool.revision_of(CAPABILITIES) == before, "the youngest counts: they are alike"
    a.started_at = 300.0
    assert pool.revision_of(CAPABILITIES) != before
    snapshot = replace(CAPABILITIES, revision="/hub/models--x/snapshots/" + "0f" * 20)
    assert pool.revision_of(snapshot) == snapshot.revision
    pool.entry = pool.entry.model_copy(update={"revision": "v7"})
    assert pool.revision_of(CAPABILITIES) == "v7"


async def test_an_entry_that_changes_keeps_endpoints_that_it_still_names_and_its_new_limits_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def found(*_: object, **__: object) -> Capabilities:
        return CAPABILITIES

    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr("pipeline.engine.pool.probe", found)
    monkeypatch.setattr("pipeline.engine.pool.poll_metrics", none)
    pool = pool_of("a", "b")
    a, b = pool.endpoints
    a.probed_at = b.probed_at = 1.0
    await pool.update(pool.entry.model_copy(update={"endpoints": ("http://b", "http://c")}))
    assert pool.endpoints[0] is b
    assert [one.url for one in pool.endpoints] == ["http://b", "http://c"]
    assert pool.available
    await pool.update(pool.entry.model_copy(update={"max_num_seqs": 8}))
    assert [one.limit.rows for one in pool.endpoints] == [9, 9]
    await pool.client.close()
