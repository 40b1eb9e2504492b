"""The importer: what a hospital has -> one prepared cohort, pseudonymised, with everything set aside accounted for."""

from client.ingest.prepare import prepare_site
from client.ingest.report import PreparationReport

__all__ = ["PreparationReport", "prepare_site"]
