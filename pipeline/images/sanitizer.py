"""Sanitise the images of vision jobs, one image at a time: memory stays flat however many are submitted."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.images.decoding import data_url, decode_data_url, reencode
from schemas.errors import InvalidJob
from schemas.jobs import VisionJob

if TYPE_CHECKING:
    from pipeline.images.fetching import Fetcher


class ImageSanitizer:
    """Re-encodes images.

    Args:
        make_fetcher: called for the first image that is given as a URL, which needs the packages of an engine's client.
    """

    def __init__(self, make_fetcher: "Callable[[], Fetcher]") -> None:
        self._make_fetcher = make_fetcher
        self._fetcher: Fetcher | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    async def sanitize(self, job: VisionJob) -> VisionJob:
        """Return the job with its images re-encoded as data URLs.

        Raises:
            InvalidJob: names the image and what is wrong with it.
        """
        images = tuple([await self._one(index, given) for index, given in enumerate(job.images)])
        return job.model_copy(update={"images": images})

    async def _one(self, index: int, given: str) -> str:
        loop = asyncio.get_running_loop()
        try:
            raw = decode_data_url(given) if given.startswith("data:") else await self._fetch(given)
            return data_url(*await loop.run_in_executor(self._thread, reencode, raw))
        except ValueError as error:
            raise InvalidJob(f"job refused: images.{index}: {error}", position=index) from None

    async def _fetch(self, url: str) -> bytes:
        try:
            self._fetcher = self._fetcher or self._make_fetcher()
        except ImportError:
            raise ValueError(
                "is a URL, and to fetch it takes: pip install 'yyc3-ai-call[worker]'; or send it as a data URL"
            ) from None
        return await self._fetcher.fetch(url)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False)
