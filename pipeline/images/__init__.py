"""Pictures from outside: what a vision job brings along becomes a small, plain picture before it is stored.

checking   type, size and pixels of bytes; re-encoded
fetching   bytes behind an allowed URL, never of a private address
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from pipeline.images.decoding import data_url, decoded, reencoded
from pipeline.images.fetching import Fetcher
from schemas.errors import InvalidJob
from schemas.jobs import VisionJob


class ImageDoor:
    """Checks the pictures of vision jobs, one picture at a time: memory stays flat however many are sent.

    Args:
        fetcher: for pictures given as URLs.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    async def admitted(self, job: VisionJob) -> VisionJob:
        """The same job with its pictures re-encoded as data URLs.

        Raises:
            InvalidJob: naming the picture and what is wrong with it.
        """
        return job.model_copy(
            update={"images": tuple([await self._one(i, given) for i, given in enumerate(job.images)])}
        )

    async def _one(self, index: int, given: str) -> str:
        loop = asyncio.get_running_loop()
        try:
            raw = decoded(given) if given.startswith("data:") else await self._fetcher.fetch(given)
            return data_url(*await loop.run_in_executor(self._thread, reencoded, raw))
        except ValueError as error:
            raise InvalidJob(f"job refused: images.{index}: {error}", position=index) from None

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False)


__all__ = ["Fetcher", "ImageDoor"]
