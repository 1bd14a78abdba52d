"""Broken input for every parser of what other programs write: `make fuzz` sends a million, a test a small share.

Each target parses valid inputs that are broken in one to four places: values swapped for others, fields
lost or renamed, texts grown, bytes flipped, doubled or cut off. A target either accepts an input or
refuses it in one sentence of ours: no other exception, no hang, none of the caller's words in the
sentence, and no lost neighbour.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from PIL import Image

from pipeline import kinds
from pipeline.broker.redis import _is_message
from pipeline.calls.readers import BadLine, read_calls
from pipeline.engine.errors import from_status
from pipeline.engine.metrics import parse_metrics
from pipeline.engine.responses import StreamedCompletion, parse_batch, parse_single
from pipeline.images.decoding import data_url, decode_data_url, reencode
from pipeline.models import LabelForm
from schemas.doorbells import Doorbell
from schemas.errors import EngineError, PipelineError
from schemas.intake import CancelArguments, parse_intake
from schemas.jobs import canonical, parse_job
from tests.support import fuzz_batches as batches
from tests.support import fuzz_environment as environment

CANARY = "CANARY13800000000"
SLOW_SECONDS = 2.0
_LONGEST_SENTENCE = 600

JOBS: list[dict[str, Any]] = [
    {
        "kind": "intent",
        "text": f"我要退款 {CANARY}",
        "labels": [{"name": "refund", "word": "退款"}, {"name": "other", "word": "其他"}],
    },
    {"kind": "sentiment", "turns": [{"speaker": "customer", "text": CANARY}, {"speaker": "agent", "text": "您好"}]},
    {
        "kind": "chat",
        "messages": [{"role": "user", "content": CANARY}],
        "sampling": {"temperature": 0.5, "max_tokens": 9},
    },
    {"kind": "code", "instruction": f"写一个函数 {CANARY}", "language": "python", "context": "x = 1"},
    {
        "kind": "vision",
        "question": CANARY,
        "images": ["data:image/png;base64,iVBORw0KGgo="],
        "answer_schema": {"type": "object", "properties": {"a": {"type": "string", "enum": ["x"]}}, "required": ["a"]},
    },
]
_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, -0.0, 2**31, 2**63, 2**100, 1e308, float("inf"), float("nan")),
    *("", " ", "1", "null", "NaN", CANARY, "\x00", "\ud800", "\u202e", "a" * 300, "💥" * 50, "'; DROP TABLE jobs; --"),
    *("2026-11-22T00:00:00Z", "data:image/png;base64,%%", "http://169.254.169.254/", "../../etc"),
    *([], {}, [[]], [None], {"": ""}, {"a": {"b": {}}}, ["x"] * 2_000),
]


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under test.

    Attributes:
        name: in counts and failures.
        share: of all inputs.
        make: makes a broken input.
        check: does with an input all that the program does, and raises where it breaks a promise.
    """

    name: str
    share: float
    make: Callable[[random.Random], Any]
    check: Callable[[Any], None]


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def broken(value: Any, draw: random.Random) -> Any:
    """Return a copy of a JSON value that is broken in one to four places."""
    copy = _copied(value)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        copy = _broken_once(copy, draw)
    return copy


