"""Which run directories a person means: a run, a folder of runs, or a coordinator's home; for monitors' commands."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from server.monitor.presence import coordinator_of
from server.monitor.rules import OWN_FILE, MonitorFile
from server.monitor.web.runs import is_run
from shared_model.errors import ConfigError

MOST: Final = 200  # of one folder: those that were begun last


def runs_or_none(target: Path) -> list[Path]:
    """The run directories that `target` stands for, by name; it need not be there yet."""
    if is_run(target):
        return [target]
    folder = target / "studies" if (target / "coordinator.json").exists() else target
    try:
        found = [(path.stat().st_mtime, path) for path in folder.iterdir() if is_run(path)]
    except OSError:
        return []
    return sorted(path for _, path in sorted(found)[-MOST:])


def runs_in(target: Path) -> list[Path]:
    """The same.

    Raises:
        ConfigError: there is none, or it is a site's home.
    """
    if (target / "policy.yaml").exists():
        raise ConfigError(f"{target} is a site's home: the rounds' record is the coordinator's",
                          remedy=f"`mammofed site status {target}`, or `mammofed site watch {target}`")  # fmt: skip
    found = runs_or_none(target)
    if not found:
        home = (target / "coordinator.json").exists()
        what = "no study was proposed here yet" if home else "no run directory, and none is in it"
        raise ConfigError(f"{target}: {what}", expected="RUN_DIR, a folder of them, or a coordinator's home",
                          remedy="`mammofed server propose`" if home else "`mammofed simulate` makes one")  # fmt: skip
    return found


def rules_of(place: Path) -> MonitorFile:
    """The alarms' rules of a place: those of the coordinator that it belongs to, where there is one.

    Raises:
        ConfigError: its file is wrong.
    """
    home = home_of(place)
    return MonitorFile.read(home / OWN_FILE if home is not None else None)


def home_of(place: Path) -> Path | None:
    """The coordinator's home that a place is or belongs to; None on one machine."""
    return place if (place / "coordinator.json").is_file() else coordinator_of(place)
