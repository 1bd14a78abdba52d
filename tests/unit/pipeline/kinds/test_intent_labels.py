"""The intents of a call centre."""

import pytest

from pipeline.kinds.classification import words_differ
from pipeline.kinds.intent_labels import DEFAULT_OPTIONS
from schemas.calls import Language


@pytest.mark.parametrize("language", list(Language))
def test_the_words_of_default_labels_differ_in_their_first_character(language: Language) -> None:
    words = [option.word for option in DEFAULT_OPTIONS[language]]
    assert words_differ(words, [word[0] for word in words])


def test_the_default_labels_have_the_same_names_in_both_languages() -> None:
    chinese, english = DEFAULT_OPTIONS[Language.CHINESE], DEFAULT_OPTIONS[Language.ENGLISH]
    assert [option.label for option in chinese] == [option.label for option in english]
