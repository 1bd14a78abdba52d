"""Settings from the environment and `.env`. Only wiring, the CLI, workers.main and workers.intake read them."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.redis_url import SCHEMES, parse_redis_url
from schemas.errors import InvalidSetting
from schemas.problems import first_problem

_DOTENV = ".env"
_SCHEMES = {
    "database_url": ("postgresql://", "postgresql+psycopg://", "postgres://"),
    "redis_url": SCHEMES,
}


class _NamesItsFile(logging.Filter):
    """Says once which line of which file cannot be read; it is skipped, and may be meant for another program."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = f"{Path(_DOTENV).absolute()}: {record.getMessage()}; the line is skipped"
        record.msg, record.args = text, ()
        is_new = text not in self._said
        self._said.add(text)
        return is_new


_names_its_file = _NamesItsFile()


@contextmanager
def _reading_dotenv() -> Iterator[None]:
    """For as long as our file is read: the program that imports the client may have files of its own."""
    log = logging.getLogger("dotenv.main")
    log.addFilter(_names_its_file)
    try:
        yield
    finally:
        log.removeFilter(_names_its_file)


# What the commands beside a running `yyc3 up` take over from it.
_SHARED = (
    "models_file",
    "ai_base_url",
    "ai_model",
    "ai_timeout_ms",
    "ai_api_key",
    "broker_url",
    "image_hosts",
    "lease_seconds",
)
_ENDPOINT = {"ai_base_url", "ai_model", "ai_api_key"}


