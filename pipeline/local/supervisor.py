"""The process that owns every child of `yyc3 up` and never outlives its parent.

    python -m pipeline.local.supervisor HOME [--tcp] [postgres] [valkey]

It starts the named servers, with --tcp also on loopback, prints one JSON line with their URLs, then reads JSON lines on
stdin: `{"listen": NAME, "port": N}`, which it answers with `{"listening": NAME, "port": N}`, `{"start": NAME, "argv": [...],
"env": {...}, "log": PATH}`, whose `{fd}` becomes the descriptor of that port, `{"stop": NAME}` and `{"kill": NAME}`; it prints
`{"exited": NAME, "code": N}` when a child ends by itself. A server that ends, or whose socket was removed, is started again,
sooner or later: `{"started": NAME, "url": URL}`, or `{"failed": NAME, "reason": TEXT}` each time it does not come up. End
of input, SIGTERM or SIGINT stop all children, the last started first. A parent that is killed with -9 closes our stdin; a
supervisor that is killed with -9 takes its children along through PDEATHSIG (Linux).
"""

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from pipeline.environment import take_out_others
from pipeline.local.postgres import start_postgres
from pipeline.local.servers import Server, ServerError, set_parent_death_signal
from pipeline.local.valkey import start_valkey

_STOP_SECONDS = 45.0
_BACKLOG = 1_024
_NEAR_PORTS = 100
_FIRST_RESTART_SECONDS, _LONGEST_RESTART_SECONDS = 0.5, 30.0
_STARTERS = {"postgres": start_postgres, "valkey": start_valkey}


def _emit(line: dict[str, Any]) -> None:
    # The reader may be gone already (kill -9): then the end of stdin stops this process.
    try:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Supervisor:
    """Children by name, in the order they were started."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._children: dict[str, Server] = {}
        self._ports: dict[str, int | None] = {}
        self._listening: dict[str, socket.socket] = {}
        self._due: dict[str, tuple[float, float]] = {}  # servers to start again: when, and after how long the next time

    def start_servers(self, names: list[str], *, tcp: bool) -> None:
        """Start Postgres and Valkey, and print their URLs."""
        for name in names:
            self._children[name] = _STARTERS[name](self._home, 0 if tcp else None)
            self._ports[name] = self._children[name].port
        servers = self._children.items()
        _emit(
            {
                "urls": {name: child.url for name, child in servers},
                "tcp_urls": {name: child.tcp_url for name, child in servers if child.tcp_url},
            }
        )

    def handle(self, line: bytes) -> None:
        """Execute the command of one input line."""
        command = json.loads(line)
        if "listen" in command:
            self._listen(command["listen"], command["port"])
        elif "start" in command:
            self._start(command["start"], command["argv"], command.get("env", {}), Path(command["log"]))
        elif "kill" in command and (child := self._children.pop(command["kill"], None)):
            child.process.kill()
            child.process.wait()
        elif "stop" in command and (child := self._children.pop(command["stop"], None)):
            self._stop([child])
            if command["stop"] in self._listening:
                self._listening.pop(command["stop"]).close()

    def _listen(self, name: str, port: int) -> None:
        """Open a port here, where it cannot be lost: between asking for a free one and binding it, others take it."""
        for wanted in (*range(port, min(port + _NEAR_PORTS, 65_536)), 0):
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind(("127.0.0.1", wanted))
                listening.listen(_BACKLOG)  # only now a second one that was bound as well is refused
            except OSError:
                listening.close()
                continue
            break
        else:
            raise ServerError(f"no port of loopback can be opened for {name}")
        self._listening[name] = listening
        _emit({"listening": name, "port": listening.getsockname()[1]})

    def _start(self, name: str, argv: list[str], environment: dict[str, str], log: Path) -> None:
        if name in self._children:  # asked for twice, as after a move: never two of one name
            self._stop([self._children.pop(name)])
        descriptor = self._listening[name].fileno() if name in self._listening else None
        with log.open("ab") as output:
            process = subprocess.Popen(
                [one.replace("{fd}", str(descriptor)) for one in argv],
                pass_fds=() if descriptor is None else (descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=set_parent_death_signal(signal.SIGTERM),
            )
        self._children[name] = Server(name, process, signal.SIGTERM)

    def reap(self) -> None:
        """Report children that exited by themselves, and end servers that cannot be found any more.

        The folder of the sockets vanishes when its login session ends, or by a cleaner of temporary files.
        """
        for name, child in list(self._children.items()):
            code = child.process.poll()
            if code is None and child.socket is not None and not child.socket.exists():
                child.process.send_signal(child.stop_signal)
            if code is not None:
                del self._children[name]
                _emit({"exited": name, "code": code})
                if name in _STARTERS:
                    self._due[name] = (time.monotonic() + _FIRST_RESTART_SECONDS, 2 * _FIRST_RESTART_SECONDS)

    def restart_servers(self) -> None:
        """Start servers again that ended: the rest of the pipeline waits for them."""
        for name, (at, pause) in list(self._due.items()):
            if time.monotonic() < at:
                continue
            try:
                self._children[name] = _STARTERS[name](self._home, self._ports[name])
            except ServerError as error:
                self._due[name] = (time.monotonic() + pause, min(2 * pause, _LONGEST_RESTART_SECONDS))
                _emit({"failed": name, "reason": str(error)})
            else:
                del self._due[name]
                _emit({"started": name, "url": self._children[name].url})

    def stop_all(self) -> None:
        """Stop workers and pages together, then the servers that they need."""
        servers = [child for child in self._children.values() if child.name in _STARTERS]
        self._stop([child for child in self._children.values() if child.name not in _STARTERS])
        self._stop(servers)

    def _stop(self, children: list[Server]) -> None:
        for child in reversed(children):
            if child.process.poll() is None:
                child.process.send_signal(child.stop_signal)
        for child in children:
            try:
                child.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _loop(supervisor: Supervisor, wake: int) -> None:
    pending = b""
    while True:
        readable, _, _ = select.select([sys.stdin.fileno(), wake], [], [], 0.5)
        if wake in readable:
            return
        if readable:
            data = os.read(sys.stdin.fileno(), 65_536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                supervisor.handle(line)
        supervisor.reap()
        supervisor.restart_servers()


def _locked(lock: IO[str]) -> bool:
    """Take the lock of the home; a command that tests it holds it for a moment, so try for a second."""
    end = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        else:
            return True


def main(arguments: list[str]) -> int:
    """Run until the parent is gone."""
    take_out_others()
    home = Path(arguments[0])
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (home / "lock").open("w")
    if not _locked(lock):
        _emit({"error": f"{home} is in use by another yyc3 up; stop that one, or set YYC3_HOME to another folder"})
        return 3
    (home / "running.json").unlink(missing_ok=True)  # left by a supervisor that was killed
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    supervisor = Supervisor(home)
    try:
        names = arguments[1:]
        supervisor.start_servers([name for name in names if name != "--tcp"], tcp="--tcp" in names)
        _loop(supervisor, read_end)
    except ServerError as error:
        _emit({"error": str(error)})
        return 3
    except OSError as error:
        _emit({"error": f"{error.filename or home} cannot be written: {error.strerror}"})
        return 3
    finally:
        supervisor.stop_all()
        (home / "running.json").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
