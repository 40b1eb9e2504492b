"""De-identification of films: keyed pseudonyms and UIDs, shifted dates, and nothing beside an allow-list."""

from client.ingest.deidentify.deidentifier import OLDEST, Deidentifier

__all__ = ["OLDEST", "Deidentifier"]
