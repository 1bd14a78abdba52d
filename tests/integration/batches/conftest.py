"""Files of batches, and a client that submits them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline import Client
from tests.support.sandbox import Sandbox

Write = Callable[..., Path]


def openai_line(number: int, **body: Any) -> dict[str, Any]:
    """Return a line in OpenAI's form, with a question of its own."""
    messages = [{"role": "user", "content": f"第{number}个问题"}]
    body = {"model": "chatglm3-6b", "messages": messages, "max_tokens": 4, "temperature": 0, **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines to a file, and return it; a number stands for so many good ones."""

    def made(lines: int | list[Any], name: str = "batch.jsonl") -> Path:
        file = tmp_path / name
        given = [openai_line(number) for number in range(lines)] if isinstance(lines, int) else lines
        texts = (line if isinstance(line, str) else orjson.dumps(line).decode() for line in given)
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return file

    return made


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[Client]:
    """A client of the sandbox."""
    with Client(database_url=sandbox.database_url, redis_url=sandbox.redis_url) as opened:
        yield opened
