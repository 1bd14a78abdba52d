"""Images of vision jobs: whatever arrives becomes a small, plain image before it is stored.

sanitizer  the images of a job, one at a time
decoding   type, size and pixels of bytes; re-encoding
fetching   bytes behind an allowed URL, never of a private address
"""

from pipeline.images.sanitizer import ImageSanitizer

__all__ = ["ImageSanitizer"]
