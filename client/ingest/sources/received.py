"""The importer's durable store of films that came over the network, de-identified; written by intake, read by prepare.

    <folder>/films/<study>/<film>.dcm  one object each; a film is there whole, or not at all
    <folder>/studies/<study>.json      what is known of a study: announced, complete, refused
    <folder>/arriving/                 partial files, thrown away at the next start
    <folder>/store.json                version, and a check that the site's key is still the same
    <folder>/lock                      one import at a time

Names are hashes of de-identified UIDs: no value of a DICOM file stands in a path. That a film is there is its file's
being there, so a crash at any moment leaves a store that the next import goes on from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.ingest.sources.collected import PERMANENT
from client.ingest.sources.disk import FolderLock, make_folder, read_bounded
from shared_model.errors import ConfigError, StorageError
from shared_model.private_files import sync_folder, write_private

VERSION = 1
MAX_NOTE_BYTES = 4 << 20


def name_of(uid: str) -> str:
    """The name on the disk of a de-identified UID: 32 hex letters."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class StudyNote:
    """What the store knows of a study beside its films.

    patient: pseudonym. announced: digest of the films that the archive announced last. complete: all of these are here
    or were refused for good. refused: name of a film -> reason of PERMANENT.
    """

    patient: str = ""
    announced: str = ""
    complete: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


class Received:
    """A store; a context manager that holds the folder's lock. Methods may be called from several threads.

    Args:
        folder: private to the importer; made when absent.
        max_bytes: of one film's file.

    Raises:
        StorageError: another import works in it, another version wrote it, or the disk refuses.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 256 << 20) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.films_folder, self._studies, self._spool = folder / "films", folder / "studies", folder / "arriving"
        make_folder(folder)
        self._lock, self._mutex = FolderLock(folder), threading.Lock()
        try:
            for path in (self.films_folder, self._studies, self._spool):
                make_folder(path)
            self._clear_spool()
            self._meta = self._read_meta()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def bind(self, check: str) -> None:
        """Tie the store to the site's key: `check` is any text that the key makes, say a hashed UID.

        Raises:
            ConfigError: the films in the store were de-identified with another key.
        """
        known = self._meta.setdefault("key_check", name_of(check))
        if known != name_of(check):
            raise ConfigError(
                f"the films in {self.folder} were de-identified with another key",
                expected="the key that the first import used",
                remedy="give the old key back, or remove the folder and import everything again",
            )  # fmt: skip
        write_private(self.folder / "store.json", json.dumps(self._meta).encode(), spool=self._spool)

    # --- films ---

    def put(self, study_uid: str, film_uid: str, data: bytes, *, patient: str) -> bool:
        """Store a film durably; True where it is new. A film that is delivered twice is one: the first stays.

        Args:
            study_uid, film_uid: de-identified. data: of a DICOM file. patient: her pseudonym.

        Raises:
            StorageError: the disk refuses; nothing is left behind.
        """
        path = self._film(study_uid, film_uid)
        if path.exists():
            return False
        make_folder(path.parent)
        self.update_note(study_uid, patient=patient)  # first, so that no film is ever without her pseudonym
        write_private(path, data, spool=self._spool)
        return True

    def holds(self, study_uid: str, film_uid: str) -> bool:
        """Whether a film is here."""
        return self._film(study_uid, film_uid).exists()

    def paths(self, *, complete_only: bool = False) -> list[Path]:
        """All films, in the order of their paths. complete_only: leave out studies of which films are still missing."""
        whole = {name for name, note in self.notes() if note.complete} if complete_only else None
        folders = sorted(path for path in self.films_folder.iterdir() if whole is None or path.name in whole)
        return [film for folder in folders for film in sorted(folder.glob("*.dcm"))]

    def _film(self, study_uid: str, film_uid: str) -> Path:
        return self.films_folder / name_of(study_uid) / f"{name_of(film_uid)}.dcm"

    # --- studies ---

    def note(self, study_uid: str) -> StudyNote:
        """What is known of a study; an empty note where nothing is, or a damaged one: it is then asked for again."""
        return _note(read_bounded(self._note_path(study_uid), MAX_NOTE_BYTES))

    def update_note(self, study_uid: str, **changes: Any) -> StudyNote:
        """Record what is known of a study now, field by field of :class:`StudyNote`; what did not change costs nothing.

        Raises:
            StorageError: the disk refuses.
        """
        with self._mutex:
            before = self.note(study_uid)
            note = replace(before, **changes)
            if note != before:
                self._write(self._note_path(study_uid), note)
            return note

    def _write(self, path: Path, note: StudyNote) -> None:
        write_private(path, json.dumps(asdict(note), sort_keys=True).encode(), spool=self._spool)

    def notes(self) -> Iterator[tuple[str, StudyNote]]:
        """(name of the study's folder, what is known of it), in order."""
        for path in sorted(self._studies.glob("*.json")):
            yield path.stem, _note(read_bounded(path, MAX_NOTE_BYTES))

    def retry_refused(self) -> int:
        """Forget which films were refused for good, say after a limit was raised; the next import asks again.

        Returns:
            how many films.
        """
        count = 0
        for name, note in list(self.notes()):
            if note.refused:
                count += len(note.refused)
                self._write(self._studies / f"{name}.json", replace(note, refused={}, complete=False))
        return count

    def remove_patient(self, pseudonym: str) -> int:
        """Remove all films of a woman, as she may demand; returns how many. Sources must not be asked for her again.

        Raises:
            StorageError: the disk refuses; some may be gone then, and the rest goes at the next call.
        """
        count = 0
        for name in [name for name, note in self.notes() if note.patient == pseudonym]:
            folder = self.films_folder / name
            try:
                if folder.is_dir():
                    count += sum(1 for _ in folder.glob("*.dcm"))
                    shutil.rmtree(folder)
                    sync_folder(self.films_folder)
                (self._studies / f"{name}.json").unlink(missing_ok=True)  # last: it says whose the films are
                sync_folder(self._studies)
            except OSError as error:
                raise StorageError(f"films in {self.films_folder} could not be removed: {error.strerror}",
                                   remedy="check the folder's permissions, then try again") from None  # fmt: skip
        return count

    def _note_path(self, study_uid: str) -> Path:
        return self._studies / f"{name_of(study_uid)}.json"

    # --- start ---

    def _clear_spool(self) -> None:
        for path in self._spool.iterdir():
            with contextlib.suppress(OSError):  # what cannot be thrown away is only a waste of room
                path.unlink()

    def _read_meta(self) -> dict[str, object]:
        data = read_bounded(self.folder / "store.json", MAX_NOTE_BYTES)
        if data is None:
            return {"version": VERSION}
        try:
            meta = json.loads(data)
        except (ValueError, RecursionError):
            meta = None
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise StorageError(f"{self.folder} is damaged or of another version", expected=f"version {VERSION}",
                               remedy="remove the folder and import again")  # fmt: skip
        return meta


def _note(data: bytes | None) -> StudyNote:
    try:
        raw = json.loads(data or b"{}")
        refused = {str(film): str(reason) for film, reason in dict(raw.get("refused", {})).items()}
        return StudyNote(
            patient=str(raw.get("patient", "")), announced=str(raw.get("announced", "")),
            complete=raw.get("complete") is True,
            refused={film: reason for film, reason in refused.items() if reason in PERMANENT},
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError, RecursionError):
        return StudyNote()
