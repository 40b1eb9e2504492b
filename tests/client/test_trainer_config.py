"""A site's own configuration file: what is read is what was written, and every fault is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.trainer.config import MAX_CONFIG_BYTES, SiteConfig
from client.trainer.server import _services, main
from shared_model.errors import ConfigError

OMIT = object()
GOOD: dict[str, Any] = {
    "site": "north", "role": "site", "coordinator": None, "cohort": "/c", "state": "/s", "protocols": "/p",
    "device": "auto", "salt": "x",
    "fractions": {"train": 0.8, "test": 0.2},
}  # fmt: skip


def write(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not OMIT}))
    return path


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    config = SiteConfig.read(write(tmp_path / "site.json", epsilon_limit=3.5))
    (tmp_path / "again.json").write_text(config.to_json())
    assert SiteConfig.read(tmp_path / "again.json") == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"site": "../x"}, "site: "),
        ({"role": "server"}, "role: "),
        ({"cohort": "relative/path"}, "cohort: must be an absolute path"),
        ({"device": "cuda:x"}, "device: "),
        ({"salt": ""}, "salt: "),
        ({"salt": OMIT}, "salt: Field required"),
        ({"fractions": {"selection": 0.5, "test": 0.5}}, "a site splits into"),
        ({"fractions": {"train": 0.8, "test": 0.3}}, "add up to 1"),
        ({"fractions": {"train": 1.0, "test": 0.0}}, "in (0, 1)"),
        ({"epsilon_limit": -1.0}, "epsilon_limit: "),
        ({"surprise": 1}, "surprise: "),
        ({"coordinator": OMIT}, "coordinator: Field required"),
        ({"coordinator": {"name": "lead"}}, "coordinator.key: Field required"),
        ({"coordinator": {"name": "lead", "key": "00"}}, "coordinator.key: "),
        ({"delta_limit": 1.0}, "delta_limit: "),
        ({"private_only": None}, "private_only: "),
    ],
)
def test_each_fault_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SiteConfig.read(write(tmp_path / "site.json", **changes))
    assert words in str(caught.value)


def test_what_is_not_said_means_the_safe_thing(tmp_path: Path) -> None:
    config = SiteConfig.read(write(tmp_path / "site.json", coordinator={"name": "lead", "key": "ab" * 32}))
    assert config.private_only
    assert config.coordinator is not None
    assert (config.coordinator.name, config.coordinator.key) == ("lead", "ab" * 32)


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    with pytest.raises(ConfigError, match="cannot read"):
        SiteConfig.read(path)
    for text in ("{", "[]", "[" * 10_000, " " * (MAX_CONFIG_BYTES + 1)):
        path.write_text(text)
        with pytest.raises(ConfigError):
            SiteConfig.read(path)


def test_a_process_refuses_to_host_one_name_twice(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.json") for i in (1, 2)]
    with pytest.raises(ConfigError, match="twice"):
        _services(paths)


def test_thread_settings_after_torch_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process torch is loaded already, so its OpenMP would not read them."""
    import torch  # noqa: F401

    site = write(tmp_path / "site.json")
    assert main(["--socket", str(tmp_path / "s"), str(site)]) == ConfigError.exit_code
