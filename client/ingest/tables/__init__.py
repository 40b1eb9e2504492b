"""A site's clinical sources (CSV, Parquet, FHIR R4) -> rows and dated facts in one form; called by the importer.

What comes out names nobody: pseudonyms and shifted dates only. `client/ingest/joining.py` makes one row an exam of it.
"""

from client.ingest.tables.delimited import CsvSource, read_csv
from client.ingest.tables.facts import Content, Fact, Identities, LeftOut, Plain, Row
from client.ingest.tables.fhir import FhirSource, read_fhir
from client.ingest.tables.parquet import ParquetSource, read_parquet
from client.ingest.tables.sources import ClinicalSource, read_source, read_sources

__all__ = [
    "ClinicalSource",
    "Content",
    "CsvSource",
    "Fact",
    "FhirSource",
    "Identities",
    "LeftOut",
    "ParquetSource",
    "Plain",
    "Row",
    "read_csv",
    "read_fhir",
    "read_parquet",
    "read_source",
    "read_sources",
]
