"""No code from the wire: stands before the commands that Flower's SuperExec starts, at sites and at the coordinator.

SuperExec starts one command from PATH for each task, named by the task's type, and Flower's own would unpack and
import the bundle (FAB) that came with it. Here the commands of one type check the bundle by its hash, which must be
that of the one bundle that this release itself makes, and those of all other types refuse. Whoever sends a task
chooses its type: a run of an `agentapp` reaches a SuperNode as well as one of a `clientapp` does.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from shared_model.errors import ConfigError, ProtocolError
from shared_model.flower_app import write_app

BUNDLES = "MAMMOFED_BUNDLES"  # environment: path of the list of bundles, one SHA-256 a line
MAX_LIST_BYTES = 1 << 16


def bundle_sha256() -> str:
    """Hex SHA-256 of the bundle that the installed release makes of the app of a study."""
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory(prefix="mammofed-") as folder:
        return hashlib.sha256(build_fab_from_disk(write_app(Path(folder) / "app"))).hexdigest()


def read_list() -> frozenset[str]:
    """The hashes that are taken here, from the file that the environment names.

    Raises:
        ConfigError: the list is absent, empty or too long.
    """
    try:
        with Path(os.environ.get(BUNDLES, "")).open(encoding="ascii") as stream:
            hashes = frozenset(stream.read(MAX_LIST_BYTES).split())
    except (OSError, UnicodeDecodeError):
        hashes = frozenset()
    if not hashes:
        raise ConfigError("the list of app bundles is absent or empty", expected=f"a file named by {BUNDLES}",
                          remedy="`mammofed site join` and `mammofed server serve` write it")  # fmt: skip
    return hashes


def checked(then: Callable[..., Path], allowed: frozenset[str]) -> Callable[..., Path]:
    """In place of Flower's `install_from_fab`: `then` with the same arguments, for a bundle that is allowed."""

    def check(content: bytes, *arguments: object, **more: object) -> Path:
        found = hashlib.sha256(content).hexdigest()
        if found not in allowed:
            raise ProtocolError("an app came that is not of this release; it was not opened", found=found[:16],
                                expected="the bundle of the installed release",
                                remedy="install the study's release, or ask the coordinator what this is")  # fmt: skip
        return then(content, *arguments, **more)

    return check


def write_commands(folder: Path, ours: Mapping[str, str]) -> None:
    """Write a command for each type of task into `folder`, which comes first in the PATH of SuperExec.

    Args:
        ours: command -> module whose `main` stands for it; all others refuse.
    """
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    folder.mkdir(parents=True, exist_ok=True)
    for command in TASK_TYPE_TO_COMMAND.values():
        text = f'import sys\n\nsys.exit("{command}: MammoFed has no such app; what came was not opened")\n'
        if command in ours:
            text = f"from {ours[command]} import main\n\nmain()\n"
        path = folder / command
        path.write_text(f"#!{sys.executable} -P\n{text}", encoding="utf-8")
        path.chmod(0o755)
