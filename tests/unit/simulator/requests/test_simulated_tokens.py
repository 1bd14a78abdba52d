from __future__ import annotations

import subprocess
import sys

import pytest

from simulator.requests.tokens import EOS, VOCABULARY_SIZE, Tokenizer, tokenize


@pytest.mark.parametrize("word", ["A", "good", "refund", "positive", "退", "7", "123", "?", "\n", " and"])
def test_a_word_or_a_letter_is_one_token(word: str) -> None:
    assert tokenize(word) == [word]


def test_each_chinese_character_is_one_token() -> None:
    assert tokenize("我要退款") == ["我", "要", "退", "款"]


def test_a_word_includes_the_space_before_it() -> None:
    assert tokenize("I want  a refund, 2024!") == ["I", " want", "  ", "a", " refund", ",", " 202", "4", "!"]


@pytest.mark.parametrize("text", ["", "hello\r\n world\t！", "混合 text 12345", "😀 ok", "a_b-c"])
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text
    tokenizer = Tokenizer()
    assert tokenizer.decode(tokenizer.tokens_to_ids(tokenize(text))) == text


def test_ids_are_the_same_in_another_process() -> None:
    words = ["refund", "退", "A", " and"]
    program = f"from simulator.requests.tokens import Tokenizer; print(Tokenizer().tokens_to_ids({words!r}))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(Tokenizer().tokens_to_ids(words))


def test_single_ascii_characters_have_different_ids() -> None:
    ids = Tokenizer().tokens_to_ids(chr(code) for code in range(128))
    assert len(set(ids)) == 128
    assert max(ids) < VOCABULARY_SIZE


def test_eos_has_the_usual_id() -> None:
    assert Tokenizer().token_to_id(EOS) == 2
    assert Tokenizer().id_to_token(59_999) is None
