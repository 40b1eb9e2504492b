"""Stands where Flower's own `flwr-clientapp` would: runs the installed release, and nothing that came over the wire.

`site join` puts :func:`main` first in the PATH of SuperNode (:mod:`shared_model.flower_gate`). A bundle counts only by
its hash, and even the right one is neither unpacked nor imported.

Three names of Flower 1.41 are replaced here and in `server.gate`, and nowhere else; tests hold them against the pinned
version.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shared_model.flower_gate import checked, read_list

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp


def main() -> None:
    """Run one of Flower's ClientApp processes with the gate in place.

    Raises:
        ConfigError: the site's list is absent.
    """
    from flwr.supernode.runtime import run_clientapp

    run_clientapp.install_from_fab = checked(_not_unpacked, read_list())  # type: ignore[attr-defined]
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


def _not_unpacked(content: bytes, *_: object, **__: object) -> Path:
    return Path()


def _installed(**_: Any) -> Callable[..., ClientApp]:
    """In place of Flower's loader, which imports from the unpacked bundle."""

    def load(*_: object) -> ClientApp:
        from client.app import app

        return app

    return load
