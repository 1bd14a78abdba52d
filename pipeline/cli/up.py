"""`yyc3 up`: run everything on this machine until Ctrl-C."""

import asyncio
import contextlib
import os
import re
import select
import signal
import socket
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from pipeline.cli.console import command, print_json, say, tell
from pipeline.cli.exit_codes import Exit
from pipeline.cli.info import describe, show
from pipeline.policies import retries
from pipeline.settings import load_settings
from pipeline.stack import Stack
from pipeline.store import Database, processes
from pipeline.store.processes import REPORT_SECONDS
from pipeline.wiring import Wiring
from schemas.errors import PipelineError

_CALM_SECONDS = 30.0
_FOLLOW_SECONDS = 1.0
_STARTING = timedelta(minutes=2)
_SERVERS = {"postgres", "valkey"}
_PROCESS = re.compile(r"[^.@]+\.(?P<pid>\d+)@(?P<host>.+)")  # see presence.process_name


@command
def up(
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run a simulator for each model without a configured endpoint.")
    ] = False,
    speed: Annotated[float, typer.Option(help="Speed of the simulators; 1 is life-like.", min=0.01)] = 1.0,
    tcp: Annotated[
        bool, typer.Option("--tcp", help="Let Redis and Postgres listen on loopback too, for programs without sockets.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as one JSON line.")] = False,
) -> None:
    """Run everything on this machine: Redis, Postgres, workers, intake, recovery, Flower. Ctrl-C stops it all."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    settings = load_settings()
    with Stack(settings, simulate=simulate, speed=speed, tcp=tcp, on_step=tell) as stack:
        running = describe(Wiring(settings), event="ready")
        if as_json:
            print_json(running)
        else:
            show(running)
            answering = {one["model"] for one in running["endpoints"] if one["answers"]}
            away = sorted({one["model"] for one in running["endpoints"]} - answering)
            if away:
                say(f"jobs for {', '.join(away)} wait until its engine answers", style="yellow")
            say("ready    try: yyc3 submit intent --text '我要退款' --wait      Ctrl-C stops everything")
        _watch(stack, wake, _Silence(stack))


class _Restarts:
    """Processes that exited by themselves: each is started again, later and later while it keeps exiting."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._rounds: Counter[str] = Counter()
        self._due: dict[str, float] = {}

    @property
    def next_due(self) -> float | None:
        """Seconds until the next start; None if nothing is down."""
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def exited(self, name: str) -> float:
        """Return after how many seconds it is started again: at once the first time, at most a minute."""
        now = time.monotonic()
        if now - self._started.get(name, now - _CALM_SECONDS) >= _CALM_SECONDS:
            self._rounds[name] = 0
        pause = retries.delay(self._rounds[name]).total_seconds() if self._rounds[name] else 0.0
        self._rounds[name] += 1
        self._due[name] = now + pause
        return pause

    def forget(self) -> None:
        """Everything was started anyway."""
        self._due.clear()

    def take_due(self) -> list[str]:
        """Return the processes to start now."""
        now = time.monotonic()
        names = [name for name, at in self._due.items() if at <= now]
        for name in names:
            del self._due[name]
            self._started[name] = now
        return names


class _Silence:
    """Processes that hang: they run, and are not heard of. Asked for in a thread: the database may hang as well."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._began = datetime.now(UTC)
        self._silent: frozenset[str] = frozenset()
        self._told: frozenset[str] = frozenset()
        threading.Thread(target=self._look, name="silence", daemon=True).start()

    def news(self) -> list[str]:
        """Return what has changed, in sentences."""
        silent, told = self._silent, self._told
        self._told = silent
        hang = [f"{name} runs and is not heard of: it hangs, or cannot reach the database" for name in silent - told]
        return hang + [f"{name} is heard of again, or was replaced" for name in told - silent]

    def _look(self) -> None:
        while True:
            time.sleep(REPORT_SECONDS)
            with contextlib.suppress(PipelineError, TimeoutError):  # then nothing is known of them
                self._silent = asyncio.run(self._ask())

    async def _ask(self) -> frozenset[str]:
        async with asyncio.timeout(REPORT_SECONDS):
            database = await Database(self._stack.addresses.database_url).open()
            try:
                found = await processes.seen(database)
            finally:
                await database.close()
        # Rows of an earlier start may name process ids that others have now.
        own = [one for one in found if one.silent and one.started_at > self._began - _STARTING]
        return frozenset(one.heartbeat.name for one in own if _is_running(one.heartbeat.name))


def _is_running(name: str) -> bool:
    """Whether a process of this host with the id in its name is there; one that was lost is replaced anyway."""
    found = _PROCESS.fullmatch(name)
    if found is None or found["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _watch(stack: Stack, wake: int, silence: _Silence) -> None:
    """Start what exits by itself again, for as long as it takes, until a signal; says each time what is down."""
    restarts, down, told = _Restarts(), set[str](), None
    while True:
        due = _FOLLOW_SECONDS if restarts.next_due is None else min(_FOLLOW_SECONDS, restarts.next_due)
        readable, _, _ = select.select([wake, stack.supervisor.output], [], [], due)
        said = stack.follow_models()
        if said is not None and said != told:
            tell(said)
        told = said
        for news in silence.news():
            tell(news)
        if wake in readable:
            if down or restarts.next_due is not None:
                tell("stopped while a part was down; see the logs", style="red")
                raise typer.Exit(Exit.SOME_FAILED)
            return
        for name in restarts.take_due():
            stack.restart(name)
        if stack.supervisor.output not in readable and not stack.supervisor.has_event:
            continue
        event = stack.supervisor.next_event()
        if event is None:
            tell("the supervisor is gone; everything has stopped", style="red")
            raise typer.Exit(Exit.UNREACHABLE)
        _tell(stack, event, restarts, down)


def _tell(stack: Stack, event: dict[str, Any], restarts: _Restarts, down: set[str]) -> None:
    if (name := event.get("started")) is not None:
        down.discard(name)
        moved = stack.moved(name, event["url"])
        if moved:
            restarts.forget()
        tell(f"{name} runs again{', at another address' if moved else ''}")
    elif (name := event.get("failed")) is not None:
        tell(f"{name} is down: {event['reason']}")
    elif (name := event["exited"]) in _SERVERS:
        down.add(name)
        log = stack.folder / f"{name}.log"
        tell(f"{name} exited with code {event['code']}, is started again; workers wait for it; see {log}")
    else:
        pause = restarts.exited(name)
        when = f"in {pause:.0f} s, it exits again and again" if pause else "now"
        tell(f"{name} exited with code {event['code']}; started again {when}; see {stack.folder / name}.log")
