"""Everything on this machine under one supervisor: servers, tables, simulators, workers, recovery and Flower."""

import http.client
import resource
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from celery import Celery

from pipeline.local.addresses import StackAddresses, write_stack_addresses
from pipeline.local.client import SupervisorClient
from pipeline.local.readiness import wait_until
from pipeline.models import ModelEntry
from pipeline.settings import Settings
from pipeline.wiring import Wiring
from schemas.doorbells import Lane
from schemas.errors import InvalidSetting

_READY_SECONDS = 60.0
_SIMULATOR = "simulator-"
_SIMULATED_PORT = 10_086  # of an entry without a port
_URLS = {"postgres": "database_url", "valkey": "redis_url"}
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not lead to our own loopback
_FEWEST_OPEN_FILES, _OPEN_FILES = 1_024, 8_192


class Stack:
    """A context manager: on entry everything is started and ready, on exit everything is stopped.

    Args:
        settings: of this machine.
        simulate: run a simulator for each model without a configured endpoint.
        speed: of the simulators; 1 is life-like.
        simulator_arguments: more arguments for each simulator.
        flower: whether to run Flower.
        tcp: whether the servers listen on loopback too.
        on_step: called with a text for each step.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        simulate: bool,
        speed: float = 1.0,
        simulator_arguments: tuple[str, ...] = (),
        flower: bool = True,
        tcp: bool = False,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._wiring = Wiring(settings)
        self._simulate = simulate
        self._speed = speed
        self._simulator_arguments = simulator_arguments
        self._flower = flower
        self._tcp = tcp
        self._on_step = on_step
        self.folder: Path = settings.home_folder
        self._commands: dict[str, list[str]] = {}
        self.addresses: StackAddresses

    def __enter__(self) -> Self:
        _allow_open_files()
        models = self._wiring.models  # a mistake in models.toml is said before anything starts
        servers = []
        if self._settings.database_url is None:
            servers.append("postgres")
        if self._settings.redis_url is None:
            servers.append("valkey")
        if servers:
            self._on_step(f"starting {' and '.join(servers)} in {self.folder}")
        self.supervisor = SupervisorClient(self.folder, servers, tcp=self._tcp)
        try:
            self._start([entry for entry in models if self._is_simulated(entry)])
        except BaseException:
            self.supervisor.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._on_step("stopping")
        self.supervisor.close()

    def start(self, name: str, arguments: list[str]) -> None:
        """Start a Python process of ours; its output goes to a log in the home."""
        self._commands[name] = arguments
        environment = {"YYC3_HOME": str(self.folder)}
        log = self.folder / f"{name}.log"
        self.supervisor.start(name, [sys.executable, "-P", *arguments], environment=environment, log=log)

    def follow_models(self) -> str | None:
        """Read models.toml again, and run simulators for entries that are new; returns what to say, None for nothing.

        The processes read it by themselves.
        """
        try:
            models = self._wiring.read_models()
        except InvalidSetting as error:
            return f"{error.message}; the former entries stay"
        if models == self._wiring.models:
            return None
        self._wiring.models.replace_with(models)
        wanted = {entry.name: entry for entry in models if self._is_simulated(entry)}
        for name in self.addresses.simulated.keys() - wanted.keys():
            self._commands.pop(f"{_SIMULATOR}{name}")
            self.supervisor.stop(f"{_SIMULATOR}{name}")
        running = {name: url for name, url in self.addresses.simulated.items() if name in wanted}
        simulated = running | {n: self._start_simulator(one) for n, one in wanted.items() if n not in running}
        self.addresses = self.addresses.model_copy(update={"simulated": simulated})
        write_stack_addresses(self.folder, self.addresses)
        return "models.toml was read again"

    def _is_simulated(self, entry: ModelEntry) -> bool:
        return self._simulate and not entry.configured

    def moved(self, server: str, url: str) -> bool:
        """Tell the others if a server that was started again has another address; returns whether it has."""
        name = _URLS[server]
        if getattr(self.addresses, name) == url:
            return False
        self.addresses = self.addresses.model_copy(update={name: url})
        write_stack_addresses(self.folder, self.addresses)
        for process in self._commands:
            if not process.startswith(_SIMULATOR):
                self.supervisor.stop(process)
                self.restart(process)
        return True

    def restart(self, name: str) -> None:
        """Start a process again that exited by itself."""
        self.start(name, self._commands[name])

    def _start(self, simulated: list[ModelEntry]) -> None:
        database_url = self._url(self._settings.database_url, "postgres")
        redis_url = self._url(self._settings.redis_url, "valkey")
        from pipeline.store.schema import migrate  # Alembic is slow to import, and most commands start nothing

        self._on_step(f"database is at revision {migrate.upgrade(database_url)}")
        simulators = {entry.name: self._start_simulator(entry) for entry in simulated}
        port = self.supervisor.listen("flower", self._settings.flower_port) if self._flower else None
        self.addresses = StackAddresses(
            database_url=database_url,
            redis_url=redis_url,
            flower_url=f"http://127.0.0.1:{port}" if port else None,
            simulated=simulators,
            tcp_urls={_URLS[server]: url for server, url in self.supervisor.tcp_urls.items()},
            settings=self._settings.shared(),
        )
        write_stack_addresses(self.folder, self.addresses)
        self._start_processes(port)
        self._wait_until_ready()

    def _start_processes(self, flower_port: int | None) -> None:
        for lane in Lane:
            self.start(f"worker-{lane}", ["-m", "workers.main", lane])
        self.start("intake", ["-m", "workers.intake"])
        self.start("recover", ["-m", "pipeline.cli", "recover"])
        if flower_port:
            self.start("flower", ["-m", "pipeline.cli", "flower", "--port", str(flower_port), "--fd", "{fd}"])

    def _wait_until_ready(self) -> None:
        self._on_step("waiting for workers")
        for name, url in self.addresses.simulated.items():
            self._wait(lambda url=url: _answers(f"{url}/health"), f"the simulator of {name}")  # type: ignore[misc]
        app = Wiring(self._settings).celery_app()  # it reads the addresses that were just stored
        self._wait(lambda: _nodes(app) > len(Lane), "the workers")
        app.close()
        flower = f"{self.addresses.flower_url}/healthcheck"
        if self._flower and not wait_until(lambda: _answers(flower), _READY_SECONDS):
            self._on_step(f"Flower does not answer; everything else runs; see {self.folder / 'flower.log'}")

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        if not wait_until(ready, _READY_SECONDS):
            raise InvalidSetting(f"{what} did not start within {_READY_SECONDS:.0f} s; the logs are in {self.folder}")

    def _url(self, configured: object, server: str) -> str:
        if configured is None:
            return self.supervisor.urls[server]
        return self._wiring.database_url if server == "postgres" else self._wiring.redis_url

    def _start_simulator(self, entry: ModelEntry) -> str:
        port = self.supervisor.listen(f"{_SIMULATOR}{entry.name}", entry.port or _SIMULATED_PORT)
        arguments = ["-m", "simulator", "--model", entry.name, "--fd", "{fd}", "--speed", str(self._speed)]
        arguments += ["--max-num-seqs", str(entry.max_num_seqs), "--max-model-len", str(entry.max_model_len)]
        self.start(f"{_SIMULATOR}{entry.name}", [*arguments, *self._simulator_arguments])
        self._on_step(f"{entry.name} is simulated on http://127.0.0.1:{port}")
        return f"http://127.0.0.1:{port}"


def _allow_open_files() -> None:
    """Raise the limit of open files as far as this account may.

    Raises:
        InvalidSetting: it stays too low for the servers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _FEWEST_OPEN_FILES:
        needed = f"the servers need {_FEWEST_OPEN_FILES:,}: raise it with ulimit -n {_OPEN_FILES}"
        raise InvalidSetting(f"only {soft} files may be open here, {needed}")


def _nodes(app: Celery) -> int:
    return len(app.control.ping(timeout=0.3) or ())


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False
