"""CBIS-DDSM: full mammograms as DICOM and the four case-description tables; called by public.

Lee et al., A curated mammography data set for use in computer-aided detection and diagnosis research, Sci Data 4:170177
(2017); Sawyer-Lee et al., The Cancer Imaging Archive (2016), doi 10.7937/K9/TCIA.2016.7O02S9CY.

Traps that this module is about. PatientID is a case name (`Mass-Test_P_00016_LEFT_CC`): it tells split and kind of
lesion, and gives one woman several ids; women are keyed by `P_00016`, and the case name does not travel. A woman can be
in the mass and in the calcification set, and on both sides of the published split: her label is of all her rows, and
one row in a test table holds her out. Crops and masks of lesions lie beside the mammograms. Each film claims a study of
its own.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shared_model.errors import CohortError, ConfigError, ImagingError
from shared_model.imaging import DIGITISED_FILMS, FilmPool, PipelineConfig
from shared_model.imaging import Film as Header
from shared_model.lesion_types import together
from simulations.hospitals.collection import Collection, Film, Settings, Woman
from simulations.hospitals.text_tables import Line, read_csv

TABLES = tuple(f"{kind}_case_description_{part}_set.csv" for kind in ("mass", "calc") for part in ("train", "test"))
DENSITY = {"breast_density", "breast density"}  # of the mass tables, of the calcification tables
_REQUIRED = ("patient_id", "pathology")
_PATHOLOGY = {"MALIGNANT": 1, "BENIGN": 0, "BENIGN_WITHOUT_CALLBACK": 0}
_WOMAN = re.compile(r"P_\d{5}")
_CASE = re.compile(r"(?:Mass|Calc)-(?:Training|Test)_(P_\d{5})_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")
_KINDS = {"mass": "mass", "calc": "calcification"}  # by the table's name
_MAGIC_AT, _MAGIC = 128, b"DICM"


@dataclass
class Case:
    """What the tables say of one woman. densities: those that a reader gave; published_test: a test table names her.
    cancers: kinds of her malignant lesions, which go to the evaluator's subgroups and nowhere else."""

    label: int = 0
    densities: set[int] = field(default_factory=set)
    published_test: bool = False
    cancers: set[str] = field(default_factory=set)

    @property
    def density(self) -> str:
        """Breast composition 1-4, of the denser breast where they differ (ACR BI-RADS, 5th edition); "" if unknown."""
        return str(max(self.densities)) if self.densities else ""


def inputs(settings: Settings) -> dict[str, Path]:
    """Tables and every file below the source folder."""
    folder = _folder(settings, "source")
    tables = {name: _tables_folder(settings) / name for name in TABLES}
    return tables | {path.relative_to(folder).as_posix(): path for path in _files(folder)}


def collect(settings: Settings, *, pipeline: PipelineConfig, workers: int) -> Collection:
    """Women with a row and a full mammogram.

    Raises:
        ConfigError: no source folder, or an unknown `held_out`.
        CohortError: a table is missing or damaged, or there is no film of any woman in the tables.
    """
    if settings["held_out"] not in ("published", "hash"):
        raise ConfigError("cohort.held_out: unknown choice", found=settings["held_out"], expected="published or hash")
    cases = read_cases(_tables_folder(settings))
    folder = _folder(settings, "source")
    paths = [path for path in _files(folder) if _is_dicom(path)]
    films: dict[str, list[Film]] = {}
    left_out: list[tuple[str, str]] = []
    declared = float(settings["declared_spacing_mm"])
    with FilmPool(pipeline, workers=workers, declared_spacing_mm=declared, policy=DIGITISED_FILMS) as pool:
        for index, result in pool.run("header", paths):
            name = paths[index].relative_to(folder).as_posix()
            if not isinstance(result, Header):
                assert isinstance(result, ImagingError)
                left_out.append((name, f"{result.reason}: {result}"))
                continue
            woman, reason = _owner(result, cases)
            if reason:
                left_out.append((name, reason))
            else:
                films.setdefault(woman, []).append(Film(path=paths[index], view=result.view, dicom=True))
    if not films:
        reasons = dict(Counter(why.partition(":")[0] for _, why in left_out))
        raise CohortError(
            f"{folder}: no full mammogram of a woman in the tables", found=f"{len(paths)} DICOM files: {reasons}",
            expected="the series `full mammogram images` of CBIS-DDSM",
            remedy="download them from The Cancer Imaging Archive; see simulations/hospitals/README.md",
        )  # fmt: skip
    published = settings["held_out"] == "published"
    women = (
        Woman(patient_id=name, label=cases[name].label, films=tuple(films[name]),
              rows=({"breast_density": cases[name].density},),
              held_out=cases[name].published_test if published else None, lesion=together(cases[name].cancers))
        for name in sorted(films)
    )  # fmt: skip
    return Collection(women=tuple(women), left_out=tuple(left_out))


