"""The clinical sources of one site, each as site.yaml describes it; called by the importer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from client.ingest.tables.delimited import CsvSource, read_csv
from client.ingest.tables.facts import Content, Identities
from client.ingest.tables.fhir import FhirSource, read_fhir
from client.ingest.tables.parquet import ParquetSource, read_parquet
from shared_model.contract import Contract

ClinicalSource = Annotated[CsvSource | ParquetSource | FhirSource, Field(discriminator="kind")]
"""One entry of `clinical:` in site.yaml."""


def read_source(
    source: CsvSource | ParquetSource | FhirSource, *, contract: Contract, identities: Identities, name: str
) -> Content:
    """One source, read whole into rows and facts.

    Args:
        name: how messages, left-out rows and reports name it.

    Raises:
        ContractError, LeakageError, ConfigError: the source as a whole cannot be used; says what to do.
    """
    if isinstance(source, CsvSource):
        return read_csv(source, contract=contract, identities=identities, name=name)
    if isinstance(source, ParquetSource):
        return read_parquet(source, contract=contract, identities=identities, name=name)
    return read_fhir(source, contract=contract, identities=identities, name=name)


def read_sources(
    sources: Sequence[CsvSource | ParquetSource | FhirSource], *, contract: Contract, identities: Identities
) -> list[Content]:
    """All of them, in order. Where two give the same field of one woman, the earlier one is believed.

    They are named by their number and kind, because a path may hold a name.
    """
    return [
        read_source(source, contract=contract, identities=identities, name=f"clinical source {number} ({source.kind})")
        for number, source in enumerate(sources, start=1)
    ]
