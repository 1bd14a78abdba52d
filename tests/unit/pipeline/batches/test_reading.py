"""Batch files as people have them: encodings, compressions, line ends, sizes; and files that are none."""

import codecs
import gzip
import os
from pathlib import Path

import pytest
import zstandard

from pipeline.batches.reading import LONGEST_LINE_BYTES, BatchFile, Line
from schemas.errors import InvalidBatchFile

LINES = ['{"custom_id":"a","text":"我要退款"}', '{"custom_id":"b"}']
TEXT = "\n".join(LINES) + "\n"


def read(path: Path, encoding: str | None = None) -> list[Line]:
    with BatchFile(path, encoding) as file:
        return [line for page in file.pages() for line in page]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(TEXT.encode(), id="utf-8"),
        pytest.param(codecs.BOM_UTF8 + TEXT.encode(), id="utf-8 with a mark"),
        pytest.param(TEXT.replace("\n", "\r\n").encode(), id="crlf"),
        pytest.param(TEXT.strip().encode(), id="without a last line end"),
        pytest.param(TEXT.encode("gb18030"), id="gb18030"),
        pytest.param(TEXT.encode("utf-16"), id="utf-16 with a mark"),
        pytest.param(TEXT.encode("utf-16-le"), id="utf-16 little"),
        pytest.param(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), id="utf-16 big with a mark"),
        pytest.param(TEXT.encode("utf-16-be"), id="utf-16 big"),
        pytest.param(gzip.compress(TEXT.encode()), id="gzip"),
        pytest.param(gzip.compress(LINES[0].encode() + b"\n") + gzip.compress(LINES[1].encode()), id="two gzips"),
        pytest.param(gzip.compress(TEXT.encode()) + b"\0" * 512, id="gzip, padded"),
        pytest.param(gzip.compress(TEXT.encode("gb18030")), id="gzip of gb18030"),
        pytest.param(zstandard.compress(TEXT.encode()), id="zstd"),
        pytest.param(zstandard.compress(TEXT.encode("utf-16")), id="zstd of utf-16"),
        pytest.param(
            zstandard.compress(LINES[0].encode() + b"\n") + zstandard.compress(LINES[1].encode()), id="two zstds"
        ),
    ],
)
def test_the_same_lines_come_out_whatever_the_name_is(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes(content)
    assert [(line.number, line.text.decode(), line.problem) for line in read(file)] == [
        (1, LINES[0], None),
        (2, LINES[1], None),
    ]


def test_empty_lines_count_and_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"\n{}\n \n\r\n{}\n\n")
    assert [line.number for line in read(file)] == [2, 5]


def test_a_line_in_another_encoding_costs_itself_and_an_encoding_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes("好\n".encode() + "退款\n".encode("gb18030") + b"{}\n")
    found = read(file)
    assert [line.problem is None for line in found] == [True, False, True]
    assert found[1].problem == "is not text in UTF-8; name another encoding with --encoding"
    file.write_bytes("退款\n".encode("gb18030"))
    assert read(file, "gb18030")[0].text.decode() == "退款"
    assert read(file, "utf-8")[0].problem is not None


def test_a_line_that_is_too_long_costs_itself_and_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    with file.open("wb") as out:
        out.write(b"{}\n")
        for _ in range(LONGEST_LINE_BYTES // 1_000_000 + 20):
            out.write(b"x" * 1_000_000)
        out.write(b"\n{}\n")
        out.write(b"y" * (LONGEST_LINE_BYTES + 1))
    found = read(file)
    assert [(line.number, line.problem) for line in found] == [
        (1, None),
        (2, "is longer than 32 MiB"),
        (3, None),
        (4, "is longer than 32 MiB"),
    ]
    assert all(len(line.text) < 10 for line in found)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_file_that_was_cut_or_damaged_says_so_after_its_lines(pack: "object", tmp_path: Path) -> None:
    content = pack(os.urandom(400_000).hex().encode() + b"\n" + TEXT.encode())  # type: ignore[operator]
    file = tmp_path / "lines"
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidBatchFile, match="ends in the middle of its compressed data"):
        read(file)
    file.write_bytes(content[:1_000] + b"\xff" * 50_000 + content[1_000:])
    with pytest.raises(InvalidBatchFile, match="is damaged"):
        read(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04....", "a zip archive"),
        (b"BZh91AY....", "bzip2"),
        (b"PAR1....", "Parquet"),
        (b"%PDF-1.7\n", "a PDF"),
    ],
)
def test_what_is_no_batch_file_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidBatchFile, match=reason):
        read(file)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidBatchFile, match="is a folder"):
        read(tmp_path)
    with pytest.raises(InvalidBatchFile, match="cannot be read"):
        read(tmp_path / "none")
    with pytest.raises(InvalidBatchFile, match="no file has such a name"):
        read(Path("a\0b"))


def test_a_file_that_is_changed_while_it_is_read_says_so(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"{}\n" * 1_000_000)
    with BatchFile(file) as opened:
        pages = opened.pages()
        next(pages)
        with file.open("ab") as writer:
            writer.write(b"{}\n")
        with pytest.raises(InvalidBatchFile, match="was changed while it was read"):
            list(pages)


def test_a_pipe_can_be_read_again_if_that_is_wanted(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    if os.fork() == 0:
        with fifo.open("wb") as out:
            out.write(TEXT.encode())
        os._exit(0)
    with BatchFile(fifo, reread=True) as file:
        first = [line for page in file.pages() for line in page]
        assert [line for page in file.pages() for line in page] == first
    assert len(first) == 2
    os.wait()
