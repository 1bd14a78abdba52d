"""Our engine client with every model server: its promises hold for the simulator and for a real vLLM."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from io import BytesIO

import pytest
from PIL import Image

from pipeline import kinds
from pipeline.engine import EngineClient
from pipeline.engine.capabilities import first_tokens, letters_are_tokens, probe
from pipeline.engine.metrics import poll_metrics
from pipeline.images.decoding import data_url
from pipeline.kinds import Completion, CompletionRequest, Constraint, EndpointProfile
from pipeline.models import LabelForm
from schemas.errors import EngineUnavailable, InvalidOutput, PromptTooLong, RequestRejected
from schemas.job import Job
from schemas.jobs import parse_job
from schemas.results import CodeResult, SentimentResult, VisionResult
from tests.contract.model_server import CONTEXT_TOKENS, ModelServer, simulator_process


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    opened = EngineClient(timedelta(seconds=60))
    yield opened
    await opened.close()


def sentiment(text: str, form: LabelForm) -> tuple[Job, CompletionRequest]:
    job = parse_job({"kind": "sentiment", "text": text})
    return job, kinds.build(job, EndpointProfile(form, Constraint.STRUCTURED_OUTPUTS, CONTEXT_TOKENS))


async def test_the_capabilities_of_an_endpoint_are_probed(server: ModelServer, client: EngineClient) -> None:
    found = await probe(client, server.url, server.model)
    assert found.version
    assert found.version[0].isdigit()
    assert found.simulated is server.simulated
    assert found.constraint is Constraint.STRUCTURED_OUTPUTS
    assert found.max_model_len == CONTEXT_TOKENS
    assert found.revision
    assert found.batch_route
    assert await letters_are_tokens(client, server.url, server.model) is not None


async def test_the_metrics_show_running_waiting_and_finished_rows(server: ModelServer, client: EngineClient) -> None:
    _, request = sentiment("好", LabelForm.CODE)
    before = await poll_metrics(client, server.url, server.model)
    await client.complete_batch(server.url, server.model, [request] * 4)
    after = await poll_metrics(client, server.url, server.model)
    assert before is not None
    assert after is not None
    assert after.gauges.finished >= before.gauges.finished + 4
    assert (after.gauges.running, after.gauges.waiting) == (0, 0)
    assert after.kv_usage is not None
    assert await poll_metrics(client, server.url, "gpt-9") is None


async def test_an_endpoint_that_serves_another_model_is_not_used(server: ModelServer, client: EngineClient) -> None:
    with pytest.raises(EngineUnavailable, match=rf"serves {server.model}, not gpt-9"):
        await probe(client, server.url, "gpt-9")


async def test_first_tokens_are_beginnings_of_their_words(server: ModelServer, client: EngineClient) -> None:
    words = ["good", "neutral", "bad", "正面"]
    tokens = await first_tokens(client, server.url, server.model, words)
    assert tokens is not None
    assert len(tokens) == len(words)
    assert all(
        token is None or word.startswith(token) or "\ufffd" in token for word, token in zip(words, tokens, strict=True)
    )


async def test_a_micro_batch_answers_every_row_with_a_distribution_of_labels(
    server: ModelServer, client: EngineClient
) -> None:
    rows = [sentiment(f"第{i}位客户说太差了", LabelForm.CODE) for i in range(32)]
    answers = await client.complete_batch(server.url, server.model, [request for _, request in rows], 100)
    assert len(answers) == 32
    for (job, request), answer in zip(rows, answers, strict=True):
        assert isinstance(answer, Completion)
        result = kinds.decode(job, request, answer)
        assert isinstance(result, SentimentResult)
        assert result.probabilities is not None
        assert sum(result.probabilities.values()) == pytest.approx(1)
        assert -1 <= result.score <= 1
        assert (answer.completion_tokens, answer.finish_reason) == (1, "length")
    usage = [answer.prompt_tokens for answer in answers if isinstance(answer, Completion)]
    assert all(tokens and tokens > 0 for tokens in usage)


@pytest.mark.parametrize("form", [LabelForm.WORD, LabelForm.WHOLE_WORD])
async def test_words_are_answered_inside_the_labels_or_fail_the_attempt(
    server: ModelServer, client: EngineClient, form: LabelForm
) -> None:
    understood = 0
    for i in range(12):
        job, request = sentiment(f"thank you very much {i}", form)
        try:
            result = kinds.decode(job, request, await client.complete(server.url, server.model, request))
        except InvalidOutput:
            continue  # a real engine may begin with a piece of a character
        assert isinstance(result, SentimentResult)
        understood += 1
    assert understood >= 6


async def test_chat_is_streamed_and_counted(server: ModelServer, client: EngineClient) -> None:
    job = parse_job({"kind": "chat", "messages": [{"role": "user", "content": "你好"}], "sampling": {"max_tokens": 12}})
    request = kinds.build(job, EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512))
    whole = await client.complete(server.url, server.model, request)
    assert whole.text
    assert whole.first_token_seconds is None
    answer = await client.complete(server.url, server.model, request, streamed=True)
    assert answer.text
    assert answer.first_token_seconds is not None
    assert answer.first_token_seconds <= answer.engine_seconds
    assert answer.prompt_tokens
    assert 1 <= (answer.completion_tokens or 0) <= 12


async def test_a_prompt_that_is_too_long_is_named_alone_and_in_a_micro_batch(
    server: ModelServer, client: EngineClient
) -> None:
    _, long = sentiment("天气很好。" * 400, LabelForm.CODE)
    _, short = sentiment("好", LabelForm.CODE)
    with pytest.raises(PromptTooLong):
        await client.complete(server.url, server.model, long)
    with pytest.raises(PromptTooLong):
        await client.complete_batch(server.url, server.model, [short, long])


async def test_a_rejected_parameter_is_final_and_named(server: ModelServer, client: EngineClient) -> None:
    job = parse_job({"kind": "chat", "messages": [{"role": "user", "content": "hi"}]})
    request = kinds.build(job, EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512))
    request.template.parameters["top_p"] = 7
    with pytest.raises(RequestRejected, match="HTTP 400"):
        await client.complete(server.url, server.model, request)


async def test_256_requests_are_in_flight_at_once(server: ModelServer, client: EngineClient) -> None:
    rows = [sentiment(f"好 {i}", LabelForm.CODE)[1] for i in range(256)]
    answers = await asyncio.gather(*[client.complete(server.url, server.model, request) for request in rows])
    assert {answer.finish_reason for answer in answers} == {"length"}


@pytest.fixture
def slow(server: ModelServer) -> Iterator[str]:
    """The URL of a server that takes its time: its events cannot all be there at the first read."""
    if not server.simulated:
        yield server.url
        return
    with simulator_process("--speed", "4", "--max-model-len", str(CONTEXT_TOKENS)) as url:
        yield url


async def test_a_streamed_answer_arrives_in_pieces(server: ModelServer, slow: str, client: EngineClient) -> None:
    job = parse_job(
        {"kind": "chat", "messages": [{"role": "user", "content": "你好"}], "sampling": {"max_tokens": 200}}
    )
    pieces: list[str] = []
    request = kinds.build(job, EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512))
    answer = await client.complete(slow, server.model, request, streamed=True, on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text


async def test_an_answer_ends_where_the_model_entry_says(server: ModelServer, client: EngineClient) -> None:
    job = parse_job(
        {"kind": "chat", "messages": [{"role": "user", "content": "你好"}], "sampling": {"max_tokens": 200}}
    )
    plain = EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512)
    long = await client.complete(server.url, server.model, kinds.build(job, plain))
    # Every token of the vocabulary is an end: the first one is the last.
    ending = EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512, stop_token_ids=tuple(range(3, 2_000)))
    ended = await client.complete(server.url, server.model, kinds.build(job, ending))
    assert (long.completion_tokens or 0) > 1
    if not server.simulated:  # the simulator's vocabulary is made up; it accepts the field and ignores it
        assert (ended.completion_tokens, ended.finish_reason) == (1, "stop")


async def test_code_is_requested_with_the_models_own_prompt(server: ModelServer, client: EngineClient) -> None:
    job = parse_job(
        {"kind": "code", "instruction": "add", "language": "python", "context": "x = 1", "sampling": {"max_tokens": 60}}
    )
    target = EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512, system_prompt="你是编程助手。")
    request = kinds.build(job, target)
    answer = await client.complete(server.url, server.model, request)
    try:
        result = kinds.decode(job, request, answer)
    except InvalidOutput as error:
        assert not server.simulated, error  # a model of random weights writes no code
    else:
        assert isinstance(result, CodeResult)
        assert result.code


def picture(color: str) -> str:
    raw = BytesIO()
    Image.new("RGB", (64, 48), color).save(raw, "PNG")
    return data_url("png", raw.getvalue())


SCHEMA = {
    "type": "object",
    "properties": {"brand": {"type": "string", "maxLength": 12}, "broken": {"type": "boolean"}},
    "required": ["brand", "broken"],
    "additionalProperties": False,
}


async def test_a_question_about_a_picture_is_answered_in_text(seeing: ModelServer, client: EngineClient) -> None:
    job = parse_job({"kind": "vision", "question": "what?", "images": [picture("red")], "sampling": {"max_tokens": 12}})
    request = kinds.build(job, EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512))
    result = kinds.decode(job, request, await client.complete(seeing.url, seeing.model, request))
    assert isinstance(result, VisionResult)
    assert result.text
    assert result.answer is None


async def test_pictures_are_answered_in_the_callers_schema_or_the_attempt_fails(
    seeing: ModelServer, client: EngineClient
) -> None:
    understood = 0
    for color in ("red", "green", "blue", "white"):
        job = parse_job(
            {
                "kind": "vision",
                "question": "what?",
                "images": [picture(color)],
                "answer_schema": SCHEMA,
                "sampling": {"max_tokens": 120},
            }
        )
        request = kinds.build(job, EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512))
        try:
            result = kinds.decode(job, request, await client.complete(seeing.url, seeing.model, request))
        except InvalidOutput as error:
            assert not seeing.simulated, error  # a model of random weights may fill its answer with white space
            continue
        assert isinstance(result, VisionResult)
        assert set(result.answer) == {"brand", "broken"}
        understood += 1
    assert understood or not seeing.simulated


async def test_a_text_model_rejects_pictures_for_good(server: ModelServer, client: EngineClient) -> None:
    job = parse_job({"kind": "vision", "question": "what?", "images": [picture("red")]})
    request = kinds.build(job, EndpointProfile(LabelForm.CODE, Constraint.STRUCTURED_OUTPUTS, 512))
    if server.simulated:
        with simulator_process("--no-images") as url, pytest.raises(RequestRejected):
            await client.complete(url, "chatglm3-6b", request)
    else:
        with pytest.raises(RequestRejected):
            await client.complete(server.url, server.model, request)
