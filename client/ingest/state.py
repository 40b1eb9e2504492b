"""What `mammofed site data` and `site quarantine` show: read from the cohort and what lies beside it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator

from rich.table import Table

from client.ingest.imports import PLACES_OF, digest_of_list, opened
from client.ingest.quality import findings
from client.ingest.quarantine import COLUMNS
from client.ingest.report import PreparationReport
from client.ingest.site_file import SiteFile
from client.ingest.summary import Summary, summarise
from client.ingest.vault import Vault
from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.errors import CohortError, ConfigError
from shared_model.imaging import SECTIONS

MAX_LIST_BYTES = 1 << 30
Entry = dict[str, str]


def state_of(site: SiteFile) -> Summary:
    """The cohort's state now, with what is wrong with it as a whole among the warnings.

    Raises:
        CohortError: there is no cohort yet, or it is damaged or of another contract.
    """
    contract = load_contract()
    cohort, report = Cohort.open(site.cohort), PreparationReport.read(site.cohort)
    if report.content_sha256 != cohort.content_sha256:
        raise CohortError(
            f"the report beside {site.cohort} is not of this cohort",
            found="an import that prepared nobody" if report.content_sha256 is None else "another cohort's",
            expected="the report of the import that made it",
            remedy="an import was broken off or failed: import again; until then the cohort is the former one",
        )  # fmt: skip
    summary = summarise(cohort, report, contract=contract, threshold=site.threshold)
    found = [str(finding) for finding in findings(cohort, summary, contract=contract)]
    return summarise(cohort, report, contract=contract, threshold=site.threshold, warnings=found)


def entries(site: SiteFile) -> list[Entry]:
    """The quarantine list of the last import.

    Raises:
        CohortError: there is none, or it is damaged.
    """
    path = site.cohort.with_name(site.cohort.name + ".quarantine.csv")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_LIST_BYTES)
        reader = csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
        listed = list(reader)
        if tuple(reader.fieldnames or ()) != COLUMNS or any(None in (*e, *e.values()) for e in listed):
            raise ValueError("not what an import wrote")
        return listed
    except (OSError, ValueError, csv.Error) as error:
        raise CohortError(f"{path} cannot be read", found=type(error).__name__, expected="what an import wrote",
                          remedy="import first") from None  # fmt: skip


def quarantine_table(site: SiteFile, reason: str | None) -> Table:
    """By reason with counts and words; one reason: a line for each thing.

    Raises:
        ConfigError: nothing has that reason.
    """
    listed = entries(site)
    if reason is None:
        table = Table(title=f"Quarantine of {site.site}: {len(listed):,} things", title_justify="left")
        for column in ("kind", "reason", "count", "in words, and what to do"):
            table.add_column(column, justify="right" if column == "count" else "left")
        words = {(entry["kind"], entry["reason"]): entry["words"] for entry in reversed(listed)}
        counts = Counter((entry["kind"], entry["reason"]) for entry in listed)
        for (kind, name), count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
            table.add_row(kind, name, f"{count:,}", words[kind, name])
        return table
    chosen = [entry for entry in listed if entry["reason"] == reason]
    if not chosen:
        raise ConfigError("nothing was set aside for that reason", found=reason,
                          expected=f"one of {sorted({entry['reason'] for entry in listed})}")  # fmt: skip
    table = Table(title=f"{reason}: {chosen[0]['words']}", title_justify="left")
    for column in ("kind", "number", "pseudonym"):
        table.add_column(column)
    for entry in chosen:
        table.add_row(entry["kind"], entry["ordinal"], entry["pseudonym"])
    return table


def entry_lines(site: SiteFile, kind: str, which: str, *, identify: bool) -> Iterator[str]:
    """One thing of the list in lines for a terminal.

    identify: also who and where; both are kept encrypted under the importer's key.

    Raises:
        ConfigError: it is not in the list, or the key is not the importer's.
    """
    column = "pseudonym" if kind == "patient" else "ordinal"
    found = [entry for entry in entries(site) if entry["kind"] == kind and entry[column] == which]
    if not found:
        raise ConfigError(f"no {kind} {which} is in quarantine",
                          remedy="`mammofed site quarantine list` says what there is")  # fmt: skip
    entry = found[0]
    yield f"{kind} {which}: {entry['reason']}"
    yield f"  {entry['words']}"
    if section := SECTIONS.get(entry["reason"]):
        yield f"  standard  {section}"
    if entry["pseudonym"]:
        yield f"  pseudonym {entry['pseudonym']}"
    if not identify:
        return
    with opened(site) as (vault, _):
        if kind != "patient":
            yield f"  place     {_place(site, vault, kind, int(which))}"
        if entry["pseudonym"]:
            yield f"  patient   {_plain(vault.patient_of(entry['pseudonym']) or 'not known to this importer')}"


def _place(site: SiteFile, vault: Vault, kind: str, ordinal: int) -> str:
    """Where it is; places of another import than the list's would name another woman's film."""
    if vault.note(PLACES_OF) != digest_of_list(site):
        return "not known: an import has been broken off since this list was written; import again"
    return _plain(vault.place_of(kind, ordinal) or "not known to this importer")


def _plain(text: str) -> str:
    """A name may hold what a terminal takes for commands; bytes of file names that are no text stay as they are."""
    return "".join(sign if sign.isprintable() or "\udc80" <= sign <= "\udcff" else "\ufffd" for sign in text)
