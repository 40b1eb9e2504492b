"""What an archive knows of one woman's studies, asked for by her id; for results that go back to her record.

Nothing is fetched and nothing is stored: a C-FIND or QIDO-RS query by the hospital's own id, whose answers carry her
identity and stay in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pydicom.dataset import Dataset

from client.ingest.sources.gather import Announced
from client.ingest.sources.settings import WILDCARDS

STUDY_KEYS: dict[str, str] = {
    "StudyInstanceUID": "0020000D", "PatientID": "00100020", "PatientName": "00100010", "PatientBirthDate": "00100030",
    "PatientSex": "00100040", "AccessionNumber": "00080050", "StudyID": "00200010", "StudyDate": "00080020",
    "StudyTime": "00080030", "ReferringPhysicianName": "00080090",
}  # fmt: skip
"""What a new object of a study repeats (PS3.3 C.7.1.1, C.7.2.1), with its tag; all of them are keys that an archive has
to or may answer at the level of studies (PS3.4 table C.6-5, PS3.18 table 10.6.3-3)."""


class Lookup(Protocol):
    """An archive that can be asked. Methods raise LostError for what may pass, SourceError for what will not."""

    name: str  # for messages: the kind and address of the archive

    def studies_of(self, patient: str) -> Sequence[Dataset]:
        """Her studies with mammograms, each with the elements of STUDY_KEYS that the archive gave."""
        ...

    def films(self, study_uid: str) -> Sequence[Announced]:
        """The objects of modality MG in a study."""
        ...


class Looks(Protocol):
    """A source of films that can be asked. retries: of one question."""

    retries: int

    def look(self) -> AbstractContextManager[Lookup]:
        """Ask it; the connection is opened with the first question and closed at the end."""
        ...


def can_be_asked(patient: str) -> bool:
    """Whether an id means one woman to an archive: wildcards would mean others too (PS3.4 C.2.2.2.4)."""
    return 0 < len(patient) <= 64 and WILDCARDS.search(patient) is None
