"""A completion that a caller waits for: the whole body comes back, also where chats are streamed."""

from openai.types.chat import ChatCompletion

from pipeline import Client
from schemas.results import CompletionResult, JobState
from tests.support.sandbox import Sandbox


def test_a_single_completion_has_its_whole_body(sandbox: Sandbox, client: Client) -> None:
    body = {
        "model": "chatglm3-6b",
        "messages": [{"role": "user", "content": "你好"}],
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
    }
    with sandbox.simulator(), sandbox.worker("interactive"):
        outcome = client.result(client.submit({"kind": "completion", "body": body}), timeout=30)
    assert outcome.state is JobState.SUCCEEDED, outcome
    assert isinstance(outcome.result, CompletionResult)
    answer = ChatCompletion.model_validate(outcome.result.body)
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == outcome.usage.completion_tokens == 4
