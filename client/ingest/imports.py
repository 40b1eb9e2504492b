"""One import: site.yaml -> films collected, facts joined, cohort and quarantine written; called by the command line.

The importer is the only process with access to the hospital network. It can be killed at any moment: films that came
are in the store, films that were decoded are remembered, and the cohort is the former one or the new one, whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom.dataset import Dataset

from client.ingest.deidentify import Deidentifier
from client.ingest.deidentify.values import decoded
from client.ingest.exams import find_films
from client.ingest.joining import join
from client.ingest.lesions import read_lesion_types
from client.ingest.prepare import Preparation
from client.ingest.quality import Finding, drift, findings
from client.ingest.quarantine import Quarantine
from client.ingest.reader import FilmReader, SourceFilm
from client.ingest.readings import read_readings
from client.ingest.report import PreparationReport, write_whole_text
from client.ingest.site_file import FolderSource, SiteFile
from client.ingest.sources import Collected, DicomWebSource, DimseSource, Received
from client.ingest.sources.disk import FolderLock, make_folder
from client.ingest.summary import Summary, summarise
from client.ingest.table import Table, encode_women
from client.ingest.tables import Content, read_sources
from client.ingest.vault import Vault
from shared_model.cohort import Cohort, sweep
from shared_model.cohort.others import drop_stale
from shared_model.contract import Contract, load_contract
from shared_model.errors import CohortError, ConfigError
from shared_model.imaging import FilmPool
from shared_model.imaging.header import TAGS, quiet_pydicom

VAULT, RECEIVED, SUMMARY = "memory.sqlite", "received", "summary.json"
PLACES_OF = "places_of"  # note in the vault: digest of the quarantine list whose numbers its places have
_MAX_SUMMARY_BYTES = 1 << 20
Stage = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows a stage of that name; gives what is called with (done, total)."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What one import did. collected: by words for the source. unchanged: the cohort is the same as before.

    findings: rules that the cohort breaks. drifted: what changed since the last import. dropped: further modalities
    (`shared_model.cohort.others`) that were written for the former cohort and are gone with it.
    """

    report: PreparationReport
    collected: Mapping[str, Collected]
    unchanged: bool
    findings: tuple[Finding, ...]
    drifted: tuple[Finding, ...]
    summary: Summary
    dropped: tuple[str, ...] = ()


class _Remembering:
    """The de-identifier of what comes over the network: notes, encrypted, who is behind a pseudonym."""

    def __init__(self, deidentifier: Deidentifier, vault: Vault) -> None:
        self._deidentifier, self._vault = deidentifier, vault

    def uid(self, uid: str) -> str:
        """As :meth:`Deidentifier.uid`."""
        return self._deidentifier.uid(uid)

    def dataset(self, dataset: Dataset) -> Dataset:
        """As :meth:`Deidentifier.dataset`."""
        out = self._deidentifier.dataset(dataset)
        with quiet_pydicom():
            self._vault.remember(str(out.PatientID), decoded(dataset, TAGS["PatientID"]))
        return out


class RememberingNames:
    """The same for clinical sources."""

    def __init__(self, deidentifier: Deidentifier, vault: Vault) -> None:
        self._deidentifier, self._vault = deidentifier, vault

    def pseudonym(self, patient_id: str) -> str:
        """As :meth:`Deidentifier.pseudonym`."""
        pseudonym = self._deidentifier.pseudonym(patient_id)
        self._vault.remember(pseudonym, patient_id)
        return pseudonym

    def date(self, pseudonym: str, yyyymmdd: str) -> str:
        """As :meth:`Deidentifier.date`."""
        return self._deidentifier.date(pseudonym, yyyymmdd)


@contextmanager
def opened(site: SiteFile) -> Iterator[tuple[Vault, Deidentifier]]:
    """The importer's memory and keys, for one command at a time.

    Raises:
        StorageError: another import or command is at work. ConfigError: the key is not the one of the first import.
    """
    key = site.read_key()
    make_folder(site.work)
    lock = FolderLock(site.work)
    try:
        with Vault(site.work / VAULT, key) as vault:
            yield vault, Deidentifier(key)
    finally:
        lock.release()


