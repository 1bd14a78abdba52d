"""The largest requests: sizes that several kinds share."""

MAX_DIALOGUE_CHARACTERS = 400_000
MAX_IMAGES = 8
MAX_IMAGE_BYTES = 10 * 1024 * 1024
MAX_IMAGE_CHARACTERS = MAX_IMAGE_BYTES * 4 // 3 + 100  # as base64, with the head of a data URL
