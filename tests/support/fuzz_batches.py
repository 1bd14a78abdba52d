"""Broken batch files, in every encoding and compression, cut anywhere; and broken bodies of completions."""

import asyncio
import gzip
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import zstandard

from pipeline.batches.lines import RefusedLine, parse_line
from pipeline.batches.reading import BatchFile
from pipeline.images import ImageSanitizer
from pipeline.jobs.preparation import Preparer
from pipeline.models import load_models
from schemas.batches import BatchSettings
from schemas.errors import InvalidBatchFile, InvalidJob, UnknownModel

CANARY = "CANARY13800000000"
_LINES_A_FILE = 20
_SETTINGS = BatchSettings()
_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030")
_PACKERS: dict[str, Any] = {"plain": bytes, "gzip": lambda raw: gzip.compress(raw, 1), "zstd": zstandard.compress}
LINE: dict[str, Any] = {
    "custom_id": "r",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "model": "chatglm3-6b",
        "messages": [
            {"role": "system", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": f"退款 {CANARY}"}]},
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "response_format": {"type": "json_object"},
        "n": 1,
        "temperature": 0,
        "stop": ["x"],
        "logprobs": True,
    },
}


class _NoFetcher:
    def __call__(self) -> Any:
        raise ImportError


_preparer = Preparer(load_models(), ImageSanitizer(_NoFetcher()))


def a_batch_file(draw: random.Random) -> tuple[bytes, str | None]:
    """Return a file of whole lines, packed and encoded; every second one is cut somewhere."""
    lines = [
        orjson.dumps({"custom_id": f"第{number}", "kind": "sentiment", "text": CANARY}).decode()
        for number in range(_LINES_A_FILE)
    ]
    encoding = draw.choice(_ENCODINGS)
    content = _PACKERS[draw.choice(list(_PACKERS))](draw.choice(("\n", "\r\n")).join(lines).encode(encoding))
    if draw.random() < 0.5:
        return content, encoding
    cut = draw.randrange(len(content) + 1)
    return content[:cut] + draw.choice((b"", b"\xff\xfe\x00", b"\n{", content[cut // 2 :])), None


def check_batch_file(given: tuple[bytes, str | None]) -> None:
    """Read it: whole lines come out whole, others are refused in a sentence, nothing else happens."""
    content, encoding = given
    with TemporaryDirectory() as folder:
        path = Path(folder) / "batch"
        path.write_bytes(content)
        names = []
        try:
            with BatchFile(path) as file:
                for page in file.pages():
                    for line in page:
                        try:
                            names.append(parse_line(line, _SETTINGS).custom_id)
                        except RefusedLine as refused:
                            assert CANARY not in refused.reason
                            assert "\n" not in refused.reason
        except InvalidBatchFile as error:
            assert encoding is None, "a whole file is read"
            assert "\n" not in error.message
    if encoding is not None:
        assert names == [f"第{number}" for number in range(_LINES_A_FILE)], encoding


def check_line(value: Any) -> None:
    """Prepare the job of a line; what is refused is refused in a sentence without the words of the caller."""
    if not isinstance(value, dict) or not isinstance(value.get("body"), dict):
        return
    job = {"kind": "completion", "body": value["body"]}
    try:
        fast = _preparer.plain_completion(value["body"], "default", {})
        slow = asyncio.run(_preparer.prepare(job, "default", with_hash=False))
    except (InvalidJob, UnknownModel) as error:
        assert CANARY not in error.message
        assert "\n" not in error.message
        return
    assert fast is None or orjson.loads(fast.request) == orjson.loads(slow.request)