def import_site(site: SiteFile, *, stage: Stage | None = None, contract: Contract | None = None) -> Imported:
    """Collect, check, de-identify, join, decode, write. Run again, it adds what is new and changes nothing else.

    Args:
        stage: shows progress; None: nothing is shown.
        contract: None: the one that this release ships.

    Raises:
        ConfigError: no source can have labels. SourceError: an archive cannot be reached. CohortError: nobody can be
        prepared. ContractError, LeakageError: a
        clinical source as a whole cannot be used. ConfigError, StorageError: as :func:`opened`.
    """
    if not site.clinical:
        raise ConfigError(
            "clinical: null, and without labels no cohort can be made", found="films alone",
            expected="a source with patient_id, exam_date and label; no further column is needed",
            remedy="name one, as client/SITE_DATA.md says under films only; `mammofed site predict` needs none",
        )  # fmt: skip
    show = stage or (lambda _: nullcontext(lambda done, total: None))
    contract = contract or load_contract()
    pipeline = site.imaging.pipeline()
    with opened(site) as (vault, deidentifier), ExitStack() as stack:
        former = former_summary(site)
        sweep(site.cohort)
        # First, because they are read in seconds and most often wrong; fetching films may take a night.
        with show("Read clinical sources"):
            contents = read_sources(site.clinical, contract=contract, identities=RememberingNames(deidentifier, vault))
            lesions = None if site.lesion_types is None else read_lesion_types(site.lesion_types, deidentifier)
            readings = {} if site.readings is None else read_readings(site.readings, deidentifier.pseudonym)
        films, collected = films_of(site, vault, deidentifier, show, stack)
        vault.set_note(PLACES_OF, "")
        vault.set_places("film", (os.fspath(film.path) for film in films))
        pool = stack.enter_context(FilmPool(
            pipeline, workers=site.workers or os.cpu_count() or 1, policy=site.film_policy.admission(),
            declared_spacing_mm=site.film_policy.declared_spacing_mm,
        ))  # fmt: skip
        preparation = Preparation(
            site=site.site, contract=contract, pipeline=pipeline, films=films, destination=site.cohort, replace=True,
            tables=lambda exams, quarantine: _joined(site, contents, contract, vault, exams, quarantine),
            reader=FilmReader(pool, deidentifier, vault), excluded=vault.excluded().keys(), check_ages=True,
            lesions=lesions,
            readings=readings,
            listed=lambda: vault.set_note(PLACES_OF, digest_of_list(site)),
        )  # fmt: skip
        with show("Check, choose and decode films") as progress:
            report = preparation.run(progress)
        vault.forget_films_but(film.path for film in films)
        assert report.content_sha256 is not None
        cohort = Cohort.open(site.cohort)
        dropped = tuple(drop_stale(cohort))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        vault.set_members(report.content_sha256, cohort.pseudonyms, imported=now)
        summary = summarise(cohort, report, contract=contract, threshold=site.threshold)
        broken = tuple(findings(cohort, summary, contract=contract))
        unchanged = former is not None and former.content_sha256 == summary.content_sha256
        drifted = tuple(drift(former, summary)) if former is not None and not unchanged else ()
        if not unchanged:
            write_whole_text(site.work / SUMMARY, summary.to_json())
    return Imported(report=report, collected=collected, unchanged=unchanged, findings=broken, drifted=drifted,
                    summary=summary, dropped=dropped)  # fmt: skip


def digest_of_list(site: SiteFile) -> str:
    """SHA-256 of the quarantine list that lies beside the cohort, "" where there is none."""
    try:
        with site.cohort.with_name(site.cohort.name + ".quarantine.csv").open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def forget_refusals(site: SiteFile, reasons: Collection[str] | None) -> int:
    """Have the next import read refused films anew, all or by reason; returns how many. Films that an archive sent and
    that were refused at the door are asked for again too."""
    with opened(site) as (vault, _):
        count = vault.forget_refusals(reasons)
    for number, source in enumerate(site.films, start=1):
        if isinstance(source, FolderSource) or reasons is not None:
            continue
        folder = store_folder(site, number, source)
        if folder.is_dir():
            with Received(folder, max_bytes=site.imaging.max_bytes) as store:
                count += store.retry_refused()
    return count


