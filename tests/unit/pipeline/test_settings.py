"""Settings from the environment and from .env."""

from datetime import timedelta
from pathlib import Path

import pytest

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
