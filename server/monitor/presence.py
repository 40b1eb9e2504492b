"""Who is alive: the process that runs a study, the coordinator's daemon, and the sites that send it signs of life.

Read from locks, `wanted.json`, `present.json` and the registry of a deployed study's coordinator. On one machine there
are the locks, and the files that trainers touch while they are alive (`shared_model.alive`).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from server.control.roll import FILE, Present, Sign
from shared_model.alive import FOLDER as ALIVE
from shared_model.alive import last_beats
from shared_model.certificates import load_certificate
from shared_model.errors import MammoFedError
from shared_model.private_files import is_held

REHEARSAL = Path("deployment") / "hub"  # of a run directory with engine=deployment
LOCKS = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True)
class Presence:
    """alive: some process works on the study. preparing: the launcher does.

    home: the coordinator's, None on one machine. daemon: it runs. wish: what its operator wants of the study
    (`proposed`, `running`, `stopped`, `ended`), empty elsewhere; wish_reason: why. signs: last signs of life by member;
    known: whether anybody keeps such a list. expires: end of each member's certificate, seconds since 1970; evaluators:
    confirmed members that are one. beats: on one machine, when each party's trainer was alive last, seconds since 1970.
    """

    alive: bool = False
    preparing: bool = False
    home: Path | None = None
    daemon: bool = False
    wish: str = ""
    wish_reason: str = ""
    known: bool = False
    signs: Mapping[str, Sign] = field(default_factory=dict)
    expires: Mapping[str, float] = field(default_factory=dict)
    evaluators: tuple[str, ...] = ()
    beats: Mapping[str, float] = field(default_factory=dict)


def look(run_dir: Path) -> Presence:
    """Who is there; what cannot be read counts as absent, because nothing depends on it."""
    alive = _held(run_dir / "journal.lock")
    preparing = _held(run_dir / ".lock")
    home = coordinator_of(run_dir)
    if home is None:
        return Presence(alive=alive, preparing=preparing, beats=last_beats(run_dir / ALIVE))
    daemon = _held(home / "audit.jsonl")
    wish, reason = _wish(run_dir)
    signs: Mapping[str, Sign] | None = None
    if daemon:
        try:
            signs = Present.read(home / "run" / FILE).members
        except MammoFedError:
            signs = None  # absent, or damaged: it is written anew with the next heartbeat
    return Presence(
        alive=alive, preparing=preparing, home=home, daemon=daemon, wish=wish, wish_reason=reason,
        known=signs is not None, signs=signs or {}, expires=_expiries(home), evaluators=_evaluators(home),
    )  # fmt: skip


def coordinator_of(run_dir: Path) -> Path | None:
    """Home of the coordinator that a run directory belongs to: the one around it, or a rehearsal's inside it."""
    for home in (run_dir.absolute().parent.parent, run_dir / REHEARSAL):
        if (home / "coordinator.json").is_file():
            return home
    return None


def _held(path: Path) -> bool:
    """Whether another process has its flock on a file, without touching the lock where the kernel lists it."""
    try:
        found = path.stat()  # by device too: files of other disks have the same numbers
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        for line in LOCKS.read_text(encoding="ascii").splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place:
                return True
    except (OSError, ValueError):
        pass
    return is_held(path)  # no such list, or another numbering (overlayfs)


def _wish(run_dir: Path) -> tuple[str, str]:
    try:
        found = json.loads((run_dir / "wanted.json").read_bytes())
        return str(found["wish"]), str(found.get("reason", ""))
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _expiries(home: Path) -> dict[str, float]:
    """When each member's valid certificate ends; the latest where there are two."""
    rows = _registered(home, "SELECT site, der FROM certificates WHERE state = 'valid' ORDER BY issued")
    try:
        return {str(site): _end(bytes(der)) for site, der in rows}
    except (ValueError, MammoFedError):
        return {}


def _evaluators(home: Path) -> tuple[str, ...]:
    query = "SELECT site FROM members WHERE role = 'evaluator' AND state = 'confirmed' ORDER BY site"
    return tuple(str(name) for (name,) in _registered(home, query))


def _registered(home: Path, query: str) -> list[tuple[Any, ...]]:
    path = home / "registry" / "registry.sqlite"
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.5)) as db:
            return db.execute(query).fetchall()
    except sqlite3.Error:
        return []


@lru_cache(maxsize=4096)
def _end(der: bytes) -> float:
    return load_certificate(der).not_valid_after_utc.timestamp()
