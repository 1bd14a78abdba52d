"""Adapters from settings: the one place where addresses become connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import structlog
from celery import Celery

from pipeline.batches import BatchSubmitter, FileSubmitter
from pipeline.broker import Notifier, Publisher, make_app
from pipeline.concurrency.cancellation import cancel_and_wait
from pipeline.images import ImageSanitizer
from pipeline.jobs.admission import QueueLimits
from pipeline.jobs.preparation import Preparer
from pipeline.jobs.submit import Submitter
from pipeline.local.addresses import addresses_file, find_stack_addresses
from pipeline.models import DEFAULT_FILE, Models, load_models
from pipeline.observability.logging import safe_error_summary
from pipeline.operations.presence import Presence, process_name
from pipeline.operations.recovery import Recovery
from pipeline.settings import Settings, load_settings
from pipeline.store import Database
from pipeline.store.ids import JobIds
from pipeline.store.processes import Role
from pipeline.streams import StreamReader, StreamWriter
from schemas.doorbells import Lane
from schemas.errors import InvalidSetting
from schemas.ids import JobId

if TYPE_CHECKING:
    from pipeline.engine import EngineClient, EnginePool
    from pipeline.images.fetching import Fetcher

_log = structlog.get_logger(__name__)
_FOLLOW_SECONDS = 1.0


def _stamps(*files: Path) -> list[tuple[int, int] | None]:
    """Return what changes when one of these files is written."""

    def stamp(file: Path) -> tuple[int, int] | None:
        try:
            found = file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    return [stamp(file) for file in files]


def _fetcher(settings: Settings) -> "Fetcher":
    from pipeline.images.fetching import Fetcher

    return Fetcher(settings.image_hosts_allowed)


async def _tell(listeners: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for problem in await asyncio.gather(*[changed() for changed in listeners], return_exceptions=True):
        if isinstance(problem, Exception):
            _log.error("a part of this process keeps its former entry", fault=safe_error_summary(problem))


@dataclass(frozen=True)
class Adapters:
    """Open connections of one asyncio loop, and what is built from them."""

    settings: Settings
    models: Models
    database: Database
    publisher: Publisher
    notifier: Notifier
    images: ImageSanitizer
    stream_writer: StreamWriter
    stream_reader: StreamReader
    on_models: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Awaited when the entries of `models` were replaced."""

    @cached_property
    def engine(self) -> "EngineClient":
        """Requests to endpoints; a program that only submits needs none of its packages."""
        from pipeline.engine import EngineClient

        key = self.settings.ai_api_key
        return EngineClient(self.settings.request_timeout, key.get_secret_value() if key else None)

    async def close_engine(self) -> None:
        """Close it, if it was used."""
        if "engine" in self.__dict__:
            await self.engine.close()

    @cached_property
    def _submission(self) -> tuple[Database, Publisher, Preparer, JobIds, QueueLimits]:
        preparer = Preparer(self.models, self.images)
        limits = QueueLimits(self.models, self.database)
        return self.database, self.publisher, preparer, JobIds(self.database), limits

    def submitter(self, reply_to: str | None, *, on_stored: Callable[[JobId], None] = lambda _: None) -> Submitter:
        """Return the way in for single jobs.

        Args:
            reply_to: the channel for notifications of settled jobs.
            on_stored: called with each job that was not stored before.
        """
        return Submitter(*self._submission, reply_to, on_stored)

    def batch_submitter(self) -> BatchSubmitter:
        """Return the way in for batches."""
        return BatchSubmitter(*self._submission)

    def file_submitter(self) -> FileSubmitter:
        """Return the way in for batch files."""
        return FileSubmitter(*self._submission)

    def recovery(self) -> Recovery:
        """Return a recovery with the lease of the settings."""
        lease = self.settings.lease
        return Recovery(self.database, self.publisher, self.notifier, self.stream_writer, self.models, lease)

    def presence(self, role: Role, name: str | None = None, holds: Callable[[], int] = lambda: 0) -> Presence:
        """Return the heartbeat of this process; see Presence."""
        name = name or process_name(role)
        return Presence(self.database, role, name, self.models, self.settings.lease, holds)

    def pool(self, model: str, lane: Lane) -> "EnginePool":
        """Return the endpoints of a model, as a lane may use them; they follow models.toml."""
        from pipeline.engine import EnginePool

        pool = EnginePool(self.models[model], self.engine, gives_way=lane is Lane.BULK)

        async def update() -> None:
            found = next((entry for entry in self.models if entry.name == model), None)
            if found is not None and found != pool.entry:
                await pool.update(found)

        self.on_models.append(update)
        return pool


