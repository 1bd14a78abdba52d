"""Sanitise the images of vision jobs, one image at a time: memory stays flat however many are submitted."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from pipeline.images.decoding import data_url, decode_data_url, reencode
from pipeline.images.fetching import Fetcher
from schemas.errors import InvalidJob
from schemas.jobs import VisionJob


class ImageSanitizer:
    """Re-encodes images.

    Args:
        fetcher: for images given as URLs.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
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
            raw = decode_data_url(given) if given.startswith("data:") else await self._fetcher.fetch(given)
            return data_url(*await loop.run_in_executor(self._thread, reencode, raw))
        except ValueError as error:
            raise InvalidJob(f"job refused: images.{index}: {error}", position=index) from None

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False)
