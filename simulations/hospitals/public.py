"""Makes the source folders of a study out of a public data set, once; called by sources.

<cache>/<recipe hash>/<site>/dicom/<woman>/IM000n.dcm   films under the data set's own patient ids
                            /clinical.csv               patient_id, label, exam_date, fields of the data contract
                            /truth.csv                  sop_uid, patient_id, kind, row0, col0, row1, col1 (ends out)
                            /lesions.csv                patient_id, lesion_type; read for the evaluator's cohort alone
<cache>/<recipe hash>/recipe.json                       what it was made from, and the parties in order
                     /left_out.csv                      what of the data set is not in it, and why

From here on the path is a hospital's: `client.ingest.prepare_site` checks, pseudonymises and decodes these folders.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared_model.contract import load_contract
from shared_model.errors import CohortError, StorageError
from shared_model.imaging import PipelineConfig
from shared_model.lesion_types import LESION_TYPE
from simulations.hospitals import cbis_ddsm, manifest, mini_mias
from simulations.hospitals.collection import Collection, Film, Settings, Source, Woman
from simulations.hospitals.film_files import copied_film, digitised_film, identify, write_film
from simulations.hospitals.grey_images import read_grey
from simulations.hospitals.partition import check_sizes, partition
from simulations.made_once import made_once
from simulations.population.generate import MARK, TRUTH_COLUMNS
from simulations.population.seeds import uid

Progress = Callable[[int, int], None]
SOURCES: Mapping[str, Source] = {"cbis_ddsm": cbis_ddsm, "manifest": manifest, "mini_mias": mini_mias}
_LIBRARIES = ("numpy", "pydicom", "pillow")  # that decide bytes
_PLACES = ("source", "tables", "clinical")  # where files lie; what is in them counts, not where
_WHOLE_BYTES = 1 << 20  # files up to this size are hashed; of larger ones size and time of change count


def public_sources(
    config: Mapping[str, Any], cache_dir: Path, *, pipeline: PipelineConfig, workers: int, progress: Progress
) -> dict[str, Path]:
    """Source folder of each party by name, the held-out one last, made or found in the cache.

    Args:
        config: the whole configuration; `cohort`, `sites`, `seed` decide.
        progress: called with (women written, women in all).

    Raises:
        ConfigError, CohortError, LeakageError: the data set cannot be used, in words.
        StorageError: the films cannot be written.
    """
    settings: Settings = config["cohort"]
    kind = str(settings["kind"])
    recipe = _recipe(config, SOURCES[kind].inputs(settings))
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    home = cache_dir / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not (home / MARK).exists():
        collection = SOURCES[kind].collect(settings, pipeline=pipeline, workers=workers)
        parties = partition(
            collection.women, sites=int(config["sites"]), held_out_fraction=float(settings["held_out_fraction"]),
            salt=f"{kind}-{config['seed']}",
        )  # fmt: skip
        check_sizes(parties, kind=kind, least=int(settings["round_patients_to"]))
        try:
            _make(parties, collection, home, recipe=recipe, pipeline=pipeline, progress=progress)
        except OSError as error:
            raise StorageError(f"films of cohort={kind} cannot be written under {cache_dir}", found=error.strerror,
                               remedy="free some space or choose another cache folder") from error  # fmt: skip
    names = json.loads((home / MARK).read_text())["parties"]
    return {name: home / name for name in names}


def _recipe(config: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Everything that the folders depend on."""
    settings = {key: value for key, value in config["cohort"].items() if key not in _PLACES}
    return {
        "cohort": settings, "sites": config["sites"], "seed": config["seed"],
        "inputs": {name: _state(inputs[name]) for name in sorted(inputs)},
        "versions": {name: version(name) for name in _LIBRARIES}, "code_sha256": _code_sha256(),
    }  # fmt: skip


