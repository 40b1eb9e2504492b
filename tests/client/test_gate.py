"""No code from the wire: a bundle counts by its hash alone, and even the right one is neither unpacked nor imported."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supernode.runtime import run_clientapp

from client import gate
from client.app import app
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
    assert made == [gate.bundle_sha256()] * 2


def test_another_bundle_is_refused_and_nothing_of_it_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    (tmp_path / "hostile").mkdir()
    content = hostile_bundle(tmp_path / "hostile")
    assert "client/app.py" in zipfile.ZipFile(io.BytesIO(content)).namelist()
    check = gate._only(frozenset({gate.bundle_sha256()}))
    with pytest.raises(ProtocolError, match="not of this site's release"):
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


def test_a_site_without_a_list_runs_nothing(tmp_path: Path) -> None:
    for text in (None, "", "\n\n"):
        path = tmp_path / "list"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match="absent or empty"):
            gate.read_list(path)


def test_the_command_that_superexec_finds_first_is_ours(tmp_path: Path) -> None:
    """SuperExec starts `flwr-clientapp` by its name; ours comes first, and ends without a list before Flower begins."""
    gate.write_command(tmp_path / "bin")
    environment = {**os.environ, "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])}
    environment.pop(gate.BUNDLES, None)
    done = subprocess.run([gate.COMMAND, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode != 0 and "list of app bundles" in done.stderr
    assert str(sys.executable) in (tmp_path / "bin" / gate.COMMAND).read_text()
