"""Engine requests are built and answers are read as promised. Pure."""

import math

import pytest

from pipeline import kinds
from pipeline.kinds import Completion, Constraint, EndpointProfile
from pipeline.kinds.classification import Option, choose_form, classification_template, read_verdict, words_tell_apart
from pipeline.kinds.dialogue import fit_to_context, language_of
from pipeline.kinds.intent_labels import DEFAULT_OPTIONS
from pipeline.models import LabelForm, load_models
from pipeline.policies.routing import route
from schemas.calls import Language, Speaker, Turn
from schemas.errors import InvalidJob, InvalidOutput
from schemas.jobs import Job, parse_job
from schemas.results import ChatResult, CodeResult, IntentResult, SentimentResult

STRUCTURED = Constraint.STRUCTURED_OUTPUTS


def build(
    job: dict[str, object], form: LabelForm = LabelForm.WORD, constraint: Constraint = STRUCTURED
) -> tuple[Job, kinds.CompletionRequest]:
    parsed = parse_job(job)
    return parsed, kinds.build(parsed, EndpointProfile(form, constraint, 8192))


@pytest.mark.parametrize("language", list(Language))
def test_the_default_labels_are_told_apart_by_their_first_character_in_both_languages(language: Language) -> None:
    words = [option.word for option in DEFAULT_OPTIONS[language]]
    assert words_tell_apart(words, [word[0] for word in words])
    assert [option.label for option in DEFAULT_OPTIONS[language]] == [
        option.label for option in DEFAULT_OPTIONS[Language.ENGLISH]
    ]


def test_the_form_follows_from_the_tokens_of_the_endpoint() -> None:
    assert choose_form(["good", "neutral", "bad"], ["good", "neut", "b"]) is LabelForm.WORD
    assert choose_form(["positive", "neutral", "negative"], ["positive", "neutral", "negative"]) is LabelForm.CODE
    assert choose_form(["正面", "中性", "负面"], ["正", "中", None]) is LabelForm.CODE
    assert choose_form(["正面", "中性", "负面"], ["正", "", "负"]) is LabelForm.CODE
    assert choose_form(["good", "bad"], None) is LabelForm.CODE
    assert choose_form([f"w{i}" for i in range(21)], None) is LabelForm.WHOLE_WORD


def test_a_request_asks_for_one_token_of_the_labels_with_its_alternatives() -> None:
    _, ask = build({"kind": "sentiment", "text": "thank you so much"})
    assert ask.shape.parameters == {
        "temperature": 0.0,
        "structured_outputs": {"choice": ["good", "neutral", "bad"]},
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 7,
    }
    _, old = build({"kind": "sentiment", "text": "thank you"}, constraint=Constraint.GUIDED)
    assert old.shape.parameters["guided_choice"] == ["good", "neutral", "bad"]
    assert "structured_outputs" not in old.shape.parameters


def test_rows_with_the_same_words_around_them_share_a_shape_and_a_template_hash() -> None:
    (_, one), (_, two), (_, english) = (
        build({"kind": "intent", "text": text}) for text in ("退款", "投诉你们", "I want a refund")
    )
    assert one.shape is two.shape
    assert one.shape.template_hash != english.shape.template_hash
    assert b"".join([one.conversation]).startswith(b'[{"role":"system"')


def test_the_prompt_holds_descriptions_and_worked_examples_and_other_comes_last() -> None:
    labels = [{"name": "A1", "description": "first", "examples": ["do it"]}, {"name": "B1"}]
    _, ask = build({"kind": "intent", "text": "hello there", "labels": labels})
    prompt = ask.shape.prefix[0]["content"]
    assert "- A1: first" in prompt
    assert "「do it」→ A1" in prompt
    assert prompt.index("- B1") < prompt.index("- other")


def answer(text: str, *alternatives: tuple[str, float], finish: str = "length") -> Completion:
    return Completion(text, finish, tuple((token, math.log(share)) for token, share in alternatives))


def test_a_score_is_the_difference_of_two_probabilities_and_confidence_is_the_labels() -> None:
    job, ask = build({"kind": "sentiment", "text": "ok then, thank you"})
    result = kinds.read(
        job, ask, answer("good", ("good", 0.5), ("g", 0.1), (" neutral", 0.1), ("bad", 0.1), ("the", 0.2))
    )
    assert isinstance(result, SentimentResult)
    assert result.confidence == pytest.approx(0.75)
    assert result.score == pytest.approx(0.75 - 0.125)


def test_without_probabilities_confidence_is_null_and_the_score_is_the_labels() -> None:
    job, ask = build({"kind": "sentiment", "text": "this is bad"})
    result = kinds.read(job, ask, answer("b"))
    assert isinstance(result, SentimentResult)
    assert (result.label, result.score, result.confidence, result.probabilities) == ("negative", -1.0, None, None)


@pytest.mark.parametrize("text", ["", " ", "x", "goodness me"])
def test_an_answer_outside_the_labels_is_a_failed_try(text: str) -> None:
    job, ask = build({"kind": "sentiment", "text": "fine by me"})
    with pytest.raises(InvalidOutput):
        kinds.read(job, ask, answer(text))


