"""Clinical variables of synthetic women with published effect sizes, and the label that follows; called by women.

Sources: BCRAT (Gail model) coefficients as published by the NCI for white women; density and atypia within biopsied
women from BCSC (Tice et al., JNCI 2013); hormone therapy from the Collaborative Group (Lancet 2019); polygenic score
from Mavaddat et al. (AJHG 2019, PRS313); a recalled prior screen from Henderson et al. (CEBP 2015). Age and lump are
tuned for a mixed diagnostic cohort. Prevalence is enriched (case-control), so no figure here is a population risk.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulations.population.seeds import generator, label_key
from simulations.population.specs import HospitalSpec

Columns = dict[str, NDArray[np.float64]]

NULLIPAROUS = -1.0
DENSITIES = ("a", "b", "c", "d")
HRT = ("none", "estrogen", "combined")
PRIOR_RESULT = ("never", "negative", "recalled")
NEVER = -1.0
DENSITY_CUTS = (-1.6, 0.05, 1.6)  # of the latent density: 8, 43, 41, 9 % of women
DENSITY_LOG_RISK = np.log([0.70, 1.0, 1.5, 2.05])
HRT_LOG_RISK = np.log([1.0, 1.33, 2.08])  # current users of 5-14 years
PRS_LOG_ODDS = float(np.log(1.61))  # per standard deviation
BRCA_LOG_RISK = float(np.log(6.0))
RECALL_LOG_RISK = float(np.log(1.39))
AGE_LOG_ODDS = 0.045  # a year; tuning value for a diagnostic cohort of mixed ages
BMI_LOG_RISK = 0.012  # a unit, after menopause
ATYPIA_BY_DENSITY = np.log([0.68 / (0.70 * 1.82), 1.0, 1.0, 5.34 / (2.05 * 1.82)])  # beyond both main effects
DISCHARGE_RATES = (0.05, 0.02)  # P(discharge | cancer), P(discharge | none)
CALIBRATION_WOMEN = 20_000


def draw_risk_factors(rng: np.random.Generator, n: int, *, age_mean: float, density_shift: float) -> Columns:
    """Draw what is known of n women before anybody looks at a film.

    Returns columns of n numbers: flags are 0/1, categories are indices into DENSITIES, HRT and PRIOR_RESULT,
    `first_birth_age` is NULLIPAROUS and `years_since_screen` NEVER where these apply. Values are rounded as a
    hospital would record them.
    """
    age = np.round(np.clip(rng.normal(age_mean, 10, n), 35, 85))
    bmi = np.round(np.clip(rng.lognormal(np.log(26.5), 0.19, n), 16, 50), 1)
    latent = -0.035 * (age - 55) - 0.09 * (bmi - 27) + rng.standard_normal(n) + density_shift
    relatives = np.searchsorted([0.85, 0.98], rng.random(n)).astype(float)
    biopsies = np.searchsorted([0.81, 0.94], rng.random(n)).astype(float)
    atypia = ((biopsies > 0) & (rng.random(n) < 0.08)).astype(float)
    menarche = np.clip(np.round(rng.normal(12.8, 1.4, n)), 10, 17)
    first_birth = np.clip(np.round(rng.normal(26, 5, n)), 15, 45)
    first_birth = np.where((rng.random(n) < 0.16) | (first_birth > age), NULLIPAROUS, first_birth)
    menopausal = (age > rng.normal(51, 4, n)).astype(float)
    hrt = np.where(menopausal == 1, np.searchsorted([0.82, 0.90], rng.random(n)), 0).astype(float)
    brca = (rng.random(n) < 0.004 + 0.03 * (relatives == 2)).astype(float)
    prs = np.round(rng.standard_normal(n), 3)
    years = np.array([NEVER, 1.0, 2.0, 4.0])[np.searchsorted([0.10, 0.40, 0.85], rng.random(n))]
    recalled = rng.random(n) < 0.08
    result = np.where(years == NEVER, 0.0, np.where(recalled, 2.0, 1.0))
    return {
        "age": age,
        "menarche_age": menarche,
        "first_birth_age": first_birth,
        "first_degree_relatives": relatives,
        "prior_biopsies": biopsies,
        "atypia": atypia,
        "breast_density": np.searchsorted(DENSITY_CUTS, latent).astype(float),
        "hrt": hrt,
        "bmi": bmi,
        "menopausal": menopausal,
        "brca": brca,
        "prs_z": prs,
        "years_since_screen": years,
        "prior_screen_result": result,
    }


def bcrat_log_risk(women: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """BCRAT relative risk (log) of n women from biopsies, menarche, first birth, relatives and atypia."""
    biopsies, relatives = np.minimum(women["prior_biopsies"], 2), np.minimum(women["first_degree_relatives"], 2)
    menarche = 2.0 - np.searchsorted([11.5, 13.5], women["menarche_age"])  # >= 14: 0, 12-13: 1, < 12: 2
    birth = np.searchsorted([19.5, 24.5, 29.5], women["first_birth_age"]).astype(float)
    birth = np.where(women["first_birth_age"] == NULLIPAROUS, 2.0, birth)  # as a first birth at 25-29
    atypia = np.where(women["atypia"] == 1, np.log(1.82), np.log(0.93))
    return np.asarray(
        0.5292641686 * biopsies
        + 0.0940103059 * menarche
        + 0.2186262218 * birth
        + 0.9583027845 * relatives
        - 0.2880424830 * (women["age"] >= 50) * biopsies
        - 0.1908113865 * birth * relatives
        + np.where(biopsies > 0, atypia, 0.0)
    )


def log_risk(women: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Log relative risk of n women from all risk factors; symptoms are no part of it."""
    density = women["breast_density"].astype(int)
    return np.asarray(
        bcrat_log_risk(women)
        + DENSITY_LOG_RISK[density]
        + women["atypia"] * ATYPIA_BY_DENSITY[density]
        + HRT_LOG_RISK[women["hrt"].astype(int)]
        + AGE_LOG_ODDS * (women["age"] - 55)
        + BMI_LOG_RISK * (women["bmi"] - 27) * women["menopausal"]
        + BRCA_LOG_RISK * women["brca"]
        + PRS_LOG_ODDS * women["prs_z"]
        + RECALL_LOG_RISK * (women["prior_screen_result"] == 2)
    )


