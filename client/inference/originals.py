"""The way back from a de-identified film to the hospital's own: patient, study, UIDs; for results that go to a record.

A film of a folder is its own original. One that came from a PACS was de-identified on the way, and no list of old and
new UIDs is kept: under the site's key the importer remembers who is behind a pseudonym, and nothing else. So the PACS
is asked again, by her id, and what it answers is taken through the key: pseudonym, study and film must be those that
the film bears. Another key, or another woman's id, leads nowhere. What is found stays in memory and in her objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import pydicom
from pydicom.dataset import Dataset

from client.inference.cases import Case, Film
from client.ingest.deidentify import Deidentifier
from client.ingest.imports import source_of
from client.ingest.site_file import SiteFile
from client.ingest.sources import DicomWebSource, DimseSource
from client.ingest.sources.gather import Announced
from client.ingest.sources.lookup import STUDY_KEYS, Lookup, can_be_asked
from client.ingest.sources.objects import is_uid, text
from client.ingest.sources.retry import Backoff, LostError
from shared_model.errors import SourceError
from shared_model.imaging.header import quiet_pydicom

T = TypeVar("T")
Source = DimseSource | DicomWebSource
NOT_PLACED: dict[str, str] = {
    "unknown_patient": "her own id is not known here, or was not given to this key; name her with --patient",
    "id_not_askable": "her id holds a wildcard, so that a PACS would take it for other women's too",
    "source_gone": "site.yaml does not name the PACS any more that her films came from",
    "not_in_pacs": "the PACS has no such exam under her id: it was removed, or her id was changed there; import again",
    "film_not_in_pacs": "the PACS has the exam, and a film that was scored is not in it any more; import again",
}
"""Reasons for which a result cannot be brought to a record."""
_OF_THE_FILM = ("Modality", "Rows", "Columns", "PatientOrientation")  # what de-identification leaves as it is


class NotPlacedError(Exception):
    """There is no way back for a woman's films. reason: of NOT_PLACED."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(NOT_PLACED[reason])


class Originals:
    """Headers of films as the hospital has them; a context manager, because the PACS stays connected between women.

    Args:
        deidentifier: under the site's key.
        backoff: of one question; None: as often as the source's `retries`.
    """

    def __init__(self, site: SiteFile, deidentifier: Deidentifier, *, backoff: Backoff | None = None) -> None:
        self._site, self._deidentifier, self._backoff = site, deidentifier, backoff
        self._stack, self._open = ExitStack(), dict[str, Lookup]()
        self._answers: dict[tuple[str, str, str], Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def of(self, case: Case) -> dict[str, Dataset]:
        """Her films' headers without pixels, by view.

        Raises:
            NotPlacedError: there is no way back to one of them.
            SourceError: the PACS cannot be reached, or refuses.
        """
        self._answers.clear()  # of the woman before
        return {view: self._original(case, film) for view, film in case.films.items()}

    def _original(self, case: Case, film: Film) -> Dataset:
        with quiet_pydicom():
            header = pydicom.dcmread(film.path, stop_before_pixels=True)
        if not film.received:
            return header
        if not case.patient_id or self._deidentifier.pseudonym(case.patient_id) != text(header, "PatientID"):
            raise NotPlacedError("unknown_patient")
        if not can_be_asked(case.patient_id):
            raise NotPlacedError("id_not_askable")
        source = source_of(self._site, film.path)
        if source is None:
            raise NotPlacedError("source_gone")
        lookup = self._lookup(source)
        studies = self._ask(source, lookup, lookup.studies_of, case.patient_id)
        study = next((s for s in studies if self._is(text(s, "StudyInstanceUID"), header, "StudyInstanceUID")), None)
        if study is None:
            raise NotPlacedError("not_in_pacs")
        for found in self._ask(source, lookup, lookup.films, text(study, "StudyInstanceUID")):
            if self._is(found.film_uid, header, "SOPInstanceUID"):
                return _merged(study, found, header)
        raise NotPlacedError("film_not_in_pacs")

    def _is(self, uid: str, header: Dataset, keyword: str) -> bool:
        """Whether a UID of the PACS is, under the key, what a de-identified film bears."""
        return is_uid(uid) and self._deidentifier.uid(uid) == text(header, keyword)

    # --- the PACS ---

    def _lookup(self, source: Source) -> Lookup:
        key = source.model_dump_json()
        if key not in self._open:
            self._open[key] = self._stack.enter_context(source.look())
        return self._open[key]

    def _ask(self, source: Source, lookup: Lookup, question: Callable[[str], Sequence[T]], about: str) -> Sequence[T]:
        """The answer, asked for once a woman, again after a loss."""
        key = (lookup.name, question.__name__, about)
        if key not in self._answers:
            try:
                self._answers[key] = (self._backoff or Backoff(source.retries)).run(lambda: question(about))
            except LostError as error:
                raise SourceError(
                    f"{lookup.name} is lost, and only it knows whose record a result belongs to", found=error.words,
                    expected="an archive that answers", remedy="check the archive and the network, then predict again; "
                    "the scores are written",
                ) from None  # fmt: skip
        answer: Sequence[T] = self._answers[key]
        return answer


def _merged(study: Dataset, film: Announced, header: Dataset) -> Dataset:
    """What the PACS says of patient and study, and of the film what a result refers to."""
    made = Dataset()
    for keyword in STUDY_KEYS:
        if keyword in study:
            made[keyword] = study[keyword]
    for keyword in _OF_THE_FILM:
        if keyword in header:
            made[keyword] = header[keyword]
    made.SOPInstanceUID, made.SeriesInstanceUID = film.film_uid, film.series_uid
    made.SOPClassUID = film.sop_class or header.SOPClassUID
    return made


def describe(reasons: Mapping[str, int]) -> list[str]:
    """Sentences for a terminal, one a reason."""
    return [f"{count} without objects for the PACS: {NOT_PLACED[reason]}" for reason, count in sorted(reasons.items())]
