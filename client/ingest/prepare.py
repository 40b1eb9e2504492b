"""Turns a site's films and clinical rows into a prepared cohort; called by the importer and by simulations/cohorts.

Beside the cohort stand `<cohort>.report.json` (counts) and `<cohort>.quarantine.csv` (everything that is not in it, and
why). What is in the sources is in the cohort or in quarantine, always.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ingest.deidentify import Deidentifier
from client.ingest.exams import Admitted, Chosen, admit_films, choose_films, find_films
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quality import age_conflict, shared_women
from client.ingest.quarantine import Quarantine
from client.ingest.reader import FilmReader, SourceFilm
from client.ingest.report import PreparationReport, write_beside
from client.ingest.table import SOURCE, Row, Table, read_table
from shared_model.cohort import CohortWriter
from shared_model.contract import Contract
from shared_model.errors import CohortError, ImagingError
from shared_model.imaging import AdmissionPolicy, FilmPool, PipelineConfig, View
from shared_model.lesion_types import LESION_TYPE, lesion_attribute

Progress = Callable[[int, int], None]
Tables = Callable[[Mapping[str, Collection[str]], Quarantine], Table]
"""Reads the clinical sources: (days of exams by pseudonym, where to set things aside) -> one row for each woman."""


@dataclass
class _Counts:
    """What has been added to the cohort so far. rows: that were used for these women."""

    patients: int = 0
    films: int = 0
    rows: int = 0
    positives: int = 0
    image_only: int = 0
    table_only: int = 0
    shrunk: int = 0
    enlarged: int = 0


class _NobodyError(Exception):
    """There is nobody to write."""


class _FoundError(Exception):
    """Women who must not be in the cohort, found while it was written. women: pseudonym -> reason."""

    def __init__(self, women: Mapping[str, str]) -> None:
        self.women = women
        super().__init__(f"{len(women)} women")


@dataclass
class _Attempt:
    """What one pass over the chosen films gave. pictures: digests of each woman's films. conflicts: women whose ages do
    not agree."""

    quarantine: Quarantine
    counts: _Counts = field(default_factory=_Counts)
    pictures: dict[str, frozenset[str]] = field(default_factory=dict)
    conflicts: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """One preparation of one site.

    site, contract, pipeline: of the study. films: of all sources, in order. tables: reads the clinical sources.
    reader: of the films. destination: the cohort's folder. excluded: pseudonyms of women who objected.
    lesions: kinds of cancers by pseudonym, for an evaluator's subgroups (`shared_model.lesion_types`).
    readings: radiologists' decisions by pseudonym, for an evaluator's second-reader section (`shared_model.readings`).
    replace: an older cohort may stand there. check_ages: ages of table and film have to agree. listed: called when the
    quarantine list has been written, also where nobody can be prepared.
    """

    site: str
    contract: Contract
    pipeline: PipelineConfig
    films: Sequence[SourceFilm]
    tables: Tables
    reader: FilmReader
    destination: Path
    excluded: Collection[str] = frozenset()
    lesions: Mapping[str, str] | None = None
    readings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    replace: bool = False
    check_ages: bool = False
    listed: Callable[[], None] = lambda: None

    def run(self, progress: Progress | None = None) -> PreparationReport:
        """Check, choose, decode, write.

        Raises:
            CohortError: no patient can be prepared, or the destination exists.
            ContractError, LeakageError: a table as a whole cannot be used.
            StorageError: the disk refuses.
        """
        started = time.monotonic()
        quarantine = Quarantine()
        if progress is not None:
            progress(0, len(self.films))
        admitted = admit_films(self.films, reader=self.reader, quarantine=quarantine)
        table = self.tables(admitted.exams, quarantine)
        barred: dict[str, str] = dict.fromkeys(self.excluded, "excluded")
        while True:
            attempt = _Attempt(quarantine.copy())
            try:
                content = self._write(attempt, admitted, table, barred, progress or _silent)
                break
            except _FoundError as found:  # rare, and seen only once all films are decoded: once more without them
                barred |= found.women
        report = self._report(attempt, admitted, table, content, started)
        write_beside(self.destination, report=report, quarantine_csv=attempt.quarantine.to_csv())
        self.listed()
        if content is None:
            raise CohortError(
                f"site {self.site}: no patient can be prepared", found=attempt.quarantine.reasons(),
                expected="at least one",
                remedy=f"read {self.destination.name}.quarantine.csv beside {self.destination}",
            )  # fmt: skip
        return report

    def _write(
        self, attempt: _Attempt, admitted: Admitted, table: Table, barred: Mapping[str, str], progress: Progress
    ) -> str | None:
        """Write the cohort; its content hash, or None where nobody can be prepared.

        Raises:
            _FoundError: nothing was written.
        """
        rows = {name: row for name, row in table.rows.items() if name not in barred}
        exams = {name: row.exam for name, row in rows.items()}
        chosen = choose_films(
            admitted, exams=exams, barred={**dict.fromkeys(table.refused, "not_prepared"), **barred},
            quarantine=attempt.quarantine,
        )  # fmt: skip
        for pseudonym in sorted(admitted.seen | table.rows.keys() | table.refused.keys()):
            if pseudonym in barred:
                self._set_aside(attempt, pseudonym, table, reason=barred[pseudonym], rows=barred[pseudonym])
            elif pseudonym not in table.rows:
                attempt.quarantine.add("patient", 0, pseudonym, table.refused.get(pseudonym, "no_row"))
        writer = CohortWriter(
            self.destination, site=self.site, contract_sha256=self.contract.sha256,
            pipeline_sha256=self.pipeline.sha256, height=self.pipeline.height, width=self.pipeline.width,
            n_features=self.contract.n_features, replace=self.replace,
        )  # fmt: skip
        try:
            with writer:
                self._add_all(attempt, writer, table, rows, self._bags(attempt, chosen, progress))
                found = dict.fromkeys(attempt.conflicts, "age_conflict")
                found |= dict.fromkeys(shared_women(attempt.pictures), "shared_films")
                if found:
                    raise _FoundError(found)
                if attempt.counts.patients == 0:
                    raise _NobodyError
        except _NobodyError:
            return None
        return writer.content_sha256

    def _set_aside(self, attempt: _Attempt, pseudonym: str, table: Table, *, reason: str, rows: str) -> None:
        """A woman and the rows that would have been hers."""
        attempt.quarantine.add("patient", 0, pseudonym, reason)
        row = table.rows.get(pseudonym)
        for ordinal in row.ordinals if row is not None else ():
            attempt.quarantine.add("row", ordinal, pseudonym, rows)

    def _bags(
        self, attempt: _Attempt, chosen: Sequence[Chosen], progress: Progress
    ) -> Iterator[tuple[str, dict[str, View]]]:
        """(pseudonym, her views) for each woman with chosen films, in the order of pseudonyms."""
        set_aside = len(self.films) - len(chosen)
        progress(set_aside, len(self.films))

        def decoded() -> Iterator[tuple[Chosen, View | None]]:
            for index, result in self.reader.run("prepare", [film.source for film in chosen]):
                progress(set_aside + index + 1, len(self.films))
                if isinstance(result, View):
                    yield chosen[index], result
                    continue
                assert isinstance(result, ImagingError)
                attempt.quarantine.add_film(chosen[index].ordinal, chosen[index].pseudonym, result)
                yield chosen[index], None

        for pseudonym, films in groupby(decoded(), key=lambda pair: pair[0].pseudonym):
            good = [(film, view) for film, view in films if view is not None]
            pictures = Counter(view.pixel_digest for _, view in good)
            for film, view in good:
                if pictures[view.pixel_digest] > 1:
                    attempt.quarantine.add("film", film.ordinal, pseudonym, "same_picture")
            yield pseudonym, {view.view: view for _, view in good if pictures[view.pixel_digest] == 1}

    def _add_all(
        self, attempt: _Attempt, writer: CohortWriter, table: Table, rows: Mapping[str, Row],
        bags: Iterator[tuple[str, dict[str, View]]],
    ) -> None:  # fmt: skip
        """Add every woman with a label, in the order of pseudonyms: neighbours in the cohort then say nothing."""
        bag = next(bags, None)
        for pseudonym in sorted(rows):
            views: dict[str, View] = {}
            if bag is not None and bag[0] == pseudonym:
                views, bag = bag[1], next(bags, None)
            row = rows[pseudonym]
            if not views and row.features is None:
                self._set_aside(attempt, pseudonym, table, reason="nothing_usable", rows="not_prepared")
                continue
            attempt.pictures[pseudonym] = frozenset(view.pixel_digest for view in views.values())
            attributes = _attributes(views, row, self.contract) | dict(self.readings.get(pseudonym, {}))
            if self.lesions is not None:
                attributes[LESION_TYPE] = lesion_attribute(row.label, self.lesions.get(pseudonym))
            age = _known_number(row.features, self.contract, "age")
            if self.check_ages and any(age_conflict(age, view.age_years) for view in views.values()):
                attempt.conflicts.add(pseudonym)
            pixels = {name: view.pixels for name, view in views.items()}
            writer.add(pseudonym, pixels, row.features, row.label, attributes)
            _count(attempt.counts, views, row)

    def _report(
        self, attempt: _Attempt, admitted: Admitted, table: Table, content: str | None, started: float
    ) -> PreparationReport:
        counts, quarantine = attempt.counts, attempt.quarantine
        seen = admitted.seen | table.rows.keys() | table.refused.keys()
        return PreparationReport(
            site=self.site, films=len(self.films), films_prepared=counts.films,
            films_quarantined=quarantine.count("film"), rows=table.found, rows_prepared=counts.rows,
            rows_quarantined=quarantine.count("row"), patients=len(seen), patients_prepared=counts.patients,
            patients_quarantined=quarantine.count("patient"), positives=counts.positives,
            image_only=counts.image_only, table_only=counts.table_only, shrunk=counts.shrunk,
            enlarged=counts.enlarged, reasons=quarantine.reasons(), fields=dict(table.fields),
            warnings=tuple(_warnings(len(self.films), table, counts)), contract_sha256=self.contract.sha256,
            pipeline_sha256=self.pipeline.sha256, content_sha256=content,
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip


def prepare_site(
    *,
    source: Path,
    destination: Path,
    contract: Contract,
    pipeline: PipelineConfig,
    site: str,
    key: bytes,
    workers: int,
    progress: Progress | None = None,
    declared_spacing_mm: float | None = None,
    policy: AdmissionPolicy | None = None,
    pool: FilmPool | None = None,
    lesions: Mapping[str, str] | None = None,
    readings: Mapping[str, Mapping[str, str]] | None = None,
) -> PreparationReport:
    """Prepare the simplest source, a folder that is read once:

        <source>/dicom/**     DICOM mammograms, any file names
        <source>/clinical.csv one row a patient: patient_id, label, exam_date, fields of the contract

    Args:
        source: folder as above. destination: the cohort's folder, which must not exist yet.
        key: secret of this site for pseudonyms, at least 16 bytes.
        workers: processes that decode films.
        progress: called with (films dealt with, films found).
        declared_spacing_mm: the scanner's pixel spacing, for digitised films whose header has none.
        policy: the site's own rules for films; None: the careful ones.
        pool: running workers of the same pipeline, spacing and policy that the caller keeps for several sites; None:
            `workers` processes of its own (starting them takes longer than the films of a small site).
        lesions: kind of cancer by patient id, for an evaluator's cohort alone.
        readings: radiologists' decisions by patient id, for an evaluator's cohort alone.

    Raises:
        CohortError: the source is empty, no patient can be prepared, or the destination exists.
        ContractError, LeakageError: the table as a whole cannot be used.
        StorageError: the disk refuses.
    """
    deidentifier = Deidentifier(key)
    films, names = [SourceFilm(path) for path in _find(source)], Pseudonyms(key)

    def tables(_: Mapping[str, Collection[str]], quarantine: Quarantine) -> Table:
        return read_table(source / SOURCE, contract=contract, pseudonyms=names, quarantine=quarantine)

    running: AbstractContextManager[FilmPool] = (
        FilmPool(pipeline, workers=workers, declared_spacing_mm=declared_spacing_mm, policy=policy)
        if pool is None else nullcontext(pool)
    )  # fmt: skip
    with running as decoders:
        return Preparation(
            site=site, contract=contract, pipeline=pipeline, films=films, tables=tables,
            reader=FilmReader(decoders, deidentifier), destination=destination,
            lesions=None if lesions is None else {names.of(owner): kind for owner, kind in lesions.items()},
            readings={names.of(owner): said for owner, said in (readings or {}).items()},
        ).run(progress)  # fmt: skip


def _silent(done: int, total: int) -> None:
    """For callers that do not watch."""


def _find(source: Path) -> list[Path]:
    paths = find_films(source / "dicom")
    if not paths and not (source / SOURCE).exists():
        raise CohortError(
            f"the source folder {source} is empty", found="neither dicom/ with films nor clinical.csv",
            expected="DICOM files below dicom/ and a clinical.csv", remedy="check the path, or export the data into it",
        )  # fmt: skip
    return paths


def _count(counts: _Counts, views: dict[str, View], row: Row) -> None:
    counts.patients += 1
    counts.rows += len(row.ordinals)
    counts.films += len(views)
    counts.positives += row.label
    counts.image_only += row.features is None
    counts.table_only += not views
    counts.enlarged += sum(view.factor < 1.0 for view in views.values())
    counts.shrunk += sum(view.shrunk for view in views.values())


def _attributes(views: dict[str, View], row: Row, contract: Contract) -> dict[str, str | float | None]:
    """For subgroups of a report, never for the model: vendor, age in years, density, what the model has of her."""
    first = next(iter(views.values()), None)
    age = _known_number(row.features, contract, "age")
    return {
        "vendor": first.vendor if first is not None else None,
        "age_years": age if age is not None or first is None else first.age_years,
        "density": _known_level(row.features, contract, "breast_density"),
        "inputs": "table" if not views else "image" if row.features is None else "both",
    }


def _known_number(features: NDArray[np.float32] | None, contract: Contract, name: str) -> float | None:
    if features is None or name not in contract.groups or features[contract.groups[name][-1]] != 0.0:
        return None
    field = contract.field(name)
    return round(float(features[contract.groups[name][0]]) * field.scale + field.center, 3)


def _known_level(features: NDArray[np.float32] | None, contract: Contract, name: str) -> str | None:
    if features is None or name not in contract.groups or features[contract.groups[name][-1]] != 0.0:
        return None
    part = features[list(contract.groups[name][:-1])]
    return contract.field(name).levels[int(part.argmax())] if part.any() else None


def _warnings(films: int, table: Table, counts: _Counts) -> Iterator[str]:
    if films == 0:
        yield "no film in the sources: all patients are prepared from the table alone"
    if counts.patients and counts.positives == 0:
        yield "no positive patient: the site can train, but its own metrics will be undefined; check the labels"
    if counts.patients and counts.positives == counts.patients:
        yield "no negative patient: the site can train, but its own metrics will be undefined; check the labels"
    if films and counts.patients and counts.table_only == counts.patients:
        yield "no woman has both a film and a row: is patient_id written as in the films' PatientID (leading zeros)?"
    yield from table.warnings
    if table.ignored:
        yield f"{len(table.ignored)} columns of the clinical sources are unknown to the contract and were not used"
    if counts.enlarged:
        yield f"{counts.enlarged} films are coarser than the canvas and were enlarged, which adds no detail"
    if counts.shrunk:
        yield f"{counts.shrunk} films are shown at a coarser spacing, because the breast would not fit the canvas"
