"""Decode bytes that claim to be an image: sniff their type, limit size and pixels, and re-encode them.

Only what the decoder made of the bytes is stored and sent to an engine: metadata, comments and whatever
else was hidden in them are left out. Every refusal is a ValueError whose text is a clause for people.
"""

import base64
import binascii
import re
import warnings
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING

from schemas.limits import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 32_000_000
LONGEST_SIDE_PIXELS = 2_048  # the models read about half of that
_JPEG_QUALITY = 90
_SCAN, _MAX_SCANS = b"\xff\xda", 64  # each is decoded over the whole image
_LARGEST_PNG_BYTES = 4 * 1024 * 1024
_DATA_URL = re.compile(r"data:(?P<type>[a-z0-9.+/-]*);base64,", re.IGNORECASE)
_TYPES = (("PNG", b"\x89PNG\r\n\x1a\n"), ("JPEG", b"\xff\xd8\xff"), ("GIF", b"GIF8"), ("WEBP", b"RIFF"))
_ARCHIVES = (b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\x00")
_OTHER_LETTERS = str.maketrans("-_", "+/", " \t\r\n")  # URL-safe ones, and lines as `base64 FILE` writes them
_KNOWN = "PNG, JPEG, WebP or GIF"


def decode_data_url(url: str) -> bytes:
    """Return the bytes of a data URL."""
    head = _DATA_URL.match(url, 0, 200)
    if head is None:
        raise ValueError("is not a base64 data URL, which begins like data:image/png;base64,")
    try:
        raw = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raw = _decode_unusual(url[head.end() :])
    claimed, found = head["type"].lower().removeprefix("image/").replace("jpg", "jpeg"), sniff_type(raw)
    if claimed != found.lower():
        raise ValueError(f"is declared as {head['type'][:40] or 'nothing'} and is {found}; declare its own type")
    return raw


def _decode_unusual(letters: str) -> bytes:
    """Decode base64 with line ends, in the letters for URLs, or without its padding."""
    letters = letters.translate(_OTHER_LETTERS).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("has characters that are not base64") from None


def sniff_type(raw: bytes) -> str:
    """Return the type of an image, whatever it claims to be."""
    if len(raw) > MAX_IMAGE_BYTES:
        raise ValueError(f"is larger than {MAX_IMAGE_BYTES >> 20} MiB; send a smaller one")
    for name, beginning in _TYPES:
        if raw.startswith(beginning) and (name != "WEBP" or raw[8:12] == b"WEBP"):
            _refuse_two_in_one(raw, name)
            return name
    raise ValueError(f"is not an image of a known type; send {_KNOWN}")


def _refuse_two_in_one(raw: bytes, name: str) -> None:
    """Refuse an archive that is an image as well; other bytes behind an image, which cameras write, are left out anyway."""
    if name == "JPEG" and raw.count(_SCAN) > _MAX_SCANS:
        raise ValueError(f"has more than {_MAX_SCANS} scans, which no JPEG needs; save it again")
    if _is_archive(raw):
        raise ValueError(f"is a {name} and an archive at once; save the image again")


def _is_archive(raw: bytes) -> bool:
    if any(beginning in raw for beginning in _ARCHIVES):
        return True
    if not zipfile.is_zipfile(BytesIO(raw)):  # four bytes that any image may have by chance
        return False
    try:
        return bool(zipfile.ZipFile(BytesIO(raw)).filelist)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def reencode(raw: bytes) -> tuple[str, bytes]:
    """Return type and bytes of the same image, encoded by us: JPEG stays JPEG, others become PNG; shrunk to 2,048 pixels.

    An image that would be larger than 4 MiB as a PNG, as photos are, becomes a JPEG. Of an animation the
    first frame is used. The orientation is applied, as a person would see it.
    """
    name = sniff_type(raw)
    plain = _decode(raw, name)
    plain.info.clear()
    if name != "JPEG" and len(encoded := _encode(plain, "PNG")) <= _LARGEST_PNG_BYTES:
        return "png", encoded
    return "jpeg", _encode(_opaque(plain), "JPEG", quality=_JPEG_QUALITY)


def _decode(raw: bytes, name: str) -> "Image":
    """Decode and shrink an image of this type."""
    from PIL import Image, ImageOps  # slow to import, and most programs submit no images

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(BytesIO(raw), formats=[name]) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if name == "JPEG":
                    image.draft("RGB", (LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
                plain = ImageOps.exif_transpose(_in_eight_bits(image))
                plain = plain.convert("RGBA" if plain.has_transparency_data else "RGB")
                plain.thumbnail((LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
                return plain
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {MAX_PIXELS // 1_000_000} million pixels; send a smaller one") from None
    except Exception as error:  # noqa: BLE001 - a damaged image makes Pillow raise anything
        raise ValueError(f"is a damaged {name} ({type(error).__name__}); save it again") from None


def _in_eight_bits(image: "Image") -> "Image":
    """Scale grey of 16 bits, as scanners write it: Pillow would cut it off, and a page would be white."""
    if not image.mode.startswith("I"):
        return image
    exif = image.getexif()
    scaled = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    scaled.info["exif"] = exif.tobytes()  # its orientation
    return scaled


def _opaque(image: "Image") -> "Image":
    from PIL import Image

    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _encode(image: "Image", kind: str, **options: int) -> bytes:
    encoded = BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


def data_url(kind: str, raw: bytes) -> str:
    """Return an image as it is stored and sent."""
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"
