"""Adapters from settings: the one place where addresses become connections."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from celery import Celery

from pipeline.broker import Bells, Whispers, make_app
from pipeline.engine import EngineClient, EnginePool
from pipeline.images import Fetcher, ImageDoor
from pipeline.jobs.submit import Submitter
from pipeline.local.addresses import Running, find_running
from pipeline.models import Models, load_models
from pipeline.settings import Settings, load_settings
from pipeline.store import Database
from pipeline.streams.writer import StreamReader, StreamWriter
from schemas.doorbells import Lane
from schemas.errors import InvalidSetting


@dataclass(frozen=True)
class Adapters:
    """Open connections of one asyncio loop."""

    models: Models
    database: Database
    bells: Bells
    whispers: Whispers
    engine: EngineClient
    images: ImageDoor
    stream_writer: StreamWriter
    stream_reader: StreamReader

    def submitter(self, reply_to: str | None) -> Submitter:
        """The way in; `reply_to` is where this producer hears of its settled jobs."""
        return Submitter(self.models, self.database, self.bells, self.images, reply_to)

    def pool(self, model: str, lane: Lane) -> EnginePool:
        """A model's endpoints, as a lane may use them."""
        entry = self.models[model]
        return EnginePool(entry, self.engine, entry.chat_share if lane is Lane.BULK else None)


class Wiring:
    """Where everything is: what the environment says, else what a running `yyc3 up` wrote down."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def from_environment(cls, **given: Any) -> Self:
        """What the environment says, but for what is given; see Settings for the names.

        Raises:
            InvalidSetting: naming the variable.
        """
        return cls(load_settings(**given))

    @cached_property
    def running(self) -> Running | None:
        """The `yyc3 up` of this home, if there is one."""
        return find_running(self.settings.home_folder)

    @cached_property
    def models(self) -> Models:
        """models.toml with the endpoints of the environment, and of simulators that stand in."""
        settings = self.settings
        models = load_models(settings.models_file, base_url=settings.ai_base_url, model=settings.ai_model)
        simulated = self.running.simulated if self.running else {}
        return models.with_endpoints({entry.name: simulated[entry.name] for entry in models if entry.name in simulated})

    @property
    def database_url(self) -> str:
        """Postgres.

        Raises:
            InvalidSetting: neither DATABASE_URL nor a running `yyc3 up`.
        """
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        if self.running is not None:
            return self.running.database_url
        raise InvalidSetting(self._nowhere("DATABASE_URL"))

    @property
    def redis_url(self) -> str:
        """Redis.

        Raises:
            InvalidSetting: neither REDIS_URL nor a running `yyc3 up`.
        """
        if self.settings.redis_url is not None:
            return self.settings.redis_url.get_secret_value()
        if self.running is not None:
            return self.running.redis_url
        raise InvalidSetting(self._nowhere("REDIS_URL"))

    @property
    def broker_url(self) -> str:
        """Where Celery's messages go: BROKER_URL, or the Redis.

        Raises:
            InvalidSetting: neither is known.
        """
        given = self.settings.broker_url
        return self.redis_url if given is None else given.get_secret_value()

    def _nowhere(self, variable: str) -> str:
        return f"no yyc3 up is running in {self.settings.home_folder} and {variable} is not set; start one, or set it"

    def celery_app(self, **options: Any) -> Celery:
        """The Celery application; see make_app."""
        return make_app(self.broker_url, **options)

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Uvloop where it runs."""
        if sys.platform == "win32":
            return None
        import uvloop  # not there on Windows

        return uvloop.new_event_loop

    @asynccontextmanager
    async def adapters(self) -> AsyncIterator[Adapters]:
        """Open connections for the running loop, closed at the end."""
        key = self.settings.ai_api_key
        database = await Database(self.database_url).open()
        writer, reader = StreamWriter(self.redis_url), StreamReader(self.redis_url)
        bells, whispers = Bells(self.broker_url), Whispers(self.redis_url)
        engine = EngineClient(self.settings.request_timeout, key.get_secret_value() if key else None)
        images = ImageDoor(Fetcher(self.settings.image_hosts_allowed))
        try:
            yield Adapters(self.models, database, bells, whispers, engine, images, writer, reader)
        finally:
            images.close()
            await reader.close()
            await writer.close()
            await engine.close()
            await whispers.close()
            await bells.close()
            await database.close()


__all__ = ["Adapters", "Wiring"]
