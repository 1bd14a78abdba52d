"""Where the lines of a batch come from, and how they are recognised again."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Protocol

from pipeline.batches.reading import Line


class LineSource(Protocol):
    """The lines of a file, or of a program.

    Attributes:
        name: for messages.
        identity: names its content well enough to go on with it; None if nothing does.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    @property
    def identity(self) -> str | None:
        """See above."""
        ...

    def pages(self) -> Iterator[list[Line]]:
        """Yield its lines from the first one on."""
        ...


def key_of(source: LineSource, tenant: str) -> str | None:
    """Return a key for a source that has a name in the file system: the same file, unchanged, has the same one."""
    identity = source.identity
    if identity is None:
        return None
    return f"file-{sha256(b'-'.join((tenant.encode(), identity.encode('utf-8', 'surrogateescape')))).hexdigest()[:24]}"
