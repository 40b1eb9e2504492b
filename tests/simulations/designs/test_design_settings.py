"""What a design refuses before anything is made, when women were examined, and what all trainings cost together."""

from __future__ import annotations

import csv
import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from client.ingest.pseudonyms import Pseudonyms
from client.privacy.accountant import Account
from shared_model.errors import CohortError, ConfigError, PrivacyError
from simulations.composition import compose_config
from simulations.designs.plans import cross_validation
from simulations.designs.price import Price, price_in_child, price_of
from simulations.designs.settings import check_design, is_design, trainings
from simulations.designs.years import by_site, decimal_year, read_years, simulated_years
from simulations.plan import importer_key

SITES = {name: [f"{name}{i:03d}" for i in range(60)] for name in ("north", "south")}
LABELS = {name: [i % 3 == 0 for i in range(60)] for name in SITES}


def test_an_ordinary_study_is_no_design() -> None:
    assert not is_design(compose_config(["study=smoke"])) and not is_design({})  # {}: launch.json of an older release
    assert is_design(compose_config(["study=smoke", "design=cross_validation"]))
    assert [trainings(compose_config(["study=smoke", f"design={kind}"])) for kind in
            ("held_out", "cross_validation", "leave_one_site_out", "temporal")] == [1, 5, 4, 1]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), [
    (["design=cross_validation", "design.folds=1"], "design.folds: out of range"),
    (["design=cross_validation", "baselines=[pooled]"], "design=cross_validation and baselines"),
    (["design=cross_validation", "seeds=[1,2]"], "design=cross_validation and seeds"),
    (["design=cross_validation", "engine=flower"], "engine=local"),
    (["design=cross_validation", "personal=head"], "personal=none"),
    (["design=cross_validation", "weights=some/passport.json"], "trained on women who would be tested"),
    (["design=cross_validation", "privacy=none", "design.epsilon=9"], "nothing is spent"),
    (["design=cross_validation", "design.epsilon=7"], r"at least privacy\.epsilon, 8"),
    (["design=leave_one_site_out", "design.reference=maybe"], "neither yes nor no"),
    (["design=temporal"], r"remedy|design\.until=2022"),
    (["design=temporal", "design.until=2021", "design.years=/no/such.csv"], "there is no such file"),
    (["design=leave_one_site_out", "sites=1"], "without its one site nobody is left"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_name(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_design(compose_config(["study=smoke", *overrides]))


def test_the_simulators_dates_reach_the_pseudonyms(tmp_path: Path) -> None:
    for site, rows in {"north": [("a", "2021-01-01"), ("b", "2022-07-02")], "south": [("a", "2019-12-31")]}.items():
        (tmp_path / site).mkdir()
        with (tmp_path / site / "clinical.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("patient_id", "label", "exam_date"), *((p, 0, d) for p, d in rows)])
    found = simulated_years({site: tmp_path / site for site in ("north", "south")}, seed=3)
    name = Pseudonyms(importer_key(3, "north")).of("b")
    assert len(found) == 3 and found[name] == decimal_year(date(2022, 7, 2)) == pytest.approx(2022.4986, abs=1e-4)
    (tmp_path / "south/clinical.csv").write_text("patient_id,label\na,0\n")
    with pytest.raises(CohortError, match="no date of examination"):
        simulated_years({"south": tmp_path / "south"}, seed=3)


def test_years_come_from_a_file_of_two_columns(tmp_path: Path) -> None:
    (path := tmp_path / "years.csv").write_text("\ufeffpseudonym, year\nnorth000,2020\nnorth001,2021.5\nnorth002,\n")
    found = by_site(read_years(path), SITES, strict=True)
    assert found["north"][:2] == [2020.0, 2021.5] and math.isnan(found["north"][2]) and np.isnan(found["south"]).all()


@pytest.mark.parametrize(("text", "words"), [
    ("woman,date\na,2020\n", "other columns.*woman, date"),
    ("pseudonym,year\na,2020\na,2021\n", "line 3: a pseudonym for the second time"),
    ("pseudonym,year\na,2021-07-03\n", "line 2: no year"), ("pseudonym,year\na,20\n", "line 2: no year"),
    ("pseudonym,year\na\n,2020\n", "line 3: not two values"), ("pseudonym,year\na,1,2\n", "line 2: not two values"),
    ("", "other columns"), ("pseudonym,year\nnorth000,2020\nstranger,2020\n", "names nobody of these sites"),
    ("pseudonym,year\nnorth000,\n", "nobody's year of examination is known"),
])  # fmt: skip
def test_a_bad_file_of_years_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    (path := tmp_path / "years.csv").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        by_site(read_years(path), SITES, strict=True)
    assert "2021-07-03" not in str(caught.value)  # a date of a woman is not shown


def test_all_trainings_together_stay_within_epsilon_or_are_granted_beforehand(
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    runs = cross_validation(SITES, LABELS, k=3, salt="s")
    small = ["study=smoke", "design=cross_validation", "training.steps_per_round=2"]
    price = price_of(compose_config(small), runs)
    assert price.releases == {"north": 2, "south": 2} and price.granted == 8.0
    assert price.one is not None and price.together is not None
    assert price.one < price.together["north"] <= 8.0
    (sigma, rate, steps) = price.mechanisms[0]
    twice = Account().add(noise_multiplier=sigma, sample_rate=rate, steps=2 * steps)
    assert price.together["north"] == twice.epsilon(delta=1e-5)
    assert Price.from_json(price.to_json()) == price

    none = price_of(compose_config([*small, "privacy=none"]), runs)
    assert none.granted is None and none.together is None and set(none.sigmas) == {0.0}

    asked: list[int] = []  # for how many trainings noise is calibrated: all, or each as a study by itself

    def calibrated(config: object, *, releases: int = 1, **others: object) -> tuple[float, ...]:
        asked.append(releases)
        return (0.8 * price.sigmas[0],)

    monkeypatch.setattr("simulations.designs.price.noise_multipliers", calibrated)
    each = price_of(compose_config([*small, "design.epsilon=20"]), runs)
    assert asked == [1] and each.granted == 20.0 and each.together is not None
    assert 8.0 < each.together["south"] <= 20.0
    by_hand = [*small, f"privacy.noise_multiplier={each.sigmas[0]}"]
    with pytest.raises(PrivacyError, match=r"takes part in 2.*a budget of 9.*design\.epsilon="):
        price_of(compose_config([*by_hand, "design.epsilon=9"]), runs)
    with pytest.raises(PrivacyError, match=r"a budget of 8 at delta"):  # noise that somebody chose is not trusted
        price_of(compose_config(by_hand), runs)


def test_who_waits_for_the_price_sees_how_far_it_is() -> None:
    """In a process of its own, the same price; each question to the accountant moves the bar, which is never full."""
    runs = cross_validation(SITES, LABELS, k=3, salt="s")
    config = compose_config(["study=smoke", "design=cross_validation", "training.steps_per_round=2"])
    seen: list[tuple[int, int | None]] = []
    assert price_in_child(config, runs, lambda done, of: seen.append((done, of))) == price_of(config, runs)
    assert seen and all(of is not None and 0 <= done < of for done, of in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    count: list[None] = []
    price_of(config, runs, asked=lambda: count.append(None))
    assert 4 <= len(count) <= 10

    by_hand = compose_config(["study=smoke", "design=cross_validation", "privacy.noise_multiplier=0.5"])
    with pytest.raises(PrivacyError, match="a budget of 8 at delta"):
        price_in_child(by_hand, runs, lambda done, of: None)
