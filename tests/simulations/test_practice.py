"""`mammofed simulate cohorts`: cohorts to rehearse with, under the names that their sites will have."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from shared_model.cohort import Cohort
from shared_model.errors import ConfigError, StorageError
from simulations import practice
from simulations.cli import simulate
from simulations.composition import compose_study
from simulations.plan import pipeline_of
from simulations.practice import make_cohorts


def test_each_site_s_cohort_has_its_name_and_fits_the_protocol_of_the_rehearsal(tmp_path: Path) -> None:
    done = CliRunner().invoke(simulate, ["cohorts", str(tmp_path / "practice"), "--site", "north", "--site", "south",
                                         "patients=40", "held_out=20", "workers=1", f"cache={tmp_path}"])  # fmt: skip
    assert done.exit_code == 0, done.output
    cohorts = {name: Cohort.open(tmp_path / "practice" / name) for name in ("north", "south", "evaluator")}
    assert {name: cohort.site for name, cohort in cohorts.items() if name != "evaluator"} == {
        "north": "north", "south": "south"}  # fmt: skip
    assert {cohort.pipeline_sha256 for cohort in cohorts.values()} == {
        pipeline_of(compose_study(["study=smoke"])).sha256}  # fmt: skip
    for name, cohort in cohorts.items():
        assert f"{name:12} {len(cohort):5} women" in done.output


@pytest.mark.parametrize("sites", [[], ["North"], ["north", "north"], ["evaluator"], ["../north"]])
def test_names_that_no_site_can_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sites: list[str]
) -> None:
    monkeypatch.setattr(practice, "hospitals", None)
    with pytest.raises(ConfigError, match="--site"):
        make_cohorts(tmp_path / "practice", sites, [])
    assert not (tmp_path / "practice").exists()


def test_a_cohort_that_is_there_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(practice, "hospitals", None)
    (tmp_path / "south").mkdir()
    with pytest.raises(StorageError, match="south is there already"):
        make_cohorts(tmp_path, ["north", "south"], [])
    assert [path.name for path in tmp_path.iterdir()] == ["south"]
