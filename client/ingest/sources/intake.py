"""Decides about each object that an archive delivers: asked for? a mammogram? then de-identified -> store.

DIMSE and DICOMweb bring their objects here, so what is accepted does not depend on the way they came. Objects that
nobody asked for are turned away: whoever can reach our port cannot put films into a cohort.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from pydicom.dataset import Dataset

from client.ingest.sources.objects import SYNTAXES, DamagedError, is_uid, parse, split_file, text, to_file
from client.ingest.sources.received import Received
from shared_model.errors import StorageError


class Deidentifies(Protocol):
    """What the sources need of `client.ingest.deidentify.Deidentifier`."""

    def uid(self, uid: str) -> str:
        """The UID that stands for `uid` from now on; always the same."""
        ...

    def dataset(self, dataset: Dataset) -> Dataset:
        """A new data set without identities; its UIDs are those of :meth:`uid`."""
        ...


class Intake:
    """Takes objects from one or several threads.

    broken: the error of a disk that refused; whoever collects has to stop then.
    """

    def __init__(self, store: Received, deidentify: Deidentifies) -> None:
        self._store, self._deidentify = store, deidentify
        self._lock, self._one_by_one = threading.Lock(), threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._asked: dict[str, str] = {}  # de-identified UIDs: film -> study
        self._refused: dict[str, str] = {}
        self._stored: set[str] = set()
        self.broken: StorageError | None = None

    def ask(self, study_uid: str, film_uids: Iterable[str]) -> None:
        """From now on exactly these films are expected (de-identified UIDs); what was noted before is forgotten."""
        with self._lock:
            self._asked = dict.fromkeys(film_uids, study_uid)
            self._refused, self._stored = {}, set()

    def outcome(self) -> tuple[frozenset[str], dict[str, str]]:
        """(films stored since :meth:`ask`, film -> reason of those that came and were refused)."""
        with self._lock:
            return frozenset(self._stored), dict(self._refused)

    def wait_all(self, quiet_seconds: float) -> bool:
        """Wait until every film that was asked for has come, or none came for `quiet_seconds`; whether all have."""
        with self._changed:
            while before := self._missing():
                self._changed.wait(quiet_seconds)
                if self.broken is not None or self._missing() == before:
                    return not self._missing()
            return True

    def _missing(self) -> int:
        return len(self._asked) - len(self._stored | self._refused.keys())

    def take_file(self, data: bytes, *, film_uid: str) -> str | None:
        """As :meth:`take`, for a DICOM file. film_uid: SOPInstanceUID that was asked for."""
        return self._finish(film_uid, lambda: self._reason_of_file(data, film_uid))

    def take(self, encoded: bytes, syntax: str, *, film_uid: str) -> str | None:
        """Take an encoded data set.

        Args:
            film_uid: SOPInstanceUID as the sender announces it, not de-identified.

        Returns:
            None where it is stored now (or was before); otherwise a reason of FAILED, or `unasked`, or `disk`.
        """
        return self._finish(film_uid, lambda: self._reason(encoded, syntax, film_uid))

    def refuse(self, film_uid: str, reason: str) -> None:
        """Note that a film cannot be taken, where its bytes were not even read."""
        self._finish(film_uid, lambda: reason)

    def _finish(self, film_uid: str, decide: Callable[[], str | None]) -> str | None:
        film = self._deidentify.uid(film_uid) if is_uid(film_uid) else ""
        with self._lock:
            if film not in self._asked:
                return "unasked"
        try:
            reason = decide()
        except StorageError as error:
            reason, self.broken = "disk", error
        with self._changed:
            if reason is None:
                self._stored.add(film)
                self._refused.pop(film, None)
            elif reason != "disk" and film not in self._stored:
                self._refused[film] = reason
            self._changed.notify_all()
        return reason

    def _reason_of_file(self, data: bytes, film_uid: str) -> str | None:
        try:
            syntax, encoded = split_file(data)
        except DamagedError:
            return "damaged"
        return self._reason(encoded, syntax, film_uid)

    def _reason(self, encoded: bytes, syntax: str, film_uid: str) -> str | None:
        if len(encoded) > self._store.max_bytes:
            return "too_large"
        if syntax not in SYNTAXES:
            return "unsupported_syntax"
        try:
            dataset = parse(encoded, syntax)
        except DamagedError:
            return "damaged"
        film = self._deidentify.uid(film_uid)
        with self._lock:
            study = self._asked.get(film, "")
        study_uid = text(dataset, "StudyInstanceUID")
        if text(dataset, "SOPInstanceUID") != film_uid or not is_uid(study_uid):
            return "damaged"
        if self._deidentify.uid(study_uid) != study:
            return "damaged"
        if text(dataset, "Modality") != "MG":
            return "other_modality"
        return self._store_film(dataset, syntax, study=study, film=film)

    def _store_film(self, dataset: Dataset, syntax: str, *, study: str, film: str) -> str | None:
        try:
            with self._one_by_one:  # it silences pydicom's warnings while it works, and that is global
                clean = self._deidentify.dataset(dataset)
            # Checked here, because the names in the store and the comparison with the archive hang on it.
            if (text(clean, "SOPInstanceUID"), text(clean, "StudyInstanceUID")) != (film, study):
                return "not_deidentified"
            data = to_file(clean, syntax)
        except Exception:  # a damaged value surfaces in any type, with a text that may repeat it
            return "not_deidentified"
        self._store.put(study, film, data, patient=text(clean, "PatientID"))
        return None
