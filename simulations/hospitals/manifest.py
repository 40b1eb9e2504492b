"""A data set of one's own: a CSV with one row an image, and the images; called by public.

Columns: patient_id, path (below the CSV's folder), laterality, view, label; where wanted site, spacing_mm, exam_date
and fields of the data contract. Rows are images, but everything is decided by woman: her label, her site, her side of
every split. A woman with two labels or at two sites is refused, because either the ids or the labels are wrong.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from shared_model.contract import load_contract
from shared_model.errors import CohortError, ConfigError, ImagingError
from shared_model.imaging import PipelineConfig
from shared_model.imaging.admission import laterality, view_position
from shared_model.imaging.header import quiet_pydicom, read_film
from simulations.hospitals.collection import Collection, Film, Settings, Woman
from simulations.hospitals.defaults import HELD_OUT
from simulations.hospitals.grey_images import is_grey_image
from simulations.hospitals.text_tables import Line, read_csv

REQUIRED = ("patient_id", "path", "laterality", "view", "label")
OPTIONAL = ("site", "spacing_mm", "exam_date")
_SIDES = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}
_VIEWS = ("CC", "MLO")
_SITE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")  # as in a protocol
_SPACING_MM = (0.01, 5.0)  # as shared_model/imaging admits


def inputs(settings: Settings) -> dict[str, Path]:
    """The CSV and the images that it names."""
    path = _csv(settings)
    lines = read_csv(path, required=REQUIRED)[1]
    return {"manifest": path} | {line.cells["path"]: _image(path, line) for line in lines}


def collect(settings: Settings, *, pipeline: PipelineConfig, workers: int) -> Collection:
    """All women of the manifest.

    Raises:
        ConfigError: no CSV. CohortError: a row cannot be used; says which and why.
        LeakageError: a column tells the outcome of the read.
    """
    path = _csv(settings)
    columns, lines = read_csv(path, required=REQUIRED)
    others = [name for name in columns if name not in (*REQUIRED, *OPTIONAL)]
    ignored = load_contract().check_columns(["patient_id", "label", *others], source=str(path))
    fields = [name for name in others if name not in ignored]
    by_woman: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if not line.cells["patient_id"]:
            raise CohortError(f"{path} line {line.number}: patient_id is empty", remedy="say whose film it is")
        by_woman[line.cells["patient_id"]].append(line)
    if not by_woman:
        raise CohortError(f"{path} names no image", expected="one row an image")
    declared = settings["declared_spacing_mm"]
    holds_out = any(line.cells.get("site") == HELD_OUT for line in lines)
    women = tuple(
        _woman(path, name, by_woman[name], fields, pipeline=pipeline, holds_out=holds_out,
               declared_mm=None if declared is None else float(declared))
        for name in sorted(by_woman)
    )  # fmt: skip
    return Collection(
        women=women, left_out=tuple((f"column {name}", "unknown to the data contract, not used") for name in ignored)
    )


def _woman(
    path: Path, name: str, lines: Sequence[Line], fields: list[str], *, pipeline: PipelineConfig, holds_out: bool,
    declared_mm: float | None,
) -> Woman:  # fmt: skip
    label, site = _one(path, lines, "label"), _one(path, lines, "site")
    if label not in ("0", "1"):
        raise CohortError(f"{path} line {lines[0].number}: the label is neither 0 nor 1", expected="0 or 1")
    if "site" in lines[0].cells and not _SITE.fullmatch(site):
        raise CohortError(f"{path} line {lines[0].number}: impossible name of a site",
                          expected="a-z, 0-9, - and _; held_out for the coordinator's women")  # fmt: skip
    exams: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        exams[_exam_date(path, line)].append(line)
    rows = tuple({"exam_date": exam} | {field: _one(path, exams[exam], field, blanks=True) for field in fields}
                 for exam in sorted(exams))  # fmt: skip
    return Woman(
        patient_id=name, label=int(label), rows=rows, site="" if site == HELD_OUT else site,
        films=tuple(_film(path, line, pipeline=pipeline, declared_mm=declared_mm) for line in lines),
        held_out=site == HELD_OUT if holds_out else None,
    )  # fmt: skip


def _one(path: Path, lines: Sequence[Line], column: str, *, blanks: bool = False) -> str:
    """The value that all rows of a woman (or of her exam) agree on; with `blanks`, empty cells have no say."""
    found = {line.cells.get(column, ""): line.number for line in lines}
    if blanks and len(found) > 1:
        found.pop("", None)
    if len(found) > 1:
        raise CohortError(
            f"{path}: rows of one patient disagree on `{column}`",
            found=f"lines {' and '.join(map(str, sorted(found.values())[:2]))}",
            expected="one label, one site and one value a field for each patient, in all her rows",
            remedy="correct the rows; a patient who is at two sites has to be given to one of them",
        )  # fmt: skip
    return next(iter(found))


def _exam_date(path: Path, line: Line) -> str:
    text = line.cells.get("exam_date", "")
    try:
        return date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        raise CohortError(f"{path} line {line.number}: exam_date is no date", expected="YYYY-MM-DD") from None


def _film(path: Path, line: Line, *, pipeline: PipelineConfig, declared_mm: float | None) -> Film:
    side, position = _SIDES.get(line.cells["laterality"].upper(), ""), line.cells["view"].upper()
    if not side or position not in _VIEWS:
        raise CohortError(f"{path} line {line.number}: laterality or view cannot be understood",
                          expected="L or R; CC or MLO", remedy="leave out rows of other views")  # fmt: skip
    image, spacing = _image(path, line), _spacing(path, line)
    grey = is_grey_image(image)
    if not grey:
        _check_header(path, line, image, f"{side}_{position}", pipeline)
    if spacing is None:
        spacing = declared_mm
    if grey and spacing is None:
        raise CohortError(
            f"{path} line {line.number}: no pixel spacing", expected="spacing_mm in millimetres for PNG and PGM",
            remedy="add the column spacing_mm, or the scanner's spacing with cohort.declared_spacing_mm=0.05",
        )  # fmt: skip
    return Film(path=image, view=f"{side}_{position}", dicom=not grey, spacing_mm=spacing,
                exam_date=_exam_date(path, line))  # fmt: skip


def _check_header(path: Path, line: Line, image: Path, view: str, pipeline: PipelineConfig) -> None:
    """A DICOM file that can be read, and that does not say that it shows another breast or view."""
    try:
        with quiet_pydicom():
            header = read_film(image, max_bytes=pipeline.max_bytes, header_only=True).header
    except ImagingError as error:
        raise CohortError(f"{path} line {line.number}: the image is no PNG, PGM or readable DICOM file",
                          found=error.reason, remedy=error.remedy) from None  # fmt: skip
    for told, stated in ((laterality, view[0]), (view_position, view[2:])):
        try:
            said = told(header)
        except ImagingError as error:
            if error.reason in ("no_laterality", "no_view"):
                continue  # the manifest's word is written into the copy
            raise CohortError(f"{path} line {line.number}: {error}") from None
        if said != stated:
            raise CohortError(f"{path} line {line.number}: the DICOM header says another {told.__name__}",
                              found=said, expected=stated, remedy="correct the manifest or the file")  # fmt: skip


def _spacing(path: Path, line: Line) -> float | None:
    text = line.cells.get("spacing_mm", "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _SPACING_MM[0] <= value <= _SPACING_MM[1]:
        raise CohortError(f"{path} line {line.number}: impossible spacing_mm", expected="0.01 to 5 mm")
    return value


def _csv(settings: Settings) -> Path:
    path = Path(settings["source"]).expanduser()
    if not path.is_file():
        raise ConfigError("cohort.source: no such file", found=path, expected="a CSV with one row an image",
                          remedy="give it with cohort.source=FILE.csv")  # fmt: skip
    return path


def _image(path: Path, line: Line) -> Path:
    """The image of a row. It must lie below the CSV's folder, links followed: a manifest from elsewhere must not be
    able to make films of this machine's files."""
    folder = path.parent.resolve()
    try:
        image = (folder / line.cells["path"]).resolve()
        inside, there = image.is_relative_to(folder), image.is_file()
    except (OSError, ValueError):  # a NUL, or a name too long
        inside, there = True, False
    if not inside or Path(line.cells["path"]).is_absolute():
        raise CohortError(f"{path} line {line.number}: the path leads out of the manifest's folder",
                          expected="a path relative to, and below, the folder of the CSV")  # fmt: skip
    if not there:
        raise CohortError(f"{path} line {line.number}: no such image", expected="a path relative to the CSV's folder")
    return image
