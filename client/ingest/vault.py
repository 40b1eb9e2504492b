"""The importer's private memory: who is behind a pseudonym, and what reading a film gave; one SQLite file.

Identities and paths are encrypted under the importer's key, so that the file gives nobody away without it. What reading
a film gave is kept de-identified, by film and by the settings it was read with: a second import decodes what is new.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared_model.errors import ConfigError, StorageError

SCHEMA_VERSION = 1
_COMMIT_SECONDS = 2.0  # what a kill costs at most is decoded again
_SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS identities (pseudonym TEXT PRIMARY KEY, patient BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS places (kind TEXT NOT NULL, ordinal INTEGER NOT NULL, place BLOB NOT NULL,
    PRIMARY KEY (kind, ordinal)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (film TEXT NOT NULL, work TEXT NOT NULL, stamp TEXT NOT NULL, patient TEXT NOT NULL,
    answer TEXT NOT NULL, pixels BLOB, PRIMARY KEY (film, work));
CREATE INDEX IF NOT EXISTS answers_by_patient ON answers (patient);
CREATE TABLE IF NOT EXISTS members (content TEXT NOT NULL, pseudonym TEXT NOT NULL, imported TEXT NOT NULL,
    PRIMARY KEY (content, pseudonym)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS excluded (pseudonym TEXT PRIMARY KEY, since TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Answer:
    """What reading a film gave. answer: JSON. pixels: of a view, float16 [2, H, W] in C order, or None."""

    answer: str
    pixels: bytes | None


class Vault:
    """The file, opened by one import or command at a time in any number of threads; a context manager.

    Args:
        path: made when absent, readable by its owner only.
        key: the importer's.

    Raises:
        ConfigError: the file was made with another key.
        StorageError: the disk refuses, or the file is damaged or of another version.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._places = _derive(key, b"mammofed places")
        self._cipher = Fernet(base64.urlsafe_b64encode(_derive(key, b"mammofed identities")))
        self._mutex, self._written = threading.RLock(), time.monotonic()
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
        try:
            with self._told():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA secure_delete = ON")  # an objection leaves nothing of her behind
                self._db.executescript(_SCHEMA)
            self._check(key)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._told():
            self._db.commit()
            self._db.close()

    def _check(self, key: bytes) -> None:
        made_by = f"{SCHEMA_VERSION}:{hmac.new(key, b'mammofed vault', hashlib.sha256).hexdigest()[:32]}"
        known = self.note("made_by")
        if known is None:
            self.set_note("made_by", made_by)
        elif known.partition(":")[0] != str(SCHEMA_VERSION):
            raise StorageError(f"{self.path} is of another version", found=known.partition(":")[0],
                               expected=SCHEMA_VERSION,
                               remedy="remove it; the next import makes it anew (objections have to be entered again)",
                               )  # fmt: skip
        elif not hmac.compare_digest(known, made_by):
            raise ConfigError(
                f"{self.path} was made with another key", expected="the key that the first import used",
                remedy="give the old key back; with a new one, choose a new work folder and a new cohort",
            )  # fmt: skip

    # --- small values ---

    def note(self, name: str) -> str | None:
        """A value that an earlier command noted."""
        row = self._one("SELECT value FROM notes WHERE name = ?", name)
        return None if row is None else str(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Note a value; it is on the disk when this returns."""
        self._run("INSERT OR REPLACE INTO notes VALUES (?, ?)", name, value, commit=True)

    # --- identities ---

    def remember(self, pseudonym: str, patient_id: str) -> None:
        """Who is behind a pseudonym, encrypted."""
        if pseudonym and self._one("SELECT 1 FROM identities WHERE pseudonym = ?", pseudonym) is None:
            self._run("INSERT OR IGNORE INTO identities VALUES (?, ?)", pseudonym, self._sealed(patient_id))

    def patient_of(self, pseudonym: str) -> str | None:
        """The patient id behind a pseudonym, or None where this importer never saw it."""
        row = self._one("SELECT patient FROM identities WHERE pseudonym = ?", pseudonym)
        return None if row is None else self._opened(row[0])

    def set_places(self, kind: str, places: Iterable[str]) -> None:
        """Where the things that a quarantine list numbers from 1 are, encrypted; replaces what was known."""
        with self._mutex, self._told():
            self._db.execute("DELETE FROM places WHERE kind = ?", (kind,))
            rows = ((kind, ordinal, self._sealed(place)) for ordinal, place in enumerate(places, start=1))
            self._db.executemany("INSERT INTO places VALUES (?, ?, ?)", rows)
            self._db.commit()

    def place_of(self, kind: str, ordinal: int) -> str | None:
        """Where the thing of that number is."""
        row = self._one("SELECT place FROM places WHERE kind = ? AND ordinal = ?", kind, ordinal)
        return None if row is None else self._opened(row[0])

    def _sealed(self, text: str) -> bytes:
        return self._cipher.encrypt(text.encode("utf-8", "surrogateescape"))

    def _opened(self, token: bytes) -> str:
        try:
            return self._cipher.decrypt(token).decode("utf-8", "surrogateescape")
        except InvalidToken:
            raise self.damaged() from None

    def damaged(self) -> StorageError:
        """What to raise where something in here cannot be what an import wrote."""
        return StorageError(f"the importer's memory {self.path} is damaged", remedy="remove it, the next import makes "
                            "it anew (objections have to be entered again)")  # fmt: skip

    # --- what reading gave ---

    def film_name(self, path: Path) -> str:
        """Name of a film's file in this store: keyed, because a path may hold a name."""
        digest = hmac.new(self._places, str(path).encode("utf-8", "surrogateescape"), hashlib.sha256)
        return digest.hexdigest()[:32]

    def answer(self, film: str, work: str, stamp: str) -> Answer | None:
        """What reading that film gave when it looked so. stamp: of the file and of all settings."""
        row = self._one("SELECT answer, pixels FROM answers WHERE film = ? AND work = ? AND stamp = ?",
                        film, work, stamp)  # fmt: skip
        return None if row is None else Answer(row[0], row[1])

    def holds(self, film: str, work: str, stamp: str) -> bool:
        """Whether :meth:`answer` knows it, without loading pixels."""
        sql = "SELECT 1 FROM answers WHERE film = ? AND work = ? AND stamp = ?"
        return self._one(sql, film, work, stamp) is not None

    def keep(self, film: str, work: str, stamp: str, answer: Answer, *, patient: str) -> None:
        """Keep what reading gave; at most some seconds of it are lost by a kill. patient: pseudonym or ""."""
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", film, work, stamp, patient, answer.answer,
                  answer.pixels)  # fmt: skip

    def forget_films_but(self, paths: Iterable[Path]) -> int:
        """Forget what films gave that are in no source any more; returns how many answers that were."""
        with self._mutex, self._told():
            self._db.execute("CREATE TEMP TABLE there (film TEXT PRIMARY KEY) WITHOUT ROWID")
            self._db.executemany("INSERT OR IGNORE INTO there VALUES (?)", ((self.film_name(p),) for p in paths))
            count = self._db.execute("DELETE FROM answers WHERE film NOT IN (SELECT film FROM there)").rowcount
            self._db.execute("DROP TABLE there")
            self._db.commit()
        return count

    def forget_refusals(self, reasons: Iterable[str] | None = None) -> int:
        """Forget why films were refused, all or by reason, so that they are read again; returns how many."""
        wanted = None if reasons is None else set(reasons)
        with self._mutex, self._told():
            rows = self._db.execute(
                "SELECT film, work, json_extract(answer, '$.error.reason') FROM answers "
                "WHERE json_extract(answer, '$.error.reason') IS NOT NULL"
            ).fetchall()
            chosen = [(film, work) for film, work, reason in rows if wanted is None or reason in wanted]
            self._db.executemany("DELETE FROM answers WHERE film = ? AND work = ?", chosen)
            self._db.commit()
        return len({film for film, _ in chosen})

    # --- cohorts and objections ---

    def set_members(self, content_sha256: str, pseudonyms: Iterable[str], *, imported: str) -> None:
        """Who was in a cohort of that content: what an objection is compared with."""
        with self._mutex, self._told():
            rows = ((content_sha256, pseudonym, imported) for pseudonym in pseudonyms)
            self._db.executemany("INSERT OR IGNORE INTO members VALUES (?, ?, ?)", rows)
            self._db.commit()

    def cohorts_of(self, pseudonym: str) -> list[tuple[str, str]]:
        """(content hash, when it was imported) of every cohort that a woman was in, oldest first."""
        with self._mutex, self._told():
            return self._db.execute(
                "SELECT content, imported FROM members WHERE pseudonym = ? ORDER BY imported, content", (pseudonym,)
            ).fetchall()

    def exclude(self, pseudonym: str, *, since: str) -> None:
        """Never again: a woman's objection, durable, with all that was kept of her films removed."""
        with self._mutex, self._told():
            self._db.execute("INSERT OR IGNORE INTO excluded VALUES (?, ?)", (pseudonym, since))
            self._db.execute("DELETE FROM answers WHERE patient = ?", (pseudonym,))
            self._db.commit()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def include(self, pseudonym: str) -> bool:
        """Take an objection back; False where there was none."""
        with self._mutex, self._told():
            count = self._db.execute("DELETE FROM excluded WHERE pseudonym = ?", (pseudonym,)).rowcount
            self._db.commit()
            return count > 0

    def excluded(self) -> dict[str, str]:
        """Pseudonyms of women who objected, with the day."""
        with self._mutex, self._told():
            return dict(self._db.execute("SELECT pseudonym, since FROM excluded").fetchall())

    # --- the file ---

    def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        with self._mutex, self._told():
            row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
            return row

    def _run(self, sql: str, *values: object, commit: bool = False) -> None:
        with self._mutex, self._told():
            self._db.execute(sql, values)
            if commit or time.monotonic() - self._written > _COMMIT_SECONDS:
                self._db.commit()
                self._written = time.monotonic()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)  # SQLite's words name no values
            damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            raise StorageError(
                f"the importer's memory {self.path} cannot be used: {reason}",
                remedy="it is damaged: remove it, the next import makes it anew (objections have to be entered again)"
                       if damaged else "make room or check disk and permissions, then start again",
            ) from None  # fmt: skip


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(key)
