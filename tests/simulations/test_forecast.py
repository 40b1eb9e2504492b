"""What a study will take: counts are exact, seconds follow from a miniature by plain rules; no time is asserted."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client.trainer.site import KEPT_REPLIES
from client.training.local import LOAD_BYTES
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import load_contract
from shared_model.errors import ConfigError
from shared_model.imaging import PipelineConfig
from shared_model.protocol import Protocol
from simulations.composition import compose_study
from simulations.forecast import child, miniature, reckon
from simulations.forecast.measured import Measured, PhaseCost
from simulations.forecast.show import Forecast, Stage, draw
from simulations.forecast.sizes import Party, count, population_of, training_patients
from simulations.parties import HELD_OUT, split_of
from simulations.plan import build_protocol
from simulations.population import generate

SHA = "0" * 64
PATIENTS = {"site_01": 40, "site_02": 30, "site_03": 30}


def protocol(*overrides: str) -> Protocol:
    config = compose_study(["study=smoke", "privacy=none", *overrides])
    return build_protocol(
        config, patients=PATIENTS,
        sigmas=(1.5 if config["privacy"]["mode"] == "patient" else 0.0,) * len(config["training"]["phases"]),
        initial_weights={"sha256": SHA, "origin": "public", "recipe": "test"},
        contract={"version": "1", "sha256": SHA, "n_features": 40},
        pipeline={"sha256": SHA, "height": 112, "width": 84, "spacing_mm": 1.75},
    )  # fmt: skip


def cost(name: str, **values: float) -> PhaseCost:
    """A phase in which nothing takes time but what is given."""
    nothing = {"request_s": 0.0, "woman_s": 0.0, "first_request_s": 0.0, "first_woman_s": 0.0}
    return PhaseCost(**{**nothing, "name": name, "down": 1000, "up": 1100, **values})  # type: ignore[arg-type]


def measured(*phases: PhaseCost, **changes: Any) -> Measured:
    plain = Measured(
        phases=phases, steps=8, train={"a": 10, "b": 3}, loop_site_s=0.0, first_wait_s=0.0, selection_woman_s=0.1,
        test_woman_s=1.0, trainer_bytes=300, launcher_bytes=100, checkpoint_bytes=1000,
        journal_bytes_a_site_round=10.0,
        report_bytes={"initial": (1000, 50), "selection": (1000, 60), "test_initial": (1000, 70), "test": (1000, 80),
                      "site": (1000, 90)},
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def total(*arguments: Any, **settings: Any) -> float:
    """Seconds of all rounds."""
    return sum(reckon.round_seconds(*arguments, **settings))


def test_women_films_and_splits_are_counted_as_the_importer_finds_them(tmp_path: Path) -> None:
    overrides = ["study=smoke", "sites=2", "patients=44", "held_out=12", "model.height=32", "model.width=32"]
    config = compose_study(overrides)
    population = population_of(config)
    parties = count(config, population)
    contract, imaging = load_contract(), config["imaging"]
    pipeline = PipelineConfig(**{**imaging, "percentiles": tuple(imaging["percentiles"])})
    sources = generate(population, tmp_path / "films", workers=1)
    from client.ingest import prepare_site
    from simulations.plan import importer_key

    for name, source in sources.items():
        prepare_site(source=source, destination=tmp_path / name, contract=contract, pipeline=pipeline, site=name,
                     key=importer_key(config["seed"], name), workers=1)  # fmt: skip
        found = Cohort.open(tmp_path / name)
        split = split_indices(found, **split_of(config, name))
        assert parties[name].exact
        assert parties[name].films == len(list((source / "dicom").rglob("*.dcm"))) == found.manifest.n_views
        assert parties[name].parts == {part: len(rows) for part, rows in split.items()}


def test_of_a_very_large_study_the_first_women_of_each_hospital_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from simulations.forecast import sizes

    config = compose_study(["study=smoke", "patients=400"])
    whole = count(config, population_of(config))
    monkeypatch.setattr(sizes, "DRAWN", 200)
    part = count(config, population_of(config))
    assert not any(party.exact for party in part.values())
    for name, party in part.items():
        assert party.women == whole[name].women
        assert party.films == pytest.approx(whole[name].films, rel=0.1)
    assert sum(training_patients(part).values()) == pytest.approx(sum(training_patients(whole).values()), rel=0.1)


def test_other_women_than_synthetic_ones_are_refused_in_words() -> None:
    config = compose_study(["study=smoke"])
    config["cohort"]["kind"] = "somewhere"
    with pytest.raises(ConfigError, match="only synthetic"):
        population_of(config)


def test_the_name_is_that_of_a_run_because_the_split_depends_on_it() -> None:
    assert compose_study(["study=smoke"])["name"] == "smoke"
    assert compose_study([])["name"] == "quick"
    assert compose_study(["study=smoke", "name=mine"])["name"] == "mine"
    with pytest.raises(ConfigError, match="sitez"):
        compose_study(["sitez=3"])


def test_seconds_of_rounds_are_those_of_the_busiest_process() -> None:
    frozen = protocol("rounds=5", "training.sample_rate=0.5", "training.steps_per_round=16")  # image 1, fusion 4
    costs = measured(cost("image", request_s=1.0), cost("fusion", woman_s=0.1))
    # processes: {1} and {2, 3}; twice the miniature's steps. image: 2 requests of 2 s; fusion: 60 women at q 0.5
    expected = 1 * (2 * 2 * 1.0) + 4 * (2 * 0.1 * 0.5 * 60)
    assert total(frozen, costs, PATIENTS, processes=2, epsilon_s=0.0) == pytest.approx(expected)
    further = dataclasses.replace(costs, loop_site_s=0.01, first_wait_s=4.0)
    more = total(frozen, further, PATIENTS, processes=2, epsilon_s=0.5)
    assert more - expected == pytest.approx(5 * 3 * 0.01 + 4.0 + 5 * 0.5)


def test_what_only_the_first_round_of_a_phase_does_is_counted_once_a_phase() -> None:
    frozen = protocol("rounds=5")
    costs = measured(cost("image", first_request_s=1.0), cost("fusion", first_woman_s=0.1))
    assert total(frozen, costs, PATIENTS, processes=1, epsilon_s=0.0) == pytest.approx(3 + 10.0)


def test_sampled_sites_cost_their_share() -> None:
    frozen = protocol("rounds=2", "+sites_per_round=null", "strategy.sites_per_round=1")
    costs = measured(cost("image", woman_s=1.0), cost("fusion", woman_s=1.0))
    whole = protocol("rounds=2")
    one, three = (total(p, costs, PATIENTS, processes=1, epsilon_s=0.0) for p in (frozen, whole))
    assert one == pytest.approx(three / 3)
    assert reckon.traffic(frozen, costs, released=3).down < reckon.traffic(whole, costs, released=3).down


def test_evaluations_follow_the_protocol() -> None:
    assert reckon.judged(protocol("rounds=5", "evaluation.every=2"), released=3)["selection"] == 3
    assert reckon.judged(protocol("rounds=5", "privacy.metrics=none"), released=3)["site"] == 0
    parties = {"site_01": Party(women=50, films=1, parts={"train": 40, "test": 10}, exact=True),
               HELD_OUT: Party(women=60, films=1, parts={"selection": 20, "test": 40}, exact=True)}  # fmt: skip
    frozen = protocol("rounds=4")
    rounds, ending = reckon.judging_seconds(frozen, measured(cost("image"), cost("fusion")), parties, processes=1)
    assert rounds == pytest.approx(5 * 0.1 * 20)
    assert ending == pytest.approx(40 * 1.0 + 10 * 0.1)


def test_long_round_numbers_have_more_bytes() -> None:
    costs = measured(cost("image"), cost("fusion"))
    nine, ten = (reckon.traffic(protocol(f"rounds={n}"), costs, released=0) for n in (9, 10))
    assert ten.down - nine.down == 3 * 1001 + 1000


def test_sites_are_shared_out_as_the_pool_does_it() -> None:
    assert reckon.share({"a": 5, "b": 9, "c": 4, "d": 1}, 2) == [["b", "d"], ["a", "c"]]


def test_constants_that_are_repeated_are_the_trainers_own() -> None:
    assert (reckon.LOAD_BYTES, reckon.KEPT_REPLIES) == (LOAD_BYTES, KEPT_REPLIES)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(3, 1.3), (10, 2.0)], (1.0, 0.1)),
        ([(3, 2.0), (10, 1.0)], (0.0, 1.5 / 6.5)),  # noise: no woman takes less than nothing
        ([(5, 1.0), (5, 3.0)], (0.0, 0.4)),
        ([(0, 1.0)], (0.0, 0.0)),
    ],
)
def test_a_line_never_falls(points: list[tuple[int, float]], expected: tuple[float, float]) -> None:
    assert miniature.line(points) == pytest.approx(expected)


def test_epsilon_of_a_plan_is_what_a_ledger_adds_up_to() -> None:
    from client.privacy.accountant import Account

    frozen = protocol("rounds=3", "privacy=patient", "privacy.noise_multiplier=1.5")
    found = child.spend(frozen, [1, 3], [1e-4])
    steps, rate = frozen.training.steps_per_round, frozen.training.sample_rate
    for number, epsilon in found.curve:
        account = Account().add(noise_multiplier=1.5, sample_rate=rate, steps=number * steps)
        assert epsilon == account.epsilon(delta=1e-5)
    assert set(found.other_deltas) == {"0.0001"} and 0 < found.other_deltas["0.0001"] < found.curve[-1][1]
    assert child.spend(protocol(), [3], [1e-4]).curve == ()


def forecast(**changes: Any) -> Forecast:
    values: dict[str, Any] = {
        "study": "big", "sites": 3, "sites_per_round": 3, "women": 240, "films": 911, "exact": True, "train": PATIENTS,
        "selection": 30, "test": 60, "rounds": 12, "steps_per_round": 8, "phases": (("fusion", 12),),
        "privacy": "patient", "sigma": 1.5, "delta": 1e-5, "budget": 8.0, "epsilon": ((6, 5.5), (12, 7.999)),
        "other_deltas": {"0.0001": 6.6}, "metrics_epsilon": 4.39, "parameters": 108_551, "weights_bytes": 434_204,
        "traffic": reckon.Traffic(site_round_down=441_200, site_round_up=441_400, down=16_000_000, up=15_900_000),
        "longest_round_s": 3.0, "deadline_s": 600.0,
        "stages": (Stage("Train", 100.0, "12 rounds"), Stage("Rest", 25.0)),
        "memory": reckon.Memory(preparing=300_000_000, running=900_000_000, mapped=34_000_000),
        "disk": reckon.Disk(films=34_000_000, cohorts=34_300_000, run=6_000_000), "measured_s": 20.0,
    }  # fmt: skip
    return Forecast(**(values | changes))


def text_of(forecast: Forecast, *, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(draw(forecast))
    return console.export_text()


def test_what_is_printed_says_what_is_an_estimate() -> None:
    text = text_of(forecast())
    for words in ("about 2 min 05 s, 900.0 MB of memory, 31.9 MB between", "epsilon 8.00 for each patient", "(counted)",
                  "6.60 at delta 0.0001", "estimates from a miniature", "30 to 40 training women"):  # fmt: skip
        assert words in " ".join(text.split()), words
    assert "late" not in text
    assert "not all were drawn" in text_of(forecast(exact=False))
    assert max(len(line) for line in text_of(forecast(), width=70).splitlines()) <= 70


def test_without_privacy_no_epsilon_is_promised_and_a_round_near_its_deadline_is_told() -> None:
    text = text_of(forecast(privacy="none", epsilon=(), longest_round_s=400.0))
    assert "epsilon is not bounded" in text and "raise strategy.deadline_s" in text


@pytest.mark.parametrize("patient_s,steps", [(1e-4, 8), (0.05, 2), (100.0, 1)])
def test_the_miniature_keeps_the_recipe_and_fits_its_time(patient_s: float, steps: int) -> None:
    frozen = protocol("rounds=7", "privacy=patient", "privacy.noise_multiplier=1.5")
    few = miniature.miniature_protocol(frozen, {"site_01": 3, "site_02": 10}, patient_s=patient_s)
    assert [phase.rounds for phase in few.training.phases] == [2] * len(frozen.training.phases)
    assert few.training.steps_per_round == steps and few.training.sample_rate == 1.0
    assert few.model == frozen.model and few.privacy.noise_multiplier == 1.5 and few.loss == frozen.loss
