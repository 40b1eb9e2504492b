"""How many DICOM films a second become view tensors on one core, by transfer syntax and size; bench section."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import gdcm
import numpy as np

from shared_model.cohort.views import VIEWS
from shared_model.errors import ImagingError
from shared_model.imaging import PipelineConfig, prepare_view
from simulations.benchmarks.table import Row
from simulations.composition import compose_config
from simulations.hospitals.defaults import vendors
from simulations.population.anatomy import draw_body, film_grid
from simulations.population.dicom_mg import FilmTags, encode_film
from simulations.population.film import render

# (height, width) in mm and pitch in mm: a large flat-panel detector, 3328 x 2560 pixels, and a film of the simulator
SIZES = {"3328 x 2560": ((232.96, 179.2), 0.07), "160 x 128": ((200.0, 160.0), 1.25)}
SYNTAXES = {
    "uncompressed": None, "RLE": gdcm.TransferSyntax.RLELossless,
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1, "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
}  # fmt: skip
REPEATS, LEAST_SECONDS, MOST_FILMS = 3, 0.4, 200


def measure() -> list[Row]:
    """Films a second on one core for each size and syntax, and the ratio to the uncompressed film of that size."""
    imaging = compose_config([])["imaging"]
    config = PipelineConfig(**{**imaging, "percentiles": tuple(imaging["percentiles"])})
    rows = []
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
        for size in SIZES:
            files = write_films(Path(folder), size=size)
            rates = _rates(files, config)
            rows += [
                Row(name=f"{size}, {syntax}", value=rate, unit="films/s", ratio=rate / rates["uncompressed"],
                    against="the same film uncompressed") for syntax, rate in rates.items()
            ]  # fmt: skip
    return rows


def write_films(folder: Path, *, size: str, view: str = "L_MLO", syntaxes: Sequence[str] = ()) -> dict[str, Path]:
    """The same synthetic film in every transfer syntax, or in those named; returns files by syntax. All views are of
    one woman's exam."""
    film_mm, pitch = SIZES[size]
    vendor = vendors(pitch)[0]
    rng = np.random.default_rng(0)
    body = draw_body(rng, density=2, bmi=25.0)
    film = render(rng, film_grid(film_mm, pitch), vendor, body, None, view=view, conspicuity=1.0)
    tags = FilmTags(sop_uid=f"2.25.1{VIEWS.index(view)}", study_uid="2.25.2", series_uid="2.25.3",
                    patient_id="SYNTH-BENCH-00000", patient_name="SYNTH^BENCH", birth_date="19700101", date="20220101",
                    age=52, accession="1", thickness_mm=film.thickness_mm, instance=1)  # fmt: skip
    plain = folder / f"{pitch}-{view}-uncompressed.dcm"
    plain.write_bytes(encode_film(film.pixels, vendor, view, tags))
    files = {}
    for name in syntaxes or SYNTAXES:
        syntax, target = SYNTAXES[name], plain.with_name(f"{pitch}-{view}-{name}.dcm")
        files[name] = plain if syntax is None else transcode(plain, target, syntax)
    return files


def transcode(source: Path, target: Path, syntax: int) -> Path:
    """Store the film of `source` in another lossless transfer syntax.

    Raises:
        ImagingError: gdcm cannot.
    """
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    if not reader.Read():
        raise ImagingError("gdcm cannot read a film that was just written", reason="bench", found=source.name)
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise ImagingError("gdcm cannot encode", reason="bench", found=target.name)
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise ImagingError("gdcm cannot write", reason="bench", found=target.name)
    return target


def _rates(files: dict[str, Path], config: PipelineConfig) -> dict[str, float]:
    """Median films a second; syntaxes take turns, so that a busy moment of the machine meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in files}
    for path in files.values():
        prepare_view(path, config)  # decoders are loaded on first use
    for _ in range(REPEATS):
        for name, path in files.items():
            began, done = time.perf_counter(), 0
            while done == 0 or (time.perf_counter() - began < LEAST_SECONDS / REPEATS and done < MOST_FILMS):
                prepare_view(path, config)
                done += 1
            found[name].append(done / (time.perf_counter() - began))
    return {name: median(rates) for name, rates in found.items()}
