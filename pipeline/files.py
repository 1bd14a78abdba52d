"""Write files: whole or not at all, and never over what is read.

Every file of ours is written here. A regular file is made beside the old one and renamed, so that readers see the old one or
the new one; pipes, devices and descriptors are written through, links keep leading where they lead.
"""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from schemas.errors import UnwritableFile

DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What the system says when an output cannot grow."""

_LONGEST_NAME_BYTES = 200  # of 255, so that there is room for the ending of an unfinished file
_DESCRIPTORS = (Path("/dev/fd"), Path("/proc"))
_MOST_LINKS = 40


class OutputFile:
    """A file of lines that appears under its name when it is complete; `-` is stdout.

    Everything that can be known is refused on entry, before the work begins. On an exception what was there stays; lines
    that were written are kept in a file beside it, which the exception then names in a note. Of several processes that write
    to one name, the last one wins whole.

    Args:
        path: of the file.
        option: names it in messages.
        inputs: files that are read; none of them is overwritten.
    """

    def __init__(self, path: Path, *, option: str = "--out", inputs: Iterable[Path] = ()) -> None:
        self._path = path
        self._option = option
        self._inputs = list(inputs)
        self._stream: BinaryIO
        self._part: Path | None = None
        self._found: os.stat_result | None = None

    def __enter__(self) -> Self:
        with self._refusing():
            if str(self._path) == "-":
                self._stream = sys.stdout.buffer
                with contextlib.suppress(OSError, ValueError):  # it may be no file of the system
                    self._refuse_inputs(os.fstat(self._stream.fileno()))
            else:
                self._open()
        return self

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._found = self._path.stat()
        found = self._found
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise UnwritableFile(f"{self._option}: {self._path} is a folder; name a file")
        if found is not None and not stat.S_ISREG(found.st_mode):
            self._stream = self._path.open("wb", buffering=0)
            return
        if found is not None:
            self._refuse_inputs(found)
            if not os.access(self._path, os.W_OK):
                raise UnwritableFile(f"{self._option}: {self._path} may not be written; its mode is read-only")
        if found is not None and _is_descriptor(self._path):
            self._stream = self._path.open("ab")  # what a shell opened: `>> file` keeps what it has
            return
        self._part, self._stream = _part(Path(os.path.realpath(self._path)))

    def _refuse_inputs(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            return
        for file in self._inputs:
            with contextlib.suppress(OSError):  # what cannot be read is said where it is read
                if os.path.samestat(found, file.stat()):
                    raise UnwritableFile(f"{self._option}: {self._path} is {file}, which is read; name another file")

    def write(self, line: str) -> None:
        """Write a line, with its line end."""
        self.write_bytes(line.encode())

    def write_bytes(self, lines: bytes) -> None:
        """Write lines in UTF-8, or a part of a file that has none."""
        with self._refusing():
            self._stream.write(lines)
            if self._part is None:
                self._stream.flush()  # there may be a reader

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, BrokenPipeError) and str(self._path) == "-":
                raise
            reason = error.strerror or type(error).__name__
            raise UnwritableFile(f"{self._option}: {self._path} cannot be written: {reason}") from error

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if str(self._path) == "-":
            return
        try:
            with self._refusing():
                if self._part is not None and kind is None:
                    self._stream.flush()
                    os.fsync(self._stream.fileno())
                self._stream.close()
                if self._part is not None and kind is None:
                    _put(self._part, Path(os.path.realpath(self._path)), self._found)
        except UnwritableFile as error:
            if value is None:
                self._keep(error)
                raise
        if value is not None:
            self._keep(value)

    def _keep(self, error: BaseException) -> None:
        """Keep the lines that were written, and say where."""
        if self._part is None:
            return
        try:
            with self._part.open("rb") as kept:
                lines = sum(piece.count(b"\n") for piece in iter(lambda: kept.read(1 << 20), b""))
        except OSError:
            return  # its folder was removed meanwhile
        if lines:
            error.add_note(f"{lines:,} lines that were written before are in {self._part}")
        else:
            self._part.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file whole, whatever other processes do meanwhile.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    part, stream = _part(path)
    try:
        with stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_descriptor(path: Path) -> bool:
    """Whether a path leads to an open file of a process, as /dev/stdout does."""
    for _ in range(_MOST_LINKS):
        folder = path.parent.resolve()
        if any(folder.is_relative_to(descriptors) for descriptors in _DESCRIPTORS):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return False


def _part(target: Path) -> tuple[Path, BinaryIO]:
    """Make a file of this process beside another one, or where temporary files are if that folder cannot be written."""
    name = os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME_BYTES])
    try:
        descriptor, part = tempfile.mkstemp(prefix=f"{name}.unfinished-", dir=target.parent)
    except PermissionError:
        if not target.exists():
            raise
        descriptor, part = tempfile.mkstemp(prefix=f"{name}.unfinished-")
    return Path(part), os.fdopen(descriptor, "wb")


def _put(part: Path, target: Path, found: os.stat_result | None) -> None:
    """Give a complete file its name, with the mode and owner that the former file has."""
    if found is None:
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
    else:
        if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(PermissionError):
                os.chown(part, found.st_uid, found.st_gid)
        part.chmod(stat.S_IMODE(found.st_mode))
    try:
        part.replace(target)
    except OSError:
        if found is None:
            raise
        # Mounted by itself, or in a folder that cannot be written: it stays where it is and gets the new content.
        with part.open("rb") as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        part.unlink()
