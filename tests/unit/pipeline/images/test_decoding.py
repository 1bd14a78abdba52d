"""Images as they are re-encoded: size, orientation, transparency, type."""

import io

from PIL import Image

from pipeline.images.decoding import LONGEST_SIDE_PIXELS, data_url, decode_data_url, reencode
from tests.unit.pipeline.images.samples import encoded, vision


def test_a_large_image_is_shrunk_and_turned_and_keeps_its_transparency() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    kind, raw = reencode(encoded("JPEG", (4_000, 2_000), exif=exif))
    with Image.open(io.BytesIO(raw)) as image:
        assert (kind, image.size) == ("jpeg", (1_024, LONGEST_SIDE_PIXELS))
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    kind, raw = reencode(clear.getvalue())
    with Image.open(io.BytesIO(raw)) as image:
        assert (kind, image.mode) == ("png", "RGBA")
    assert decode_data_url(data_url(kind, raw)) == raw


def test_a_photo_that_would_be_a_huge_png_becomes_a_jpeg() -> None:
    photo = io.BytesIO()
    Image.effect_noise((2_040, 2_040), 90).convert("RGBA").save(photo, "WEBP", quality=60)
    kind, raw = reencode(photo.getvalue())
    assert kind == "jpeg"
    assert vision(data_url(kind, raw)).images
