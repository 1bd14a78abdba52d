"""The models that jobs may go to: entries of models.toml, with the endpoint that the environment names."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas.errors import InvalidSetting, UnknownModel
from schemas.problems import first_problem

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
DEFAULT_FILE = Path(__file__).with_name("models.toml")


class LabelForm(StrEnum):
    """How a model is asked for one of a set of labels."""

    WORD = "word"  # one token: the first of the label's word
    CODE = "code"  # one token: a letter
    WHOLE_WORD = "whole_word"  # the whole word, without a distribution


def normal_endpoint(url: str) -> str:
    """Return a base URL without `/v1` and without a trailing slash.

    Raises:
        ValueError: one clause, without the URL: it may have a password.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and parts.hostname is not None and (parts.port or 1) > 0
        _ = (parts.hostname or "").encode("idna")  # as the resolver does: an empty label, or one that is too long
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in url):
        raise ValueError("an endpoint is a URL such as http://127.0.0.1:10086")
    if "@" in parts.netloc:
        raise ValueError(
            "an endpoint has no user and no password in its URL, which is stored and shown; set AI_API_KEY"
        )
    if parts.query or parts.fragment:
        raise ValueError(
            "an endpoint has no ? and no # in its URL, which is stored and shown; a key goes into AI_API_KEY"
        )
    return url.rstrip("/?#").removesuffix("/chat/completions").removesuffix("/v1").rstrip("/")


def _is_near(host: str) -> bool:
    """Whether a host is this machine or in a private network, as far as its name says."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))


class ModelEntry(BaseModel):
    """One model. See the comments of models.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    served_name: str | None = Field(default=None, min_length=1, max_length=300)
    kinds: tuple[str, ...]
    port: int | None = Field(default=None, ge=1, le=65_535)
    endpoints: tuple[str, ...] = ()
    proxy: str | None = None
    max_num_seqs: int = Field(default=256, ge=1)
    max_model_len: int = Field(default=8_192, ge=128)
    interactive_reserve: float = Field(default=0.0625, ge=0, le=0.9)
    inter_token_latency_ms: float = Field(default=50.0, ge=1, le=10_000)
    micro_batch_rows: int = Field(default=32, ge=1, le=1_000)
    label_form: LabelForm | None = None
    stop_token_ids: tuple[int, ...] = Field(default=(), max_length=16)
    system_prompt: str | None = Field(default=None, min_length=1, max_length=4_000)
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    chat_template_kwargs: dict[str, Any] = {}
    max_images: int = Field(default=8, ge=1, le=8)
    max_queued_interactive: int = Field(default=10_000, ge=1)
    max_queued_bulk: int = Field(default=20_000_000, ge=1)
    max_tenant_share: float = Field(default=1.0, gt=0, le=1)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "its name may have letters, digits, dots, dashes and underlines, because it also names queues; "
                "write the engine's own name as served_name"
            )
        return name

    @field_validator("endpoints")
    @classmethod
    def _normal(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normal_endpoint(url) for url in endpoints)

    @field_validator("proxy")
    @classmethod
    def _leads_through_http(cls, proxy: str | None) -> str | None:
        try:
            return None if proxy is None else normal_endpoint(proxy)
        except ValueError:
            raise ValueError("a proxy is a URL such as http://proxy.example:3128, without a password") from None

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.port is None and not self.endpoints:
            raise ValueError("give it endpoints, or the port of its vLLM on this machine")
        return self

    def proxy_to(self, endpoint: str) -> str | None:
        """Return the proxy on the way to an endpoint; None for one on this machine or in a private network."""
        return None if self.proxy is None or _is_near(urlsplit(endpoint).hostname or "") else self.proxy

    @property
    def engine_name(self) -> str:
        """The name that its engines serve it under."""
        return self.served_name or self.name

    @property
    def parameters(self) -> dict[str, Any]:
        """Fields that every chat request to it has."""
        return {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}

    @property
    def configured(self) -> bool:
        """Whether an endpoint is configured; otherwise `--simulate` runs a simulator."""
        return bool(self.endpoints)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its endpoints, or its port on this machine."""
        return self.endpoints or (f"http://127.0.0.1:{self.port}",)


class Models:
    """The entries by name, in the order of the file. All that hold this object see entries that are read again later."""

    def __init__(self, entries: Mapping[str, ModelEntry]) -> None:
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self._entries.values())

    def __getitem__(self, name: str) -> ModelEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownModel(
                f"model: {name!r} is not in models.toml; known are {', '.join(self._entries)}", model=name
            ) from None

    def named(self, name: str) -> ModelEntry:
        """Return the entry of a name, or else the one that its engines serve under that name.

        Raises:
            UnknownModel: there is none.
        """
        if name in self._entries:
            return self._entries[name]
        return next((entry for entry in self if entry.served_name == name), None) or self[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Models) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def replace_with(self, others: "Models") -> None:
        """Take over all entries of others."""
        self._entries = dict(others._entries)

    def with_endpoints(self, endpoints: Mapping[str, str]) -> "Models":
        """Return the same models, some of them at other addresses (running simulators)."""
        changed = {
            name: entry.model_copy(update={"endpoints": (normal_endpoint(endpoints[name]),)})
            if name in endpoints
            else entry
            for name, entry in self._entries.items()
        }
        return Models(changed)


def load_models(file: Path | None = None, *, base_url: str | None = None, model: str | None = None) -> Models:
    """Read models.toml; `base_url` and `model` (AI_BASE_URL, AI_MODEL) name the endpoint of one entry.

    Raises:
        InvalidSetting: one sentence that names file and field.
    """
    path = file or DEFAULT_FILE
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("models", {})
    except UnicodeDecodeError:
        raise InvalidSetting(f"models file {path} is not encoded in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InvalidSetting(f"models file {path} cannot be read: {error.strerror or type(error).__name__}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidSetting(f"models file {path} is not TOML: {error}") from error
    if not isinstance(raw, dict) or not raw:
        raise InvalidSetting(f"models file {path} has no [models.NAME] entry")
    entries: dict[str, ModelEntry] = {}
    for name, fields in raw.items():
        try:
            entries[name] = ModelEntry.model_validate({**fields, "name": name})
        except (ValidationError, TypeError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else "is not a table"
            raise InvalidSetting(f"models file {path}, models.{name}: {reason}") from error
    models = Models(entries)
    if base_url and model:
        name = next((entry.name for entry in models if model in {entry.name, entry.served_name}), None)
        if name is None:
            raise InvalidSetting(
                f"AI_MODEL names {model!r}, which is not in {path}; known are {', '.join(entries)}. An entry with another "
                "name may have it as served_name"
            )
        try:
            models = models.with_endpoints({name: base_url})
        except ValueError as error:
            raise InvalidSetting(f"AI_BASE_URL: {error}") from error
    return models
