"""Shifts: each changes what it says and nothing else, the held-out women never change, the default stays as it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from shared_model.errors import ConfigError
from simulations.composition import compose_config
from simulations.hospitals import default_hospitals, shifted, synthetic_hospitals
from simulations.hospitals.shifts import SHIFTS, site_vendors
from simulations.population.specs import HospitalSpec, Population
from simulations.population.women import draw_woman

# SHA-256 of the profiles of the default hospitals before there were shifts: with versions and code they name the films
DEFAULTS = {
    (4, 1600, 900): "6602493c47b9e20526fa6eb0dd3a3e817e0f715cf915b666b2ae3fcf2d0beb3c",
    (11, 1000, 400): "d79519104b8f496b1e0973963ac786c57fe7e0482f2fc57862c07b875222b34e",
}
RECORDS = {"missing_columns", "missing_rate", "missing_view_rate", "unilateral_rate", "image_only_rate",
           "table_only_rate"}  # fmt: skip
MAY_DIFFER = {"none": set(), "prevalence": {"prevalence"}, "vendor": {"vendors"}, "missingness": RECORDS,
              "all": {"prevalence", "vendors"} | RECORDS}  # fmt: skip


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return dict(compose_config(["privacy=none"])["cohort"])


def default(sites: int = 4, patients: int = 1600, held_out: int = 900) -> Population:
    return default_hospitals(
        sites=sites, patients=patients, held_out=held_out, seed=1, film_height=160, film_width=128,
        film_spacing_mm=1.25, conspicuity=5.0,
    )  # fmt: skip


def digest(population: Population) -> str:
    values = asdict(population)
    assert values.pop("calcification_share") == 0.32  # what it was before it could be chosen
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differing(specs: tuple[HospitalSpec, ...]) -> set[str]:
    """Fields in which hospitals differ, apart from name and size."""
    names = {field.name for field in fields(HospitalSpec)} - {"name", "patients"}
    return {name for name in names if len({getattr(spec, name) for spec in specs}) > 1}


def vendor_names(population: Population) -> list[str]:
    return ["".join(vendor.name for vendor in spec.vendors) for spec in population.hospitals]


@pytest.mark.parametrize(("sizes", "expected"), DEFAULTS.items())
def test_the_default_hospitals_are_those_that_were_generated_before(
    sizes: tuple[int, int, int], expected: str, settings: dict[str, Any]
) -> None:
    sites, patients, held_out = sizes
    assert digest(shifted(default(*sizes), settings)) == expected
    config = compose_config([f"sites={sites}", f"patients={patients}", f"held_out={held_out}", "seed=1"])
    assert digest(synthetic_hospitals(config)) == expected
    assert digest(shifted(default(*sizes), {})) == expected  # the launch.json of an older run


@pytest.mark.parametrize("shift", MAY_DIFFER)
@pytest.mark.parametrize("sites", [4, 7])
def test_a_shift_changes_what_it_says_and_nothing_else(shift: str, sites: int, settings: dict[str, Any]) -> None:
    before = default(sites)
    after = shifted(before, settings | {"shift": shift})
    assert differing(after.hospitals) == MAY_DIFFER[shift]
    assert [(s.name, s.patients) for s in after.hospitals] == [(s.name, s.patients) for s in before.hospitals]
    assert replace(after, hospitals=before.hospitals) == before  # held-out women, seed and films are untouched
    for spec, again in zip(after.hospitals, after.hospitals[4:], strict=False):
        assert replace(again, name=spec.name, patients=spec.patients) == spec  # kinds repeat


def test_without_shift_every_site_draws_from_the_held_out_mixture_but_for_vendor_e(settings: dict[str, Any]) -> None:
    population = shifted(default(), settings | {"shift": "none"})
    for spec in population.hospitals:
        assert replace(population.held_out, name=spec.name, patients=spec.patients, vendors=spec.vendors) == spec
    assert vendor_names(population) == ["ABCD"] * 4


def test_the_strong_shifts_are_strong(settings: dict[str, Any]) -> None:
    sites = shifted(default(), settings | {"shift": "all"}).hospitals
    prevalences = [spec.prevalence for spec in sites]
    mean = sum(spec.prevalence * spec.patients for spec in sites) / sum(spec.patients for spec in sites)
    assert max(prevalences) > 5 * min(prevalences) and mean == pytest.approx(0.25, abs=0.02)
    assert len({spec.vendors for spec in sites}) == 4
    assert max(spec.table_only_rate for spec in sites) >= 0.3 <= max(spec.image_only_rate for spec in sites)
    assert sum(bool(spec.missing_columns) for spec in sites) == 3


def test_the_held_out_women_are_the_same_under_every_shift(settings: dict[str, Any]) -> None:
    drawn = []
    for shift in SHIFTS:
        population = shifted(default(patients=80, held_out=8), settings | {"shift": shift, "leave_out": "B"})
        drawn.append([draw_woman(population, population.held_out, index) for index in range(8)])
    assert all(women == drawn[0] for women in drawn)


@pytest.mark.parametrize("left_out", "ABCD")
@pytest.mark.parametrize("shift", SHIFTS)
def test_no_site_has_the_vendor_that_is_left_out(left_out: str, shift: str, settings: dict[str, Any]) -> None:
    population = shifted(default(sites=9), settings | {"shift": shift, "leave_out": left_out})
    assert site_vendors(population) == tuple(sorted(set("ABCD") - {left_out}))
    assert {vendor.name for vendor in population.held_out.vendors} == set("ABCDE")
    kept = shifted(default(sites=9), settings | {"shift": shift})
    for mine, before in zip(population.hospitals, kept.hospitals, strict=True):
        assert replace(mine, vendors=before.vendors) == before  # everything else is as without the omission


def test_sites_that_lose_their_vendor_get_the_others_in_turn(settings: dict[str, Any]) -> None:
    names = vendor_names(shifted(default(sites=13), settings | {"leave_out": "C"}))
    assert names == ["A", "B", "D", "D", "A", "B", "A", "D", "A", "B", "B", "D", "A"]
    assert vendor_names(shifted(default(), settings | {"leave_out": "D", "shift": "none"})) == ["ABC"] * 4


@pytest.mark.parametrize(("changes", "words"), [
    ({"shift": "label"}, "cohort.shift: unknown choice"),
    ({"shift": None}, "cohort.shift: unknown choice"),
    ({"leave_out": "E"}, "cohort.leave_out: unknown vendor"),
    ({"leave_out": "A,B"}, "cohort.leave_out: unknown vendor"),
    ({"shift": "vendor", "shifts": None}, "at least one kind"),
    ({"shift": "vendor", "shifts": {"vendor": ["E"]}}, "unknown vendors"),
    ({"shift": "all", "shifts": {"prevalence": [0.2, "x"]}}, "must be a share"),
    ({"shift": "all", "shifts": {"prevalence": [0.0]}}, "impossible profile"),
    ({"shift": "all", "shifts": {"missingness": [{"missing_rate": 0.1}]}}, "needs all rates"),
    ({"shift": "all", "shifts": {"missingness": [{"missing_columns": ["prs"]}]}}, "unknown columns"),
    ({"shift": "all", "shifts": {"missingness": [{"image_only_rate": 0.6, "table_only_rate": 0.6}]}}, "more women"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_words(changes: dict[str, Any], words: str, settings: dict[str, Any]) -> None:
    changed = settings | changes
    if isinstance(changes.get("shifts"), dict):
        lists = dict(changes["shifts"])
        whole = settings["shifts"]["missingness"][0]
        if "missingness" in lists and words != "needs all rates":
            lists["missingness"] = [whole | row for row in lists["missingness"]]
        changed["shifts"] = settings["shifts"] | lists
    with pytest.raises(ConfigError, match=words):
        shifted(default(), changed)
