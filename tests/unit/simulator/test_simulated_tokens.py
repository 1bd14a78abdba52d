from __future__ import annotations

import subprocess
import sys

import pytest

from simulator.tokens import END, VOCABULARY_SIZE, Tokenizer, split


@pytest.mark.parametrize("word", ["A", "good", "refund", "positive", "退", "7", "123", "?", "\n", " and"])
def test_a_word_or_a_letter_is_one_token(word: str) -> None:
    assert split(word) == [word]


def test_every_chinese_character_is_a_token() -> None:
    assert split("我要退款") == ["我", "要", "退", "款"]


def test_a_word_takes_the_space_before_it() -> None:
    assert split("I want  a refund, 2024!") == ["I", " want", "  ", "a", " refund", ",", " 202", "4", "!"]


@pytest.mark.parametrize("text", ["", "hello\r\n world\t！", "混合 text 12345", "😀 ok", "a_b-c"])
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(split(text)) == text
    tokenizer = Tokenizer()
    assert tokenizer.text(tokenizer.ids(split(text))) == text


def test_ids_are_the_same_in_another_process() -> None:
    words = ["refund", "退", "A", " and"]
    program = f"from simulator.tokens import Tokenizer; print(Tokenizer().ids({words!r}))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(Tokenizer().ids(words))


def test_single_characters_never_share_an_id() -> None:
    ids = Tokenizer().ids(chr(code) for code in range(128))
    assert len(set(ids)) == 128
    assert max(ids) < VOCABULARY_SIZE


def test_the_end_token_has_the_usual_id() -> None:
    assert Tokenizer().token_id(END) == 2
    assert Tokenizer().token(59_999) is None
