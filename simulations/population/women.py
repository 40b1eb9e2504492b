"""One synthetic woman from her seed: table row, films, truth; written into a hospital's source folder by generate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from shared_model.cohort.views import VIEWS
from simulations.population.anatomy import draw_body, film_grid
from simulations.population.clinical import draw_labels_and_symptoms, draw_risk_factors, intercept, recorded
from simulations.population.dicom_mg import FilmTags, encode_film
from simulations.population.film import Film, render
from simulations.population.lesions import Finding, draw_finding
from simulations.population.seeds import generator, label_key, uid
from simulations.population.specs import HospitalSpec, Population, Vendor

FIELDS = (
    "age",
    "menarche_age",
    "first_birth_age",
    "first_degree_relatives",
    "prior_biopsies",
    "atypia",
    "breast_density",
    "hrt",
    "bmi",
    "menopausal",
    "brca",
    "prs_z",
    "palpable_lump",
    "nipple_discharge",
    "years_since_screen",
    "prior_screen_result",
)
FIRST_EXAM, EXAM_DAYS = date(2019, 1, 1), 4 * 365
GENES_KNOWN = (0.05, 0.6)  # P(tested for BRCA) without and with first-degree relatives
_RISK, _LABEL, _RECORD, _FINDING, _VIEW = range(5)  # purposes of a woman's generators; view v has _VIEW + v


@dataclass(frozen=True, kw_only=True)
class Woman:
    """What is true of one woman, before records lose some of it.

    patient_id: SYNTH-<site>-<number>. label: 1 cancer. factors: by field, as `clinical.draw_risk_factors` codes them.
    row: the table as recorded, "" where not known. views: films that exist. finding: what they show.
    """

    patient_id: str
    label: int
    exam_date: date
    factors: dict[str, float]
    row: dict[str, str]
    views: tuple[str, ...]
    vendor: Vendor
    finding: Finding | None


@dataclass(frozen=True)
class Truth:
    """Where the lesion of a film is: one row of truth.csv."""

    sop_uid: str
    patient_id: str
    kind: str
    box: tuple[int, int, int, int]


def draw_woman(population: Population, spec: HospitalSpec, index: int) -> Woman:
    """Draw woman `index` of a hospital; depends on nothing but the seed, the profile and the index."""
    keys = (label_key(spec.name), index)
    factors = draw_risk_factors(
        generator(population.seed, *keys, _RISK), 1, age_mean=spec.age_mean, density_shift=spec.density_shift
    )
    label = int(
        draw_labels_and_symptoms(
            generator(population.seed, *keys, _LABEL),
            factors,
            intercept=intercept(spec, population.seed),
            lump_rates=spec.lump_rates,
        )[0]
    )
    values = {field: float(factors[field][0]) for field in FIELDS}
    finding = draw_finding(
        generator(population.seed, *keys, _FINDING), label=label, density=int(values["breast_density"]),
        calcification_share=population.calcification_share,
    )  # fmt: skip
    rng = generator(population.seed, *keys, _RECORD)
    vendor = spec.vendors[int(rng.integers(len(spec.vendors)))]
    exam = FIRST_EXAM + timedelta(days=int(rng.integers(EXAM_DAYS)))
    views, row = _recorded_views(rng, spec, finding), _recorded_row(rng, spec, values)
    fate = rng.random()
    if fate < spec.table_only_rate:
        views = ()
    elif fate < spec.table_only_rate + spec.image_only_rate:
        row = dict.fromkeys(row, "")
    return Woman(
        patient_id=f"SYNTH-{spec.name}-{index:05d}",
        label=label,
        exam_date=exam,
        factors=values,
        row=row,
        views=views,
        vendor=vendor,
        finding=finding,
    )


def render_view(population: Population, spec: HospitalSpec, index: int, woman: Woman, view: str) -> Film:
    """One film of a woman."""
    keys = (label_key(spec.name), index)
    density = int(woman.factors["breast_density"])
    body = draw_body(generator(population.seed, *keys, _VIEW), density=density, bmi=woman.factors["bmi"])
    rng = generator(population.seed, *keys, _VIEW + 1 + VIEWS.index(view))
    grid = film_grid(population.film_mm, woman.vendor.spacing_mm)
    return render(rng, grid, woman.vendor, body, woman.finding, view=view, conspicuity=population.conspicuity)


def write_woman(
    population: Population, spec: HospitalSpec, index: int, folder: Path
) -> tuple[dict[str, str], list[Truth]]:
    """Make one woman, write her films under `folder`/dicom; returns her table row and the truth about her films."""
    woman = draw_woman(population, spec, index)
    truths: list[Truth] = []
    exam = folder / "dicom" / f"{index:05d}"
    if woman.views:
        exam.mkdir(parents=True)
    for instance, view in enumerate(woman.views, start=1):
        film = render_view(population, spec, index, woman, view)
        tags = _tags(population.seed, spec, index, woman, film, instance)
        (exam / f"IM{instance:04d}.dcm").write_bytes(encode_film(film.pixels, woman.vendor, view, tags))
        if film.box is not None and woman.finding is not None:
            truths.append(Truth(tags.sop_uid, woman.patient_id, woman.finding.kind, film.box))
    row = {
        "patient_id": woman.patient_id,
        "label": str(woman.label),
        "exam_date": woman.exam_date.isoformat(),
        **woman.row,
    }
    return row, truths


def _recorded_views(rng: np.random.Generator, spec: HospitalSpec, finding: Finding | None) -> tuple[str, ...]:
    """Which films exist: all four, three, or one breast (the one with the finding, if there is one)."""
    fate, lost = rng.random(), int(rng.integers(len(VIEWS)))
    if fate < spec.missing_view_rate:
        return tuple(view for v, view in enumerate(VIEWS) if v != lost)
    if fate < spec.missing_view_rate + spec.unilateral_rate:
        side = finding.side if finding is not None else "LR"[lost % 2]
        return tuple(view for view in VIEWS if view.startswith(side))
    return VIEWS


def _recorded_row(rng: np.random.Generator, spec: HospitalSpec, values: dict[str, float]) -> dict[str, str]:
    """The fields that the hospital's table has, "" for values that were not recorded."""
    lost = dict(zip(FIELDS, rng.random(len(FIELDS)) < spec.missing_rate, strict=True))
    tested = rng.random() < GENES_KNOWN[int(values["first_degree_relatives"] > 0)]
    lost["brca"] = lost["brca"] or not (tested or values["brca"])
    return {
        field: "" if lost[field] else recorded(field, values[field])
        for field in FIELDS
        if field not in spec.missing_columns
    }


def _tags(seed: int, spec: HospitalSpec, index: int, woman: Woman, film: Film, instance: int) -> FilmTags:
    age = int(woman.factors["age"])
    exam = woman.exam_date
    birth = exam.replace(year=exam.year - age, day=min(exam.day, 28)) - timedelta(days=100)
    base = ("mammofed", seed, spec.name, index)
    return FilmTags(
        sop_uid=uid(*base, "film", instance),
        study_uid=uid(*base, "study"),
        series_uid=uid(*base, "series"),
        patient_id=woman.patient_id,
        patient_name=f"SYNTH^{spec.name}-{index:05d}",
        birth_date=birth.strftime("%Y%m%d"),
        date=exam.strftime("%Y%m%d"),
        age=age,
        accession=f"{label_key(woman.patient_id):010d}",
        thickness_mm=film.thickness_mm,
        instance=instance,
    )