class Settings(BaseSettings):
    """Everything that may differ between two machines. `.env.template` describes each in a line.

    `AI_BASE_URL`, `AI_MODEL`, `AI_TIMEOUT_MS`, `REDIS_URL`, `BROKER_URL` and `DATABASE_URL` keep the names
    that callers of this system set already; the others begin with `YYC3_`.
    """

    model_config = SettingsConfigDict(
        env_prefix="YYC3_",
        env_file=_DOTENV,
        env_file_encoding="utf-8-sig",  # editors of other systems write a byte order mark
        extra="ignore",
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
    )

    home: Path = Path("~/.local/share/yyc3")
    models_file: Path | None = None
    database_url: SecretStr | None = Field(default=None, validation_alias=AliasChoices("DATABASE_URL", "database_url"))
    redis_url: SecretStr | None = Field(default=None, validation_alias=AliasChoices("REDIS_URL", "redis_url"))
    broker_url: SecretStr | None = Field(default=None, validation_alias=AliasChoices("BROKER_URL", "broker_url"))
    ai_base_url: str | None = Field(default=None, validation_alias=AliasChoices("AI_BASE_URL", "ai_base_url"))
    ai_model: str | None = Field(default=None, validation_alias=AliasChoices("AI_MODEL", "ai_model"))
    ai_timeout_ms: int = Field(default=120_000, ge=100, validation_alias=AliasChoices("AI_TIMEOUT_MS", "ai_timeout_ms"))
    ai_api_key: SecretStr | None = Field(default=None, validation_alias=AliasChoices("AI_API_KEY", "ai_api_key"))
    image_hosts: str = ""
    flower_port: int = Field(default=5555, ge=1, le=65_535)
    flower_basic_auth: SecretStr | None = None
    lease_seconds: float = Field(default=20.0, ge=1, le=3_600)
    drain_seconds: float = Field(default=20.0, ge=0, le=3_600)

    @field_validator("database_url", "redis_url", "broker_url")
    @classmethod
    def _is_a_url_of_its_kind(cls, value: SecretStr | None, field: ValidationInfo) -> SecretStr | None:
        schemes = _SCHEMES.get(str(field.field_name), ())  # those of a broker are in its registry
        if value is not None and schemes and not value.get_secret_value().startswith(schemes):
            raise ValueError(f"must begin with {' or '.join(schemes)}")
        if value is not None:
            # A database may have several hosts, of which libpq uses the one that fits: h1:5432,h2:5432.
            hosts = urlsplit(value.get_secret_value()).netloc.rpartition("@")[2].split(",")
            try:
                _ = [urlsplit(f"//{host}").port for host in hosts]
            except ValueError:
                raise ValueError("its port is not a number from 0 to 65535") from None
            if value.get_secret_value().startswith(SCHEMES):
                parse_redis_url(value.get_secret_value())
        return value

    @field_validator("ai_api_key")
    @classmethod
    def _fits_into_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        """A file that holds the key usually ends with a line end."""
        if value is None:
            return None
        key = value.get_secret_value().strip()
        if not all("!" <= character <= "~" for character in key):
            raise ValueError(
                "has a character that cannot be sent to an engine; a key has letters, digits and signs of ASCII"
            )
        return SecretStr(key) if key else None

    @field_validator("flower_basic_auth")
    @classmethod
    def _is_user_and_password(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        user, _, password = value.get_secret_value().strip().partition(":")
        if not user or not password:
            raise ValueError("has the form user:password; neither may be empty")
        return SecretStr(f"{user}:{password}")

    @model_validator(mode="after")
    def _endpoint_names_its_model(self) -> Self:
        if (self.ai_base_url is None) != (self.ai_model is None):
            raise ValueError("AI_BASE_URL and AI_MODEL go together: the endpoint, and the model that it serves")
        return self

    def shared(self) -> dict[str, str]:
        """Return what was given and has to be the same for all commands beside this one."""
        given = {name: getattr(self, name) for name in _SHARED if name in self.model_fields_set}
        if self.models_file is not None:
            given["models_file"] = self.models_file.expanduser().resolve()
        plain = {name: one.get_secret_value() if isinstance(one, SecretStr) else one for name, one in given.items()}
        return {name: str(value) for name, value in plain.items() if value is not None}

    def with_shared(self, shared: Mapping[str, str]) -> Self:
        """Return these settings with what another command shared; what was given here stays."""
        own = self.model_fields_set | (_ENDPOINT if self.model_fields_set & _ENDPOINT else set())
        given = {name: getattr(self, name) for name in self.model_fields_set}
        taken = {name: value for name, value in shared.items() if name in _SHARED and name not in own}
        return type(self)(_env_file=None, **{**taken, **given}) if taken else self

    @property
    def home_folder(self) -> Path:
        """`YYC3_HOME` with `~` resolved.

        Raises:
            InvalidSetting: this account has no home folder.
        """
        try:
            return self.home.expanduser().absolute()
        except RuntimeError:
            raise InvalidSetting(
                "this account has no home folder: set YYC3_HOME to a folder that it can write"
            ) from None

    @property
    def has_home(self) -> bool:
        """Whether there is such a folder; without it no `yyc3 up` is looked for."""
        try:
            return bool(self.home_folder)
        except InvalidSetting:
            return False

    @property
    def image_hosts_allowed(self) -> frozenset[str]:
        """Hosts that images of vision jobs may be fetched from; none by default."""
        return frozenset(host.strip() for host in self.image_hosts.split(",") if host.strip())

    @property
    def request_timeout(self) -> timedelta:
        """The longest time of one engine request."""
        return timedelta(milliseconds=self.ai_timeout_ms)

    @property
    def lease(self) -> timedelta:
        """How long a worker may be silent before its chunks are requeued."""
        return timedelta(seconds=self.lease_seconds)

    @property
    def drain(self) -> timedelta:
        """How long requests in flight may take after a worker is stopped."""
        return timedelta(seconds=self.drain_seconds)


def load_settings(**given: Any) -> Settings:
    """Read the environment; arguments that are not None override it.

    Raises:
        InvalidSetting: one sentence that names the variable.
    """
    try:
        # A pipe of that name would be waited for.
        dotenv = _DOTENV if Path(_DOTENV).is_file() else None
        with _reading_dotenv():
            return Settings(_env_file=dotenv, **{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        field, colon, reason = first_problem(error).partition(": ")
        variable = _variable(field) if field in Settings.model_fields else field
        source = f" of {Path(_DOTENV).absolute()}" if variable in names_in_dotenv() else ""
        raise InvalidSetting(f"setting refused{source}: {variable}{colon}{reason}; see .env.template") from error
    except UnicodeDecodeError:
        raise InvalidSetting(f"{Path(_DOTENV).absolute()} is not encoded in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InvalidSetting(f"{Path(_DOTENV).absolute()} cannot be read: {error.strerror}") from error


def _variable(field: str) -> str:
    """Return the variable of a setting."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"YYC3_{field.upper()}"


def variables() -> list[str]:
    """Return the variables of all settings."""
    return [_variable(name) for name in Settings.model_fields]


def names_in_dotenv() -> list[str]:
    """Return the settings that come from the file .env of the current folder, not from the environment."""
    names = set(variables())
    given = {str(name).upper() for name, value in os.environ.items() if value}
    try:
        with _reading_dotenv():
            found = dotenv_values(_DOTENV, encoding="utf-8-sig") if Path(_DOTENV).is_file() else {}
    except (OSError, UnicodeDecodeError):
        return []
    return sorted(name for name, value in found.items() if value and name.upper() in names - given)
