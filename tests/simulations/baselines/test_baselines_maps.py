"""Heat maps of a comparison: all populations together, or nothing where one of them was not measured."""

from __future__ import annotations

from typing import Any

from server.reporting.maps import arms_part
from simulations.baselines.jobs import Job
from simulations.baselines.maps import maps_of
from simulations.baselines.trained import Trained
from tests.server.reporting.test_report_maps import measured


def trained(maps: Any, seed: int = 1) -> Trained:
    job = Job(seed=seed, arm="none", baseline="federated", parties=("a",), score="fused", overrides=())
    return Trained(job=job, scores={}, thresholds={}, temperature=1.0, summary={}, maps=maps)


def plain(pointing: float, moved: float = 0.041) -> dict[str, Any]:
    return measured(pointing=pointing, moved=moved).model_dump(mode="json")


def test_populations_stand_together_with_all_their_women() -> None:
    found = maps_of([trained(plain(0.6, moved=0.02)), trained(plain(0.7, moved=0.05), seed=2)])
    assert found is not None and (found["women"], found["films"], found["moved"]) == (240, 480, 0.05)
    assert 0.6 < found["pointing"] < 0.7 and found["pointing_low"] < 0.6
    assert abs(found["initial"] - 0.73) < 0.01
    (row,) = arms_part({"none": {"maps": found}})
    assert row["n"] == "240 (480)" and row["pointing"].startswith("65%")


def test_a_frozen_encoder_has_no_other_initial_figure() -> None:
    document = plain(0.6, moved=0.0)
    document["methods"]["hirescam"]["initial"] = None
    (row,) = arms_part({"epsilon_8": {"maps": maps_of([trained(document)])}})
    assert (row["initial"], row["moved"]) == ("the same", "not")


def test_one_population_without_a_measurement_leaves_the_arm_without() -> None:
    assert maps_of([trained(plain(0.6)), trained(None)]) is None
    assert maps_of([trained({"methods": {}})]) is None
