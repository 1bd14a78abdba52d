"""Prompts from messages, as a chat template makes them, and from text or token ids."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

from simulator.errors import RequestRejected, bad_request
from simulator.requests.sampling import validation_error
from simulator.requests.tokens import BOS, tokenize

BLOCK_TOKENS = 16
IMAGE_TOKENS = 256
_IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_GENERATION_PROMPT = ["<|assistant|>", "\n"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the model.

    Attributes:
        tokens: all tokens of the prompt.
        block_keys: keys of its full blocks, for the prefix cache.
        instructions: text of the system messages.
        question: text of the last user message.
        images: number of images in the prompt.

    """

    tokens: Sequence[str]
    block_keys: Sequence[int]
    instructions: str
    question: str
    images: int = 0


def block_keys(tokens: Sequence[str], parent: int = 0) -> list[int]:
    """Compute one key for each full block of 16 tokens.

    A key identifies the block together with all blocks before it.

    Args:
        tokens: a prompt, or the part of it that follows `parent`.
        parent: key of the block before, or any number that separates caches (a salt).

    """
    keys = []
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        parent = hash((parent, *tokens[start : start + BLOCK_TOKENS]))
        keys.append(parent)
    return keys


def prompt_from_text(text: str, salt: str | None = None) -> Prompt:
    """Build the prompt of /v1/completions."""
    tokens = tokenize(text)
    return Prompt(tokens, block_keys(tokens, hash(salt)), "", text)


def prompt_from_tokens(tokens: Sequence[str], salt: str | None = None) -> Prompt:
    """Build the prompt of /v1/completions from the tokens of its ids."""
    return Prompt(tokens, block_keys(tokens, hash(salt)), "", "".join(tokens))


def prompt_from_messages(messages: Any, location: str, text_model: str | None, salt: str | None = None) -> Prompt:
    """Build the prompt of a conversation.

    Args:
        messages: the list from the request.
        location: its path in the body, for errors (`messages` or `messages.3`).
        text_model: None when the model accepts images, else the model's name for the error.
        salt: `cache_salt`; prompts with different salts share no prefix.

    Raises:
        RequestRejected: 400, or 500 for image URLs that vLLM itself would have to fetch.

    """
    instructions, start = "", 0
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        content = messages[0].get("content")
        if isinstance(content, str):
            instructions, start = content, 1
    head, head_keys, tail = _system_prefix(instructions if start else None, salt)
    rest = list(tail)
    question, image_count = "", 0
    for index in range(start, len(messages)):
        role, text, images = _read_message(messages[index], f"{location}.{index}", text_model)
        rest += (f"<|{role}|>", "\n")
        for image in images:
            rest += [f"<|image:{image}|>"] * IMAGE_TOKENS
        rest += tokenize(text)
        rest.append("\n")
        image_count += len(images)
        if role == "user":
            question = text
        elif role == "system":
            instructions = f"{instructions}\n{text}" if instructions else text
    rest += _GENERATION_PROMPT
    rest_keys = block_keys(rest, head_keys[-1] if head_keys else hash(salt))
    return Prompt(head + rest, head_keys + rest_keys, instructions, question, image_count)


@lru_cache(maxsize=256)
def _system_prefix(instructions: str | None, salt: str | None) -> tuple[list[str], list[int], list[str]]:
    """Tokenize BOS and the system message.

    Callers send the same system message with every row, so this is most of a prompt and is computed
    once. The lists are shared and must not be changed.

    Returns:
        The tokens of full blocks, the keys of these blocks, and the remaining tokens.

    """
    tokens = [BOS]
    if instructions is not None:
        tokens += ["<|system|>", "\n", *tokenize(instructions), "\n"]
    full = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
    return tokens[:full], block_keys(tokens[:full], hash(salt)), tokens[full:]


def truncate_prompt(prompt: Prompt, limit: int | None, max_model_len: int, salt: str | None) -> Prompt:
    """Keep the last tokens of a prompt, as `truncate_prompt_tokens` requests.

    Args:
        prompt: the prompt.
        limit: number of tokens to keep; -1 means the whole context, None means all tokens.
        max_model_len: context length in tokens.
        salt: see `prompt_from_messages`.

    Raises:
        RequestRejected: 400, the limit exceeds the context length.

    """
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
    """Reject a prompt that leaves no space for one output token.

    Raises:
        RequestRejected: 400; like vLLM, it stops counting one token above the limit.

    """
    if len(prompt.tokens) >= max_model_len:
        raise bad_request(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
            f"{max_model_len + 1} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            max_model_len + 1,
        )


def _read_message(message: Any, location: str, text_model: str | None) -> tuple[str, str, list[int]]:
    """Return the role and the text of a message, and a checksum of each of its images."""
    if not isinstance(message, dict):
        raise validation_error("dict_type", location, "Input should be a valid dictionary", message)
    role = message.get("role")
    if not isinstance(role, str):
        raise validation_error("missing", f"{location}.role", "Field required", message)
    content = message.get("content")
    if isinstance(content, str):
        return role, content, []
    if content is None:
        return role, "", []
    if not isinstance(content, list):
        raise validation_error("string_type", f"{location}.content", "Input should be a valid string", content)
    texts, images = [], []
    for part in content:
        part_type = part.get("type") if isinstance(part, dict) else None
        if part_type == "text":
            texts.append(str(part.get("text", "")))
        elif part_type == "image_url":
            if text_model is not None:
                raise bad_request(f"{text_model} is not a multimodal model")
            holder = part.get("image_url")
            images.append(_read_image(str(holder.get("url") or "") if isinstance(holder, dict) else str(holder or "")))
        else:
            raise bad_request(f"Unknown part type: {part_type}")
    return role, "\n".join(texts), images


def _read_image(url: str) -> int:
    if not url:
        raise bad_request("multi_modal_data['image'][0] is empty but multi_modal_uuids['image'][0] is missing.")
    if url.startswith("file:"):
        text = "Cannot load local files without `--allowed-local-media-path`."
        raise RequestRejected(500, text, "InternalServerError")
    if url.startswith(("http:", "https:")):
        text = f"Cannot connect to host {url.split('/')[2]} (the simulator does not fetch images; send a data URL)"
        raise RequestRejected(500, text, "InternalServerError")
    header, _, encoded = url.partition(",")
    if not header.startswith("data:") or not header.endswith(";base64"):
        raise bad_request("The URL must be either a HTTP, data or file URL.")
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise bad_request("Non-base64 digit found") from None
    if not content.startswith(_IMAGE_SIGNATURES):
        raise bad_request("Failed to load image: cannot identify image file <_io.BytesIO object>")
    return crc32(content)
