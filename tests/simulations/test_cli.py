"""The command line is a contract: names, Hydra's own behaviour, exit codes, and no torch where none is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulations.cli import simulate

MAMMOFED = [sys.executable, "-m", "mammofed"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MAMMOFED, *arguments], cwd=cwd, capture_output=True, text=True, timeout=600)


def test_the_commands_are_these(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    names = [line.split()[0] for line in result.stdout.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert [n for n in names if n in ("simulate", "pretrain", "report")] == ["simulate", "pretrain", "report"]


def test_help_of_simulate_is_hydras_with_our_examples(tmp_path: Path) -> None:
    result = run("simulate", "--help", cwd=tmp_path)
    assert result.returncode == 0
    for words in (
        "privacy: none, patient", "personal: fedbn_like, head, none", "mammofed simulate resume RUN_DIR",
        "design: cross_validation, held_out, leave_one_site_out, temporal",
        "strategy: fedadam, fedavg, fedavgm, fedmedian, fedprox, fedyogi, krum, scaffold, trimmed_mean",
    ):  # fmt: skip
        assert words in result.stdout


def test_cfg_job_prints_the_composed_configuration_with_overrides(tmp_path: Path) -> None:
    result = run("simulate", "--cfg", "job", "privacy=none", "sites=8", "rounds=30", cwd=tmp_path)
    assert result.returncode == 0
    assert "sites: 8\n" in result.stdout and "rounds: 30\n" in result.stdout and "  mode: none\n" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments,code,words", [
    (["simulate", "privacy=some"], 1, "Could not find 'privacy/some'"),
    (["simulate", "sitez=3"], 1, "Key 'sitez' is not in struct"),
    (["simulate", "sites=0"], 10, "sites: must be a whole number"),
    (["simulate", "cohort.shift=label"], 10, "cohort.shift: unknown choice"),
    (["simulate", "compare", "."], 70, "neither a run nor a sweep"),
    (["simulate", "patients=10"], 10, "too few for the sites"),
    (["simulate", "rounds=1", "privacy=none"], 10, "too few for the phases"),
    (["simulate", "model=medium"], 32, "public weights"),
    (["simulate", "strategy=krum"], 10, "krum withstands 1 lying sites only with 5 or more replies"),
    (["simulate", "design=temporal"], 10, "design.until: nobody said which women are the later ones"),
    (["simulate", "design=temporal", "design.until=abc"], 10, "design.until: this is no year"),
    (["simulate", "resume", "."], 10, "no run that can be resumed"),
    (["simulate", "resume", "nowhere"], 2, "does not exist"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_a_stable_exit_code(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stdout + result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[" * 100_000])
def test_a_damaged_launch_file_is_refused_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "launch.json").write_text(content)
    (tmp_path / "protocol.json").write_text("{}")
    result = run("simulate", "resume", ".", cwd=tmp_path)
    assert result.returncode == 70, result.stdout + result.stderr
    assert "launch.json is damaged" in result.stderr and "Traceback" not in result.stderr


def test_a_run_directory_that_holds_a_study_is_not_begun_again_with_other_settings(tmp_path: Path) -> None:
    (tmp_path / "launch.json").write_text("kept")
    (tmp_path / "protocol.json").write_text("{}")
    result = run("simulate", "rounds=7", "hydra.run.dir=.", cwd=tmp_path)
    assert result.returncode == 10, result.stdout + result.stderr
    assert "holds a study already" in result.stderr and "simulate resume" in result.stderr
    assert (tmp_path / "launch.json").read_text() == "kept"


def test_a_run_directory_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("simulate", "study=smoke", f"cache={tmp_path}/file/cache", "hydra.run.dir=run", cwd=tmp_path)
    assert result.returncode == 70, result.stdout + result.stderr
    assert "Not a directory" in result.stderr and "Traceback" not in result.stderr


def test_a_multirun_ends_with_a_comparison_even_of_studies_that_were_refused(tmp_path: Path) -> None:
    result = run("simulate", "--multirun", "sites=0,-1", cwd=tmp_path)
    assert result.returncode == 10, result.stdout + result.stderr
    assert "Comparison" in result.stdout and result.stdout.count("FAILED") == 2 and "Traceback" not in result.stderr
    (sweep,) = (tmp_path / "runs").glob("sweep-*")  # its name must not need what Hydra knows only of single runs
    document = json.loads((sweep / "comparison.json").read_text())
    assert [job["overrides"] for job in document["jobs"]] == [["sites=0"], ["sites=-1"]]
    assert {job["exit_code"] for job in document["jobs"]} == {10}
    again = run("simulate", "compare", str(sweep), cwd=tmp_path)
    assert again.returncode == 60 and "sites=-1" in again.stdout


def test_the_launcher_itself_needs_no_torch() -> None:
    modules = "simulations.launch, simulations.comparison.sweep"
    code = f"import {modules}, sys; print(sorted({{'torch', 'opacus', 'ray'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert result.stdout.strip() == "[]"


def test_a_study_is_resumed_from_the_folder_that_its_trainers_see_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resume runs/quick-...` was a path that the trainers, who work elsewhere, did not find."""
    told: list[Path] = []
    monkeypatch.setattr("simulations.launch.resume", lambda run_dir: told.append(run_dir) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert CliRunner().invoke(simulate, ["resume", "runs"]).exit_code == 0
    assert told == [tmp_path / "runs"]