def former_summary(site: SiteFile) -> Summary | None:
    """What the last import that changed the cohort made of it, or None.

    Raises:
        CohortError: it is damaged.
    """
    try:
        with (site.work / SUMMARY).open("rb") as stream:
            return Summary.from_json(stream.read(_MAX_SUMMARY_BYTES + 1).decode("utf-8", "replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CohortError(f"the summary of the last import cannot be read: {error.strerror}",
                          remedy=f"check {site.work / SUMMARY}") from None  # fmt: skip


def store_folder(site: SiteFile, number: int, source: DimseSource | DicomWebSource) -> Path:
    """Where films are kept that came from a source over the network; number: its place in the file, from 1."""
    return site.work / RECEIVED / f"{number}-{source.kind}"


def source_of(site: SiteFile, path: Path) -> DimseSource | DicomWebSource | None:
    """The source that a kept film came from, None where site.yaml does not name it any more."""
    for number, source in enumerate(site.films, start=1):
        if not isinstance(source, FolderSource) and path.is_relative_to(store_folder(site, number, source)):
            return source
    return None


def films_of(
    site: SiteFile, vault: Vault, deidentifier: Deidentifier, show: Stage, stack: ExitStack
) -> tuple[list[SourceFilm], dict[str, Collected]]:
    """Films of all sources in order; those of archives are fetched first."""
    films: list[SourceFilm] = []
    collected: dict[str, Collected] = {}
    remembering = _Remembering(deidentifier, vault)
    for number, source in enumerate(site.films, start=1):
        if isinstance(source, FolderSource):
            if not source.path.is_dir():
                raise ConfigError(f"films {number}: {source.path} is no folder", remedy="correct the path")
            found = find_films(source.path)
            if not found:  # a share that is not mounted looks so; the cohort would lose all its films
                raise ConfigError(f"films {number}: {source.path} holds no file", expected="at least one film",
                                  remedy="is the share mounted? Or remove this source from site.yaml")  # fmt: skip
            films += [SourceFilm(path) for path in found]
            continue
        name = f"films {number} ({source.kind})"
        # The store is the source's own: its number in the file names it, and it stays locked until the films are read.
        folder = store_folder(site, number, source)
        store = stack.enter_context(Received(folder, max_bytes=site.imaging.max_bytes))
        with show(f"Fetch from {name}") as progress:
            collected[name] = source.collect(store, remembering, progress)
        for pseudonym in vault.excluded():  # an archive goes on announcing her films
            store.remove_patient(pseudonym)
        films += [SourceFilm(path, received=True) for path in store.paths(complete_only=True)]
    return films, collected


def _joined(
    site: SiteFile, contents: Sequence[Content], contract: Contract, vault: Vault,
    exams: Mapping[str, Collection[str]], quarantine: Quarantine,
) -> Table:  # fmt: skip
    """One row for each woman, of the exam that is used."""
    result = join(exams, contents, contract=contract, policy=site.clinical_policy)
    offsets = {"row": 0, "file": 0}
    places: dict[str, dict[str, int]] = {"row": {}, "file": {}}
    for content in contents:
        places["row"][content.source], places["file"][content.source] = offsets["row"], offsets["file"]
        offsets["row"] += content.found
        offsets["file"] += max((e.ordinal for e in content.left_out if e.kind == "file"), default=0)
    for entry in result.left_out:
        quarantine.add(entry.kind, places[entry.kind][entry.source] + entry.ordinal, entry.pseudonym, entry.reason)
    vault.set_places("row", (f"{content.source}, row {ordinal}" for content in contents
                             for ordinal in range(1, content.found + 1)))  # fmt: skip
    files = {places["file"][e.source] + e.ordinal: e.path for e in result.left_out if e.kind == "file"}
    vault.set_places("file", (files.get(number, "") for number in range(1, max(files, default=0) + 1)))
    return encode_women(result, contents, contract=contract, source="the clinical sources")