@lru_cache(maxsize=4096)
def intercept(spec: HospitalSpec, seed: int) -> float:
    """Log odds to add to `log_risk` so that the hospital's expected prevalence is the one asked for (bisection)."""
    rng = generator(seed, label_key("calibration"), label_key(spec.name))
    risk = log_risk(draw_risk_factors(rng, CALIBRATION_WOMEN, age_mean=spec.age_mean, density_shift=spec.density_shift))
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(risk + middle).mean() < spec.prevalence else (low, middle)
    return (low + high) / 2


def draw_labels_and_symptoms(
    rng: np.random.Generator, women: Columns, *, intercept: float, lump_rates: tuple[float, float]
) -> NDArray[np.uint8]:
    """Draw each woman's label from her risk, then her symptoms given the label (added to `women`)."""
    n = len(women["age"])
    label = (rng.random(n) < _sigmoid(log_risk(women) + intercept)).astype(np.uint8)
    women["palpable_lump"] = (rng.random(n) < np.where(label == 1, *lump_rates)).astype(float)
    women["nipple_discharge"] = (rng.random(n) < np.where(label == 1, *DISCHARGE_RATES)).astype(float)
    return label


def recorded(field: str, value: float) -> str:
    """A value as it stands in a hospital's table."""
    if field == "breast_density":
        return DENSITIES[int(value)]
    if field == "hrt":
        return HRT[int(value)]
    if field == "prior_screen_result":
        return PRIOR_RESULT[int(value)]
    if field == "first_birth_age" and value == NULLIPAROUS:
        return "nulliparous"
    if field == "years_since_screen" and value == NEVER:
        return "never"
    return f"{value:g}"


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
