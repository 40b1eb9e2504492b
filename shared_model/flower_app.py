"""The Flower app that every study is: a manifest without code, written by the coordinator, known by hash at each site.

Both components belong to the release that is installed at each end. Flower makes the same bundle (FAB) of the same
files on every machine, so a site works out the hash of the only bundle that it takes from its own release.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from shared_model.errors import ConfigError

PUBLISHER: Final = "mammofed"
NAME: Final = "mammofed-study"
RUN_DIR, STUDY, PATIENCE = "run-dir", "study", "patience-seconds"
"""Keys of the run configuration; read by `server.app`. Every site is told them: they hold no path of a coordinator."""

HOME: Final = "MAMMOFED_HOME"
"""Environment of a coordinator's ServerApps: its home, from which all but the study's name is taken."""

_MANIFEST = """\
# Written by MammoFed. No code travels in this app: both components belong to the release that is installed, and films,
# weights and ledgers stay where they are.
[project]
name = "{name}"
version = "{version}"
description = "One MammoFed study"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "{publisher}"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
{run_dir} = ""
{study} = ""
{patience} = 0.0
"""


def write_app(folder: Path) -> Path:
    """Write the app into `folder`, made where it is absent; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _MANIFEST.format(
        name=NAME, version=version("mammofed"), publisher=PUBLISHER, run_dir=RUN_DIR, study=STUDY,
        patience=PATIENCE,
    )  # fmt: skip
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def quiet_environment(home: Path) -> dict[str, str]:
    """Environment of Flower's processes: nothing is told to anybody, nothing is fetched or installed, one thread each.

    Args:
        home: FLWR_HOME, a folder of this product's own.
    """
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ") if name in os.environ}
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def flower_command(name: str) -> str:
    """Path of one of Flower's commands, of this Python's own Flower.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ConfigError(f"Flower's command `{name}` is not installed", expected=f"beside {sys.executable}",
                          remedy="install mammofed again, with its dependencies")  # fmt: skip
    return found
