"""A checksum of every row of the journal, so that what the disk has changed is never taken for what was journalled.

SQLite notices a damaged page only where its structure breaks: a flipped bit in an AUC reads as another AUC, and another
model would be chosen. The journal's own connection therefore keeps, by triggers that live as long as the connection,
one row in `seals` for each row of each table, in the same transaction. It is no signature: whoever can write the file
can write seals. Called by the journal when it opens a file.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator

from shared_model.errors import StorageError

TABLE = """
CREATE TABLE seals (name TEXT NOT NULL, key TEXT NOT NULL, seal TEXT NOT NULL, PRIMARY KEY (name, key)) STRICT;
"""


def keep_seals(db: sqlite3.Connection) -> None:
    """From now on, each row that this connection writes is sealed; nothing where the file has no seals."""
    if not _sealed(db):
        return
    db.create_function("seal_of", -1, _seal, deterministic=True)
    for name, columns, keys in _tables(db):
        new, key = ", ".join(f"new.{column}" for column in columns), _joined(f"new.{column}" for column in keys)
        seal = f"INSERT OR REPLACE INTO seals VALUES ('{name}', {key}, seal_of('{name}', {new}))"  # noqa: S608 - schema
        for event in ("INSERT", "UPDATE"):
            db.execute(f"CREATE TEMP TRIGGER seal_{name}_{event} AFTER {event} ON main.{name} BEGIN {seal}; END")


def check_seals(db: sqlite3.Connection, path: object) -> None:
    """Compare every row with its seal; nothing where the file has none (a journal of an older release).

    Raises:
        StorageError: a page or a row was changed, or rows are missing or too many.
    """
    remedy = "restore the run directory from its backup"
    state = [row[0] for row in db.execute("PRAGMA integrity_check(1)")]
    if state != ["ok"]:
        raise StorageError(f"the journal {path} is damaged: {state[0]}", remedy=remedy)
    if not _sealed(db):
        return
    seals = {(name, key): seal for name, key, seal in db.execute("SELECT name, key, seal FROM seals")}
    for name, columns, keys in _tables(db):
        query = f"SELECT {_joined(keys)}, {', '.join(columns)} FROM {name}"  # noqa: S608 - names of the own schema
        for key, *values in db.execute(query):
            if seals.pop((name, key), None) != _seal(name, *values):
                raise StorageError(f"the journal {path} was changed on the disk", found=f"row {key!r} of {name}",
                                   expected="the row that was journalled", remedy=remedy)  # fmt: skip
    if seals:
        name, key = next(iter(seals))
        raise StorageError(f"the journal {path} was changed on the disk", found=f"no row {key!r} of {name}",
                           expected="the row that was journalled", remedy=remedy)  # fmt: skip


def _sealed(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'seals'").fetchone() is not None


def _tables(db: sqlite3.Connection) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, columns and key columns of each table but `seals`."""
    names = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'seals' ORDER BY name")
    for (name,) in names.fetchall():
        rows = db.execute("SELECT name, pk FROM pragma_table_info(?)", (name,)).fetchall()
        yield name, [column for column, _ in rows], [c for c, place in sorted(rows, key=lambda r: r[1]) if place]


def _joined(columns: Iterable[str]) -> str:
    """SQL for the key of a row, as text also where it is one number."""
    return "'' || " + " || '/' || ".join(columns)


def _seal(name: str, *values: object) -> str:
    """SHA-256 of a row: of its table's name and of its values as Python reads them (int, float, str, None)."""
    return hashlib.sha256(repr((name, *values)).encode("utf-8", "surrogatepass")).hexdigest()
