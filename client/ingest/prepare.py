"""Turns one site's source folder into a prepared cohort; called by the importer's command and by simulations/launch.

    <source>/dicom/**     DICOM mammograms, any file names
    <source>/clinical.csv one row a patient: patient_id, label, exam_date, fields of the contract

Beside the cohort stand `<cohort>.report.json` (counts) and `<cohort>.quarantine.csv` (everything that is not in it, and
why). What is in the source is in the cohort or in quarantine, always.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ingest.exams import Chosen, choose_films, find_films
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quarantine import Quarantine
from client.ingest.report import PreparationReport, write_beside
from client.ingest.table import SOURCE, Row, Table, read_table
from shared_model.cohort import CohortWriter
from shared_model.contract import Contract
from shared_model.errors import CohortError, ImagingError
from shared_model.imaging import AdmissionPolicy, FilmPool, PipelineConfig, View

Progress = Callable[[int, int], None]


@dataclass
class _Counts:
    """What has been added to the cohort so far."""

    patients: int = 0
    films: int = 0
    positives: int = 0
    image_only: int = 0
    table_only: int = 0
    shrunk: int = 0
    enlarged: int = 0


@dataclass
class _Run:
    """State of one preparation. seen: pseudonyms of all women that a film or a row belongs to."""

    started: float
    site: str
    contract: Contract
    pipeline: PipelineConfig
    pseudonyms: Pseudonyms
    paths: list[Path] = field(default_factory=list)
    table: Table = field(default_factory=Table)
    seen: set[str] = field(default_factory=set)
    quarantine: Quarantine = field(default_factory=Quarantine)
    counts: _Counts = field(default_factory=_Counts)


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
) -> PreparationReport:
    """Check, pseudonymise and decode everything once.

    Args:
        source: folder as above. destination: the cohort's folder, which must not exist yet.
        key: secret of this site for pseudonyms, at least 16 bytes.
        workers: processes that decode films.
        progress: called with (films dealt with, films found).
        declared_spacing_mm: the scanner's pixel spacing, for digitised films whose header has none.
        policy: the site's own rules for films; None: the careful ones.
        pool: running workers of the same pipeline, spacing and policy that the caller keeps for several sites; None:
            `workers` processes of its own (starting them takes longer than the films of a small site).

    Raises:
        CohortError: the source is empty, no patient can be prepared, or the destination exists.
        ContractError, LeakageError: the table as a whole cannot be used.
        StorageError: the disk refuses.
    """
    run = _Run(time.monotonic(), site, contract, pipeline, Pseudonyms(key))
    run.paths = _find(source)
    run.table = read_table(source / SOURCE, contract=contract, pseudonyms=run.pseudonyms, quarantine=run.quarantine)
    writer = CohortWriter(
        destination, site=site, contract_sha256=contract.sha256, pipeline_sha256=pipeline.sha256,
        height=pipeline.height, width=pipeline.width, n_features=contract.n_features,
    )  # fmt: skip
    running: AbstractContextManager[FilmPool] = (
        FilmPool(pipeline, workers=workers, declared_spacing_mm=declared_spacing_mm, policy=policy)
        if pool is None else nullcontext(pool)
    )  # fmt: skip
    with writer, running as films:
        _fill(run, writer, films, progress or _silent)
        if run.counts.patients == 0:
            write_beside(destination, report=_report(run, content=None), quarantine_csv=run.quarantine.to_csv())
            raise CohortError(
                f"site {site}: no patient can be prepared", found=run.quarantine.reasons(), expected="at least one",
                remedy=f"read {destination.name}.quarantine.csv beside {destination}",
            )  # fmt: skip
    report = _report(run, content=writer.content_sha256)
    write_beside(destination, report=report, quarantine_csv=run.quarantine.to_csv())
    return report


def _fill(run: _Run, writer: CohortWriter, pool: FilmPool, progress: Progress) -> None:
    """Choose, decode and add; set aside what does not go in."""
    chosen, owners = choose_films(
        run.paths, pool=pool, pseudonyms=run.pseudonyms, labelled=run.table.rows.keys(), quarantine=run.quarantine
    )
    run.seen = owners | run.table.rows.keys() | run.table.refused
    _add_all(run, writer, _bags(chosen, pool, run.quarantine, progress, found=len(run.paths)))
    for pseudonym in sorted(run.seen - run.table.rows.keys()):
        run.quarantine.add("patient", 0, pseudonym, "not_prepared" if pseudonym in run.table.refused else "no_row")


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


def _bags(
    chosen: Sequence[Chosen], pool: FilmPool, quarantine: Quarantine, progress: Progress, *, found: int
) -> Iterator[tuple[str, dict[str, View]]]:
    """(pseudonym, her views) for each woman with chosen films, in the order of pseudonyms."""
    set_aside = found - len(chosen)
    progress(set_aside, found)

    def decoded() -> Iterator[tuple[Chosen, View | None]]:
        for index, result in pool.run("prepare", [film.path for film in chosen]):
            progress(set_aside + index + 1, found)
            if isinstance(result, View):
                yield chosen[index], result
                continue
            assert isinstance(result, ImagingError)
            quarantine.add_film(chosen[index].ordinal, chosen[index].pseudonym, result)
            yield chosen[index], None

    for pseudonym, films in groupby(decoded(), key=lambda pair: pair[0].pseudonym):
        yield pseudonym, {view.view: view for _, view in films if view is not None}


def _add_all(run: _Run, writer: CohortWriter, bags: Iterator[tuple[str, dict[str, View]]]) -> None:
    """Add every woman with a label, in the order of pseudonyms: neighbours in the cohort then say nothing."""
    bag = next(bags, None)
    for pseudonym in sorted(run.table.rows):
        views: dict[str, View] = {}
        if bag is not None and bag[0] == pseudonym:
            views, bag = bag[1], next(bags, None)
        row = run.table.rows[pseudonym]
        if not views and row.features is None:
            run.quarantine.add("patient", 0, pseudonym, "nothing_usable")
            run.quarantine.add("row", row.ordinal, pseudonym, "not_prepared")
            continue
        pixels = {name: view.pixels for name, view in views.items()}
        writer.add(pseudonym, pixels, row.features, row.label, _attributes(views, row, run.contract))
        _count(run.counts, views, row)


def _count(counts: _Counts, views: dict[str, View], row: Row) -> None:
    counts.patients += 1
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


def _report(run: _Run, *, content: str | None) -> PreparationReport:
    counts, quarantine = run.counts, run.quarantine
    return PreparationReport(
        site=run.site, films=len(run.paths), films_prepared=counts.films, films_quarantined=quarantine.count("film"),
        rows=run.table.found, rows_prepared=counts.patients, rows_quarantined=quarantine.count("row"),
        patients=len(run.seen), patients_prepared=counts.patients, patients_quarantined=quarantine.count("patient"),
        positives=counts.positives, image_only=counts.image_only, table_only=counts.table_only, shrunk=counts.shrunk,
        enlarged=counts.enlarged, reasons=quarantine.reasons(), fields=run.table.fields,
        warnings=tuple(_warnings(len(run.paths), run.table, counts)), contract_sha256=run.contract.sha256,
        pipeline_sha256=run.pipeline.sha256, content_sha256=content, seconds=round(time.monotonic() - run.started, 3),
    )  # fmt: skip


def _warnings(films: int, table: Table, counts: _Counts) -> Iterator[str]:
    if films == 0:
        yield "no film in dicom/: all patients are prepared from the table alone"
    if counts.patients and counts.positives == 0:
        yield "no positive patient: the site can train, but its own metrics will be undefined; check the labels"
    if counts.patients and counts.positives == counts.patients:
        yield "no negative patient: the site can train, but its own metrics will be undefined; check the labels"
    if table.ignored:
        yield f"{len(table.ignored)} columns of clinical.csv are unknown to the contract and were not used"
    if counts.enlarged:
        yield f"{counts.enlarged} films are coarser than the canvas and were enlarged, which adds no detail"
    if counts.shrunk:
        yield f"{counts.shrunk} films are shown at a coarser spacing, because the breast would not fit the canvas"
