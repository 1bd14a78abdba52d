"""`yyc3 info`: what runs here, where, and which endpoints answer."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pipeline.cli.console import AsJson, command, print_json, say, wiring
from pipeline.settings import names_in_dotenv
from pipeline.wiring import Wiring

_SHOWN = {"host", "port", "virtual_host", "db"}


@command
def info(as_json: AsJson = False) -> None:
    """Show the addresses of what runs, and which endpoints answer. With --json the URLs have their passwords."""
    found = describe(wiring(), event="running")
    if as_json:
        print_json(found)
    else:
        show(found)


def describe(wired: Wiring, *, event: str) -> dict[str, Any]:
    """Return addresses and endpoints; asks each endpoint. With `yyc3 up --tcp` the URLs are those on loopback."""

    async def ask() -> list[dict[str, Any]]:
        try:
            from pipeline.operations.health import endpoints
        except ImportError:
            return []  # a program that only submits has no client for engines
        async with wired.adapters() as adapters:
            return [asdict(found) for found in await endpoints(adapters.engine, adapters.models)]

    running, settings = wired.running, wired.settings
    return {
        "event": event,
        "home": str(settings.home_folder),
        "database_url": wired.database_url,
        "redis_url": wired.redis_url,
        "broker_url": wired.broker_url,
        **(running.tcp_urls if running else {}),
        "flower_url": running.flower_url if running else None,
        "dotenv": {"file": str(Path(".env").absolute()), "settings": names} if (names := names_in_dotenv()) else None,
        "models_file": str(settings.models_file) if settings.models_file else None,
        "endpoints": asyncio.run(ask()),
    }


def show(found: dict[str, Any]) -> None:
    """Print it for people, without passwords."""
    lines = [("Flower", found["flower_url"]), ("models", found["models_file"])]
    lines += [("Postgres", _masked(found["database_url"])), ("Redis", _masked(found["redis_url"]))]
    if found["broker_url"] != found["redis_url"]:
        lines.append(("broker", _masked(found["broker_url"])))
    for name, value in lines:
        if value:
            say(f"{name:<8} {value}")
    say(f"home     {found['home']} (logs and data; other yyc3 commands find it by themselves)")
    if found["dotenv"]:
        say(f"settings {', '.join(found['dotenv']['settings'])} of {found['dotenv']['file']}")
    if not found["endpoints"]:
        say("which endpoints answer is shown with: pip install 'yyc3-ai-call[worker]'")
    for one in found["endpoints"]:
        seen = one["seen"] if one["answers"] else f"{one['seen']} → {one['advice']}" if one["advice"] else one["seen"]
        say(f"{one['model']}: {one['url']}: {seen}")


def _masked(url: str) -> str:
    """Return a URL without its password; of its parameters only those that say where it leads."""
    parts = urlsplit(url)
    login, at, place = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    shown_query = "&".join(f"{name}={value}" for name, value in parse_qsl(parts.query) if name in _SHOWN)
    shown_login = f"{user}{':***' if colon else ''}{at}"
    return f"{parts.scheme}://{shown_login}{place}{parts.path}{'?' if shown_query else ''}{shown_query}"
