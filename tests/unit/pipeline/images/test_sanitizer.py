"""Hostile images: each is refused in one sentence, and memory stays flat."""

import io
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from pipeline.images import ImageSanitizer
from pipeline.images.decoding import decode_data_url
from pipeline.images.fetching import Fetcher
from schemas.errors import InvalidJob
from schemas.limits import MAX_IMAGE_BYTES
from tests.unit.pipeline.images.samples import encoded, url, vision


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int, more: bytes = b"") -> bytes:
    """Return a PNG of a few bytes that claims to be side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + more
        + chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))
        + chunk(b"IEND", b"")
    )


def scan_bomb(scans: int) -> bytes:
    """A JPEG whose last scan is repeated, each to be decode_data_url over the whole image."""
    raw = encoded("JPEG", (1_000, 1_000), progressive=True)
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * scans + raw[-2:]


def with_archive(raw: bytes) -> bytes:
    """Return an image with a ZIP behind it, arranged to end as the image does."""
    packed = io.BytesIO(raw)
    packed.seek(0, io.SEEK_END)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("run.js", "alert(1)")
        archive.comment = raw[-12:]
    return packed.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HOSTILE = {
    "svg": (url("svg+xml", SVG), "not an image of a known type"),
    "svg declared as png": (url("png", SVG), "not an image of a known type"),
    "bomb": (url("png", png_bomb(60_000)), "more than 32 million pixels"),
    "bomb below Pillow's own limit": (url("png", png_bomb(8_000)), "more than 32 million pixels"),
    "bomb of scans": (url("jpeg", scan_bomb(2_000)), "more than 64 scans"),
    "bomb of text": (
        url("png", png_bomb(10, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 90_000_000)))),
        "a damaged PNG",
    ),
    "bomb at the limit of the format": (url("png", png_bomb(2_000_000)), "more than 32 million pixels"),
    "png and archive": (url("png", with_archive(encoded())), "an archive at once"),
    "jpeg and archive": (url("jpeg", with_archive(encoded("JPEG"))), "an archive at once"),
    "png and rar": (url("png", encoded() + b"Rar!\x1a\x07\x01\x00 and more"), "an archive at once"),
    "cut png": (url("png", encoded("PNG", (900, 900))[:2_000]), "a damaged PNG"),
    "cut webp": (url("webp", encoded("WEBP", (900, 900))[:60]), "a damaged WEBP"),
    "jpeg declared as png": (url("png", encoded("JPEG")), "is declared as image/png and is JPEG"),
    "pdf": (url("png", b"%PDF-1.7 ..."), "not an image of a known type"),
    "tiff": (url("png", encoded("TIFF")), "not an image of a known type"),
    "cut in the middle": (url("jpeg", encoded("JPEG", (900, 900))[:2_000]), "a damaged JPEG"),
    "noise": (url("png", b"\x89PNG\r\n\x1a\n" + b"x" * 500 + b"IEND\xaeB`\x82"), "a damaged PNG"),
    "no base64": ("data:image/png;base64,@@@@", "not base64"),
    "no data url": ("data:text/html,<script>", "is not a base64 data URL"),
    "nothing": ("data:image/png;base64,", "not an image of a known type"),
    "too large": (url("png", encoded() + b"\0" * (MAX_IMAGE_BYTES + 1 - len(encoded()))), "larger than 10 MiB"),
}


@pytest.fixture
def sanitizer() -> Iterator[ImageSanitizer]:
    made = ImageSanitizer(lambda: Fetcher())
    yield made
    made.close()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_image_is_refused_in_one_sentence(sanitizer: ImageSanitizer, name: str) -> None:
    image, reason = HOSTILE[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidJob, match=reason) as refused:
        await sanitizer.sanitize(vision(image))
    assert refused.value.message.startswith("job refused: images.0: ")
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000, "kilobytes"


def test_a_hundred_megabytes_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(InvalidJob, match=r"images: image 0 is larger than 10 MiB") as refused:
        vision("data:image/png;base64," + "A" * 100_000_000)
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_an_image_is_reencoded_without_what_was_hidden_in_it(sanitizer: ImageSanitizer, kind: str) -> None:
    options: dict[str, Any] = {"comment": b"canary"} if kind in {"JPEG", "GIF"} else {}
    if kind in {"JPEG", "WEBP", "PNG"}:
        exif = Image.Exif()
        exif[0x010E] = "canary"
        options["exif"] = exif
    raw = encoded(kind, **options)
    assert b"canary" in raw
    (image,) = (await sanitizer.sanitize(vision(url(kind.lower(), raw)))).images
    stored = decode_data_url(image)
    assert b"canary" not in stored
    with Image.open(io.BytesIO(stored)) as decoded:
        assert decoded.format == ("JPEG" if kind == "JPEG" else "PNG")
        assert decoded.size == (60, 40)


@pytest.mark.parametrize(
    ("kind", "tail"),
    [
        ("GIF", b"*/=1;alert(1)//"),
        ("PNG", b"<html><script>alert(1)</script>"),
        ("WEBP", b"MZ" * 50),
        ("JPEG", b"\n"),
        ("JPEG", b"\xff" * 4),
        ("JPEG", b"\0\0\1\x0aJPEG\0SEFHk\0\0\0\1\0\0\0SEFT"),  # a phone's trailer
        ("JPEG", b"\0\0\0\x18ftypmp42" + b"moving" * 99),  # a motion photo
    ],
)
async def test_what_hangs_on_an_image_is_left_out(sanitizer: ImageSanitizer, kind: str, tail: bytes) -> None:
    with_it = await sanitizer.sanitize(vision(url(kind.lower(), encoded(kind) + tail)))
    assert with_it == await sanitizer.sanitize(vision(url(kind.lower(), encoded(kind))))


async def test_grey_of_sixteen_bits_keeps_its_tones(sanitizer: ImageSanitizer) -> None:
    """A scan: ink of 5,000 on paper of 60,000."""
    tones = [5_000 if 10 <= x < 30 and 10 <= y < 30 else 60_000 for y in range(40) for x in range(40)]
    scan = Image.frombytes("I;16", (40, 40), struct.pack("<1600H", *tones))
    written = io.BytesIO()
    scan.save(written, "PNG")
    (image,) = (await sanitizer.sanitize(vision(url("png", written.getvalue())))).images
    with Image.open(io.BytesIO(decode_data_url(image))) as stored:
        assert sorted(stored.getcolors() or []) == [(400, (19, 19, 19)), (1_200, (233, 233, 233))]


@pytest.mark.parametrize("change", [0, 1, 2, 3])
async def test_base64_may_have_lines_and_other_letters(sanitizer: ImageSanitizer, change: int) -> None:
    head, _, letters = url("png", encoded()).partition(",")
    lines = [letters[start : start + 76] for start in range(0, len(letters), 76)]
    written = ["\r\n".join(lines), letters + "\n", letters.replace("+", "-").replace("/", "_"), letters.rstrip("=")]
    plain = await sanitizer.sanitize(vision(f"{head},{letters}"))
    assert await sanitizer.sanitize(vision(f"{head},{written[change]}")) == plain


def test_many_large_images_are_decoded_one_after_another() -> None:
    """In a process of its own: the largest memory of this one has been left by other tests, in pieces."""
    image = url("png", encoded("PNG", (5_000, 5_000)))
    command = [sys.executable, "-c", DECODES_ONE_THEN_EIGHT]
    measured = subprocess.run(command, input=image, capture_output=True, text=True, timeout=60)
    assert measured.returncode == 0, measured.stderr
    one, eight = map(int, measured.stdout.split())
    assert eight - one < 60_000, "kilobytes; an image more at once takes 75,000 decoded"


# Reads an image; prints the largest memory of the process in kilobytes, after this image alone and after eight of it.
DECODES_ONE_THEN_EIGHT = """
import asyncio, resource, sys
from pipeline.images import ImageSanitizer
from schemas.jobs import parse_job

sanitizer = ImageSanitizer(None)
image = sys.stdin.read()
for count in (1, 8):
    job = parse_job({"kind": "vision", "question": "?", "images": [image] * count})
    assert len(asyncio.run(sanitizer.sanitize(job)).images) == count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sanitizer.close()
"""
