"""Clinical variables of synthetic women: distributions, directions of effects, prevalence, what a table says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared_model.contract import load_contract
from simulations.hospitals import default_hospitals
from simulations.population import clinical
from simulations.population.seeds import generator
from simulations.population.women import FIELDS, draw_woman

N = 20_000
WOMEN = clinical.draw_risk_factors(generator(1), N, age_mean=54, density_shift=0.0)
POPULATION = default_hospitals(
    sites=4, patients=2000, held_out=600, seed=2, film_height=80, film_width=64, film_spacing_mm=2.5, conspicuity=5.0
)


def changed(**values: float) -> float:
    """Mean change of the log risk when everybody has these values."""
    other = WOMEN | {name: np.full(N, value) for name, value in values.items()}
    return float((clinical.log_risk(other) - clinical.log_risk(WOMEN)).mean())


def test_fields_are_those_of_the_contract() -> None:
    assert [field.name for field in load_contract().fields] == list(FIELDS)


def test_distributions_are_the_published_ones() -> None:
    density = np.bincount(WOMEN["breast_density"].astype(int), minlength=4) / N
    np.testing.assert_allclose(density, [0.08, 0.43, 0.41, 0.09], atol=0.05)
    assert np.mean(WOMEN["first_degree_relatives"] > 0) == pytest.approx(0.15, abs=0.01)
    assert np.mean(WOMEN["prior_biopsies"] > 0) == pytest.approx(0.19, abs=0.01)
    assert np.mean(WOMEN["atypia"][WOMEN["prior_biopsies"] > 0]) == pytest.approx(0.08, abs=0.02)
    assert not WOMEN["atypia"][WOMEN["prior_biopsies"] == 0].any()
    assert not WOMEN["hrt"][WOMEN["menopausal"] == 0].any()
    assert np.std(WOMEN["prs_z"]) == pytest.approx(1.0, abs=0.02)
    assert np.all((WOMEN["years_since_screen"] == clinical.NEVER) == (WOMEN["prior_screen_result"] == 0))


@pytest.mark.parametrize(
    ("field", "low", "high", "log_ratio"),
    [
        ("prs_z", 0.0, 1.0, np.log(1.61)),
        ("brca", 0.0, 1.0, np.log(6.0)),
        ("hrt", 0.0, 2.0, np.log(2.08)),
        ("prior_screen_result", 1.0, 2.0, np.log(1.39)),
    ],
)
def test_effects_are_the_published_ones(field: str, low: float, high: float, log_ratio: float) -> None:
    assert changed(**{field: high}) - changed(**{field: low}) == pytest.approx(log_ratio)


def test_bcrat_of_two_textbook_women() -> None:
    """Relative risks worked out by hand from the coefficients of Gail et al. as the NCI publishes them."""
    columns = {
        "age": [45.0, 55.0], "menarche_age": [14.0, 11.0], "first_birth_age": [19.0, 31.0],
        "first_degree_relatives": [0.0, 1.0], "prior_biopsies": [0.0, 1.0], "atypia": [0.0, 1.0],
    }  # fmt: skip
    women = {name: np.array(values) for name, values in columns.items()}
    second = 0.5292641686 + 2 * 0.0940103059 + 3 * 0.2186262218 + 0.9583027845 - 0.2880424830 - 3 * 0.1908113865
    np.testing.assert_allclose(clinical.bcrat_log_risk(women), [0.0, second + np.log(1.82)])


def test_risk_factors_alone_separate_as_research_measured() -> None:
    rng = generator(3)
    risk = clinical.log_risk(WOMEN)
    label = rng.random(N) < 1 / (1 + np.exp(-(risk - risk.mean() - 1.3)))
    assert 0.68 < roc_auc_score(label, risk) < 0.76


@pytest.mark.parametrize("spec", POPULATION.all, ids=lambda s: s.name)
def test_prevalence_is_the_one_asked_for(spec: object) -> None:
    many = replace(spec, name=spec.name)  # type: ignore[type-var, attr-defined]
    women = clinical.draw_risk_factors(generator(9), N, age_mean=many.age_mean, density_shift=many.density_shift)
    label = clinical.draw_labels_and_symptoms(
        generator(10), women, intercept=clinical.intercept(many, 2), lump_rates=many.lump_rates
    )
    assert label.mean() == pytest.approx(many.prevalence, abs=0.015)
    cancer, healthy = many.lump_rates
    assert women["palpable_lump"][label == 1].mean() == pytest.approx(cancer, abs=0.03)
    assert women["palpable_lump"][label == 0].mean() == pytest.approx(healthy, abs=0.03)


def test_records_lack_what_the_profile_says() -> None:
    for spec in POPULATION.all:
        women = [draw_woman(POPULATION, spec, i) for i in range(spec.patients)]
        assert set(women[0].row) == set(FIELDS) - set(spec.missing_columns)
        table_only = np.mean([not w.views for w in women])
        image_only = np.mean([not any(w.row.values()) for w in women])
        three = np.mean([len(w.views) == 3 for w in women])
        one_breast = np.mean([len(w.views) == 2 for w in women])
        assert 0 < table_only < 0.05 and 0 < image_only < 0.05
        assert 0.05 < three < 0.15 and 0 < one_breast < 0.06
        blank = np.mean([w.row["bmi"] == "" for w in women if any(w.row.values())])
        assert 0.02 < blank < 0.09


def test_a_woman_with_one_breast_filmed_shows_her_finding() -> None:
    spec = replace(POPULATION.hospitals[0], unilateral_rate=1.0, missing_view_rate=0.0, table_only_rate=0.0)
    for i in range(100):
        woman = draw_woman(POPULATION, spec, i)
        assert len(woman.views) == 2 and len({v[0] for v in woman.views}) == 1
        assert woman.finding is None or woman.finding.side == woman.views[0][0]


def test_every_level_has_its_word() -> None:
    assert clinical.recorded("first_birth_age", clinical.NULLIPAROUS) == "nulliparous"
    assert clinical.recorded("years_since_screen", clinical.NEVER) == "never"
    assert [clinical.recorded("breast_density", float(i)) for i in range(4)] == ["a", "b", "c", "d"]
    assert clinical.recorded("hrt", 2.0) == "combined" and clinical.recorded("age", 61.0) == "61"
    assert clinical.recorded("prs_z", -1.234) == "-1.234"
