"""The faults of `make soak`: each returns when it is over and everything runs again; `draw` chooses the victim."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import psycopg
from aiohttp import web

from tests.faults.soak_world import LEASE_SECONDS, World
from tests.support.faulty_proxy import BATCH, CHAT, always


def _kill_a_worker(world: World, draw: random.Random) -> None:
    worker = draw.choice(world.workers)
    worker.kill()
    worker.start()


def _stop_a_worker_past_its_lease(world: World, draw: random.Random) -> None:
    worker = draw.choice(world.workers)
    worker.send(signal.SIGSTOP)
    time.sleep(2 * LEASE_SECONDS)
    worker.send(signal.SIGCONT)


def _kill_a_recovery(world: World, draw: random.Random) -> None:
    recovery = draw.choice(world.recoveries)
    recovery.kill()
    recovery.start()


def _lose_the_broker(world: World, draw: random.Random) -> None:
    world.valkey.end(lose_data=True)
    time.sleep(draw.uniform(0, 2))
    world.valkey.start()


def _cut_broker_connections(world: World, _: random.Random) -> None:
    world.valkey.cut()


def _restart_postgres(world: World, draw: random.Random) -> None:
    world.postgres.end()
    time.sleep(draw.uniform(0, 2))
    world.postgres.start()


def _kill_an_engine(world: World, draw: random.Random) -> None:
    engine = draw.choice(world.engines)
    engine.kill()
    time.sleep(draw.uniform(0, 2))
    engine.start()


def _engine_that(longest_seconds: float, **fault: Any) -> Callable[[World, random.Random], None]:
    """Make a fault of an engine itself, which lasts a while."""

    def inject(world: World, draw: random.Random) -> None:
        engine = draw.choice(world.engines)
        engine.inject(fault)
        time.sleep(draw.uniform(1, longest_seconds))
        engine.inject()

    return inject


@contextmanager
def _suspended(*processes: psutil.Process) -> Iterator[None]:
    """Stop processes with all that they started; their connections stay open, and nothing answers."""
    everything = [one for process in processes for one in (process, *process.children(recursive=True))]
    for process in everything:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _suspend_a_recovery(world: World, draw: random.Random) -> None:
    recovery = draw.choice(world.recoveries)
    assert recovery.process is not None
    with _suspended(psutil.Process(recovery.process.pid)):
        time.sleep(2 * LEASE_SECONDS)


def _suspend_an_engine(world: World, draw: random.Random) -> None:
    process = draw.choice(world.engines).member.process
    assert process is not None
    with _suspended(psutil.Process(process.pid)):
        time.sleep(1.5 * LEASE_SECONDS)


def _suspend_postgres(world: World, _: random.Random) -> None:
    with _suspended(psutil.Process(world.postgres.pid)):
        time.sleep(1.5 * LEASE_SECONDS)


def _suspend_the_broker(world: World, _: random.Random) -> None:
    with _suspended(psutil.Process(world.valkey.pid)):
        time.sleep(1.5 * LEASE_SECONDS)


def _suspend_a_client_in_a_transaction(world: World, _: random.Random) -> None:
    """It holds the chunks that run at this moment, as a client that was stopped in the middle of something would."""
    with psycopg.connect(world.postgres.url) as connection:
        connection.execute("SELECT 1 FROM chunks WHERE state = 'running' FOR UPDATE SKIP LOCKED LIMIT 8")
        time.sleep(2 * LEASE_SECONDS)
        with suppress(psycopg.Error):
            connection.rollback()


def _lie_on_the_way(world: World, draw: random.Random) -> None:
    """Something in front of an engine answers instead of it, with what is not about the request."""
    status = draw.choice([301, 302, 307, 400, 401, 403, 404, 405, 407, 418])
    rule = always(lambda: web.Response(status=status, text="<html>", headers={"location": "https://login.example/"}))
    world.proxy.rules |= {CHAT: rule, BATCH: rule}
    time.sleep(draw.uniform(1, 3))
    world.proxy.rules.clear()


def _cut_on_the_way(world: World, draw: random.Random) -> None:
    """Something in front of an engine closes every connection under its request."""

    async def cut(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    world.proxy.rules |= {CHAT: cut, BATCH: cut}
    time.sleep(draw.uniform(0.5, 1.5))
    world.proxy.rules.clear()


def _deploy(world: World, _: random.Random) -> None:
    for worker in world.workers:
        worker.wait_until_logged('"ready"')  # it may have been killed and started a moment ago
        before = worker.process
        worker.send(signal.SIGTERM)
        worker.start()
        assert before is not None
        assert before.wait(60) == 0, "a worker exits with 0 after SIGTERM"
        worker.wait_until_logged('"ready"')


FAULTS: dict[str, Callable[[World, random.Random], None]] = {
    "worker killed": _kill_a_worker,
    "worker stopped past its lease": _stop_a_worker_past_its_lease,
    "recovery killed": _kill_a_recovery,
    "broker restarted without its data": _lose_the_broker,
    "broker connections cut": _cut_broker_connections,
    "postgres restarted": _restart_postgres,
    "engine killed": _kill_an_engine,
    "503 storm": _engine_that(4, kind="503", probability=1.0),
    "slow engine": _engine_that(4, kind="slow", probability=0.5, seconds=2.0),
    "recovery suspended": _suspend_a_recovery,
    "engine suspended": _suspend_an_engine,
    "postgres suspended": _suspend_postgres,
    "broker suspended": _suspend_the_broker,
    "client suspended in a transaction": _suspend_a_client_in_a_transaction,
    "a proxy lies": _lie_on_the_way,
    "a proxy cuts": _cut_on_the_way,
    "odd answers": _engine_that(3, kind="nonsense", probability=0.05),
    "rolling deploy": _deploy,
}
