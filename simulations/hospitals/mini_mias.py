"""mini-MIAS: 322 scanned films of 161 women with a list of findings; called by public.

Suckling et al., The Mammographic Image Analysis Society Digital Mammogram Database, Excerpta Medica ICS 1069, 375-378
(1994). Files are numbered in pairs: 2k-1 is the right, 2k the left breast of woman k, all mediolateral oblique. A
lesion's centre is given in pixels of the 1024-pixel film with y from the *bottom* edge. The film is 1024 pixels of
0.2 mm wide, whatever its file has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared_model.contract import load_contract
from shared_model.errors import CohortError, ConfigError
from shared_model.imaging import PipelineConfig
from shared_model.lesion_types import together
from simulations.hospitals.collection import Collection, Film, Lesion, Settings, Woman
from simulations.hospitals.text_tables import read_csv, read_text

INFO, LESIONS = "Info.txt", "labels_lesion.csv"
SIDE_PX = 1024  # of the original films, square; coordinates are in these pixels
FILM_MM = SIDE_PX * 0.2
_IMAGE = re.compile(r"mdb(\d{3})")
_INFO_LINE = re.compile(
    r"(mdb\d{3})\s+([FGD])\s+([A-Z]{4})(?:\s+([BM]))?(?:\s+(\d{1,4})\s+(\d{1,4})\s+(\d{1,4})\s*$|\s*\*.*$|\s*$)"
)
_NORMAL = "NORM"
_ORIENTATION = {"L": ("A", "FR"), "R": ("P", "FL")}  # the same in all films of the set
_SEVERITIES = {"": "", "B": "B", "M": "M"}
_KINDS = {"CIRC": "mass", "SPIC": "mass", "MISC": "mass", "CALC": "calcification", "ARCH": "distortion",
          "ASYM": "asymmetry"}  # fmt: skip  # MISC: other, ill-defined masses


@dataclass(frozen=True)
class Finding:
    """One line of the list. severity: B, M or "". circle: (x, y from the bottom, radius), 1024-pixel units, or None."""

    image: str
    kind: str
    severity: str
    circle: tuple[int, int, int] | None


def inputs(settings: Settings) -> dict[str, Path]:
    """The list, the clinical table if there is one, and the images."""
    folder = _folder(settings)
    named = {path.relative_to(folder).as_posix(): path for path in _images(folder).values()}
    named[_list(folder).name] = _list(folder)
    if settings["clinical"]:
        named["clinical"] = Path(settings["clinical"]).expanduser()
    return named


def collect(settings: Settings, *, pipeline: PipelineConfig, workers: int) -> Collection:
    """Women with at least one film and a line in the list.

    Raises:
        ConfigError: no source folder. CohortError: a list or table is missing or damaged, or no film is there.
        LeakageError: `cohort.columns` names a column that tells the outcome.
    """
    folder = _folder(settings)
    findings = read_findings(_list(folder))
    images = _images(folder)
    rows = read_clinical(Path(settings["clinical"]).expanduser(), settings["columns"]) if settings["clinical"] else {}
    by_woman: dict[str, list[Film]] = {}
    labels: dict[str, int] = {}
    cancers: dict[str, set[str]] = {}
    left_out = []
    for image, path in sorted(images.items()):
        if image not in findings:
            left_out.append((path.name, f"no_row: {image} is not in the list"))
            continue
        woman, side = owner(image)
        film = Film(path=path, view=f"{side}_MLO", dicom=False, width_mm=FILM_MM, orientation=_ORIENTATION[side],
                    lesions=tuple(_lesions(findings[image])))  # fmt: skip
        by_woman.setdefault(woman, []).append(film)
    for image, lines in findings.items():  # of both breasts, whether or not both films are there
        woman = owner(image)[0]
        malignant = {_KINDS.get(line.kind, "other") for line in lines if line.severity == "M"}
        labels[woman] = max(labels.get(woman, 0), int(bool(malignant)))
        cancers.setdefault(woman, set()).update(malignant)
    if not by_woman:
        raise CohortError(f"{folder}: no film of mini-MIAS", expected="mdb001.pgm or mdb001.png and so on",
                          remedy="see simulations/hospitals/README.md")  # fmt: skip
    women = (Woman(patient_id=name, label=labels[name], films=tuple(by_woman[name]), rows=(rows.get(name, {}),),
                   lesion=together(cancers[name]))
             for name in sorted(by_woman))  # fmt: skip
    return Collection(women=tuple(women), left_out=tuple(left_out))


def owner(image: str) -> tuple[str, str]:
    """(woman, breast) of an image: `mdb003` and `mdb004` are right and left of MIAS002.

    >>> owner("mdb004")
    ('MIAS002', 'L')
    """
    number = int(image.removeprefix("mdb"))
    return f"MIAS{(number + 1) // 2:03d}", "R" if number % 2 else "L"


def read_findings(path: Path) -> dict[str, list[Finding]]:
    """Lines by image, from the original Info.txt or the same list as CSV.

    Raises:
        CohortError: a line cannot be understood, or no line is there.
    """
    lines = list(_from_csv(path) if path.suffix == ".csv" else _from_info(path))
    found: dict[str, list[Finding]] = {}
    for line in lines:
        found.setdefault(line.image, []).append(line)
    if not found:
        raise CohortError(f"{path} lists no image", expected="lines such as `mdb001 G CIRC B 535 425 197`")
    return found


def _from_info(path: Path) -> Iterator[Finding]:
    """The original list: some prose, then a line a finding; notes of its authors stand behind an asterisk."""
    for number, text in enumerate(read_text(path).splitlines(), start=1):
        if not _IMAGE.match(text):
            continue
        parts = _INFO_LINE.fullmatch(text.rstrip())
        if parts is None:
            raise CohortError(f"{path} line {number} cannot be understood",
                              expected="image, tissue, kind, severity, x, y, radius")  # fmt: skip
        image, _, kind, severity, *circle = parts.groups()
        yield _finding(f"{path} line {number}", image, kind, severity or "", [part or "" for part in circle])


def _from_csv(path: Path) -> Iterator[Finding]:
    names = ("image_id", "abnormality", "severity", "x_px", "y_px_from_bottom", "radius_px")
    for line in read_csv(path, required=names)[1]:
        image, kind, severity, *circle = (line.cells[name] for name in names)
        yield _finding(f"{path} line {line.number}", image, kind, severity, circle)


def _finding(where: str, image: str, kind: str, severity: str, circle: list[str]) -> Finding:
    """Checked: a finding has a severity, a normal film none; some findings have no place."""
    if not _IMAGE.fullmatch(image) or severity not in _SEVERITIES or (kind == _NORMAL) == bool(severity):
        raise CohortError(f"{where}: image or severity cannot be understood",
                          expected="mdb and three digits; B or M for a finding, nothing for NORM")  # fmt: skip
    if not any(circle):
        return Finding(image, kind, severity, None)
    if not all(part.isascii() and part.isdigit() and int(part) <= SIDE_PX for part in circle):
        raise CohortError(f"{where}: impossible place of a finding", expected=f"three numbers up to {SIDE_PX}")
    x, y, radius = (int(part) for part in circle)
    return Finding(image, kind, severity, (x, y, radius))


def _lesions(lines: list[Finding]) -> Iterator[Lesion]:
    """From y upwards to rows downwards."""
    for line in lines:
        if line.circle is not None:
            x, y, radius = line.circle
            yield Lesion(kind=f"{line.kind}-{line.severity}", row=(SIDE_PX - 1 - y) / SIDE_PX, column=x / SIDE_PX,
                         radius=radius / SIDE_PX)  # fmt: skip


def read_clinical(path: Path, columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Clinical rows by woman: only the mapped columns are taken, under the names of the contract.

    Args:
        columns: field of the contract -> column of the table.

    Raises:
        LeakageError: a mapped column, or a field, tells the outcome of the read.
        CohortError: a column is missing, a field is unknown, or a woman stands twice.
    """
    contract = load_contract()
    contract.check_columns(["patient_id", "label", *columns.values()], source=f"{path} by cohort.columns")
    for name in columns:
        contract.field(name)
    rows: dict[str, dict[str, str]] = {}
    for line in read_csv(path, required=("patient_id", *columns.values()))[1]:
        if line.cells["patient_id"] in rows:
            raise CohortError(f"{path} line {line.number}: a woman stands twice", expected="one row a woman")
        rows[line.cells["patient_id"]] = {name: line.cells[column] for name, column in columns.items()}
    return rows


def _folder(settings: Settings) -> Path:
    folder = Path(settings["source"]).expanduser()
    if not folder.is_dir():
        raise ConfigError("cohort.source: no such folder", found=folder, remedy="give it with cohort.source=DIR")
    return folder


def _list(folder: Path) -> Path:
    for name in (INFO, LESIONS):
        if (folder / name).is_file():
            return folder / name
    raise CohortError(f"{folder}: no list of findings", expected=f"{INFO} or {LESIONS}",
                      remedy="put the list of the distribution into the folder")  # fmt: skip


def _images(folder: Path) -> dict[str, Path]:
    """Images by name, all of one format: the one with more files, so that a few originals beside a smaller copy do not
    give some women finer films than others. PGM where there are as many of both."""
    found: dict[str, dict[str, Path]] = {".pgm": {}, ".png": {}}
    for directory, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(directory, name)
            if path.suffix.lower() not in found or not _IMAGE.fullmatch(path.stem):
                continue
            if found[path.suffix.lower()].setdefault(path.stem, path) != path:
                raise CohortError(f"{folder}: {name} is there twice", remedy="remove one of them")
    return max(found.values(), key=len)
