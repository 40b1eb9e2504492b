"""Hospitals that differ in one thing only, or in nothing, or lack a vendor; called by simulations/cohorts.

What a kind of shift changes stands in `configs/cohort/synthetic.yaml`. The held-out women are never touched: they are
drawn from (seed, name, number, profile) alone, so they are the same women, with the same films, whatever the sites are,
and studies under different shifts can be compared woman by woman.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shared_model.errors import ConfigError
from simulations.hospitals.defaults import default_hospitals
from simulations.population.specs import HospitalSpec, Population, Vendor
from simulations.population.women import FIELDS

SHIFTS = ("default", "none", "prevalence", "vendor", "missingness", "all")
UNSEEN = "E"  # the vendor that only held-out women meet, whatever is left out besides
RATES = frozenset({"missing_rate", "missing_view_rate", "unilateral_rate", "image_only_rate", "table_only_rate"})


def synthetic_hospitals(config: Mapping[str, Any]) -> Population:
    """The synthetic hospitals of a whole configuration (`cohort.kind=synthetic`).

    Raises:
        ConfigError: as :func:`default_hospitals` and :func:`shifted`.
    """
    settings = config["cohort"]
    population = default_hospitals(
        sites=config["sites"], patients=config["patients"], held_out=config["held_out"], seed=config["seed"],
        film_height=settings["film_height"], film_width=settings["film_width"],
        film_spacing_mm=settings["film_spacing_mm"], conspicuity=settings["conspicuity"],
        calcification_share=settings["calcification_share"],
    )  # fmt: skip
    return shifted(population, settings)


def shifted(population: Population, settings: Mapping[str, Any]) -> Population:
    """The hospitals as `cohort.shift` and `cohort.leave_out` ask for; for `default` and nothing left out, `population`.

    Args:
        population: of :func:`default_hospitals`; names, sizes, seed and held-out women stay.
        settings: the configuration's group `cohort`. An older run's settings, without these keys, mean the default.

    Raises:
        ConfigError: an unknown shift, vendor or column, or a rate that is none.
    """
    shift, left_out = settings.get("shift", "default"), settings.get("leave_out")
    if shift not in SHIFTS:
        raise ConfigError("cohort.shift: unknown choice", found=shift, expected=" | ".join(SHIFTS))
    makers = tuple(vendor for vendor in population.held_out.vendors if vendor.name != UNSEEN)
    hospitals = population.hospitals
    if shift != "default":
        kinds = _Kinds(settings.get("shifts"), makers)
        hospitals = tuple(kinds.apply(shift, _alike(population, spec, makers), i) for i, spec in enumerate(hospitals))
    if left_out is not None:
        hospitals = _without(hospitals, str(left_out), makers)
    return population if hospitals == population.hospitals else replace(population, hospitals=hospitals)


def site_vendors(population: Population) -> tuple[str, ...]:
    """Names of the vendors that any site has, in order."""
    return tuple(sorted({vendor.name for spec in population.hospitals for vendor in spec.vendors}))


def _alike(population: Population, spec: HospitalSpec, makers: tuple[Vendor, ...]) -> HospitalSpec:
    """A site of the same name and size whose women are drawn as the held-out ones, by the sites' vendors."""
    return replace(population.held_out, name=spec.name, patients=spec.patients, vendors=makers)


class _Kinds:
    """The kinds of hospital of each shift, checked."""

    def __init__(self, values: object, makers: tuple[Vendor, ...]) -> None:
        lists = values if isinstance(values, Mapping) else {}
        for name in ("prevalence", "vendor", "missingness"):
            if not isinstance(lists.get(name), list) or not lists[name]:
                raise ConfigError(f"cohort.shifts.{name}: must be a list of at least one kind of hospital",
                                  found=lists.get(name))  # fmt: skip
        by_name = {vendor.name: vendor for vendor in makers}
        unknown = [name for name in lists["vendor"] if name not in by_name]
        if unknown:
            raise ConfigError("cohort.shifts.vendor: unknown vendors", found=unknown, expected=sorted(by_name))
        self._vendors = [by_name[name] for name in lists["vendor"]]
        self._prevalence = [_share("prevalence", value) for value in lists["prevalence"]]
        self._missingness = [_missingness(row) for row in lists["missingness"]]

    def apply(self, shift: str, spec: HospitalSpec, position: int) -> HospitalSpec:
        """The site at `position` (from 0) under `shift`."""
        changes: dict[str, Any] = {}
        if shift in ("prevalence", "all"):
            changes["prevalence"] = self._prevalence[position % len(self._prevalence)]
        if shift in ("vendor", "all"):
            changes["vendors"] = (self._vendors[position % len(self._vendors)],)
        if shift in ("missingness", "all"):
            changes |= self._missingness[position % len(self._missingness)]
        return replace(spec, **changes)


def _missingness(row: object) -> dict[str, Any]:
    """What the records of a kind of hospital lack, as fields of HospitalSpec."""
    if not isinstance(row, Mapping) or row.keys() != RATES | {"missing_columns"}:
        raise ConfigError("cohort.shifts.missingness: each kind needs all rates",
                          found=sorted(row) if isinstance(row, Mapping) else row,
                          expected=sorted(RATES | {"missing_columns"}))  # fmt: skip
    columns = tuple(str(name) for name in row["missing_columns"])
    unknown = sorted(set(columns) - set(FIELDS))
    if unknown:
        raise ConfigError("cohort.shifts.missingness: unknown columns", found=unknown, expected=", ".join(FIELDS))
    rates = {name: _share(f"missingness.{name}", row[name]) for name in sorted(RATES)}
    if rates["image_only_rate"] + rates["table_only_rate"] > 1:
        raise ConfigError("cohort.shifts.missingness: more women without films or table than there are women",
                          found=dict(row), expected="image_only_rate + table_only_rate <= 1")  # fmt: skip
    return {"missing_columns": columns, **rates}


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"cohort.shifts.{name}: must be a share", found=value, expected="a number in [0, 1]")
    return float(value)


def _without(
    hospitals: tuple[HospitalSpec, ...], left_out: str, makers: tuple[Vendor, ...]
) -> tuple[HospitalSpec, ...]:
    """No site has `left_out`: it is struck from sites with several vendors, and sites that had it alone get the others
    in turn, beginning with the one that follows it."""
    names = [vendor.name for vendor in makers]
    if left_out not in names:
        raise ConfigError("cohort.leave_out: unknown vendor", found=left_out, expected=f"{' | '.join(names)} | null")
    place = names.index(left_out)
    others = (*makers[place + 1 :], *makers[:place])
    result, replaced = [], 0
    for spec in hospitals:
        kept = tuple(vendor for vendor in spec.vendors if vendor.name != left_out)
        if not kept:
            kept = (others[replaced % len(others)],)
            replaced += 1
        result.append(replace(spec, vendors=kept))
    return tuple(result)
