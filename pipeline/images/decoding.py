"""Bytes that claim to be a picture: their type is sniffed, their size and pixels limited, and they are encoded anew.

What is stored and sent to an engine is only what the decoder made of the bytes: metadata, comments and whatever else was
hidden in them stay behind. Every refusal is a ValueError whose text is a clause for people.
"""

import base64
import binascii
import re
import warnings
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING

from schemas.jobs import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 32_000_000
LONGEST_SIDE_PIXELS = 2_048  # the models read about half of that
_JPEG_QUALITY = 90
_SCAN, _MAX_SCANS = b"\xff\xda", 64  # each is decoded over the whole picture
_LARGEST_PNG_BYTES = 4 * 1024 * 1024
_DATA_URL = re.compile(r"data:(?P<type>[a-z0-9.+/-]*);base64,", re.IGNORECASE)
# Type, how it begins, how it ends. Of a WebP the length stands in its head.
_TYPES = (
    ("PNG", b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    ("JPEG", b"\xff\xd8\xff", b"\xff\xd9"),
    ("GIF", b"GIF8", b";"),
    ("WEBP", b"RIFF", b""),
)
_KNOWN = "PNG, JPEG, WebP or GIF"


def decoded(url: str) -> bytes:
    """The bytes of a data URL."""
    head = _DATA_URL.match(url, 0, 200)
    if head is None:
        raise ValueError("is no base64 data URL, which begins like data:image/png;base64,")
    try:
        raw = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("holds something that is not base64") from None
    claimed, found = head["type"].lower().removeprefix("image/").replace("jpg", "jpeg"), sniffed(raw)
    if claimed != found.lower():
        raise ValueError(f"says it is {head['type'][:40] or 'nothing'} and is {found}; give its own type")
    return raw


def sniffed(raw: bytes) -> str:
    """The type of a picture, whatever it claims to be."""
    if len(raw) > MAX_IMAGE_BYTES:
        raise ValueError(f"is larger than {MAX_IMAGE_BYTES >> 20} MiB; send a smaller one")
    for name, beginning, ending in _TYPES:
        if raw.startswith(beginning) and (name != "WEBP" or raw[8:12] == b"WEBP"):
            _refuse_two_in_one(raw, name, ending)
            return name
    raise ValueError(f"is not a picture of a known type; send {_KNOWN}")


def _refuse_two_in_one(raw: bytes, name: str, ending: bytes) -> None:
    """A file that is a picture for one program and something else for another."""
    end = len(raw.rstrip(b"\x00")) if name != "WEBP" else len(raw)
    whole = (
        raw.endswith(ending, 0, end) if ending else int.from_bytes(raw[4:8], "little") + 8 in {len(raw), len(raw) - 1}
    )
    if not whole:
        raise ValueError(f"does not end as a {name} does: it is cut, or something hangs on to it; save it again")
    if name == "JPEG" and raw.count(_SCAN) > _MAX_SCANS:
        raise ValueError(f"has more than {_MAX_SCANS} scans, as no JPEG needs; save it again")
    if _is_archive(raw):
        raise ValueError(f"is a {name} and an archive at once; save the picture again")


def _is_archive(raw: bytes) -> bool:
    if not zipfile.is_zipfile(BytesIO(raw)):  # four bytes that any picture may hold by chance
        return False
    try:
        return bool(zipfile.ZipFile(BytesIO(raw)).filelist)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def reencoded(raw: bytes) -> tuple[str, bytes]:
    """Type and bytes of the same picture, written by us: JPEG stays JPEG, all else becomes PNG; shrunk to 2,048 pixels.

    What would be larger than 4 MiB as a PNG, as photos are, becomes a JPEG. Of an animation the first picture is taken. Its
    orientation is applied, as a person would see it.
    """
    from PIL import Image, ImageOps  # slow to import, and most programs send no pictures

    name = sniffed(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(BytesIO(raw), formats=[name]) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if name == "JPEG":
                    picture.draft("RGB", (LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
                plain = ImageOps.exif_transpose(picture)
                plain = plain.convert("RGBA" if plain.has_transparency_data else "RGB")
                plain.thumbnail((LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {MAX_PIXELS // 1_000_000} million pixels; send a smaller one") from None
    except Exception as error:  # noqa: BLE001 - a damaged picture makes Pillow stumble in any way there is
        raise ValueError(f"is a damaged {name} ({type(error).__name__}); save it again") from None
    plain.info.clear()
    if name != "JPEG" and len(written := _saved(plain, "PNG")) <= _LARGEST_PNG_BYTES:
        return "png", written
    return "jpeg", _saved(_opaque(plain), "JPEG", quality=_JPEG_QUALITY)


def _opaque(picture: "Image") -> "Image":
    from PIL import Image

    if picture.mode == "RGB":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _saved(picture: "Image", kind: str, **options: int) -> bytes:
    written = BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


def data_url(kind: str, raw: bytes) -> str:
    """As it is stored and sent."""
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


__all__ = ["LONGEST_SIDE_PIXELS", "MAX_PIXELS", "data_url", "decoded", "reencoded", "sniffed"]
