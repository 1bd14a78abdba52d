"""`yyc3 usage`: what was done for whom, kept for 400 days."""

from typing import Annotated, Any

import typer

from pipeline.cli.console import AsJson, command, print_json, say, table, with_database
from pipeline.cli.times import TIMES, instant
from pipeline.store import usage as store
from schemas.errors import InvalidSetting

_PERIODS = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}


@command
def usage(
    by: Annotated[
        str, typer.Option(help=f"Groups, separated by commas: {', '.join(store.GROUPS)}.")
    ] = "tenant,model,day",
    since: Annotated[str | None, typer.Option(help=f"From this hour on: {TIMES}.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this hour; as --since.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sum up jobs, tokens and seconds by tenant, model and time; kept for 400 days, whatever happens to the jobs."""
    groups = [name.strip() for name in by.split(",") if name.strip()]
    unknown = [name for name in groups if name not in store.GROUPS]
    if unknown or not groups:
        raise InvalidSetting(f"--by: {by} is not made of {', '.join(store.GROUPS)}")
    first, last = instant("--since", since), instant("--until", until)
    found = with_database(lambda database: store.usage(database, groups, since=first, until=last, tenant=tenant))
    if as_json:
        for row in found:
            print_json(row)
    elif found:
        columns = [
            *groups,
            "succeeded",
            "failed",
            "cancelled",
            "expired",
            "cached",
            "tokens in",
            "tokens out",
            "engine h",
        ]
        table("usage", columns, [_cells(row, groups) for row in found])
    else:
        say("nothing was done in this time")


def _cells(row: dict[str, Any], groups: list[str]) -> list[Any]:
    named = [row[name].astimezone().strftime(_PERIODS[name]) if name in _PERIODS else row[name] for name in groups]
    numbers = ["succeeded", "failed", "cancelled", "expired", "cached", "prompt_tokens", "completion_tokens"]
    return [*named, *(row[name] for name in numbers), f"{row['engine_seconds'] / 3_600:.2f}"]