def _broken_once(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.85:
        return _broken_object(value, draw)
    if isinstance(value, list) and value and draw.random() < 0.85:
        return _broken_array(value, draw)
    if isinstance(value, str) and value and draw.random() < 0.3:
        at = draw.randrange(len(value))
        return (
            value[:at]
            + draw.choice(("", "\x00", "\ud800", '"', "\\", "\n", "退" * 40))
            + value[at + draw.randrange(3) :]
        )
    if draw.random() < 0.02:
        deep: Any = value
        for _ in range(draw.choice((5, 60, 120))):
            deep = [deep] if draw.random() < 0.5 else {"a": deep}
        return deep
    return _copied(draw.choice(_ODD))


def _broken_object(value: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    key, how = draw.choice(list(value)), draw.random()
    if how < 0.15:
        del value[key]
    elif how < 0.3:
        value[draw.choice(("x", "kind", "self", "id", f"a name {CANARY}", "", "\x00", "__proto__"))] = _copied(
            value[key]
        )
    elif how < 0.4:
        value[draw.choice(list(value))] = _copied(value[key])
    else:
        value[key] = _broken_once(value[key], draw)
    return value


def _broken_array(value: list[Any], draw: random.Random) -> list[Any]:
    at, how = draw.randrange(len(value)), draw.random()
    if how < 0.15:
        del value[at]
    elif how < 0.25:
        value.insert(at, _copied(value[at]))
    else:
        value[at] = _broken_once(value[at], draw)
    return value


def encoded(value: Any) -> bytes:
    """Return a value as JSON, also values that JSON does not allow, such as NaN and lone surrogates."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def flipped(raw: bytes, draw: random.Random) -> bytes:
    """Return bytes of which some are changed, doubled or cut off."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 3, 10))):
        if not data:
            break
        at = draw.randrange(len(data))
        how = draw.random()
        if how < 0.5:
            data[at] = draw.randrange(256)
        elif how < 0.65:
            del data[at:]
        elif how < 0.8:
            del data[at : at + draw.randrange(1, 20)]
        else:
            data[at:at] = data[at : at + draw.randrange(1, 50)]
    return bytes(data)


def accept_or_refuse(work: Callable[[], object]) -> None:
    """Run a parser; a refusal has to be one sentence of ours that repeats nothing of the input."""
    try:
        work()
    except PipelineError as error:
        sentence = error.message
        assert 0 < len(sentence) <= _LONGEST_SENTENCE, sentence
        assert "\n" not in sentence, sentence
        assert CANARY not in sentence, sentence


# --- jobs and messages


def _a_job(draw: random.Random) -> Any:
    job = draw.choice(JOBS)
    return broken(job, draw) if draw.random() < 0.7 else flipped(encoded(job), draw)


def _check_job(value: Any) -> None:
    def work() -> None:
        job = parse_job(value)
        again = parse_job(canonical(job))
        words = kinds.label_words(again)
        form = LabelForm.WORD if words else LabelForm.WHOLE_WORD
        kinds.build(again, kinds.EndpointProfile(form, kinds.Constraint.STRUCTURED_OUTPUTS, 8_192))

    accept_or_refuse(work)


def _a_message(draw: random.Random) -> Any:
    intake = {**draw.choice(JOBS), "job_key": "k", "reply_to": "crm.replies"}
    return broken(draw.choice([intake, {"v": 1, "model": "m", "lane": "bulk", "chunk": 5}, {"job_key": "k"}]), draw)


def _check_message(value: Any) -> None:
    if isinstance(value, dict):
        accept_or_refuse(lambda: parse_intake({str(key): item for key, item in value.items()}, frozenset({"m"})))
    for model in (Doorbell, CancelArguments):
        with suppress(ValueError):  # pydantic's; ValidatedTask and the intake validate nothing else
            model.model_validate(value)


_ENVELOPE = {
    "body": "W1tdLCB7fSwge31d",
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {"task": "yyc3.chunk", "id": "x"},
    "properties": {
        "delivery_tag": "t",
        "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "m"},
    },
}


def _an_item(draw: random.Random) -> bytes:
    return encoded(broken(_ENVELOPE, draw)) if draw.random() < 0.5 else flipped(encoded(_ENVELOPE), draw)


def _check_item(value: bytes) -> None:
    if _is_message(value):
        found = json.loads(value.decode())
        assert found["properties"]["delivery_tag"] is not None


# --- engines

_TEXT = "退款"
_CHOICE = {
    "index": 0,
    "finish_reason": "length",
    "message": {"role": "assistant", "content": _TEXT},
    "logprobs": {"content": [{"token": _TEXT, "logprob": -0.1, "top_logprobs": [{"token": "其他", "logprob": -2.0}]}]},
}
_BODY = {"id": "x", "choices": [_CHOICE], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
_JOB = parse_job({"kind": "intent", "text": "我要退款"})
_REQUEST = kinds.build(_JOB, kinds.EndpointProfile(LabelForm.WORD, kinds.Constraint.STRUCTURED_OUTPUTS, 8_192))
_FREE = parse_job({"kind": "code", "instruction": "x", "language": "python"})
_ROWS = 3


def _an_answer(draw: random.Random) -> bytes:
    return encoded(broken(_BODY, draw)) if draw.random() < 0.7 else flipped(encoded(_BODY), draw)


def _check_answer(value: bytes) -> None:
    def work() -> None:
        completion = parse_single(value, 0.1)
        orjson.dumps(kinds.decode(_JOB, _REQUEST, completion).model_dump())

    accept_or_refuse(work)
    accept_or_refuse(lambda: kinds.decode(_FREE, _REQUEST, parse_single(value, 0.1)))


def _a_batch(draw: random.Random) -> bytes:
    """Return a batch of which one row is broken."""
    choices: list[Any] = [{**_CHOICE, "index": i} for i in range(_ROWS)]
    choices[1] = {
        **choices[1],
        "message": broken(_CHOICE["message"], draw),
        "logprobs": broken(_CHOICE["logprobs"], draw),
    }
    return encoded({**_BODY, "choices": choices})


def _check_batch(value: bytes) -> None:
    try:
        rows = parse_batch(value, [_REQUEST] * _ROWS, 0.1)
    except PipelineError:
        # Only a body that is not JSON may cost the neighbours their answers: a lone surrogate makes it so.
        try:
            orjson.loads(value)
        except orjson.JSONDecodeError:
            return
        raise AssertionError("one bad row cost its neighbours their answers") from None
    assert len(rows) == _ROWS
    for row in (rows[0], rows[2]):
        assert not isinstance(row, EngineError), "a neighbour was lost"
        assert kinds.decode(_JOB, _REQUEST, row)


def _a_stream(draw: random.Random) -> list[bytes]:
    event = {"choices": [{"index": 0, "delta": {"content": "好"}, "finish_reason": None}]}
    lines = [b"data: " + encoded(broken(event, draw) if draw.random() < 0.5 else event) for _ in range(4)]
    lines.append(b"data: [DONE]")
    return [flipped(line, draw) if draw.random() < 0.2 else line for line in lines]


def _check_stream(value: list[bytes]) -> None:
    def work() -> None:
        completion = StreamedCompletion("http://e")
        for line in value:
            completion.feed(line + b"\n\n")
        completion.result(0.1, None)

    accept_or_refuse(work)


def _a_refusal(draw: random.Random) -> tuple[int, bytes]:
    body = {
        "error": {"message": f"This model's maximum context length is 8192 tokens. {CANARY}", "type": "x", "code": 400}
    }
    return draw.randrange(300, 600), encoded(broken(body, draw)) if draw.random() < 0.5 else flipped(
        encoded(body), draw
    )


def _check_refusal(value: tuple[int, bytes]) -> None:
    error = from_status(value[0], {}, value[1], "http://e")
    assert isinstance(error, EngineError)
    assert CANARY not in error.message


_PAGE = (
    b'vllm:num_requests_running{model_name="m"} 3.0\nvllm:num_requests_waiting{model_name="m"} 2\nvllm:x_total 1e3\n'
)


def _check_page(value: bytes) -> None:
    parse_metrics(value, "m")


# --- files and images

_CALL = {
    "call_id": "c1",
    "turns": [{"speaker": "customer", "text": f"我要退款 {CANARY}"}, {"speaker": "agent", "text": "好"}],
}
_CALLS_A_FILE = 50


def _a_file(draw: random.Random) -> list[bytes]:
    """Return whole lines with a broken one after each."""
    lines = []
    for i in range(_CALLS_A_FILE):
        whole = encoded({**_CALL, "call_id": f"whole {i}"})
        bad = encoded(broken(_CALL, draw)) if draw.random() < 0.5 else flipped(encoded(_CALL), draw)
        lines += [whole, bad.replace(b"\n", b"")]
    return lines


def _check_file(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "calls.jsonl"
        file.write_bytes(b"\n".join(lines) + b"\n")
        found = list(read_calls([file]))
    whole = [call.call_id for call in found if not isinstance(call, BadLine) and call.call_id.startswith("whole")]
    assert whole == [f"whole {i}" for i in range(_CALLS_A_FILE)], "a neighbour was lost"
    assert not any(CANARY in str(line) for line in found if isinstance(line, BadLine))


def _images() -> list[bytes]:
    made = []
    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        stream = BytesIO()
        Image.new("RGB", (24, 16), (200, 30, 30)).save(stream, kind)
        made.append(stream.getvalue())
    return made


_IMAGES = _images()


def _an_image(draw: random.Random) -> str:
    raw = flipped(draw.choice(_IMAGES), draw)
    url = data_url(draw.choice(("image/png", "image/jpeg", "image/webp", "image/gif")), raw)
    return url if draw.random() < 0.8 else flipped(url.encode(), draw).decode("latin-1")


def _check_image(value: str) -> None:
    try:
        raw = decode_data_url(value)
        kind, again = reencode(raw)
    except ValueError as error:  # a refusal; the sanitizer adds which image
        assert "\n" not in str(error)
        return
    assert Image.open(BytesIO(again)).format is not None, kind


TARGETS = (
    Target("job", 0.35, _a_job, _check_job),
    Target("queue message", 0.15, _a_message, _check_message),
    Target("broker item", 0.1, _an_item, _check_item),
    Target("engine answer", 0.12, _an_answer, _check_answer),
    Target("engine batch", 0.1, _a_batch, _check_batch),
    Target("engine stream", 0.06, _a_stream, _check_stream),
    Target("engine refusal", 0.06, _a_refusal, _check_refusal),
    Target("metrics page", 0.03, lambda draw: flipped(_PAGE, draw), _check_page),
    Target("call file", 0.0006, _a_file, _check_file),  # a hundred lines each
    Target("batch file", 0.004, batches.a_batch_file, batches.check_batch_file),
    Target("completion", 0.03, lambda draw: broken(batches.LINE, draw), batches.check_line),
    Target("image", 0.02, _an_image, _check_image),
    Target("settings", 0.01, environment.a_setting, environment.check_setting),
    Target("file of settings", 0.01, environment.a_dotenv, environment.check_dotenv),
    Target("models file", 0.01, environment.a_models_file, environment.check_models_file),
    Target("arguments", 0.003, environment.some_arguments, environment.check_arguments),
    Target("output", 0.01, environment.an_output, environment.check_output),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An input for which a target broke a promise."""

    target: str
    number: int
    reason: str


def fuzz(inputs: int, seed: int, targets: Sequence[Target] = TARGETS) -> tuple[Counter[str], list[Failure], float]:
    """Divide a number of inputs among the targets by their shares.

    Returns:
        Inputs of each target, what failed, and the seconds of the slowest input.
    """
    counts: Counter[str] = Counter()
    failures: list[Failure] = []
    slowest = 0.0
    whole = sum(target.share for target in targets)
    for target in targets:
        for number in range(max(1, int(inputs * target.share / whole))):
            draw = random.Random(f"{seed} {target.name} {number}")
            value = target.make(draw)
            began = time.perf_counter()
            try:
                target.check(value)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(Failure(target.name, number, f"{type(error).__name__}: {error}"[:300]))
            seconds = time.perf_counter() - began
            slowest = max(slowest, seconds)
            if seconds > SLOW_SECONDS:
                failures.append(Failure(target.name, number, f"took {seconds:.1f} s"))
            counts[target.name] += len(value) if target.name == "call file" else 1
    return counts, failures, slowest


def main() -> int:
    """Run all targets, for `make fuzz`; the last line is a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    began = time.monotonic()
    counts, failures, slowest = fuzz(options.inputs, seed)
    for failure in failures[:20]:
        sys.stderr.write(f"{failure.target} {failure.number}: {failure.reason}\n")
    summary = {
        "seed": seed,
        "inputs": sum(counts.values()),
        "by_target": dict(counts),
        "failures": len(failures),
        "slowest_ms": round(slowest * 1000, 1),
        "seconds": round(time.monotonic() - began),
    }
    sys.stdout.write(json.dumps(summary) + "\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