def read_cases(folder: Path, names: tuple[str, ...] = TABLES) -> dict[str, Case]:
    """Women by `P_xxxxx`, from the tables `names` in `folder`. All four are needed for a study: without one, a woman's
    cancer may be overlooked.

    Raises:
        CohortError: a table is missing, or a row cannot be understood.
    """
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CohortError(
            f"{folder}: {', '.join(absent)} missing", expected="all four case-description tables of CBIS-DDSM",
            remedy="download them from the collection's page, or name their folder with cohort.tables=DIR",
        )  # fmt: skip
    cases: dict[str, Case] = {}
    for name in names:
        columns, lines = read_csv(folder / name, required=_REQUIRED)
        densities = [column for column in columns if column in DENSITY]
        if len(densities) != 1:
            raise CohortError(f"{folder / name}: no single column of breast density", found=densities,
                              expected=" or ".join(sorted(DENSITY)))  # fmt: skip
        for line in lines:
            _add(cases, line, densities[0], path=folder / name, test=name.endswith("test_set.csv"))
            if _PATHOLOGY[line.cells["pathology"]]:
                cases[line.cells["patient_id"]].cancers.add(_KINDS[name.partition("_")[0]])
    return cases


def _add(cases: dict[str, Case], line: Line, density: str, *, path: Path, test: bool) -> None:
    """One abnormality. Density 0 means that none was given. Assessment and subtlety, which are the radiologist's, and
    everything that describes the lesion stay behind."""
    where = f"{path} line {line.number}"
    if not _WOMAN.fullmatch(line.cells["patient_id"]):
        raise CohortError(f"{where}: patient_id is of another form", expected="P_ and five digits")
    if line.cells["pathology"] not in _PATHOLOGY:
        raise CohortError(f"{where}: unknown pathology", expected=", ".join(_PATHOLOGY))
    if line.cells[density] not in {"", "0", "1", "2", "3", "4"}:
        raise CohortError(f"{where}: unknown breast density", expected="0 to 4")
    case = cases.setdefault(line.cells["patient_id"], Case())
    case.label = max(case.label, _PATHOLOGY[line.cells["pathology"]])
    case.densities |= {int(line.cells[density] or 0)} - {0}
    case.published_test |= test


def _owner(film: Header, cases: dict[str, Case]) -> tuple[str, str]:
    """(woman, "") of an admitted film, or ("", why it is left out)."""
    case = _CASE.fullmatch(film.patient_id)
    if case is None:
        return "", "no_case_name: PatientID is no case name of CBIS-DDSM"
    woman, side, position, lesion = case.groups()
    if lesion is not None:
        return "", "not_full_view: the case name is that of a crop or a mask"
    if film.view != f"{side[0]}_{position}":
        return "", "view_conflict: case name and header disagree on the view"
    if woman not in cases:
        return "", "no_row: no table names this woman, so she has no label"
    return woman, ""


def _folder(settings: Settings, key: str) -> Path:
    folder = Path(settings[key]).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"cohort.{key}: no such folder", found=folder, remedy=f"give it with cohort.{key}=DIR")
    return folder


def _tables_folder(settings: Settings) -> Path:
    return _folder(settings, "tables" if settings["tables"] else "source")


def _files(folder: Path) -> list[Path]:
    """Regular files below, in order of their paths; links to folders are not followed."""
    found = [Path(directory, name) for directory, _, names in os.walk(folder) for name in names]
    return sorted((path for path in found if path.is_file()), key=os.fsencode)


def _is_dicom(path: Path) -> bool:
    """Tables, licences and programs lie beside the films and need no word."""
    try:
        with path.open("rb") as stream:
            return stream.read(_MAGIC_AT + 4)[_MAGIC_AT:] == _MAGIC
    except OSError:
        return True  # the pool says why it cannot be read
