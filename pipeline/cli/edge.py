"""What surrounds every command: descriptors, encodings, variables of others, Ctrl-C at any moment, the look of an error.

The commands are imported within: what is imported before is small.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from pipeline.cli.exit_codes import Exit
from pipeline.environment import take_out_others
from pipeline.files import DISK_IS_FULL

_EXTRAS = {
    "worker": {"aiohttp", "alembic", "hiredis", "httpx", "httpx_aiohttp", "sqlalchemy", "uvloop"},
    "local": {"flower", "tornado"},
}


def run() -> NoReturn:
    """Run the command of the arguments, and exit with its code."""
    code: int = Exit.BUG
    try:
        _open_descriptors()
        _print_whatever_comes()
        debug = _take_debug()
        take_out_others()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores one of them
                signal.signal(number, _stop)
        code = _command(debug=debug)
    except KeyboardInterrupt:
        code = Exit.STOPPED
        _say("stopped")
    finally:
        code = _flush(code)
    sys.exit(code)


def _stop(_: int, __: object) -> None:
    """End as with Ctrl-C: what goes on is said, what is half done is tidied up."""
    raise KeyboardInterrupt


def _command(*, debug: bool) -> int:
    try:
        from pipeline.cli.app import run_command

        return run_command()
    except ImportError as error:
        extra = next(
            (extra for extra, modules in _EXTRAS.items() if (error.name or "").partition(".")[0] in modules), None
        )
        if extra is None or debug:
            return _unexpected(error, debug=debug)
        _say(f"error: this command needs more packages: pip install 'yyc3-ai-call[{extra}]'")
        return Exit.BAD_INPUT
    except OSError as error:
        if error.errno not in DISK_IS_FULL or debug:
            return _unexpected(error, debug=debug)
        _say(f"error: the output cannot be written: {error.strerror}")
        return Exit.BAD_INPUT
    except Exception as error:  # noqa: BLE001 - the outermost edge of a command
        return _unexpected(error, debug=debug)


def _unexpected(error: Exception, *, debug: bool) -> int:
    """Say where it happened, without the message of the error: it may quote a caller."""
    if debug:
        traceback.print_exception(error)
        return Exit.BUG
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}pipeline{os.sep}" in frame.filename] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "an unknown place"
    _say(f"error: a bug of this program, {type(error).__name__} at {place}; with --debug it prints all of it")
    return Exit.BUG


def _open_descriptors() -> None:
    """Open 0 to 2 on the null device where a caller closed them: the next file would get their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _print_whatever_comes() -> None:
    """Replace what an output cannot show, where it would raise; JSON is UTF-8 in any case, see console.print_json."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _take_debug() -> bool:
    """Take --debug out of the arguments, wherever it stands."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    found = "--debug" in sys.argv[1:end]
    if found:
        sys.argv.remove("--debug")
    return found


def _flush(code: int) -> int:
    """Flush the output: the interpreter would do it too late to say that it fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            _say(f"error: the output cannot be written: {error.strerror}")
            return code or Exit.BAD_INPUT
    return code


def _say(text: str) -> None:
    from pipeline.cli.language import translated  # not before: it may be what was interrupted

    try:
        sys.stderr.write(f"{translated(text)}\n")
        sys.stderr.flush()
    except OSError:
        return  # its reader is gone
