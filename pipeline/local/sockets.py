"""Where the unix sockets of `yyc3 up` are: a folder that no other account can enter.

It is not the home itself, because a path of a socket has at most 107 bytes.
"""

import os
import stat
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

_LONGEST_PATH = 107  # bytes, see unix(7)
_others: dict[Path, Path] = {}
_LONGEST_NAME = "/p/.s.PGSQL.65535"


def make_socket_folder(home: Path, *, runtime: bool = True) -> Path | None:
    """Return the folder of a home, made if it is missing: under XDG_RUNTIME_DIR, else where temporary files are.

    The same home gets the same folder, unless another account has taken its name. None if there is no place: every path is
    too long, or other accounts could put something else there.

    Args:
        home: of the `yyc3 up`.
        runtime: whether XDG_RUNTIME_DIR may be used, which only its owner can enter.
    """
    name = f"yyc3-{sha256(os.fsencode(home.resolve())).hexdigest()[:16]}"
    first = os.environ.get("XDG_RUNTIME_DIR", "") if runtime else ""
    for base in (first, tempfile.gettempdir(), "/tmp"):  # noqa: S108 - see _is_safe
        folder = Path(base) / name
        if not Path(base).is_absolute() or len(os.fsencode(folder) + _LONGEST_NAME.encode()) > _LONGEST_PATH:
            continue
        if (made := _make(folder)) is not None:
            return made
    return None


def _make(folder: Path) -> Path | None:
    base = folder.parent
    try:
        if not _is_safe(base):
            return None
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return _other_folder(folder)  # another account has the name
        if found.st_mode & 0o066:
            folder.chmod(0o700)
    except OSError:  # it cannot be written
        return None
    return folder


def _other_folder(folder: Path) -> Path:
    """Return a folder with a name that cannot be guessed; the same in this process as long as it exists."""
    known = _others.get(folder)
    if known is None or not known.is_dir():
        known = _others[folder] = Path(tempfile.mkdtemp(prefix=f"{folder.name[:9]}-", dir=folder.parent))
    return known


def _is_safe(base: Path) -> bool:
    """Whether no other account can put something else in the place of a folder in there."""
    found = base.stat()
    others_write = found.st_mode & 0o022
    return found.st_uid in {0, os.geteuid()} and (not others_write or bool(found.st_mode & stat.S_ISVTX))
