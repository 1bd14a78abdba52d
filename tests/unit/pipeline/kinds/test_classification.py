"""Classification by one token: how labels are asked for, and how an answer is decoded."""

import pytest

from pipeline import kinds
from pipeline.kinds import LabelForm
from pipeline.kinds.classification import Option, choose_form, classification_template, decode_verdict, fixed_form
from schemas.calls import Language
from schemas.errors import InvalidOutput
from schemas.results import IntentResult, SentimentResult
from tests.unit.pipeline.kinds.completions import STRUCTURED, build, completion


def test_the_form_follows_from_the_tokens_of_the_endpoint() -> None:
    assert choose_form(["good", "neutral", "bad"], ["good", "neut", "b"]) is LabelForm.WORD
    assert choose_form(["positive", "neutral", "negative"], ["positive", "neutral", "negative"]) is LabelForm.CODE
    assert choose_form(["正面", "中性", "负面"], ["正", "中", None]) is LabelForm.CODE
    assert choose_form(["正面", "中性", "负面"], ["正", "", "负"]) is LabelForm.CODE
    assert choose_form(["good", "bad"], None) is LabelForm.CODE
    assert choose_form([f"w{i}" for i in range(21)], None) is LabelForm.WHOLE_WORD


def test_a_fixed_form_gives_way_to_label_sets_it_cannot_hold() -> None:
    assert fixed_form(LabelForm.CODE, ["a"] * 20) is LabelForm.CODE
    assert fixed_form(LabelForm.CODE, ["a"] * 30) is LabelForm.WHOLE_WORD


def test_rows_with_the_same_words_around_them_share_a_template() -> None:
    (_, one), (_, two), (_, english) = (
        build({"kind": "intent", "text": text}) for text in ("退款", "投诉你们", "I want a refund")
    )
    assert one.template is two.template
    assert one.template.template_hash != english.template.template_hash
    assert one.conversation.startswith(b'[{"role":"system"')


def test_a_token_that_may_begin_two_labels_names_none() -> None:
    template = classification_template(
        "q", Language.ENGLISH, (Option("refund", "refund"), Option("return", "return")), LabelForm.WORD, STRUCTURED
    )
    with pytest.raises(InvalidOutput):
        decode_verdict(completion("re"), template.decoder)
    assert decode_verdict(completion("ref"), template.decoder).label == "refund"


def test_a_whole_word_must_be_whole() -> None:
    job, request = build({"kind": "intent", "text": "refund please"}, LabelForm.WHOLE_WORD)
    result = kinds.decode(job, request, completion("refund", finish="stop"))
    assert isinstance(result, IntentResult)
    assert (result.label, result.confidence) == ("refund", None)
    with pytest.raises(InvalidOutput):
        kinds.decode(job, request, completion("refu"))


def test_an_answer_by_letter_means_the_label_behind_it() -> None:
    job, request = build({"kind": "sentiment", "text": "fine by me"}, LabelForm.CODE)
    assert request.template.parameters["structured_outputs"] == {"choice": ["A", "B", "C"]}
    result = kinds.decode(job, request, completion("C", ("C", 0.6), ("A", 0.3)))
    assert isinstance(result, SentimentResult)
    assert result.label == "negative"
