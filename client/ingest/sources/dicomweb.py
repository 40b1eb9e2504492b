"""Films from an archive by DICOMweb: QIDO-RS to ask, WADO-RS to fetch, one film a request (PS3.18 10.4, 10.6)."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from pydantic import Field, field_validator, model_validator
from pydicom.dataset import Dataset

from client.ingest.settings import SitePath
from client.ingest.sources.archive import ArchiveSource
from client.ingest.sources.gather import Announced
from client.ingest.sources.intake import Intake
from client.ingest.sources.lookup import STUDY_KEYS
from client.ingest.sources.objects import is_uid
from client.ingest.sources.retry import LostError
from client.ingest.sources.secrets import Secret
from client.ingest.sources.settings import Studies
from client.ingest.sources.tls import https_context
from client.ingest.sources.web import Answer, TooLargeError, Web, only_part
from client.ingest.sources.windows import Window, all_studies
from shared_model.errors import SourceError

STUDY_UID, SERIES_UID, FILM_UID, SOP_CLASS = "0020000D", "0020000E", "00080018", "00080016"
MODALITY, PATIENT_ID = "00080060", "00100020"
_PAGE = 200  # answers to ask for at a time
_SHORTEST_PAGE = 50  # a shorter one is the last: no server's own limit is below this
_MAX_ANSWERS = 1_000_000  # to one query
_MAX_JSON_BYTES = 64 << 20
_GONE = 2  # films in a row at which the connection broke: it is not the film, the server is away
_ENVELOPE = 64 << 10  # of a multipart answer around its part
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as it is stored (PS3.18 8.7.3.5.2)


class DicomWebSource(ArchiveSource):
    """An entry `kind: dicomweb` of a site's films.

    url: of the service, say https://archive/dicom-web. ca: PEM of who signs its certificate; null: whom this machine
    trusts. user and secret: HTTP Basic; secret alone: a bearer token. unencrypted: permit http:// to another machine,
    then without a secret.
    """

    kind: Literal["dicomweb"] = "dicomweb"
    url: str = Field(min_length=8, max_length=1000)
    ca: SitePath | None = None
    user: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[\x21-\x39\x3b-\x7e]+$")
    secret: Secret | None = None
    unencrypted: bool = False
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    studies: Studies

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("expected https://host[:port]/path, without query")
        if parts.username is not None or parts.password is not None:
            raise ValueError("no user or password belongs into url; use user and secret")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _safe(self) -> DicomWebSource:
        if self.user is not None and self.secret is None:
            raise ValueError("user needs secret")
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not _is_this_machine(parts.hostname or ""):
            if not self.unencrypted:
                raise ValueError("films would travel unencrypted; use https, or set unencrypted: true")
            if self.secret is not None:
                raise ValueError("a secret must not travel unencrypted; use https")
        return self

    @contextmanager
    def _open(self, intake: Intake | None, max_bytes: int) -> Iterator[_WebArchive]:
        context = https_context(self.ca) if self.url.startswith("https") else None
        name = f"the archive {urlsplit(self.url).netloc}"
        with Web(name, context=context, headers=self._credentials(), timeout_seconds=self.timeout_seconds) as web:
            yield _WebArchive(name, self, web, intake, max_bytes)

    def _credentials(self) -> dict[str, str]:
        if self.secret is None:
            return {}
        secret = self.secret.read()
        if self.user is None:
            return {"Authorization": f"Bearer {secret}"}
        return {"Authorization": "Basic " + base64.b64encode(f"{self.user}:{secret}".encode()).decode()}


class _WebArchive:
    """The archive as gather sees it. intake: takes what is delivered; None: it is only asked."""

    def __init__(self, name: str, source: DicomWebSource, web: Web, intake: Intake | None, max_bytes: int) -> None:
        self.name, self._source, self._web, self._intake, self._max_bytes = name, source, web, intake, max_bytes

    def studies(self) -> Iterator[str]:
        """StudyInstanceUIDs, by woman or by month."""
        wanted, patients = self._source.studies, self._source.studies.patient_ids()
        for first, last in wanted.months() if patients is None else ():
            yield from all_studies(Window(first, last), self._window, name=self.name)
        for patient in patients or ():
            dates = Window(wanted.first, wanted.last).dates
            for study in self._ask("studies", PatientID=patient, ModalitiesInStudy="MG", StudyDate=dates):
                if _value(study, PATIENT_ID) == patient:  # archives may match more generously than asked
                    yield _value(study, STUDY_UID)

    def studies_of(self, patient: str) -> list[Dataset]:
        """Her studies; archives may match more generously than asked."""
        found = []
        for study in self._ask("studies", PatientID=patient, ModalitiesInStudy="MG"):
            if _value(study, PATIENT_ID) == patient:
                found.append(Dataset())
                for keyword, tag in STUDY_KEYS.items():
                    setattr(found[-1], keyword, _value(study, tag))
        return found

    def _window(self, window: Window) -> tuple[list[str], bool]:
        times = {"StudyTime": window.times} if window.times else {}
        found = self._ask("studies", ModalitiesInStudy="MG", StudyDate=window.dates, **times)
        return [_value(study, STUDY_UID) for study in found], False

    def films(self, study_uid: str) -> list[Announced]:
        """Objects of the study's series of modality MG."""
        announced: list[Announced] = []
        for series in self._ask(f"studies/{study_uid}/series", Modality="MG"):
            uid = _value(series, SERIES_UID)
            if not is_uid(uid) or _value(series, MODALITY) not in ("MG", ""):
                continue
            for film in self._ask(f"studies/{study_uid}/series/{uid}/instances"):
                announced.append(Announced(uid, _value(film, FILM_UID), _value(film, SOP_CLASS)))
        return announced

    def fetch(self, study_uid: str, wanted: Sequence[Announced], *, whole_series: bool) -> None:
        """Each film on its own: an answer is then bounded, what came before a loss is kept, and one bad film is one."""
        lost: LostError | None = None
        in_a_row = 0
        for film in wanted:
            try:
                self._fetch(study_uid, film)
                in_a_row = 0
            except LostError as error:
                lost = error
                in_a_row += not isinstance(error, _OneFilmError)
                if in_a_row == _GONE:
                    break
        if lost is not None:
            raise lost

    def _fetch(self, study_uid: str, film: Announced) -> None:
        assert self._intake is not None, "who only asks does not fetch"
        path = f"studies/{study_uid}/series/{film.series_uid}/instances/{film.film_uid}"
        try:
            answer = self._web.get(
                f"{self._source.url}/{path}", accept=_DICOM, max_bytes=self._max_bytes + _ENVELOPE
            )
        except TooLargeError:
            self._intake.refuse(film.film_uid, "too_large")
            return
        if answer.status in (404, 410):
            return  # announced and gone: counted as not delivered
        if answer.status == 406:
            self._intake.refuse(film.film_uid, "unsupported_syntax")
            return
        if answer.status >= 500 and answer.status != 503:
            raise _OneFilmError(f"HTTP status {answer.status} for a film")
        self._check(answer)
        try:
            data = only_part(answer)
        except ValueError:
            raise _OneFilmError("a damaged multipart answer") from None
        self._intake.take_file(data, film_uid=film.film_uid)

    def _ask(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        """All answers to a QIDO-RS query, page by page; a server that cannot turn pages gives the first again."""
        seen: set[tuple[str, ...]] = set()
        offset = 0
        while offset < _MAX_ANSWERS:
            paging = {"fuzzymatching": "false", "limit": str(_PAGE), "offset": str(offset)}
            found = self._page(f"{path}?{urlencode(query | paging)}")
            offset += len(found)
            fresh = {key: item for item in found if (key := _key(item)) not in seen}
            seen |= fresh.keys()
            yield from fresh.values()
            if not fresh or len(found) < _SHORTEST_PAGE:
                return
        raise SourceError(f"{self.name} gives a list without an end", expected=f"at most {_MAX_ANSWERS} answers")

    def _page(self, path_and_query: str) -> list[dict[str, Any]]:
        try:
            answer = self._web.get(
                f"{self._source.url}/{path_and_query}", accept="application/dicom+json", max_bytes=_MAX_JSON_BYTES
            )
        except TooLargeError:
            raise SourceError(f"{self.name} gives a list that is too long", expected=f"{_MAX_JSON_BYTES} bytes",
                              remedy="import a shorter period at a time") from None  # fmt: skip
        self._check(answer)
        if answer.status == 204 or not answer.body:
            return []
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise LostError("an answer that is no DICOM JSON")
        return found

    def _check(self, answer: Answer) -> None:
        if answer.status in (200, 204, 206):
            return
        if answer.status in (408, 429) or answer.status >= 500:
            raise LostError(f"HTTP status {answer.status}")
        remedy = {
            401: "check user and secret", 403: "have this user permitted to query and retrieve",
            404: "check the path in url; it ends where /studies begins",
        }.get(answer.status, "check url; redirects are not followed")  # fmt: skip
        raise SourceError(f"{self.name} refuses the request", found=f"HTTP status {answer.status}", remedy=remedy)


class _OneFilmError(LostError):
    """The server answers, but not with this film."""


def _key(item: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_value(item, tag) for tag in (STUDY_UID, SERIES_UID, FILM_UID))


def _value(item: dict[str, Any], tag: str) -> str:
    """First value of an element of DICOM JSON (PS3.18 F.2), "" when absent or of another form."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    if isinstance(values, list) and values and isinstance(values[0], dict):  # a name, in up to three scripts (F.2.2)
        values = [values[0].get("Alphabetic")]
    return str(values[0]).strip(" \0") if isinstance(values, list) and values and isinstance(values[0], str) else ""


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
