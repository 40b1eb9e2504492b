"""The sentence beside a map: of this model, by kind of lesion, and a warning where half is not shown."""

from __future__ import annotations

from typing import Any

from shared_model.map_figures import NOT_MEASURED, MapFigures


def share(value: float, low: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": min(1.0, 2 * value - low)}


def figure(pointing: dict[str, float], women: int = 120, **more: Any) -> dict[str, Any]:
    return {"method": "hirescam", "women": women, "films": 2 * women, "tolerance_mm": 5.0, "pointing": pointing,
            "inside": pointing, "chance": 0.14, "energy": pointing, "energy_chance": 0.08, "side": pointing,
            **more}  # fmt: skip


def words(pointing: dict[str, float], **more: Any) -> str:
    row = figure(pointing, cohort="synthetic women", **more)
    return MapFigures.model_validate({"model_sha256": "0" * 64, "cohort": "synthetic women",
                                      "methods": {"hirescam": row}}).words("hirescam")  # fmt: skip


def test_the_sentence_has_n_interval_and_chance() -> None:
    assert words(share(0.66, 0.61)) == (
        "On 120 synthetic women with known lesions that the model never saw the strongest place of such a map was "
        "within 5 mm of the lesion in 66% of films (95 % interval 61%-71%; chance 14%)."
    )


def test_a_lower_bound_below_a_half_is_said() -> None:
    assert "not shown to be right in at least half" in words(share(0.54, 0.49))
    assert "not shown" not in words(share(0.55, 0.5))


def test_kinds_of_lesions_are_named_where_there_are_enough_of_both() -> None:
    mass, few = figure(share(0.7, 0.6), women=80), figure(share(0.1, 0.0), women=9)
    assert "By kind of lesion: mass 70%, calcification 10%." in words(
        share(0.6, 0.55), lesions={"mass": mass, "calcification": {**few, "women": 10}})  # fmt: skip
    assert "By kind" not in words(share(0.6, 0.55), lesions={"mass": mass, "calcification": few})


def test_a_method_that_was_not_measured_has_no_figure() -> None:
    assert MapFigures(model_sha256="0" * 64, cohort="synthetic women").words("hirescam") == NOT_MEASURED
