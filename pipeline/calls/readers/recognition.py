"""What a file is that no reader reads, from its first bytes: one sentence about the file, with the way out."""

import codecs

_MAGIC = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first: gunzip -k FILE",
    b"PK\x03\x04": "is a zip archive (or a document of an office program); unpack it first: unzip FILE",
    b"BZh": "is compressed with bzip2; unpack it first: bunzip2 -k FILE",
    b"\xfd7zXZ\x00": "is compressed with xz; unpack it first: unxz -k FILE",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first: unzstd FILE",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first: 7z x FILE",
    b"%PDF-": "is a PDF; export its calls as JSON Lines",
    b"PAR1": "is a Parquet file; export its calls as JSON Lines",
    b"SQLite format 3": "is an SQLite database; export its calls as JSON Lines",
}
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CHINESE = ("gb18030", "big5")
_ICONV = "convert it first: iconv -f {} -t UTF-8 FILE > NEW"


def not_json_lines(head: bytes) -> str | None:
    """Return why a file that begins with these bytes is not JSON Lines in UTF-8; None if it may be."""
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    encoding = _other_encoding(head)
    if encoding is not None:
        return encoding
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"["):
        return "is one JSON array; write one call a line: jq -c '.[]' FILE > NEW"
    first = text.partition(b"\n")[0].strip()
    if b"\n" in text and not any(line.lstrip().startswith(b"{") for line in text.split(b"\n")):
        return "is not JSON Lines: no line begins with {; export one JSON object a line"
    if first == b"{":
        return "has JSON objects over several lines; write one call a line: jq -c . FILE > NEW"
    return None


def _other_encoding(head: bytes) -> str | None:
    if head.startswith(_UTF_32):
        return f"is encoded in UTF-32; {_ICONV.format('UTF-32')}"
    if head.startswith(_UTF_16):
        return f"is encoded in UTF-16; {_ICONV.format('UTF-16')}"
    if head[:1] == b"{" and head[1:2] == b"\x00":
        return f"is encoded in UTF-16; {_ICONV.format('UTF-16LE')}"
    if head[:2] == b"\x00{":
        return f"is encoded in UTF-16; {_ICONV.format('UTF-16BE')}"
    lines = [line for line in head.split(b"\n") if line.strip()]
    if not lines or any(_decodes(line, "utf-8") for line in lines):
        return None  # single lines in another encoding are named by their numbers
    likely = next((name for name in _CHINESE if all(_decodes(line, name) for line in lines)), None)
    if likely is None:
        return "is not text in UTF-8"
    return f"is not encoded in UTF-8, perhaps in {likely.upper()}; {_ICONV.format(likely.upper())}"


def _decodes(piece: bytes, encoding: str) -> bool:
    """Whether bytes are text; the last character may be cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(piece)
    except UnicodeDecodeError:
        return False
    return True
