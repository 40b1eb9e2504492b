"""Two invented radiologists who read the evaluator's synthetic women, so that the second-reader section can be tried.

Nobody read these films. A decision is drawn from the truth: the reader's mean sensitivity and specificity over all
women with films are published ones, and cancers of little contrast or in dense breasts are missed more often, benign
findings recalled more often, so that reader and model fail at the same women. Nothing of it is a model input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from shared_model.readings import ARBITER, NO, READER, YES
from simulations.hospitals.shifts import synthetic_hospitals
from simulations.population.seeds import generator, label_key
from simulations.population.specs import HospitalSpec, Population
from simulations.population.women import Woman, draw_woman

BY_CONTRAST: Final = 4.0  # log odds of finding a cancer from no contrast to the greatest; tuning value
BY_FINDING: Final = 1.5  # log odds of recalling a benign finding rather than nothing; tuning value
MOST_CONTRAST: Final = 1.2  # simulations.population.lesions


@dataclass(frozen=True)
class Skill:
    """Mean sensitivity and specificity of an invented reader, with the source of both."""

    sensitivity: float
    specificity: float
    source: str


SKILLS: Final[Mapping[str, Skill]] = {
    READER: Skill(0.869, 0.889, "BCSC, 1.7 million US screens of 2007-13 (Lehman 2017, Radiology 283:49)"),
    ARBITER: Skill(0.801, 0.972, "second readers of a Swedish programme (Salim 2020, JAMA Oncol 6:1581)"),
}


def synthetic_readings(config: Mapping[str, Any], name: str) -> dict[str, dict[str, str]]:
    """Decisions on the women of one synthetic hospital by patient id; empty for women who are no synthetic ones.

    Args:
        config: of a launch. name: of the hospital.
    """
    if config["cohort"]["kind"] != "synthetic":
        return {}
    population = synthetic_hospitals(config)
    spec = next((spec for spec in population.all if spec.name == name), None)
    return {} if spec is None else read_films(population, spec)


def read_films(population: Population, spec: HospitalSpec) -> dict[str, dict[str, str]]:
    """Decisions by patient id; a woman without films is read by nobody."""
    women = [(index, draw_woman(population, spec, index)) for index in range(spec.patients)]
    read = [(index, woman) for index, woman in women if woman.views]
    found: dict[str, dict[str, str]] = {woman.patient_id: {} for _, woman in read}
    for reader, skill in SKILLS.items():
        for (index, woman), chance in zip(read, _chances([w for _, w in read], skill), strict=True):
            rng = generator(population.seed, label_key(spec.name), index, label_key(reader))
            found[woman.patient_id][reader] = YES if rng.random() < chance else NO
    return found


def _chances(women: Sequence[Woman], skill: Skill) -> NDArray[np.float64]:
    """Chance of a recall, [N]; its means over women with and without cancer are the skill's."""
    label = np.array([woman.label for woman in women], dtype=bool)
    seen = np.array([0.0 if w.finding is None else BY_CONTRAST * w.finding.contrast / MOST_CONTRAST if w.label
                     else BY_FINDING for w in women])  # fmt: skip
    chances = np.zeros(len(women))
    for members, mean in ((label, skill.sensitivity), (~label, 1 - skill.specificity)):
        if members.any():
            chances[members] = expit(seen[members] + _offset(seen[members], mean))
    return chances


def _offset(seen: NDArray[np.float64], mean: float) -> float:
    """Log odds to add so that the mean chance is `mean`."""
    return float(brentq(lambda x: expit(seen + x).mean() - mean, -20.0, 20.0))
