"""The options of `yyc3 batches submit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.batches.reading import ENCODINGS, STDIN
from pipeline.cli.console import tag_of
from pipeline.cli.times import duration, moment
from pipeline.client.batches import settings_of
from schemas.batches import BatchSettings
from schemas.completions import UsageMode
from schemas.errors import InvalidSetting


@dataclass(frozen=True)
class BatchOptions:
    """How the rows of a file are treated."""

    name: Annotated[str | None, typer.Option(help="Shown beside it; default: the name of the file.")] = None
    key: Annotated[
        str | None,
        typer.Option("--key", help="The same key goes on with the same batch; default: made of path, size and time."),
    ] = None
    tenant: Annotated[str, typer.Option(help="A label to count by.")] = "default"
    encoding: Annotated[
        str | None, typer.Option(help=f"Of the file, if its content does not tell: {', '.join(ENCODINGS)}.")
    ] = None
    strict: Annotated[
        bool, typer.Option("--strict/--lenient", help="Check the whole file first; run nothing of a bad one.")
    ] = False
    priority: Annotated[int, typer.Option(help="Of rows that name none; lower goes first.")] = 0
    weight: Annotated[int, typer.Option(help="Share beside other batches of its tenant.")] = 1
    model: Annotated[str | None, typer.Option(help="Entry of models.toml for all rows, whatever they name.")] = None
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use answers of earlier jobs.")] = True
    usage_mode: Annotated[
        UsageMode, typer.Option(help="exact, or approximate: rows of equal parameters may share a request.")
    ] = UsageMode.EXACT
    canary: Annotated[
        str | None, typer.Option(help="Run a share first, such as 1%; the batch pauses if too many of it fail.")
    ] = None
    canary_limit: Annotated[str, typer.Option(help="Share of the canary that may fail.")] = "5%"
    sample: Annotated[str | None, typer.Option(help="Take a share of the lines, such as 1%.")] = None
    window: Annotated[
        str | None, typer.Option(help="Rows that have not run by then expire: 1h to 30d; default: no end.")
    ] = None
    not_before: Annotated[
        str | None, typer.Option(help="Begin in 90m, 2h, 3d, or at a time like 2026-11-22T03:00+08:00.")
    ] = None
    tag: Annotated[list[str] | None, typer.Option("--tag", help="NAME=VALUE for your own bookkeeping; repeat it.")] = (
        None
    )

    def settings(self, file: Path) -> BatchSettings:
        """Return the settings of the batch."""
        given: dict[str, Any] = {
            "name": _name(file) if self.name is None else self.name,
            "strict": self.strict,
            "priority": self.priority,
            "weight": self.weight,
            "model": self.model,
            "cache": self.cache,
            "usage_mode": self.usage_mode,
            "sample": _share("--sample", self.sample),
            "canary": _share("--canary", self.canary),
            "canary_limit": _share("--canary-limit", self.canary_limit),
            "window_seconds": _window(self.window),
            "not_before": moment("--not-before", self.not_before),
            "tags": dict(tag_of(one) for one in self.tag or ()),
        }
        return settings_of(given)


def _name(file: Path) -> str:
    name = "stdin" if file == STDIN else file.name
    return name.encode("utf-8", "replace").decode().replace("\x00", "?")[:200] or "batch"


def _window(text: str | None) -> float | None:
    seconds = duration("--window", text)
    if seconds is not None and not 3_600 <= seconds <= 30 * 86_400:
        raise InvalidSetting(f"--window: {text} is not between 1h and 30d")
    return seconds


def _share(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InvalidSetting(f"{option}: {text} is not a share like 1% or 0.01")
    return share
