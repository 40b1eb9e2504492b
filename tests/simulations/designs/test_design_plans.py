"""Designs: everybody tested where she was not trained on, and releases that add up."""

from __future__ import annotations

import numpy as np
import pytest

from shared_model.errors import CohortError, ConfigError
from simulations.designs.plans import (
    cross_validation,
    epsilon,
    in_words,
    leave_one_site_out,
    releases,
    temporal_hold_out,
)
from tests.conftest import make_study

SITES = {name: [f"{name}{i:04d}" for i in range(n)] for name, n in (("north", 80), ("south", 50))}
LABELS = {name: [i % 3 == 0 for i in range(len(women))] for name, women in SITES.items()}


def test_each_woman_is_tested_once_and_never_where_she_trained() -> None:
    runs = cross_validation(SITES, LABELS, k=5, salt="s")
    for site, women in SITES.items():
        tested = np.concatenate([run.test[site] for run in runs])
        assert sorted(tested) == list(range(len(women)))
        for run in runs:
            assert sorted([*run.train[site], *run.test[site]]) == list(range(len(women)))
    assert releases(runs) == {"north": 4, "south": 4}
    more = cross_validation({**SITES, "north": [*SITES["north"], "new"]}, {**LABELS, "north": [*LABELS["north"], 0]},
                            k=5, salt="s")  # fmt: skip
    assert all(set(a.test["north"]) <= set(b.test["north"]) for a, b in zip(runs, more, strict=True))
    with pytest.raises(CohortError, match="lacks a class"):
        cross_validation(SITES, {name: [0] * len(women) for name, women in SITES.items()}, k=5, salt="s")


def test_a_site_left_out_trains_nobody() -> None:
    runs = leave_one_site_out({**SITES, "west": ["w"]})
    assert [run.name for run in runs] == ["without_north", "without_south", "without_west"]
    assert all(set(run.train).isdisjoint(run.test) for run in runs)
    assert releases(runs) == {"north": 2, "south": 2, "west": 2}
    with pytest.raises(ConfigError, match="two sites"):
        leave_one_site_out({"north": ["a"]})


def test_the_later_women_are_tested() -> None:
    run = temporal_hold_out({"north": [2019.5, 2021.0, float("nan")], "south": [2022.0]}, until=2020)
    assert run.train["north"].tolist() == [0] and run.test["north"].tolist() == [1] and len(run.train["south"]) == 0
    assert releases([run]) == {"north": 1, "south": 0}
    with pytest.raises(CohortError, match="before and after"):
        temporal_hold_out({"north": [2019.0]}, until=2020)


def test_all_releases_add_up(tmp_path) -> None:  # type: ignore[no-untyped-def]
    protocol = make_study(tmp_path, private=True).protocol
    runs = cross_validation(SITES, LABELS, k=3, salt="s")
    spent, once = epsilon(protocol, runs), epsilon(protocol, runs[:1])
    assert spent["north"] > once["north"] > 0
    twice = protocol.model_copy()
    assert "All releases add up" in in_words(twice, runs) and "up to 2" in in_words(twice, runs)
    plain = make_study(tmp_path / "plain").protocol
    assert in_words(plain, runs) == "3 trainings without differential privacy."
    with pytest.raises(ConfigError, match="no differential privacy"):
        epsilon(plain, runs)
