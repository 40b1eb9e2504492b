"""The Flower contestant: `flwr run` on Ray, cold, one core a client, from a folder in which nothing can be mistaken."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import simulations.benchmarks.peers.flower_app as app
from simulations.benchmarks.peers import flower_run

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "peer"
version = "1.0.0"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["flwr[simulation]==1.41.0"]
[tool.hatch.build.targets.wheel]
packages = ["peer"]
[tool.flwr.app]
publisher = "mammofed"
[tool.flwr.app.components]
serverapp = "peer.server_app:app"
clientapp = "peer.client_app:app"
[tool.flwr.app.config]
run-dir = {run_dir}
out = {out}
"""
START_LIMIT_S = 300.0  # until the SuperLink answers: some 8 s on a quiet machine
CONNECTION = '[superlink]\ndefault = "local"\n[superlink.local]\naddress = ":local:"\n'


def command(python: str, *, run_dir: Path, out: Path, sites: int) -> list[str]:
    """Lay out app and FLWR_HOME under `out`; the command line that runs it.

    Ray's workers import from where the SuperLink was started before they look into the app: start it in `out`.
    """
    package, home = out / "app" / "peer", out / "home"
    package.mkdir(parents=True)
    home.mkdir()
    for file in sorted(Path(app.__file__).parent.glob("*.py")):
        shutil.copy(file, package)
    text = PYPROJECT.format(run_dir=_toml(run_dir), out=_toml(out))
    (package.parent / "pyproject.toml").write_text(text, encoding="utf-8")
    (home / "config.toml").write_text(CONNECTION, encoding="utf-8")
    return [python, "-P", "-m", flower_run.__name__, str(package.parent), str(sites), str(START_LIMIT_S)]


def environment(python: str, *, out: Path) -> dict[str, str]:
    """What Flower and Ray are told: nobody is called, nothing is installed, a port of its own, and where it lives."""
    return {
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")]),
        "FLWR_HOME": str(out / "home"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "RAY_USAGE_STATS_ENABLED": "0",
        flower_run.PORT: str(_free_port()), flower_run.CONTROL_PORT: str(_free_port()), "COLUMNS": "160",
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _toml(path: Path) -> str:
    """A path as a TOML literal string; paths with a single quote in them cannot be one."""
    return f"'{path}'"
