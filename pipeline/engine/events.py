"""Server-sent events as the HTML standard defines them: any line end, a blank after the colon or none, several data lines."""

from collections.abc import Iterator

DONE = b"[DONE]"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Puts the pieces of a body together to events; comments and fields other than `data` are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._began = False

    @property
    def held_bytes(self) -> int:
        """Bytes of an event that has not ended yet."""
        return len(self._rest) + sum(map(len, self._data))

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the data of every event that ends in this piece."""
        text = self._rest + piece
        if not self._began:
            if _BYTE_ORDER_MARK.startswith(text):
                self._rest = text
                return
            self._began = True
            text = text.removeprefix(_BYTE_ORDER_MARK)
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # the other half of a line end may follow
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].removeprefix(b" ")
                if data == DONE:  # the last word of an engine: some keep the connection open after it
                    yield from self._take()
                    yield data
                else:
                    self._data.append(data)
            elif not line:
                yield from self._take()

    def close(self) -> Iterator[bytes]:
        """Yield the data of an event that the end of the body ended."""
        yield from self.feed(b"\n\n")

    def _take(self) -> Iterator[bytes]:
        if self._data:
            data, self._data = b"\n".join(self._data), []
            if data:
                yield data