def test_a_token_that_may_begin_two_labels_names_none() -> None:
    shape = classification_template(
        "q", "c", (Option("refund", "refund"), Option("return", "return")), LabelForm.WORD, STRUCTURED
    )
    with pytest.raises(InvalidOutput):
        read_verdict(answer("re"), shape.reading)
    assert read_verdict(answer("ref"), shape.reading).label == "refund"


def test_a_whole_word_must_be_whole() -> None:
    job, ask = build({"kind": "intent", "text": "refund please"}, LabelForm.WHOLE_WORD)
    result = kinds.read(job, ask, answer("refund", finish="stop"))
    assert isinstance(result, IntentResult)
    assert (result.label, result.confidence) == ("refund", None)
    with pytest.raises(InvalidOutput):
        kinds.read(job, ask, answer("refu"))


def test_an_answer_by_letter_means_the_label_behind_it() -> None:
    job, ask = build({"kind": "sentiment", "text": "fine by me"}, LabelForm.CODE)
    assert ask.shape.parameters["structured_outputs"] == {"choice": ["A", "B", "C"]}
    result = kinds.read(job, ask, answer("C", ("C", 0.6), ("A", 0.3)))
    assert isinstance(result, SentimentResult)
    assert result.label == "negative"


def test_chat_passes_the_callers_parameters_on_and_refuses_an_empty_reply() -> None:
    chat = {
        "kind": "chat",
        "messages": [{"role": "user", "content": "hi"}],
        "sampling": {"max_tokens": 5, "stop": ["x"], "seed": 3},
    }
    job, ask = build(chat)
    assert ask.shape.parameters == {"max_tokens": 5, "stop": ["x"], "seed": 3}
    assert ask.shape.streamed
    assert kinds.read(job, ask, answer("yes")) == ChatResult(text="yes", finish_reason="length")
    with pytest.raises(InvalidOutput):
        kinds.read(job, ask, answer("  "))


def test_a_long_call_keeps_its_beginning_and_its_end_and_says_so() -> None:
    turns = [Turn(speaker=Speaker.CUSTOMER, text=f"第{i}句" + "话" * 50) for i in range(200)]
    text, truncated = fit_to_context(turns, Language.CHINESE, 8192)
    assert truncated
    assert len(text) < 8192
    assert "第0句" in text
    assert "第199句" in text
    assert "第60句" not in text
    job = parse_job({"kind": "sentiment", "turns": [turn.model_dump() for turn in turns]})
    assert kinds.build(job, EndpointProfile(LabelForm.WORD, STRUCTURED, 8192)).truncated


def test_one_endless_turn_still_fits() -> None:
    text, truncated = fit_to_context([Turn(speaker=Speaker.AGENT, text="长" * 8_000)], Language.CHINESE, 2_048)
    assert truncated
    assert len(text) < 2_048


def test_language_is_that_of_the_text() -> None:
    assert language_of("我的 iPhone 15 Pro Max 坏了") is Language.CHINESE
    assert language_of("Where is my order?") is Language.ENGLISH


def test_context_stands_before_the_utterance() -> None:
    context = [{"speaker": "agent", "text": "还需要别的吗？"}]
    _, ask = build({"kind": "sentiment", "text": "不用了", "context": context})
    content = ask.messages[0]["content"]
    assert content.index("坐席: 还需要别的吗？") < content.index("不用了")


def code_answer(text: str, finish_reason: str = "stop", language: str = "python") -> CodeResult:
    job, ask = build({"kind": "code", "instruction": "add", "language": language})
    result = kinds.read(job, ask, Completion(text=text, finish_reason=finish_reason))
    assert isinstance(result, CodeResult)
    return result


@pytest.mark.parametrize(
    ("text", "code", "language", "explanation"),
    [
        ("```python\nx = 1\n```", "x = 1", "python", None),
        ("Here:\n```python\nx = 1\ny = 2\n```\nThat is all.", "x = 1\ny = 2", "python", "Here:\n\nThat is all."),
        ("```\nx = 1\n```", "x = 1", "python", None),
        ("```bash\npip install y\n```\n```Python\nx = 1\n```", "x = 1", "Python", "```bash\npip install y\n```"),
        ("```js app.js\nlet x\n```", "let x", "js", None),
        ("````markdown\n```\ninner\n```\n````", "```\ninner\n```", "markdown", None),
        ("```python\nx = 1", "x = 1", "python", None),
        ("```python\n\n    x = 1\n\n```", "\n    x = 1\n", "python", None),
        ("```\n\n```\n```python\nx = 1\n```", "x = 1", "python", "```\n\n```"),
    ],
)
def test_code_is_taken_out_of_its_fence(text: str, code: str, language: str, explanation: str | None) -> None:
    result = code_answer(text)
    assert (result.code, result.language, result.explanation) == (code, language, explanation)


@pytest.mark.parametrize("text", ["", "I would rather not.", "```python\n```", "`x = 1`"])
def test_an_answer_without_code_is_a_failed_try(text: str) -> None:
    with pytest.raises(InvalidOutput):
        code_answer(text)


