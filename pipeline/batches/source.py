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


def key_of(source: LineSource, tenant: str, digest: bytes) -> str | None:
    """Return a key for a source that has a name in the file system: the same file, unchanged, has the same one.

    Args:
        source: of the lines.
        tenant: of the batch.
        digest: over settings that make other jobs of the same lines.
    """
    identity = source.identity
    if identity is None:
        return None
    parts = (tenant.encode(), digest, identity.encode("utf-8", "surrogateescape"))
    return f"file-{sha256(b'-'.join(parts)).hexdigest()[:24]}"
