"""Servers of a test's own, to be killed, stopped, emptied and started again at the same address."""

import contextlib
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
import psycopg
import redis
from amqp.exceptions import AMQPError, NotFound
from kombu import Connection, Producer
from kombu.exceptions import OperationalError

from pipeline.local.postgres import postgres_binary, start_postgres
from pipeline.local.servers import Server
from pipeline.local.valkey import start_valkey
from pipeline.store.schema import migrate
from tests.support.exclusive import reserve_port
from tests.support.sandbox import admin_url, wait_for

_RABBITMQ = "/usr/lib/rabbitmq/bin"
PGBOUNCER = "/usr/sbin/pgbouncer"


class _OwnServer(ABC):
    """A server that is ended on exit."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    @abstractmethod
    def end(self) -> None:
        """End it at once."""

    @abstractmethod
    def start(self) -> None:
        """Start it again at its address; it answers when this returns."""


class Postgres(_OwnServer):
    """A Postgres with our tables; a context manager."""

    def __init__(self, folder: Path, *, tables: bool = True) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = reserve_port()
        self._server: Server = start_postgres(folder, self._port)
        self.url = self._server.tcp_url or ""
        self.admin_url = admin_url(folder, self.url)
        if tables:
            migrate.upgrade(self.url)

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return self._server.process.pid

    def end(self, *, how: signal.Signals = signal.SIGQUIT) -> None:
        """Send a signal, by default the one for an immediate shutdown, and wait for the end."""
        if self._server.process.poll() is None:
            os.kill(self._server.process.pid, how)
        self._server.process.wait()

    def start(self) -> None:
        """Start it again at its address; it answers when this returns."""
        self._server = start_postgres(self._folder, self._port)
        with psycopg.connect(self.url):
            pass

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def administer(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement as the superuser and return its rows."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def standby(self, folder: Path) -> "Postgres":
        """Start a second server that follows this one; a commit waits for it from now on."""
        folder.mkdir(mode=0o700)
        for password in ("postgres.password", "postgres.app-password"):
            shutil.copy(self._folder / password, folder)
        tool = postgres_binary("pg_basebackup")
        subprocess.run([tool, "-d", self.admin_url, "-D", folder / "postgres", "-R", "-c", "fast"], check=True)
        made = Postgres(folder, tables=False)
        self.administer("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.administer("SELECT pg_reload_conf()")
        wait_for(
            lambda: self.administer("SELECT sync_state FROM pg_stat_replication") == [("sync",)],
            "the standby to be synchronous",
            ignoring=psycopg.Error,
        )
        return made


class Valkey(_OwnServer):
    """A Valkey; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = reserve_port()
        self._process, self.url = self._start()

    def _start(self) -> tuple[subprocess.Popen[bytes], str]:
        server = start_valkey(self._folder, self._port)
        return server.process, server.tcp_url or ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def end(self, *, lose_data: bool = True) -> None:
        """Send SIGKILL; it keeps nothing, whatever `lose_data` says."""
        del lose_data
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Start it again at its address; it answers when this returns."""
        self._process, _ = self._start()

    def cut(self) -> None:
        """Close every connection but this one."""
        with redis.Redis.from_url(self.url) as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind)

    def depth(self, queue: str) -> int:
        """Count the messages in a queue."""
        with redis.Redis.from_url(self.url) as client:
            return int(client.llen(queue))

    def send_raw(self, queue: str, body: bytes) -> None:
        """Put bytes into a queue that are not a message."""
        with redis.Redis.from_url(self.url) as client:
            client.lpush(queue, body)


class Redis7(Valkey):
    """Debian's Redis 7; the same."""

    def _start(self) -> tuple[subprocess.Popen[bytes], str]:
        folder = self._folder / "valkey"
        folder.mkdir(exist_ok=True)
        arguments = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(folder)]
        arguments += ["--appendonly", "yes", "--save", ""]
        process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        url = f"redis://127.0.0.1:{self._port}/0"

        def answers() -> bool:
            assert process.poll() is None, f"redis-server exited with {process.returncode}"
            with redis.Redis.from_url(url) as client:
                return bool(client.ping())

        wait_for(answers, "redis-server", ignoring=redis.RedisError)
        return process, url


class PgBouncer:
    """Debian's PgBouncer as a transaction pooler with few connections; a context manager.

    Args:
        folder: for its files.
        target: the URL of the database.
    """

    def __init__(self, folder: Path, target: str) -> None:
        parts = urlsplit(target)
        self._port = reserve_port()
        users = folder / "users.txt"
        users.write_text(f'"{parts.username}" "{parts.password}"\n')
        self._settings = folder / "pgbouncer.ini"
        self._settings.write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self._port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = 4\n"
        )
        for file in (users, self._settings):
            file.chmod(0o644)
        for above in [folder, *folder.parents][:4]:  # it gives up being root
            above.chmod(above.stat().st_mode | 0o055)
        user, rest = target.rsplit("@", 1)
        self.url = f"{user}@127.0.0.1:{self._port}/{rest.split('/')[1]}"

    def __enter__(self) -> Self:
        give_up = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [PGBOUNCER, *give_up, str(self._settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def answers() -> bool:
            assert self._process.poll() is None, f"pgbouncer exited with {self._process.returncode}"
            with psycopg.connect(self.url, connect_timeout=2):
                return True

        wait_for(answers, "pgbouncer", ignoring=psycopg.Error)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class RabbitMQ(_OwnServer):
    """Debian's RabbitMQ, started without systemd; a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        port, distribution, self._epmd = (reserve_port() for _ in range(3))
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # Erlang's cookie
            "RABBITMQ_NODENAME": f"yyc3-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, traceback)
        # The name server of Erlang outlives the nodes that started it.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "epmd" and process.environ().get("ERL_EPMD_PORT") == str(self._epmd):
                    process.kill()

    def start(self) -> None:
        """Start it again at its address; it answers when this returns."""
        process = self._process = subprocess.Popen(
            [f"{_RABBITMQ}/rabbitmq-server"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def answers() -> bool:
            assert process.poll() is None, f"rabbitmq-server exited with {process.returncode}: {self._folder}/log"
            with Connection(self.url) as connection:
                connection.connect()
            return True

        wait_for(answers, "rabbitmq-server", 120, ignoring=(OSError, AMQPError, OperationalError))

    def end(self, *, lose_data: bool = False) -> None:
        """Send SIGKILL to it and all that it started; `lose_data` deletes what it stored."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if lose_data:
            shutil.rmtree(self._folder / "mnesia")

    def cut(self) -> None:
        """Close every connection."""
        subprocess.run(
            [f"{_RABBITMQ}/rabbitmqctl", "close_all_connections", "a test"],
            env=self._environment,
            check=True,
            capture_output=True,
        )

    def depth(self, queue: str) -> int:
        """Count the messages in a queue."""
        with Connection(self.url) as connection:
            channel: Any = connection.default_channel
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except NotFound:
                return 0

    def send_raw(self, queue: str, body: bytes) -> None:
        """Put bytes into a queue that are not a message."""
        with Connection(self.url) as connection:
            Producer(connection).publish(
                body, routing_key=queue, content_type="application/json", content_encoding="utf-8"
            )


Broker = Valkey | RabbitMQ

__all__ = ["Broker", "Postgres", "RabbitMQ", "Redis7", "Valkey"]
