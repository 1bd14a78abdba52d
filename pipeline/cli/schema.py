"""`yyc3 schema`: what callers send and receive, for programs in other languages.

The generator is imported when it runs: it builds the schema of every model, which takes longer than most
commands.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import command, tell
from pipeline.files import replace_file
from schemas.errors import UnwritableFile


@command
def schema(
    typescript: Annotated[bool, typer.Option("--typescript", help="Print TypeScript types.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write yyc3.schema.json and yyc3.d.ts into this folder.")
    ] = None,
) -> None:
    """Print the JSON Schema of jobs, results, replies, stream events and errors. See docs/submitting.md."""
    from schemas.published import files

    made = files()
    if folder is None:
        sys.stdout.write(made["yyc3.d.ts" if typescript else "yyc3.schema.json"])
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in made.items():
            replace_file(folder / name, text.encode(), 0o644)
    except OSError as error:
        raise UnwritableFile(f"--out: {folder} cannot be written: {error.strerror or error}") from error
    tell(f"{' and '.join(made)} are in {folder}")
