"""Turns messages into a prompt, as a chat template would."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

from simulator.errors import RequestRejected, bad_request
from simulator.prefix_cache import BLOCK_TOKENS, block_keys
from simulator.sampling import validation_error
from simulator.tokens import BEGIN, split

IMAGE_TOKENS = 256
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_CLOSING = ["<|assistant|>", "\n"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads.

    Attributes:
        tokens: all of it.
        keys: of its full blocks, for the prefix cache.
        instructions: text of the system messages.
        question: text of the last user message.
        images: pictures in it.

    """

    tokens: Sequence[str]
    keys: Sequence[int]
    instructions: str
    question: str
    images: int = 0


def prompt_of_text(text: str, salt: str | None = None) -> Prompt:
    """The prompt of /v1/completions."""
    tokens = split(text)
    return Prompt(tokens, block_keys(tokens, hash(salt)), "", text)


def prompt_of_tokens(tokens: Sequence[str], salt: str | None = None) -> Prompt:
    """The prompt of /v1/completions given as token ids, already looked up."""
    return Prompt(tokens, block_keys(tokens, hash(salt)), "", "".join(tokens))


def prompt_of_messages(messages: Any, place: str, takes_images: str | None, salt: str | None = None) -> Prompt:
    """The prompt of a conversation.

    Args:
        messages: the list from the request.
        place: where it stands in the body, for errors (`messages` or `messages.3`).
        takes_images: None when the model takes them, else the model's name for the refusal.
        salt: `cache_salt`; prompts with different salts share no prefix.

    Raises:
        RequestRejected: 400, or 500 for image URLs that vLLM itself would have to fetch.

    """
    instructions, start = "", 0
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        content = messages[0].get("content")
        if isinstance(content, str):
            instructions, start = content, 1
    head, keys, tail = _opening(instructions if start else None, salt)
    rest = list(tail)
    question, images = "", 0
    for number in range(start, len(messages)):
        role, text, pictures = _message(messages[number], f"{place}.{number}", takes_images)
        rest += (f"<|{role}|>", "\n")
        for picture in pictures:
            rest += [f"<|image:{picture}|>"] * IMAGE_TOKENS
        rest += split(text)
        rest.append("\n")
        images += len(pictures)
        if role == "user":
            question = text
        elif role == "system":
            instructions = f"{instructions}\n{text}" if instructions else text
    rest += _CLOSING
    own_keys = block_keys(rest, keys[-1] if keys else hash(salt))
    return Prompt(head + rest, keys + own_keys, instructions, question, images)


@lru_cache(maxsize=256)
def _opening(instructions: str | None, salt: str | None) -> tuple[list[str], list[int], list[str]]:
    """The begin token and the system message: tokens of full blocks, their keys, and the tokens left over.

    Callers send the same system message with every row, so this is most of a prompt and is worked out once. The lists
    are shared: read only.
    """
    tokens = [BEGIN]
    if instructions is not None:
        tokens += ["<|system|>", "\n", *split(instructions), "\n"]
    full = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
    return tokens[:full], block_keys(tokens[:full], hash(salt)), tokens[full:]


def truncated(prompt: Prompt, limit: int | None, max_model_len: int, salt: str | None) -> Prompt:
    """The last tokens of a prompt, as `truncate_prompt_tokens` asks; -1 means the whole context."""
    if limit is None:
        return prompt
    if limit > max_model_len:
        raise bad_request(
            f"truncate_prompt_tokens={limit} cannot be greater than max_model_len = {max_model_len}. "
            "Please request a smaller truncation size.",
            "truncate_prompt_tokens",
            limit,
        )
    keep = max_model_len - 1 if limit < 0 else limit
    if len(prompt.tokens) <= keep:
        return prompt
    tokens = prompt.tokens[len(prompt.tokens) - keep :]
    return Prompt(tokens, block_keys(tokens, hash(salt)), prompt.instructions, prompt.question, prompt.images)


def check_length(prompt: Prompt, max_model_len: int) -> None:
    """Refuse a prompt that leaves no room for one token of output.

    Raises:
        RequestRejected: 400; like vLLM it stops counting one past the limit.

    """
    if len(prompt.tokens) >= max_model_len:
        raise bad_request(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
            f"{max_model_len + 1} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            max_model_len + 1,
        )


def _message(message: Any, place: str, takes_images: str | None) -> tuple[str, str, list[int]]:
    """Role, text and a number for each picture of one message."""
    if not isinstance(message, dict):
        raise validation_error("dict_type", place, "Input should be a valid dictionary", message)
    role = message.get("role")
    if not isinstance(role, str):
        raise validation_error("missing", f"{place}.role", "Field required", message)
    content = message.get("content")
    if isinstance(content, str):
        return role, content, []
    if content is None:
        return role, "", []
    if not isinstance(content, list):
        raise validation_error("string_type", f"{place}.content", "Input should be a valid string", content)
    texts, pictures = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind == "image_url":
            if takes_images is not None:
                raise bad_request(f"{takes_images} is not a multimodal model")
            holder = part.get("image_url")
            pictures.append(_picture(str(holder.get("url") or "") if isinstance(holder, dict) else str(holder or "")))
        else:
            raise bad_request(f"Unknown part type: {kind}")
    return role, "\n".join(texts), pictures


def _picture(url: str) -> int:
    if not url:
        raise bad_request("multi_modal_data['image'][0] is empty but multi_modal_uuids['image'][0] is missing.")
    if url.startswith("file:"):
        text = "Cannot load local files without `--allowed-local-media-path`."
        raise RequestRejected(500, text, "InternalServerError")
    if url.startswith(("http:", "https:")):
        text = f"Cannot connect to host {url.split('/')[2]} (the simulator fetches no pictures)"
        raise RequestRejected(500, text, "InternalServerError")
    header, _, encoded = url.partition(",")
    if not header.startswith("data:") or not header.endswith(";base64"):
        raise bad_request("The URL must be either a HTTP, data or file URL.")
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise bad_request("Non-base64 digit found") from None
    if not content.startswith(_MAGIC):
        raise bad_request("Failed to load image: cannot identify image file <_io.BytesIO object>")
    return crc32(content)
