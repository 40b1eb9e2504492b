"""One hash for all that a journal says, however SQLite lays it out in its file; for the model passport."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

from shared_model.errors import StorageError


def journal_sha256(path: Path) -> str | None:
    """Hex SHA-256 over the seals of a journal's rows, except those of `sessions`, whose times grow while it is open;
    None for a journal of an older release, which has no seals. Check the journal itself by opening it.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise StorageError(f"{path} is absent", expected="the journal of a study")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'seals'").fetchone():
                return None
            digest = hashlib.sha256()
            for row in db.execute("SELECT name, key, seal FROM seals WHERE name != 'sessions' ORDER BY name, key"):
                digest.update("\0".join(row).encode() + b"\n")
            return digest.hexdigest()
    except sqlite3.Error as error:
        raise StorageError(f"the journal {path} is damaged: {error}",
                           remedy="restore the run directory from its backup") from None  # fmt: skip
