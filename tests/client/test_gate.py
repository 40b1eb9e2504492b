"""No code from the wire: a bundle counts by its hash alone, at a site and at the coordinator."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import subprocess
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supernode.runtime import run_clientapp

from client import gate
from client.app import app
from server import gate as server_gate
from shared_model import flower_gate
from shared_model.errors import ConfigError, ProtocolError
from shared_model.flower_app import write_app

HOSTILE = "raise SystemExit('foreign code ran')\n"


def hostile_bundle(folder: Path) -> bytes:
    """The app of a study, and beside its manifest a `client` of somebody else's."""
    write_app(folder)
    (folder / "client").mkdir()
    (folder / "client" / "__init__.py").write_text(HOSTILE)
    (folder / "client" / "app.py").write_text(HOSTILE)
    return bytes(build_fab_from_disk(folder))


def test_the_bundle_of_a_release_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    made = [hashlib.sha256(build_fab_from_disk(write_app(tmp_path / name / "app"))).hexdigest() for name in "ab"]
    assert made == [flower_gate.bundle_sha256()] * 2


def test_another_bundle_is_refused_and_nothing_of_it_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    (tmp_path / "hostile").mkdir()
    content = hostile_bundle(tmp_path / "hostile")
    assert "client/app.py" in zipfile.ZipFile(io.BytesIO(content)).namelist()
    check = flower_gate.checked(gate._not_unpacked, frozenset({flower_gate.bundle_sha256()}))
    with pytest.raises(ProtocolError, match="not of this release"):
        check(content, skip_prompt=True)
    assert not (tmp_path / "home").exists()
    honest = build_fab_from_disk(write_app(tmp_path / "honest"))
    check(honest, skip_prompt=True)
    assert not (tmp_path / "home").exists(), "even the right bundle is not unpacked"


def test_the_installed_app_is_what_runs_whatever_the_run_names() -> None:
    load = gate._installed(default_app_ref="", app_path=None, multi_app=True)
    assert load("mammofed/evil", "9.9.9", "0" * 64) is app


def test_the_names_that_are_replaced_are_those_that_flower_uses() -> None:
    source = inspect.getsource(run_clientapp.run_clientapp)
    assert "install_from_fab(fab.content, skip_prompt=True)" in source
    order = [source.index(call) for call in ("install_from_fab(", "get_load_client_app_fn(", "client_app(message=")]
    assert order == sorted(order), "the hash is checked before anything is loaded"
    for name in ("install_from_fab", "get_load_client_app_fn"):
        assert name in vars(run_clientapp), "replaced in the module that uses it"


def test_the_coordinator_unpacks_its_own_release_s_bundle_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever reaches the Control API could else run an app of his own beside the signing key."""
    runtime, opened = import_module("flwr.superlink.runtime.run_serverapp"), list[bytes]()
    monkeypatch.setattr(runtime, "install_from_fab", lambda content, **_: opened.append(content))
    monkeypatch.setattr("flwr.superlink.cli.flwr_serverapp", lambda: None)
    (tmp_path / "list").write_text(flower_gate.bundle_sha256())
    monkeypatch.setenv(flower_gate.BUNDLES, str(tmp_path / "list"))
    server_gate.main()
    source = inspect.getsource(runtime.run_serverapp)
    order = [source.index(call) for call in ("install_from_fab(fab.content", "get_project_config(app_path)", "run_(\n")]
    assert order == sorted(order), "the hash is checked before anything is loaded"
    (tmp_path / "hostile").mkdir()
    with pytest.raises(ProtocolError, match="not of this release"):
        runtime.install_from_fab(hostile_bundle(tmp_path / "hostile"), skip_prompt=True)
    assert opened == []
    honest = build_fab_from_disk(write_app(tmp_path / "honest"))
    runtime.install_from_fab(honest, skip_prompt=True)
    assert opened == [honest]
    with zipfile.ZipFile(io.BytesIO(honest)) as bundle:
        assert not [name for name in bundle.namelist() if name.endswith(".py")], "no code in it"


def test_a_site_without_a_list_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flower_gate.BUNDLES, str(tmp_path / "list"))
    for text in (None, "", "\n\n"):
        if text is not None:
            (tmp_path / "list").write_text(text)
        with pytest.raises(ConfigError, match="absent or empty"):
            flower_gate.read_list()


@pytest.mark.parametrize(("command", "module"), [("flwr-clientapp", "client.gate"), ("flwr-serverapp", "server.gate")])
def test_every_command_that_superexec_may_start_is_ours(tmp_path: Path, command: str, module: str) -> None:
    """It starts them by name, and whoever sends a task chooses its type: an AgentApp's reaches a SuperNode, too."""
    flower_gate.write_commands(tmp_path / "bin", {command: module})
    environment = {**os.environ, "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]),
                   "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    environment.pop(flower_gate.BUNDLES, None)
    assert "flwr-agentapp" in TASK_TYPE_TO_COMMAND.values()
    for name in TASK_TYPE_TO_COMMAND.values():
        done = subprocess.run([name, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True,
                              check=False)  # fmt: skip
        words = "list of app bundles" if name == command else "has no such app"
        assert done.returncode != 0 and words in done.stderr, name
