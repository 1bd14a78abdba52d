"""Intent: the labels of the caller, or those of a call centre."""

from tests.unit.pipeline.kinds.completions import build


def test_the_prompt_has_descriptions_and_examples_and_other_comes_last() -> None:
    labels = [{"name": "A1", "description": "first", "examples": ["do it"]}, {"name": "B1"}]
    _, request = build({"kind": "intent", "text": "hello there", "labels": labels})
    prompt = request.template.prefix[0]["content"]
    assert "- A1: first" in prompt
    assert "「do it」→ A1" in prompt
    assert prompt.index("- B1") < prompt.index("- other")
