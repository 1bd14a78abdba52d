from __future__ import annotations

import pytest

from simulator.answers.logprobs import compute_logprobs
from simulator.answers.planner import AnswerPlanner
from simulator.requests.constraints import Choice
from simulator.requests.prompts import prompt_from_text
from simulator.requests.sampling import SamplingParams
from simulator.requests.tokens import Tokenizer


def test_options_with_a_shared_first_token_add_up() -> None:
    tokenizer = Tokenizer()
    sampling = SamplingParams(Choice(("退款", "退货")), temperature=0, top_logprobs=4)
    plan = AnswerPlanner(0, 8192, tokenizer).plan(prompt_from_text("x"), sampling)
    computed = compute_logprobs(plan, range(len(plan.tokens)), 4, None, tokenizer)
    assert computed[0][0] == pytest.approx(0.0)
    assert {token for token, _ in computed[1][1][:2]} == {"款", "货"}
    assert computed[2][0] == pytest.approx(0.0)
