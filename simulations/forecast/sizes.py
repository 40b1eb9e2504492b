"""Women and films of a study, counted before any film is made; used by `command`.

A synthetic woman is drawn from her seed alone, films or not, and her part of the split from her pseudonym alone: so
both can be counted exactly in some 0.3 ms a woman.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from client.ingest.pseudonyms import Pseudonyms
from shared_model.cohort.splits import assign_split
from shared_model.errors import ConfigError
from simulations.hospitals import synthetic_hospitals
from simulations.parties import HELD_OUT, split_of
from simulations.plan import Config, importer_key
from simulations.population.specs import HospitalSpec, Population
from simulations.population.women import draw_woman

DRAWN = 20_000  # women drawn at most, some six seconds; of a larger study each hospital's first are, and scaled up


@dataclass(frozen=True, kw_only=True)
class Party:
    """One hospital, or the held-out women. parts: women by part of the split. exact: all of them were drawn."""

    women: int
    films: int
    parts: Mapping[str, int]
    exact: bool


def population_of(config: Config) -> Population:
    """The hospitals that the configuration describes.

    Raises:
        ConfigError: the women are not synthetic ones, so that nobody can count their films without the films.
    """
    cohort = config["cohort"]
    if cohort["kind"] != "synthetic":
        raise ConfigError("cohort: only synthetic hospitals can be planned", found=cohort["kind"], expected="synthetic",
                          remedy="start the study with rounds=1, which prepares its cohorts")  # fmt: skip
    return synthetic_hospitals(config)


def count(config: Config, population: Population) -> dict[str, Party]:
    """Each hospital by name, and `held_out`."""
    share = min(1.0, DRAWN / sum(spec.patients for spec in population.all))
    return {spec.name: _party(config, population, spec, share) for spec in population.all}


def _party(config: Config, population: Population, spec: HospitalSpec, share: float) -> Party:
    pseudonyms, terms = Pseudonyms(importer_key(config["seed"], spec.name)), split_of(config, spec.name)
    drawn = max(1, round(share * spec.patients))
    films, parts = 0, dict.fromkeys(terms["fractions"], 0)
    for index in range(drawn):
        woman = draw_woman(population, spec, index)
        films += len(woman.views)
        if woman.views or any(woman.row.values()):  # else there is nothing to prepare of her
            parts[assign_split(pseudonyms.of(woman.patient_id), **terms)] += 1
    scale = spec.patients / drawn
    return Party(
        women=spec.patients, films=round(scale * films), exact=drawn == spec.patients,
        parts={name: round(scale * number) for name, number in parts.items()},
    )  # fmt: skip


def training_patients(parties: Mapping[str, Party]) -> dict[str, int]:
    """Women that each hospital trains on, by name."""
    return {name: party.parts["train"] for name, party in sorted(parties.items()) if name != HELD_OUT}
