"""De-identification of films: keyed pseudonyms and UIDs, shifted dates, and nothing beside an allow-list."""

from client.ingest.deidentify.deidentifier import Deidentifier

__all__ = ["Deidentifier"]