def test_code_that_was_cut_off_is_a_failed_try() -> None:
    with pytest.raises(InvalidOutput, match=r"raise sampling\.max_tokens"):
        code_answer("```python\nx = 1\n```", "length")


def test_existing_code_cannot_end_its_own_block_and_the_model_is_told_what_it_wants_first() -> None:
    job = parse_job(
        {
            "kind": "code",
            "instruction": "更正它",
            "language": "markdown",
            "context": "```\na\n````",
            "file_name": "a.md",
        }
    )
    target = EndpointProfile(LabelForm.WORD, STRUCTURED, 8192, stop_token_ids=(5, 6), system_prompt="你是编程助手。")
    ask = kinds.build(job, target)
    system, user = ask.messages
    assert system == {"role": "system", "content": "你是编程助手。"}
    assert "`````markdown\n```\na\n````\n`````" in user["content"]
    assert "文件：a.md" in user["content"]
    assert ask.shape.parameters["stop_token_ids"] == [5, 6]
    assert ask.shape.parameters["max_tokens"] == 2_048
    other = kinds.build(job, EndpointProfile(LabelForm.WORD, STRUCTURED, 8192))
    assert other.shape.template_hash != ask.shape.template_hash
    assert "stop_token_ids" not in other.shape.parameters


def test_pictures_come_before_the_question_and_a_schema_is_asked_for_as_the_engine_knows_it() -> None:
    schema = {"type": "object"}
    given = {"kind": "vision", "question": "what?", "images": ["data:a", "data:b"], "answer_schema": schema}
    _, new = build(given)
    (message,) = new.messages
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert new.shape.parameters["structured_outputs"] == {"json": schema}
    _, old = build(given, constraint=Constraint.GUIDED)
    assert old.shape.parameters["guided_json"] == schema
    assert new.characters > len("what?")


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ('{"a": 1', "length", "cut off"),
        ("{a}", "stop", "not JSON"),
        ('{"a": "x"}', "stop", "does not obey"),
        ("[1]", "stop", "does not obey"),
        ('{"a": ' * 2_000, "stop", "not JSON"),
        (" ", "stop", "nothing"),
    ],
)
def test_an_answer_outside_the_callers_schema_is_a_failed_try(text: str, finish_reason: str, reason: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    job, ask = build({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": schema})
    with pytest.raises(InvalidOutput, match=reason):
        kinds.read(job, ask, Completion(text=text, finish_reason=finish_reason))


def test_an_answer_that_is_nested_deeper_than_can_be_stored_is_a_failed_try() -> None:
    job, ask = build({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": {}})
    with pytest.raises(InvalidOutput, match="nested"):
        kinds.read(job, ask, Completion(text="[" * 300 + "]" * 300, finish_reason="stop"))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "thing"}, "is no JSON schema, see type"),
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, "may not use pattern"),
        ({"patternProperties": {"a": {}}}, "may not use patternProperties"),
        ({"$ref": "https://example.com/schema"}, "may only point into the schema itself"),
        ({"$ref": "#"}, "may only point into the schema itself"),
        ({"$ref": "#/$defs/a"}, "points to nothing"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "may not refer to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, "may not refer to itself"),
        ({"type": "array", "uniqueItems": True}, "may not use uniqueItems"),
        ({"examples": [{"pattern": "^(a+)+$"}], "$ref": "#/examples/0"}, "may only point into"),
        ({"$ref": "#/$defs/a/enum/0", "$defs": {"a": {"enum": [{"pattern": "a"}]}}}, "may only point into"),
        ({"maximum": 10**20}, "nothing that can be written as JSON"),
        (
            {
                "$ref": "#/$defs/n0",
                "$defs": {f"n{i}": {"allOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(40)} | {"n40": {}},
            },
            "more than 1,000 parts",
        ),
        ({"description": "x" * 30_000}, "at most 20,000 bytes"),
    ],
)
def test_a_schema_that_cannot_be_checked_safely_is_refused(schema: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason):
        parse_job({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": schema})


def test_a_property_may_be_called_pattern_and_parts_may_be_shared() -> None:
    schema = {
        "properties": {"pattern": {"$ref": "#/$defs/short"}, "uniqueItems": {"$ref": "#/$defs/short"}},
        "$defs": {"short": {"type": "string", "maxLength": 3}},
        "required": ["pattern"],
    }
    job, ask = build({"kind": "vision", "question": "?", "images": ["data:a"], "answer_schema": schema})
    assert kinds.read(job, ask, Completion(text='{"pattern": "a"}', finish_reason="stop")) is not None
    with pytest.raises(InvalidOutput, match="does not obey"):
        kinds.read(job, ask, Completion(text='{"pattern": "abcd"}', finish_reason="stop"))


def test_a_vision_job_goes_to_a_model_that_reads_as_many_pictures() -> None:
    job = parse_job({"kind": "vision", "question": "?", "images": ["data:a"] * 3})
    with pytest.raises(InvalidJob, match="images: 3 are given, cogagent reads at most 1 a job"):
        route(job, load_models())
    one = parse_job({"kind": "vision", "question": "?", "images": ["data:a"]})
    assert route(one, load_models()).name == "cogagent"
