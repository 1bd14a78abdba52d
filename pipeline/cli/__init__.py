"""The `yyc3` command. Exit codes: 0 done, 1 some jobs failed, 2 bad usage or input, 3 a service could not be reached, 4 a bug.

edge           what surrounds every command: descriptors, encodings, variables of others, Ctrl-C, errors
app            the commands by name
up, demo       run everything on this machine
submit, jobs   single jobs
calls          recorded calls
batches        batch files; batch_options, batch_output, batch_watch: their parts
dead_letters   jobs that failed for good
queues, health status of queues and parts
usage          what was done for whom
info           addresses of what runs, and which endpoints answer
services       one part each: worker, intake, recover, flower, simulator, db
schema         JSON Schema and TypeScript types
console        what every command shares
language       English or Chinese
rendering      how outcomes are printed
"""

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    try:
        from pipeline.cli.edge import run  # Ctrl-C while the rest is imported is handled there
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()
