"""Films from a PACS by DIMSE: C-ECHO, C-FIND, then C-MOVE to our own storage SCP, or C-GET (PS3.4 Annex C, study root).

Hospitals usually permit C-MOVE, to AE titles that they know, and rarely C-GET. Everything is pulled; nothing can be
pushed into the store, because objects that were not asked for are turned away (see intake).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from pydantic import Field, model_validator
from pydicom.dataset import Dataset
from pynetdicom.presentation import build_context

from client.ingest.sources.archive import ArchiveSource
from client.ingest.sources.associations import (
    VERIFICATION,
    accept_films,
    association,
    lost_when_closed,
    status_of,
    storage_contexts,
)
from client.ingest.sources.gather import Announced
from client.ingest.sources.intake import Intake
from client.ingest.sources.lookup import STUDY_KEYS
from client.ingest.sources.objects import is_uid, text
from client.ingest.sources.retry import LostError
from client.ingest.sources.settings import AeTitle, Peer, Port, Studies
from client.ingest.sources.tls import answering_context
from client.ingest.sources.windows import Window, all_studies
from shared_model.errors import SourceError

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
_PENDING = (0xFF00, 0xFF01)
_TOO_MANY = (0xA700, 0xFE00)  # out of resources; and Orthanc's and others' way to cut a long list: as if cancelled
_BROUGHT = (0x0000, 0xB000)  # all, or some, were delivered
_ENOUGH = 3  # requests that were refused before the first that brought something: it is not one film's fault
_MAX_ANSWERS = 1_000_000  # of one query
_UIDS_A_REQUEST = 50  # a list of UIDs in one element; some archives bound it by 4 KiB


class DimseSource(Peer, ArchiveSource):
    """An entry `kind: dimse` of a site's films.

    retrieve: `move` (C-MOVE to our receive_port) or `get` (C-GET). receive_ae: our AE title as the PACS knows it for
    C-MOVE; null: calling_ae. receive_address: local address to listen on. receive_from: AE titles that may deliver;
    null: called_ae alone. With `tls`, deliveries must come by TLS too.
    """

    kind: Literal["dimse"] = "dimse"
    retrieve: Literal["move", "get"] = "move"
    receive_port: Port | None = None
    receive_ae: AeTitle | None = None
    receive_address: str = Field(default="0.0.0.0", max_length=64)  # noqa: S104 - the PACS is another machine
    receive_from: tuple[AeTitle, ...] | None = Field(default=None, min_length=1, max_length=16)
    studies: Studies

    @model_validator(mode="after")
    def _complete(self) -> DimseSource:
        if self.retrieve == "move" and self.receive_port is None:
            raise ValueError("retrieve: move needs receive_port, where the PACS delivers")
        return self

    def _open(self, intake: Intake | None, max_bytes: int) -> _Pacs:
        return _Pacs(self, intake, max_bytes)


class _Pacs:
    """The PACS as gather sees it. Associations are kept open between calls and opened anew after a loss. intake: takes
    what is delivered; None: it is only asked."""

    def __init__(self, source: DimseSource, intake: Intake | None, max_bytes: int) -> None:
        self.name = f"the PACS {source.called_ae} at {source.host}:{source.port}"
        self._source, self._intake, self._max_bytes = source, intake, max_bytes
        self._receiver: Any = None
        self._open = ExitStack()
        self._query: Any = None
        self._retrieve: Any = None
        self._refusals, self._worked = 0, False

    def __enter__(self) -> _Pacs:
        source = self._source
        if source.retrieve == "move" and self._intake is not None:
            assert source.receive_port is not None
            self._receiver = accept_films(
                title=self._our_title(), address=source.receive_address, port=source.receive_port,
                callers=source.receive_from or (source.called_ae,), intake=self._intake, max_bytes=self._max_bytes,
                tls=answering_context(source.tls) if source.tls is not None else None,
                timeout_seconds=source.timeout_seconds,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()
        if self._receiver is not None:
            self._receiver.shutdown()

    def _our_title(self) -> str:
        return self._source.receive_ae or self._source.calling_ae

    # --- what gather asks ---

    def studies(self) -> Iterator[str]:
        """StudyInstanceUIDs, by woman or by month."""
        wanted, patients = self._source.studies, self._source.studies.patient_ids()
        for first, last in wanted.months() if patients is None else ():
            yield from all_studies(Window(first, last), self._ask, name=self.name)
        for patient in patients or ():
            keys = {"PatientID": patient, "StudyDate": Window(wanted.first, wanted.last).dates}
            found, cut = self._find("STUDY", keys | {"ModalitiesInStudy": "MG"})
            if cut:
                raise self._too_many("woman")
            # Archives may match more generously than asked.
            yield from (text(study, "StudyInstanceUID") for study in found if text(study, "PatientID") == patient)

    def studies_of(self, patient: str) -> list[Dataset]:
        """Her studies; archives may match more generously than asked."""
        keys = dict.fromkeys(STUDY_KEYS, "") | {"PatientID": patient, "ModalitiesInStudy": "MG"}
        found, cut = self._find("STUDY", keys)
        if cut:
            raise self._too_many("woman")
        return [study for study in found if text(study, "PatientID") == patient]

    def _ask(self, window: Window) -> tuple[list[str], bool]:
        keys = {"StudyDate": window.dates, "ModalitiesInStudy": "MG"}
        found, cut = self._find("STUDY", keys | ({"StudyTime": window.times} if window.times else {}))
        return list(filter(None, (text(study, "StudyInstanceUID") for study in found))), cut

    def _too_many(self, what: str) -> SourceError:
        return SourceError(f"{self.name} cuts its lists even for one {what}", expected="all answers",
                           remedy="have the PACS's limit of answers raised")  # fmt: skip

    def films(self, study_uid: str) -> list[Announced]:
        """Objects of the study's series of modality MG."""
        announced: list[Announced] = []
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": "", "Modality": "MG"}
        for series in self._find_all("SERIES", keys):
            uid = text(series, "SeriesInstanceUID")
            if not is_uid(uid) or text(series, "Modality") not in ("MG", ""):
                continue
            keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": uid, "SOPInstanceUID": "", "SOPClassUID": ""}
            for found in self._find_all("IMAGE", keys):
                if film := text(found, "SOPInstanceUID"):
                    announced.append(Announced(uid, film, text(found, "SOPClassUID")))
        return announced

    def fetch(self, study_uid: str, wanted: Sequence[Announced], *, whole_series: bool) -> None:
        """C-MOVE or C-GET, a series at a time, by its UID or by those of its films."""
        by_series: dict[str, list[str]] = {}
        for film in wanted:
            by_series.setdefault(film.series_uid, []).append(film.film_uid)
        success = True
        for series, films in by_series.items():
            keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series}
            if whole_series:
                success &= self._bring("SERIES", keys)
                continue
            for start in range(0, len(films), _UIDS_A_REQUEST):
                some = "\\".join(films[start : start + _UIDS_A_REQUEST])
                success &= self._bring("IMAGE", keys | {"SOPInstanceUID": some})
        if success and self._intake is not None:  # then what has not come yet is still on its way
            self._intake.wait_all(max(self._source.quiet_seconds, 0.5))

    # --- the protocol ---

    def _find(self, level: str, keys: dict[str, str]) -> tuple[list[Dataset], bool]:
        """(answers to a C-FIND, whether the PACS says that it cut them)."""
        query = _identifier(level, ({"StudyInstanceUID": "", "PatientID": ""} if level == "STUDY" else {}) | keys)
        opened = self._querying()
        found: list[Dataset] = []
        with lost_when_closed():
            for answer, identifier in opened.send_c_find(query, FIND):
                status = self._status(answer)
                if status in _PENDING:
                    if identifier is not None and len(found) < _MAX_ANSWERS:
                        found.append(identifier)
                elif status in _TOO_MANY:
                    return found, True
                elif status != 0:
                    raise LostError(f"the PACS answered a query with status 0x{status:04X}")
        return found, False

    def _find_all(self, level: str, keys: dict[str, str]) -> list[Dataset]:
        found, cut = self._find(level, keys)
        if cut:
            raise self._too_many("study")
        return found

    def _bring(self, level: str, keys: dict[str, str]) -> bool:
        """One C-MOVE or C-GET; whether the PACS says that all went well. What counts is what the intake has."""
        query, opened, status = _identifier(level, keys), self._retrieving(), 0
        with lost_when_closed():
            if self._source.retrieve == "move":
                answers = opened.send_c_move(query, self._our_title(), MOVE)
            else:
                answers = opened.send_c_get(query, GET)
            for answer, _ in answers:
                status = self._status(answer)
        self._judge(status)
        return status == 0

    def _judge(self, status: int) -> None:
        """Some PACS say that they do not know our title (0xA801), others refuse in words of their own, each time."""
        self._refusals += status not in _BROUGHT
        self._worked |= status in _BROUGHT
        if status == 0xA801 or (self._refusals >= _ENOUGH and not self._worked):
            remedy = "have C-GET permitted there, or choose retrieve: move"
            if self._source.retrieve == "move":
                where = f"with this host and port {self._source.receive_port}"
                remedy = f"have {self._our_title()} registered there as a destination, {where}"
            raise SourceError(f"{self.name} delivers nothing", found=f"status 0x{status:04X}",
                              expected="films, on request", remedy=remedy)  # fmt: skip

    def _status(self, answer: Dataset) -> int:
        try:
            return status_of(answer)
        except LostError:
            self._hang_up()
            raise

    def _querying(self) -> Any:
        return self._connected("_query", lambda: [build_context(VERIFICATION), build_context(FIND)], None)

    def _retrieving(self) -> Any:
        if self._source.retrieve == "move":
            return self._connected("_retrieve", lambda: [build_context(MOVE)], None)
        return self._connected("_retrieve", lambda: [build_context(GET), *storage_contexts()], self._intake)

    def _connected(self, which: str, contexts: Callable[[], list[Any]], intake: Intake | None) -> Any:
        """The association of this name, opened when it is not open; the first of them is tried with C-ECHO."""
        opened = getattr(self, which)
        if opened is None or not opened.is_established:
            opened = self._open.enter_context(
                association(self._source, contexts(), intake=intake, max_bytes=self._max_bytes)
            )
            setattr(self, which, opened)
            self._check(opened, which)
        return opened

    def _check(self, opened: Any, which: str) -> None:
        accepted = {str(context.abstract_syntax) for context in opened.accepted_contexts}
        needed = {"_query": FIND, "_retrieve": MOVE if self._source.retrieve == "move" else GET}[which]
        if needed not in accepted:
            what = {FIND: "C-FIND", MOVE: "C-MOVE", GET: "C-GET"}[needed]
            raise SourceError(f"{self.name} does not permit {what}", expected=f"study root {what} for our AE title",
                              remedy="ask the PACS administrator, or choose the other kind of retrieve")  # fmt: skip
        if VERIFICATION in accepted:
            with lost_when_closed():
                self._status(opened.send_c_echo())

    def _hang_up(self) -> None:
        self._query = self._retrieve = None
        self._open.close()


def _identifier(level: str, keys: dict[str, str]) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value.split("\\") if "\\" in value else value)
    return query
