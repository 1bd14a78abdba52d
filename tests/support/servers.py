"""Servers of a test's own, to be killed, stopped, emptied and started again at the same address."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
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

from pipeline.local.servers import Server, _postgres_binary, free_port, start_postgres, start_valkey
from pipeline.store.schema import migrate

Ended = subprocess.Popen[bytes]


class Postgres:
    """A Postgres with our tables; a context manager."""

    def __init__(self, folder: Path, *, tables: bool = True) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._server: Server = start_postgres(folder)
        self.url = self._server.url
        if tables:
            migrate.upgrade(self.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def end(self, *, how: signal.Signals = signal.SIGQUIT) -> None:
        """An immediate shutdown, unless said otherwise."""
        if self._server.process.poll() is None:
            os.kill(self._server.process.pid, how)
        self._server.process.wait()

    def start(self) -> None:
        """Back at its address; returns when it answers."""
        self._server = start_postgres(self._folder, urlsplit(self.url).port)
        with psycopg.connect(self.url):
            pass

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Look into it, or tell it something."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def standby(self, folder: Path) -> "Postgres":
        """A second server that follows this one; a commit waits for it from now on."""
        folder.mkdir(mode=0o700)
        shutil.copy(self._folder / "postgres.password", folder)
        tool = _postgres_binary("pg_basebackup")
        subprocess.run([tool, "-d", self.url, "-D", folder / "postgres", "-R", "-c", "fast"], check=True)
        made = Postgres(folder, tables=False)
        self.query("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.query("SELECT pg_reload_conf()")
        _until(
            lambda: self.query("SELECT sync_state FROM pg_stat_replication") == [("sync",)],
            psycopg.Error,
            "the standby",
        )
        return made


def _until(answers: Callable[[], bool], troubles: type[Exception] | tuple[type[Exception], ...], what: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if answers():
                return
        except troubles:
            pass
        assert time.monotonic() < end, f"{what} does not answer"
        time.sleep(0.05)


class Valkey:
    """A Valkey; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._process, self.url = self._start(None)

    def _start(self, port: int | None) -> tuple[Ended, str]:
        server = start_valkey(self._folder, port)
        return server.process, server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def end(self, *, forget: bool = False) -> None:
        """Kill -9; `forget` loses its data too."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if forget:
            shutil.rmtree(self._folder / "valkey")

    def start(self) -> None:
        """Back at its address; returns when it answers."""
        self._process, _ = self._start(urlsplit(self.url).port)

    def cut(self) -> None:
        """Close every connection but this one."""
        with redis.Redis.from_url(self.url) as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind)

    def depth(self, queue: str) -> int:
        """Messages in a queue."""
        with redis.Redis.from_url(self.url) as client:
            return int(client.llen(queue))

    def send_raw(self, queue: str, body: bytes) -> None:
        """Something that nobody can take."""
        with redis.Redis.from_url(self.url) as client:
            client.lpush(queue, body)


class Redis7(Valkey):
    """Debian's Redis 7; the same."""

    def _start(self, port: int | None) -> tuple[Ended, str]:
        at = port or free_port(17_379)
        folder = self._folder / "valkey"
        folder.mkdir(exist_ok=True)
        arguments = [
            "--port",
            str(at),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--appendonly",
            "yes",
            "--save",
            "",
        ]
        process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        url = f"redis://127.0.0.1:{at}/0"

        def answers() -> bool:
            with redis.Redis.from_url(url) as client:
                return bool(client.ping())

        _until(answers, redis.RedisError, "redis-server")
        return process, url


class RabbitMQ:
    """Debian's RabbitMQ, started without systemd; a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._port, self._dist, self._epmd = (free_port(21_672 + 100 * i) for i in range(3))
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # Erlang's cookie
            "RABBITMQ_NODENAME": f"yyc3-{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._dist),
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        # The name server of Erlang outlives the nodes that started it.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "epmd" and process.environ().get("ERL_EPMD_PORT") == str(self._epmd):
                    process.kill()

    def start(self) -> None:
        """Back at its address; returns when it answers."""
        self._process = subprocess.Popen(
            ["/usr/lib/rabbitmq/bin/rabbitmq-server"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def answers() -> bool:
            with Connection(self.url) as connection:
                connection.connect()
            return True

        _until(answers, (OSError, AMQPError, OperationalError), "rabbitmq-server")

    def end(self, *, forget: bool = False) -> None:
        """Kill -9, with all that it started; `forget` loses its data too."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if forget:
            shutil.rmtree(self._folder / "mnesia")

    def cut(self) -> None:
        """Close every connection."""
        subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", "close_all_connections", "a test"],
            env=self._environment,
            check=True,
            capture_output=True,
        )

    def depth(self, queue: str) -> int:
        """Messages in a queue."""
        with Connection(self.url) as connection, connection.channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except NotFound:
                return 0

    def send_raw(self, queue: str, body: bytes) -> None:
        """Something that nobody can take."""
        with Connection(self.url) as connection:
            Producer(connection).publish(
                body, routing_key=queue, content_type="application/json", content_encoding="utf-8"
            )


__all__ = ["Postgres", "RabbitMQ", "Redis7", "Valkey"]
