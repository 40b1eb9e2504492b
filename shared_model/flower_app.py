"""The Flower app that every study is: a manifest without code, written by the coordinator, known by hash at each site.

Both components belong to the release that is installed at each end. Flower makes the same bundle (FAB) of the same
files on every machine, so a site works out the hash of the only bundle that it takes from its own release.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Final

PUBLISHER: Final = "mammofed"
NAME: Final = "mammofed-study"
RUN_DIR, PATIENCE, SIGNING_KEY, COORDINATOR, NODES = (
    "run-dir", "patience-seconds", "signing-key", "coordinator", "nodes",
)  # fmt: skip
"""Keys of the run configuration; read by `server.app`."""

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
{patience} = 0.0
{signing_key} = ""
{coordinator} = ""
{nodes} = ""
"""


def write_app(folder: Path) -> Path:
    """Write the app into `folder`, made where it is absent; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _MANIFEST.format(
        name=NAME, version=version("mammofed"), publisher=PUBLISHER, run_dir=RUN_DIR, patience=PATIENCE,
        signing_key=SIGNING_KEY, coordinator=COORDINATOR, nodes=NODES,
    )  # fmt: skip
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder
