"""Read the lines of a batch file as a stream: JSONL, gzip or zstd, in the encodings that people have, in constant memory."""

import codecs
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.files import DISK_IS_FULL
from schemas.errors import InvalidBatchFile, UnwritableFile

LONGEST_LINE_BYTES = 32 * 1024 * 1024
STDIN = Path("-")
_BLOCK = 1 << 20
_ZSTD_PIECE = 1_024  # four bytes may unpack to 128 KiB
_ZSTD_WINDOW = 1 << 27
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive; unpack it, or pack it as .gz or .zst",
    b"BZh": "packed with bzip2; pack it as .gz or .zst",
    b"\xfd7zXZ\x00": "packed with xz; pack it as .gz or .zst",
    b"PAR1": "Parquet; write it as JSON Lines",
    b"%PDF": "a PDF",
    b"\xff\xfe\x00\x00": "UTF-32; write it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32; write it as UTF-8",
}
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
ENCODINGS = ("utf-8", "gb18030", "utf-16", "utf-16-le", "utf-16-be")


class Line(NamedTuple):
    """A line of a file, in UTF-8, without its end.

    Attributes:
        number: counted from 1, empty lines too.
        problem: why it cannot be read; its text is empty then.
    """

    number: int
    text: bytes
    problem: str | None = None


