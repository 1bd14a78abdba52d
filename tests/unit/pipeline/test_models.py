"""Entries of models.toml, and what the environment changes of them."""

from pathlib import Path

import pytest

from pipeline.models import load_models, normal_endpoint
from schemas.errors import InvalidSetting


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
        ("[models.x]\nkinds=['chat']\nport=80\nmax_num_seq=3", r"models\.x: max_num_seq: "),
        ("[models.x]\nkinds=['chat']\nport=80\nendpoints=['gpu:1']", "an endpoint is a URL"),
        ("[models.x", "is not TOML"),
    ],
)
def test_a_mistake_in_the_models_file_is_one_sentence_that_names_it(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(InvalidSetting, match=complaint) as raised:
        load_models(file)
    assert str(file) in raised.value.message
    assert "\n" not in raised.value.message.replace(text, "")


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_endpoint_may_be_written_as_clients_of_openai_write_it(end: str) -> None:
    assert normal_endpoint(f"http://127.0.0.1:10086{end}") == "http://127.0.0.1:10086"
