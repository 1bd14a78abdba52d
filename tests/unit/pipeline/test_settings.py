"""Settings from the environment and from .env."""

from datetime import timedelta
from pathlib import Path

import pytest
from dotenv import dotenv_values

from pipeline.settings import load_settings
from schemas.errors import InvalidSetting


def test_settings_keep_the_names_that_callers_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:geheim@h/d")
    monkeypatch.setenv("AI_TIMEOUT_MS", "1500")
    monkeypatch.setenv("YYC3_LEASE_SECONDS", "7")
    (tmp_path / ".env").write_text("REDIS_URL=redis://from-file/0\nYYC3_FLOWER_PORT=6000\n")
    settings = load_settings()
    assert settings.request_timeout == timedelta(seconds=1.5)
    assert settings.lease == timedelta(seconds=7)
    assert settings.flower_port == 6000
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://from-file/0"
    assert "geheim" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("AI_TIMEOUT_MS", "soon", "AI_TIMEOUT_MS|ai_timeout_ms"),
        ("AI_BASE_URL", "http://x", "AI_BASE_URL and AI_MODEL go together"),
    ],
)
def test_an_impossible_setting_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match=complaint):
        load_settings()


def test_a_line_that_cannot_be_read_is_named_with_its_file_and_files_of_others_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("YYC3_FLOWER_PORT=5556\n=x\n")
    (tmp_path / "theirs").write_text("=y\n=z\n")
    assert load_settings().flower_port == 5556
    (named,) = caplog.messages
    assert named.startswith(f"{tmp_path}/.env: ")
    assert "line 2; the line is skipped" in named
    caplog.clear()
    dotenv_values("theirs")  # by the program that imports the client
    assert caplog.messages
    assert not any(str(tmp_path) in message for message in caplog.messages)
