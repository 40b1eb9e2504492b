"""Generates the hospitals of a study as folders of DICOM files and tables, in parallel, once; called by launch.

<cache>/<recipe hash>/<hospital>/dicom/<woman>/IM000n.dcm   films, For Presentation
                                /clinical.csv               patient_id, label, exam_date, fields of the data contract
                                /truth.csv                  sop_uid, patient_id, kind, row0, col0, row1, col1 (ends out)
<cache>/<recipe hash>/recipe.json                           what it was made from
"""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from shared_model.errors import ConfigError, StorageError
from simulations.made_once import made_once
from simulations.population.recipe import recipe, recipe_sha256
from simulations.population.specs import HospitalSpec, Population
from simulations.population.women import FIELDS, Truth, write_woman

Progress = Callable[[int, int], None]
Made = list[tuple[int, dict[str, str], list[Truth]]]

CHUNK = 16  # women a task: some 0.2 s of work, so that progress moves and the last worker is not waited for long
MARK = "recipe.json"  # written last
TRUTH_COLUMNS = ("sop_uid", "patient_id", "kind", "row0", "col0", "row1", "col1")


def generate(
    population: Population, cache_dir: Path, *, workers: int, progress: Progress | None = None
) -> dict[str, Path]:
    """Make all hospitals, or find them in the cache; returns each one's source folder by name, the held-out one too.

    Args:
        cache_dir: populations live here under the first 16 letters of their recipe's hash. What is there is
            complete: the folder is renamed into place when everything is written.
        workers: processes; 1 works in this one. The result does not depend on it.
        progress: called with (women made, women in all).

    Raises:
        ConfigError: workers < 1.
        StorageError: the films cannot be written (disk full, no permission).
    """
    if workers < 1:
        raise ConfigError("workers: must be at least 1", found=workers)
    home = cache_dir / recipe_sha256(population)[:16]
    total = sum(spec.patients for spec in population.all)
    if not (home / MARK).exists():
        try:
            _make(population, home, workers=workers, progress=progress or _silent)
        except OSError as error:
            raise StorageError(
                f"synthetic hospitals cannot be written under {cache_dir}",
                found=error.strerror,
                remedy="free some space or choose another cache folder",
            ) from error
    elif progress is not None:
        progress(total, total)
    return {spec.name: home / spec.name for spec in population.all}


def _make(population: Population, home: Path, *, workers: int, progress: Progress) -> None:
    """Write all hospitals, and last what they were made from."""
    with made_once(home, mark=MARK) as folder:
        total, done = sum(spec.patients for spec in population.all), 0
        made: dict[str, Made] = {spec.name: [] for spec in population.all}
        for spec in population.all:
            (folder / spec.name / "dicom").mkdir(parents=True)
        for name, part in _work(population, folder, workers):
            made[name] += part
            done += len(part)
            progress(done, total)
        for spec in population.all:
            _write_tables(folder / spec.name, spec, sorted(made[spec.name], key=lambda woman: woman[0]))
        (folder / MARK).write_text(json.dumps(recipe(population), indent=2) + "\n")


def _work(population: Population, folder: Path, workers: int) -> Iterator[tuple[str, Made]]:
    """Results of all chunks, in the order in which they are done, few in flight at a time."""
    tasks = (
        (spec, range(start, min(start + CHUNK, spec.patients)))
        for spec in population.all
        for start in range(0, spec.patients, CHUNK)
    )
    if workers == 1:
        for spec, indices in tasks:
            yield _write_women(population, spec, indices, folder)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of whatever is running here
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending: set[Future[tuple[str, Made]]] = set()
        for spec, indices in tasks:
            pending.add(pool.submit(_write_women, population, spec, indices, folder))
            while len(pending) >= 4 * workers:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)


def _write_women(population: Population, spec: HospitalSpec, indices: Sequence[int], folder: Path) -> tuple[str, Made]:
    """A worker's task."""
    home = folder / spec.name
    return spec.name, [(index, *write_woman(population, spec, index, home)) for index in indices]


def _write_tables(folder: Path, spec: HospitalSpec, made: Made) -> None:
    fields = [field for field in FIELDS if field not in spec.missing_columns]
    with (folder / "clinical.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["patient_id", "label", "exam_date", *fields], lineterminator="\n")
        table.writeheader()
        table.writerows(row for _, row, _ in made)
    with (folder / "truth.csv").open("w", newline="") as stream:
        truth = csv.writer(stream, lineterminator="\n")
        truth.writerow(TRUTH_COLUMNS)
        truth.writerows((t.sop_uid, t.patient_id, t.kind, *t.box) for _, _, truths in made for t in truths)


def _silent(done: int, total: int) -> None:
    """No progress wanted."""