class Wiring:
    """All addresses and models: those of the environment, else those of the `yyc3 up` that is running in this home.

    Attributes:
        running: that `yyc3 up`, if there is one.
        settings: completed with what it was told, unless DATABASE_URL leads elsewhere.
    """

    def __init__(self, settings: Settings) -> None:
        self.running = find_stack_addresses(settings.home_folder) if settings.has_home else None
        url = settings.database_url
        beside = self.running is not None and (url is None or url.get_secret_value() == self.running.database_url)
        self.settings = settings.with_shared(self.running.settings) if self.running and beside else settings

    @classmethod
    def from_environment(cls, **given: Any) -> Self:
        """Read the environment; arguments override it, see Settings for their names.

        Raises:
            InvalidSetting: names the variable.
        """
        return cls(load_settings(**given))

    @cached_property
    def models(self) -> Models:
        """models.toml with the endpoints of the environment, and of simulators that are running."""
        return self.read_models()

    def read_models(self) -> Models:
        """Read models.toml as it is now.

        Raises:
            InvalidSetting: names file and field.
        """
        settings = self.settings
        models = load_models(settings.models_file, base_url=settings.ai_base_url, model=settings.ai_model)
        simulated = self.running.simulated if self.running else {}
        used = {
            entry.name: simulated[entry.name] for entry in models if entry.name in simulated and not entry.configured
        }
        return models.with_endpoints(used)

    async def _follow_models(self, listeners: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Read models.toml again whenever it, or what the running `yyc3 up` stored, changes; a bad file changes nothing."""
        file = self.settings.models_file or DEFAULT_FILE
        home = self.settings.home_folder if self.settings.has_home else None
        files = [file, *([addresses_file(home)] if home else [])]
        seen = _stamps(*files)
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            now = _stamps(*files)
            if now == seen:
                continue
            seen = now
            self.running = (find_stack_addresses(home) if home else None) or self.running
            try:
                read = self.read_models()
            except InvalidSetting as error:
                _log.error("models.toml was changed and is refused; the former entries stay", reason=error.message)
                continue
            if read != self.models:
                self.models.replace_with(read)
                _log.info("models.toml was read again", models=[entry.name for entry in read])
                await _tell(listeners)

    @property
    def database_url(self) -> str:
        """The URL of Postgres.

        Raises:
            InvalidSetting: neither DATABASE_URL nor a running `yyc3 up`.
        """
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        if self.running is not None:
            return self.running.database_url
        raise self._not_configured("DATABASE_URL")

    @property
    def redis_url(self) -> str:
        """The URL of Redis.

        Raises:
            InvalidSetting: neither REDIS_URL nor a running `yyc3 up`.
        """
        if self.settings.redis_url is not None:
            return self.settings.redis_url.get_secret_value()
        if self.running is not None:
            return self.running.redis_url
        raise self._not_configured("REDIS_URL")

    @property
    def broker_url(self) -> str:
        """The URL of Celery's broker: BROKER_URL, or that of Redis.

        Raises:
            InvalidSetting: neither is known.
        """
        given = self.settings.broker_url
        return self.redis_url if given is None else given.get_secret_value()

    def _not_configured(self, variable: str) -> InvalidSetting:
        return InvalidSetting(
            f"no yyc3 up is running in {self.settings.home_folder} and {variable} is not set; start one, or set it"
        )

    def celery_app(self, **options: Any) -> Celery:
        """Return the Celery application; see make_app."""
        return make_app(self.broker_url, **options)

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        """Return the factory of uvloop; a program that only submits may do without it."""
        try:
            from uvloop import new_event_loop
        except ImportError:
            return asyncio.new_event_loop
        return new_event_loop

    @asynccontextmanager
    async def adapters(self) -> AsyncIterator[Adapters]:
        """Open connections for the running loop; they are closed at the end."""
        settings, models = self.settings, self.models  # a mistake in models.toml is said before anything is opened
        async with AsyncExitStack() as opened:
            database = await Database(self.database_url).open()
            opened.push_async_callback(database.close)
            publisher, notifier = Publisher(self.broker_url), Notifier(self.redis_url)
            opened.push_async_callback(publisher.close)
            opened.push_async_callback(notifier.close)
            writer, reader = StreamWriter(self.redis_url), StreamReader(self.redis_url)
            opened.push_async_callback(writer.close)
            opened.push_async_callback(reader.close)
            images = ImageSanitizer(partial(_fetcher, settings))
            opened.callback(images.close)
            adapters = Adapters(settings, models, database, publisher, notifier, images, writer, reader)
            opened.push_async_callback(adapters.close_engine)
            following = asyncio.create_task(self._follow_models(adapters.on_models))
            opened.push_async_callback(cancel_and_wait, following)
            yield adapters