def _state(path: Path) -> str:
    """The file's hash, or of a large one size and time of change: CBIS-DDSM has 160 GB."""
    try:
        status = path.stat()
        if status.st_size <= _WHOLE_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror}", remedy="check the path and permissions") from None
    return f"{status.st_size} {status.st_mtime_ns}"


@lru_cache(maxsize=1)
def _code_sha256() -> str:
    """Hash of this package's modules, so that changed code never serves films that older code made."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _make(
    parties: Mapping[str, list[Woman]], collection: Collection, home: Path, *, recipe: dict[str, Any],
    pipeline: PipelineConfig, progress: Progress,
) -> None:  # fmt: skip
    """Write all parties, and last what they were made from."""
    total, done = len(collection.women), 0
    with made_once(home, mark=MARK) as folder:
        for name, women in parties.items():
            for _ in write_source(folder / name, women, pipeline=pipeline):
                done += 1
                progress(done, total)
        _write_csv(folder / "left_out.csv", ("what", "why"), collection.left_out)
        (folder / MARK).write_text(json.dumps(recipe | {"parties": list(parties)}, indent=2) + "\n")


def write_source(folder: Path, women: list[Woman], *, pipeline: PipelineConfig) -> Iterator[Woman]:
    """Write one party's source folder; yields each woman when her films are written.

    Raises:
        CohortError: an image cannot be read.
    """
    (folder / "dicom").mkdir(parents=True)
    truths: list[tuple[object, ...]] = []
    for index, woman in enumerate(women):
        exam = folder / "dicom" / f"{index:05d}"
        exam.mkdir()
        for number, film in enumerate(woman.films, start=1):
            truths += _write_film(film, woman, number, exam / f"IM{number:04d}.dcm", pipeline)
        yield woman
    present = {name for woman in women for row in woman.rows for name in row}
    fields = [field.name for field in load_contract().fields if field.name in present]
    rows = [
        (woman.patient_id, woman.label, row.get("exam_date", ""), *(row.get(name, "") for name in fields))
        for woman in women for row in woman.rows
    ]  # fmt: skip
    _write_csv(folder / "clinical.csv", ("patient_id", "label", "exam_date", *fields), rows)
    _write_csv(folder / "truth.csv", TRUTH_COLUMNS, truths)
    typed = [(woman.patient_id, woman.lesion) for woman in women if woman.label and woman.lesion]
    _write_csv(folder / "lesions.csv", ("patient_id", LESION_TYPE), typed)


def _write_film(
    film: Film, woman: Woman, number: int, path: Path, pipeline: PipelineConfig
) -> Iterator[tuple[object, ...]]:
    """Write one film; yields the truth about it."""
    if film.dicom:
        ds = copied_film(film.path, view=film.view, spacing_mm=film.spacing_mm)
    else:
        image = read_grey(film.path, max_pixels=pipeline.max_pixels, max_bytes=pipeline.max_bytes)
        spacing = film.spacing_mm if film.width_mm is None else film.width_mm / image.pixels_HW.shape[1]
        assert spacing is not None, "a film without a spacing is refused when the data set is read"
        ds = digitised_film(image, view=film.view, spacing_mm=spacing, orientation=film.orientation)
    base = ("mammofed public", woman.patient_id)
    sop_uid = uid(*base, "film", number)
    identify(ds, patient_id=woman.patient_id, sop_uid=sop_uid, study_uid=uid(*base, "study", film.exam_date),
             exam_date=film.exam_date)  # fmt: skip
    rows, columns = write_film(ds, path)
    for lesion in film.lesions:
        box = _box(lesion.row, lesion.radius, rows), _box(lesion.column, lesion.radius, columns)
        yield sop_uid, woman.patient_id, lesion.kind, box[0][0], box[1][0], box[0][1], box[1][1]


def _box(centre: float, radius: float, size: int) -> tuple[int, int]:
    """First pixel and the one after the last, of shares of a side of `size` pixels, within the film."""
    return max(0, int((centre - radius) * size)), min(size, int((centre + radius) * size) + 1)


def _write_csv(path: Path, header: tuple[str, ...], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
