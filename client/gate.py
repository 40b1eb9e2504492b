"""Stands where Flower's own `flwr-clientapp` would: runs the installed release, and nothing that came over the wire.

Flower's SuperExec starts `flwr-clientapp` from PATH for each message and would unpack and import the bundle (FAB) that
the coordinator sent. `site join` puts :func:`main` there first. A bundle counts only by its hash: it must be the one
that this release itself makes, and even then it is neither unpacked nor imported.

Three names of Flower 1.41 are replaced here and nowhere else; a test holds them against the pinned version.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shared_model.errors import ConfigError, ProtocolError
from shared_model.flower_app import write_app

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

BUNDLES = "MAMMOFED_BUNDLES"  # environment: path of the site's list, one SHA-256 a line
COMMAND = "flwr-clientapp"
MAX_LIST_BYTES = 1 << 16


def main() -> None:
    """Run one of Flower's ClientApp processes with the gate in place.

    Raises:
        ConfigError: the site's list is absent.
    """
    from flwr.supernode.runtime import run_clientapp

    allowed = read_list(Path(os.environ.get(BUNDLES, "")))
    run_clientapp.install_from_fab = _only(allowed)  # type: ignore[attr-defined]
    run_clientapp.get_load_client_app_fn = _installed  # type: ignore[attr-defined, assignment]
    flowers_command().flwr_clientapp()


def flowers_command() -> ModuleType:
    """Flower's module of that command, read from its file: the package around it imports SuperNode with SQLAlchemy and
    Alembic, half of what a message would cost its courier."""
    import flwr.supernode

    place = Path(flwr.supernode.__file__).parent / "cli" / "flwr_clientapp.py"
    spec = importlib.util.spec_from_file_location("flwr.supernode.cli.flwr_clientapp", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundle_sha256() -> str:
    """Hex SHA-256 of the bundle that the installed release makes of the app of a study."""
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory(prefix="mammofed-") as folder:
        return hashlib.sha256(build_fab_from_disk(write_app(Path(folder) / "app"))).hexdigest()


def read_list(path: Path) -> frozenset[str]:
    """The hashes that a site takes.

    Raises:
        ConfigError: the list is absent, empty or too long.
    """
    try:
        with path.open(encoding="ascii") as stream:
            hashes = frozenset(stream.read(MAX_LIST_BYTES).split())
    except (OSError, UnicodeDecodeError):
        hashes = frozenset()
    if not hashes:
        raise ConfigError("this site's list of app bundles is absent or empty", expected=f"a file named by {BUNDLES}",
                          remedy="start the courier with `mammofed site join`, which writes it")  # fmt: skip
    return hashes


def write_command(folder: Path) -> None:
    """Write `flwr-clientapp` into `folder`, which comes first in the PATH of SuperNode."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COMMAND
    path.write_text(f"#!{sys.executable} -P\nfrom client.gate import main\n\nmain()\n", encoding="utf-8")
    path.chmod(0o755)


def _only(allowed: frozenset[str]) -> Callable[..., Path]:
    def check(content: bytes, *_: object, **__: object) -> Path:
        found = hashlib.sha256(content).hexdigest()
        if found not in allowed:
            raise ProtocolError("the coordinator sent an app that is not of this site's release; it was not opened",
                                found=found[:16], expected="the bundle of the installed release",
                                remedy="install the study's release, or ask the coordinator what this is")  # fmt: skip
        return Path()

    return check


def _installed(**_: Any) -> Callable[..., ClientApp]:
    """In place of Flower's loader, which imports from the unpacked bundle."""

    def load(*_: object) -> ClientApp:
        from client.app import app

        return app

    return load
