"""Where films come from over the network: PACS (DIMSE) and web archive (DICOMweb), into a de-identified store."""

from client.ingest.sources.collected import FAILED, LEFT_OUT, Collected, Progress
from client.ingest.sources.dicomweb import DicomWebSource
from client.ingest.sources.dimse import DimseSource
from client.ingest.sources.intake import Deidentifies
from client.ingest.sources.received import Received, StudyNote
from client.ingest.sources.secrets import Secret
from client.ingest.sources.settings import Studies, Tls

__all__ = [
    "FAILED",
    "LEFT_OUT",
    "Collected",
    "Deidentifies",
    "DicomWebSource",
    "DimseSource",
    "Progress",
    "Received",
    "Secret",
    "Studies",
    "StudyNote",
    "Tls",
]