class BatchFile:
    """The lines of one file, or of stdin; a context manager.

    Args:
        path: of the file; `-` is stdin.
        encoding: its encoding, if it is not to be told by its content.
        reread: whether `pages` is called more than once: what is no regular file is kept in a temporary one.

    Raises:
        InvalidBatchFile: on entry, if it cannot be opened; while it is read, if it ends in the middle, or is changed.
    """

    def __init__(self, path: Path, encoding: str | None = None, *, reread: bool = False) -> None:
        if encoding not in {None, *ENCODINGS}:
            raise InvalidBatchFile(f"encoding: must be one of {', '.join(ENCODINGS)}")
        self.path = path
        self._given = self._encoding = encoding
        self._reread = reread
        self._stream: BinaryIO
        self._found: os.stat_result | None = None
        self.number = 0
        self._begun = False

    @property
    def name(self) -> str:
        """How messages name it."""
        return "stdin" if self.path == STDIN else os.fsencode(self.path).decode("utf-8", "backslashreplace")

    def __enter__(self) -> "BatchFile":
        if self.path == STDIN:
            # Without a buffer: a thread that waits for it may not hold a lock when the process ends.
            self._stream = open(0, "rb", buffering=0, closefd=False)
            if self._reread:
                self._stream = self._kept(self._stream)
            return self
        try:
            found = self.path.stat()
            if stat.S_ISDIR(found.st_mode):
                raise InvalidBatchFile(f"{self.name} is a folder; name a file")
            self._stream = self.path.open("rb", buffering=0)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no file has such a name"
            raise InvalidBatchFile(f"{self.name} cannot be read: {reason}") from None
        self._found = found if stat.S_ISREG(found.st_mode) else None
        if self._found is None and self._reread:
            with self._stream as stream:
                self._stream = self._kept(stream)
        return self

    def _kept(self, stream: BinaryIO) -> BinaryIO:
        kept = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        try:
            shutil.copyfileobj(stream, kept, _BLOCK)
        except OSError as error:
            kept.close()
            if error.errno not in DISK_IS_FULL:
                raise InvalidBatchFile(f"{self.name} cannot be read: {error.strerror}") from None
            raise UnwritableFile(
                f"{self.name} does not fit into {tempfile.gettempdir()}: make room there, or set TMPDIR to another folder"
            ) from None
        self._begun = True
        return kept

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def identity(self) -> str | None:
        """Path, size and time of change, which name a regular file well enough to go on with it; None for others."""
        found = self._found
        if found is None:
            return None
        return f"{os.path.realpath(self.path)}\0{found.st_size}\0{found.st_mtime_ns}\0{self._given or ''}"

    def pages(self) -> Iterator[list[Line]]:
        """Yield the lines that are not empty, as many at once as there are; from the first one on, each time."""
        if self._begun:
            self._stream.seek(0)
        self._begun, self.number, self._encoding = True, 0, self._given
        pending, too_long = bytearray(), False
        for block in self._utf8_blocks():
            *whole, rest = block.split(b"\n")
            page: list[Line] = []
            for text in whole:
                if pending or too_long:
                    too_long = too_long or len(pending) + len(text) > LONGEST_LINE_BYTES
                    text = b"" if too_long else bytes(pending) + text
                    pending.clear()
                self._add(page, text, too_long=too_long)
                too_long = False
            if not too_long:
                pending += rest
            if len(pending) > LONGEST_LINE_BYTES:
                pending.clear()
                too_long = True
            if page:
                yield page
        if pending or too_long:
            last: list[Line] = []
            self._add(last, bytes(pending), too_long=too_long)
            yield last
        self._check_unchanged()

    def _add(self, page: list[Line], text: bytes, *, too_long: bool) -> None:
        self.number += 1
        if too_long:
            page.append(Line(self.number, b"", f"is longer than {LONGEST_LINE_BYTES >> 20} MiB"))
            return
        text = text.strip()
        if not text:
            return
        if not text.isascii():
            if self._encoding is None:
                self._encoding = "utf-8" if _is(text, "utf-8") else "gb18030" if _is(text, "gb18030") else "utf-8"
            if not _is(text, self._encoding):
                problem = f"is not text in {self._encoding.upper()}; name another encoding with --encoding"
                page.append(Line(self.number, b"", problem))
                return
            if self._encoding != "utf-8":
                text = text.decode(self._encoding).encode()
        page.append(Line(self.number, text))

    def _utf8_blocks(self) -> Iterator[bytes]:
        """Yield the content; what is UTF-16 is UTF-8 then."""
        blocks = self._unpacked()
        first = next(blocks, b"")
        while len(first) < 4 and (more := next(blocks, b"")):
            first += more
        if first.startswith((_GZIP, _ZSTD)):
            raise InvalidBatchFile(f"{self.name} is packed twice; unpack it once")
        mark = next((mark for mark in _MARKS if first.startswith(mark)), b"")
        encoding = _MARKS[mark] if mark else _utf16_by_zeros(first) if self._encoding is None else self._encoding
        first = first[len(mark) :]
        if encoding is None or not encoding.startswith("utf-16"):
            self._encoding = self._encoding or encoding
            yield first
            yield from blocks
            return
        self._encoding = "utf-8"
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        yield decoder.decode(first).encode("utf-8", "replace")
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "replace")
        yield decoder.decode(b"", True).encode("utf-8", "replace")

    def _unpacked(self) -> Iterator[bytes]:
        blocks = self._raw()
        first = next(blocks, b"")
        while len(first) < 8 and (more := next(blocks, b"")):
            first += more
        for head, what in _OTHER_FORMATS.items():
            if first.startswith(head):
                raise InvalidBatchFile(f"{self.name} is {what}")

        def all_blocks() -> Iterator[bytes]:
            yield first
            yield from blocks

        if first.startswith(_GZIP):
            return self._gunzip(all_blocks())
        if first.startswith(_ZSTD):
            return self._unzstd(all_blocks())
        return all_blocks()

    def _raw(self) -> Iterator[bytes]:
        while True:
            try:
                block = self._stream.read1(_BLOCK) if hasattr(self._stream, "read1") else self._stream.read(_BLOCK)
            except OSError as error:
                raise InvalidBatchFile(
                    f"{self.name} cannot be read after line {self.number:,}: {error.strerror or type(error).__name__}"
                ) from None
            if not block:
                return
            yield block

    def _gunzip(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        unpack = zlib.decompressobj(wbits=31)
        begun = False
        for block in blocks:
            while block:
                begun = True
                try:
                    yield unpack.decompress(block, _BLOCK)
                except zlib.error:
                    raise InvalidBatchFile(
                        f"{self.name} is damaged after line {self.number:,}: it is no whole gzip"
                    ) from None
                block = unpack.unconsumed_tail
                if unpack.eof:
                    # Another member may follow, as `cat a.gz b.gz` makes them; some writers pad with zeros.
                    block = unpack.unused_data.lstrip(b"\0")
                    unpack, begun = zlib.decompressobj(wbits=31), False
        if begun:
            self._refuse_half()

    def _unzstd(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        import zstandard

        make = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj
        unpack, begun = make(), False
        for block in blocks:
            for start in range(0, len(block), _ZSTD_PIECE):
                piece = block[start : start + _ZSTD_PIECE]
                while piece:
                    begun = True
                    try:
                        yield unpack.decompress(piece)
                    except zstandard.ZstdError:
                        raise InvalidBatchFile(
                            f"{self.name} is damaged after line {self.number:,}: it is no whole zstd"
                        ) from None
                    piece = b""
                    if unpack.eof:
                        piece, unpack, begun = unpack.unused_data, make(), False
        if begun:
            self._refuse_half()

    def _refuse_half(self) -> None:
        raise InvalidBatchFile(
            f"{self.name} ends in the middle of its compressed data, after line {self.number:,}: it was cut, or is "
            "still written"
        )

    def _check_unchanged(self) -> None:
        if self._found is None:
            return
        now = os.fstat(self._stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise InvalidBatchFile(
                f"{self.name} was changed while it was read, up to line {self.number:,}; give a file that nothing writes to"
            )


def _is(text: bytes, encoding: str) -> bool:
    try:
        text.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _utf16_by_zeros(first: bytes) -> str | None:
    """Return the UTF-16 of a file without a mark, by its zeros: JSON begins with two characters of ASCII."""
    if len(first) >= 4 and first[1] == 0 == first[3] and first[0] and first[2]:
        return "utf-16-le"
    if len(first) >= 4 and first[0] == 0 == first[2] and first[1] and first[3]:
        return "utf-16-be"
    return None
