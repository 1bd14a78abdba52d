"""Images for tests, and the jobs that have them."""

import base64
import io
from typing import Any

from PIL import Image

from schemas.jobs import VisionJob, parse_job


def encoded(kind: str = "PNG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """Return a red image of a type."""
    raw = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(raw, kind, **options)
    return raw.getvalue()


def url(kind: str, raw: bytes) -> str:
    """Return the data URL of bytes."""
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def vision(image: str) -> VisionJob:
    """Return a job with an image."""
    job = parse_job({"kind": "vision", "question": "what is it?", "images": [image]})
    assert isinstance(job, VisionJob)
    return job
