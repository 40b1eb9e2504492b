"""Which run directories a person means: a run, a folder of runs, or a coordinator's home; for monitors' commands."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shared_model.errors import ConfigError

MARKS: Final = ("journal.sqlite", "protocol.json", "launch.json")  # of a run directory
MOST: Final = 200  # of one folder: those that were begun last


def is_run(folder: Path) -> bool:
    """Whether a study was begun, or is prepared, in a folder."""
    return any((folder / name).exists() for name in MARKS)


def runs_in(target: Path) -> list[Path]:
    """The run directories that `target` stands for, by name.

    Raises:
        ConfigError: there is none, or it is a site's home.
    """
    if is_run(target):
        return [target]
    if (target / "policy.yaml").exists():
        raise ConfigError(f"{target} is a site's home: the rounds' record is the coordinator's",
                          remedy=f"`mammofed site status {target}`, or `mammofed site watch {target}`")  # fmt: skip
    home = (target / "coordinator.json").exists()
    folder = target / "studies" if home else target
    found = sorted((path for path in folder.iterdir() if is_run(path)), key=lambda path: path.stat().st_mtime) if (
        folder.is_dir()) else []  # fmt: skip
    if not found:
        what = "no study was proposed here yet" if home else "no run directory, and none is in it"
        raise ConfigError(f"{target}: {what}", expected="RUN_DIR, a folder of them, or a coordinator's home",
                          remedy="`mammofed server propose`" if home else "`mammofed simulate` makes one")  # fmt: skip
    return sorted(found[-MOST:])
