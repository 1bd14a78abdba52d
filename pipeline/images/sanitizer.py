"""Sanitise the images of jobs, one image at a time: memory stays flat however many are submitted."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from pipeline.images.decoding import data_url, decode_data_url, reencode
from schemas.errors import InvalidJob
from schemas.job import Job

if TYPE_CHECKING:
    from pipeline.images.fetching import Fetcher

JobT = TypeVar("JobT", bound=Job)


class ImageSanitizer:
    """Re-encodes images.

    Args:
        make_fetcher: called for the first image that is given as a URL, which needs the packages of an engine's client.
    """

    def __init__(self, make_fetcher: "Callable[[], Fetcher]") -> None:
        self._make_fetcher = make_fetcher
        self._fetcher: Fetcher | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    async def sanitize(self, job: JobT) -> JobT:
        """Return the job with its images re-encoded as data URLs.

        Raises:
            InvalidJob: names the image and what is wrong with it.
        """
        given = job.image_urls
        return (
            job.with_image_urls({field: await self._one(field, url) for field, url in given.items()}) if given else job
        )

    async def _one(self, field: str, given: str) -> str:
        loop = asyncio.get_running_loop()
        try:
            raw = decode_data_url(given) if given.startswith("data:") else await self._fetch(given)
            return data_url(*await loop.run_in_executor(self._thread, reencode, raw))
        except ValueError as error:
            raise InvalidJob(f"job refused: {field}: {error}") from None

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
