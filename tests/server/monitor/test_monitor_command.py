"""`mammofed monitor`: what it shows where nothing, something or nonsense is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from server.monitor.cli import monitor, place_of
from shared_model.errors import ConfigError


def test_the_place_is_named_or_is_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="which study"):
        place_of(None)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert place_of(None) == tmp_path / "runs"
    assert place_of("runs/a") == tmp_path / "runs" / "a"
    with pytest.raises(ConfigError, match="no folder"):
        place_of("runs/b")


def test_it_refuses_to_be_open_to_others(tmp_path: Path) -> None:
    for more in ([], ["--token-file", str(tmp_path / "token")]):
        found = CliRunner().invoke(monitor, [str(tmp_path), "--no-open", "--port", "0", "--host", "0.0.0.0", *more])
        assert isinstance(found.exception, ConfigError) and "open to others" in str(found.exception)


def test_help_names_what_can_be_watched() -> None:
    text = CliRunner().invoke(monitor, ["--help"]).output
    for word in ("run directory", "coordinator's home", "--terminal", "--token-file", "--no-open", "--port"):
        assert word in text
