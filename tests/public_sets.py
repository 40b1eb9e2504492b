"""Tiny made-up data sets in the formats of the public ones, for the tests of cohorts; no pixel of a real woman."""

from __future__ import annotations

import copy
import csv
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared_model.imaging import PipelineConfig
from simulations.composition import compose_config
from simulations.hospitals.film_files import digitised_film, identify, write_film
from simulations.hospitals.grey_images import GreyImage
from simulations.population.seeds import uid

SIDE = 64
PIPELINE = PipelineConfig(
    height=32, width=24, spacing_mm=8.0, percentiles=(1.0, 99.0), denoise="none", max_pixels=1 << 16, max_bytes=1 << 20
)
CASE_COLUMNS = ("left or right breast", "image view", "abnormality id", "assessment", "pathology", "subtlety",
                "image file path")  # fmt: skip


def breast(side: str, seed: int = 0, *, size: int = SIDE) -> NDArray[np.uint8]:
    """uint8 [size, size]: half an ellipse at the chest wall, air beside it; the left breast's wall is on the left."""
    rows, columns = np.mgrid[:size, :size] / size
    inside = ((rows - 0.5) / 0.42) ** 2 + (columns / 0.6) ** 2 < 1
    grey = 90 + np.random.default_rng(seed).integers(0, 60, (size, size))
    film = np.where(inside, grey, 2).astype(np.uint8)
    return film if side == "L" else np.ascontiguousarray(film[:, ::-1])


def settings(kind: str, source: Path, **values: Any) -> dict[str, Any]:
    """The whole configuration of a small study on `source`; values go into `cohort`."""
    config = copy.deepcopy(_composed(kind))
    config["cohort"] |= {"source": str(source), **values}
    return config | {"sites": 2}


@lru_cache(maxsize=8)
def _composed(kind: str) -> dict[str, Any]:
    return compose_config([f"cohort={kind}", "study=smoke", "privacy=none"])


def write_pgm(path: Path, pixels: NDArray[Any], *, greatest: int = 255) -> None:
    """Netpbm's binary form."""
    cells = pixels.astype(">u2") if greatest > 255 else pixels.astype("u1")
    path.write_bytes(f"P5\n# made up\n{pixels.shape[1]} {pixels.shape[0]}\n{greatest}\n".encode() + cells.tobytes())


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """Grey PNG of the array's own depth."""
    Image.fromarray(pixels).save(path)


def write_mias(folder: Path, *, women: int, lines: Iterable[str] = ()) -> None:
    """Pairs of PGM and an Info.txt in which every third woman has a cancer in her right breast."""
    folder.mkdir(parents=True, exist_ok=True)
    text = ["INFORMATION: made up", "Column 1: image", ""]
    for image in range(1, 2 * women + 1):
        write_pgm(folder / f"mdb{image:03d}.pgm", breast("LR"[image % 2], image))
        cancer = image % 2 == 1 and (image // 2) % 3 == 0
        text.append(f"mdb{image:03d} G CIRC M 535 425 197" if cancer else f"mdb{image:03d} D NORM")
    (folder / "Info.txt").write_text("\n".join([*text, *lines]) + "\n")


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A CSV with the columns of the first row."""
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def manifest_rows(folder: Path, *, women: int, kind: str = "png") -> list[dict[str, object]]:
    """Two films a woman, every third with a cancer; the images are written."""
    rows: list[dict[str, object]] = []
    for woman in range(women):
        for side in "LR":
            name = f"w{woman:03d}_{side}.{kind}"
            (write_png if kind == "png" else write_pgm)(folder / name, breast(side, woman))
            rows.append({"patient_id": f"W{woman:03d}", "path": name, "laterality": side, "view": "MLO",
                         "label": int(woman % 3 == 0), "spacing_mm": 3.2})  # fmt: skip
    return rows


def case_row(woman: str, pathology: str, *, density: str = "2", column: str = "breast_density") -> dict[str, object]:
    """A row of a CBIS-DDSM table; the path cell ends in a line break, as some do upstream."""
    values = ("LEFT", "CC", "1", "4", pathology, "5", "somewhere/000000.dcm\n")
    return {"patient_id": woman, column: density, **dict(zip(CASE_COLUMNS, values, strict=True))}


def write_cases(folder: Path, **tables: Sequence[Mapping[str, object]]) -> None:
    """The four tables, by `mass_train` and so on; those that are not given have a header line only."""
    for kind in ("mass", "calc"):
        column = "breast_density" if kind == "mass" else "breast density"
        for part in ("train", "test"):
            path = folder / f"{kind}_case_description_{part}_set.csv"
            rows = tables.get(f"{kind}_{part}", ())
            write_rows(path, rows or [case_row("P_00000", "BENIGN", column=column)])
            if not rows:
                path.write_text(path.read_text().splitlines()[0] + "\n")


def write_case_film(folder: Path, case: str, *, description: str = "full mammogram images") -> None:
    """A DICOM file as CBIS-DDSM has them: case name for PatientID, view in PatientOrientation, a study of its own."""
    side, position = case.split("_")[3:5]
    picture = breast(side[0]).astype(np.uint16) * 256
    grain = np.random.default_rng(zlib.crc32(case.encode())).integers(0, 256, picture.shape, dtype=np.uint16)
    image = GreyImage(np.where(picture > 0, picture + grain, picture), 16)  # no two exposures are the same picture
    ds = digitised_film(image, view=f"{side[0]}_{position}", spacing_mm=1.0, orientation=None)
    del ds.NominalScannedPixelSpacing, ds.ImageLaterality, ds.ViewPosition
    ds.Laterality, ds.PatientOrientation, ds.SeriesDescription = side[0], position, description
    identify(ds, patient_id=case, sop_uid=uid("made up", case), study_uid=uid("study", case), exam_date="2016-10-04")
    folder.mkdir(parents=True, exist_ok=True)
    write_film(ds, folder / f"{case}.dcm")
