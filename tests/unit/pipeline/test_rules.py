"""Pure rules: batching, retries, routing, models, settings, fingerprints."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.kinds.cache_key import payload_hash
from pipeline.models import load_models
from pipeline.policies import chunking, retries
from pipeline.policies.chunking import Coalescer, chunk_rows
from pipeline.policies.routing import route
from pipeline.settings import load_settings
from schemas.errors import EngineFailed, EngineUnavailable, InvalidJob, InvalidSetting, PromptTooLong, UnknownModel
from schemas.jobs import parse_job


async def test_items_that_come_during_a_flush_share_the_next_one() -> None:
    flushes: list[list[int]] = []
    began, release = asyncio.Event(), asyncio.Event()

    async def flush(items: list[int]) -> list[int | BaseException]:
        flushes.append(items)
        began.set()
        if len(flushes) == 1:
            await release.wait()
        return [item * 10 if item != 3 else ValueError("three") for item in items]

    coalesce: Coalescer[int, int] = Coalescer(flush)
    first = asyncio.create_task(coalesce(0))
    await began.wait()
    later = [asyncio.create_task(coalesce(i)) for i in range(1, 6)]
    await asyncio.sleep(0)
    release.set()
    found = await asyncio.gather(first, *later, return_exceptions=True)
    assert flushes == [[0], [1, 2, 3, 4, 5]]
    assert [value for value in found if isinstance(value, int)] == [0, 10, 20, 40, 50]
    assert isinstance(found[3], ValueError)


async def test_a_failed_flush_reaches_every_caller_and_the_next_one_works() -> None:
    broken = True

    async def flush(items: list[int]) -> list[int]:
        if broken:
            raise OSError("away")
        return items

    coalesce: Coalescer[int, int] = Coalescer(flush)
    found = await asyncio.gather(coalesce(1), coalesce(2), return_exceptions=True)
    assert all(isinstance(value, OSError) for value in found)
    broken = False
    assert await coalesce(3) == 3


async def test_a_flush_holds_at_most_so_many() -> None:
    sizes: list[int] = []

    async def flush(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items

    coalesce: Coalescer[int, int] = Coalescer(flush, largest=10)
    await asyncio.gather(*[coalesce(i) for i in range(25)])
    assert sizes == [10, 10, 5]


@pytest.mark.parametrize(
    ("jobs", "rate", "rows"),
    [
        (100_000, None, 256),
        (100_000, 10.0, 32),
        (100_000, 200.0, 600),
        (100_000, 9_999.0, 1_024),
        (200, None, 50),
        (3, None, 32),
    ],
)
def test_a_chunk_is_about_three_seconds_of_the_measured_rate(jobs: int, rate: float | None, rows: int) -> None:
    assert chunk_rows(jobs, rate) == rows
    assert chunking.LARGEST_CHUNK_ROWS == 1_024


def test_delays_double_up_to_a_minute_with_jitter() -> None:
    for number, full in ((1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (60, 60.0)):
        found = [retries.delay(number) for _ in range(200)]
        assert timedelta(seconds=full / 2) <= min(found)
        assert max(found) <= timedelta(seconds=full)
        assert len(set(found)) > 100


def test_a_final_error_ends_a_job_at_once_and_others_after_five_tries() -> None:
    assert retries.is_final(PromptTooLong("x"), 1)
    assert not retries.is_final(EngineFailed("x"), retries.MAX_ATTEMPTS - 1)
    assert retries.is_final(EngineFailed("x"), retries.MAX_ATTEMPTS)
    assert not EngineUnavailable.consumes_attempt


def test_a_job_goes_to_the_first_model_that_can_do_it() -> None:
    models = load_models()
    job = parse_job({"kind": "chat", "messages": [{"role": "user", "content": "hi"}]})
    assert route(job, models).name == "chatglm3-6b"
    assert route(job.model_copy(update={"model": "codegeex4-all-9b"}), models).name == "codegeex4-all-9b"
    with pytest.raises(UnknownModel, match="cannot do chat"):
        route(job.model_copy(update={"model": "cogagent"}), models)


def test_the_three_models_have_their_ports() -> None:
    assert {entry.name: entry.port for entry in load_models()} == {
        "chatglm3-6b": 10086,
        "codegeex4-all-9b": 8989,
        "cogagent": 9898,
    }


@pytest.mark.parametrize("url", ["http://gpu:8000", "http://gpu:8000/", "http://gpu:8000/v1", "http://gpu:8000/v1/"])
def test_an_endpoint_may_be_named_with_or_without_v1(url: str) -> None:
    entry = load_models(base_url=url, model="chatglm3-6b")["chatglm3-6b"]
    assert entry.addresses == ("http://gpu:8000",)
    assert entry.configured


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models = 3", "no \\[models.NAME\\] entry"),
        ("[models.x]\nkinds=['chat']\nport=0", r"models\.x: port: "),
        ("[models.x]\nkinds=['chat']\nport=80\nseat=3", r"models\.x: seat: "),
        ("[models.x]\nkinds=['chat']\nport=80\nendpoints=['gpu:1']", "an endpoint is a URL"),
        ("[models.x", "cannot be read"),
    ],
)
def test_a_mistake_in_the_models_file_is_one_sentence_that_names_it(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(InvalidSetting, match=complaint) as raised:
        load_models(file)
    assert str(file) in raised.value.message
    assert "\n" not in raised.value.message.replace(text, "")


def test_settings_keep_the_names_that_callers_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:geheim@h/d")
    monkeypatch.setenv("AI_TIMEOUT_MS", "1500")
    monkeypatch.setenv("YYC3_LEASE_SECONDS", "7")
    (tmp_path / ".env").write_text("REDIS_URL=redis://from-file/0\nYYC3_FLOWER_PORT=6000\n")
    settings = load_settings()
    assert settings.request_timeout == timedelta(seconds=1.5)
    assert settings.lease == timedelta(seconds=7)
    assert settings.flower_port == 6000
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://from-file/0"
    assert "geheim" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("AI_TIMEOUT_MS", "soon", "AI_TIMEOUT_MS|ai_timeout_ms"),
        ("AI_BASE_URL", "http://x", "AI_BASE_URL and AI_MODEL go together"),
    ],
)
def test_an_impossible_setting_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match=complaint):
        load_settings()


def test_a_payload_hash_is_blind_to_the_key_and_to_how_soon_and_how_the_answer_is_wanted() -> None:
    job = {"kind": "intent", "text": "a", "idempotency_key": "1"}
    same = payload_hash(parse_job(job | {"idempotency_key": "2"}))
    assert payload_hash(parse_job(job)) == same
    for change in ({"text": "b"}, {"tenant": "b"}, {"tags": {"a": "b"}}, {"labels": [{"name": "x"}]}):
        assert payload_hash(parse_job(job | change)) != same
    assert payload_hash(parse_job(job | {"priority": 1, "deadline": "2031-05-01T12:00:00Z"})) == same
    chat = {"kind": "chat", "messages": [{"role": "user", "content": "a"}]}
    assert payload_hash(parse_job(chat | {"stream": True})) == payload_hash(parse_job(chat))


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ({"kind": "intent", "text": "a\x00b"}, "text"),
        ({"kind": "intent", "text": "a", "tags": {"t": "\x00"}}, "tags.t"),
        ({"kind": "intent", "text": "a", "idempotency_key": "k\x00"}, "idempotency_key"),
        ({"kind": "chat", "messages": [{"role": "user", "content": "\x00"}]}, "messages.0.content"),
    ],
)
def test_a_character_that_cannot_be_stored_is_refused_by_field(job: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidJob, match=rf"{field}: holds a NUL"):
        payload_hash(parse_job(job))


def test_a_backslash_that_only_looks_like_it_is_welcome() -> None:
    assert payload_hash(parse_job({"kind": "intent", "text": "\\u0000"}))


@pytest.mark.parametrize(
    "labels", [[{"name": "A"}, {"name": "a"}], [{"name": "buy", "word": "order"}, {"name": "undo", "word": "Order"}]]
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidJob, match="two labels have the same"):
        parse_job({"kind": "intent", "text": "x", "labels": labels})


def test_a_refusal_never_repeats_the_callers_words() -> None:
    with pytest.raises(InvalidJob) as raised:
        parse_job({"kind": "intent", "text": "SECRET" * 10_000})
    assert "SECRET" not in raised.value.message
