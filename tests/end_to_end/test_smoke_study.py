"""Whole studies from DICOM files to the report, with real trainers: the run directory, resume, the same bits."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from safetensors.numpy import load_file

from client.trainer.config import SiteConfig
from shared_model.cohort import Cohort
from shared_model.messages import weights_sha256
from shared_model.passport import verify
from shared_model.phases import told
from shared_model.protocol import Protocol
from simulations.forecast.command import plan

pytestmark = pytest.mark.slow
SUMMARY_SCHEMA = Path(__file__).parents[2] / "server" / "rounds" / "summary.schema.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


def command(place: Path, run: str, *overrides: str) -> list[str]:
    return [
        sys.executable, "-m", "mammofed", "simulate", "study=smoke", f"hydra.run.dir={place / run}",
        f"cache={place / 'cache'}", *overrides,
    ]  # fmt: skip


def simulate(place: Path, run: str, *overrides: str) -> Path:
    result = subprocess.run(command(place, run, *overrides), cwd=place, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return place / run


@pytest.fixture(scope="module")
def private_run(place: Path) -> Path:
    return simulate(place, "private")


@pytest.fixture(scope="module")
def plain_run(place: Path) -> Path:
    return simulate(place, "plain", "privacy=none")


def summary(run: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((run / "summary.json").read_text())
    return document


def test_the_run_directory_keeps_its_contract(private_run: Path) -> None:
    for name in ("protocol.json", "journal.sqlite", "model.safetensors", "summary.json", "report.html", "passport.json",
                 "sbom.cdx.json"):
        assert (private_run / name).stat().st_size > 0, name
    rounds = sorted(p.name for p in (private_run / "checkpoints").glob("round-*.safetensors"))
    assert rounds == [f"round-{r:04d}.safetensors" for r in range(len(rounds))] or rounds == [
        f"round-{r:04d}.safetensors" for r in range(1, len(rounds) + 1)
    ]
    document = summary(private_run)
    Draft202012Validator(json.loads(SUMMARY_SCHEMA.read_text())).validate(document)
    assert document["status"] == "COMPLETE" and document["rounds_completed"] == 3
    protocol = Protocol.read(private_run / "protocol.json")
    assert document["protocol_sha256"] == protocol.sha256


def test_the_passport_vouches_for_the_model_and_the_model_is_exported(private_run: Path, tmp_path: Path) -> None:
    said = verify(private_run).signed.passport
    assert said.model.sha256 == summary(private_run)["model"]["sha256"]  # type: ignore[index]
    assert said.data.kind == "synthetic" and max(row.epsilon or 0.0 for row in said.privacy.sites) <= 8.0
    pytest.importorskip("onnxruntime")
    from shared_model.export.export import export_onnx

    assert export_onnx(private_run, tmp_path / "model.onnx").parity.worst < 1e-4


def test_maps_are_checked_on_the_studys_own_unseen_women(private_run: Path, place: Path) -> None:
    """Too few in a smoke study for a figure: it says so, also in the passport; the command measures what there is."""
    before = json.loads((private_run / "localisation.json").read_text())
    assert before["methods"] == {} and "fewer than 20" in before["reason"]
    assert any("not measured" in words for words in verify(private_run).signed.passport.limits)
    args = [sys.executable, "-m", "mammofed", "simulate", "localise", str(private_run), "--women", "3", "--method",
            "hirescam"]  # fmt: skip
    done = subprocess.run(args, cwd=place, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    found = json.loads((private_run / "localisation.json").read_text())
    assert found["methods"]["hirescam"]["women"] == 3 and found["encoder"] == {"moved": 0.0, "private": True}
    verify(private_run)  # a later measurement does not spoil what was signed


def test_the_evaluators_cancers_are_told_by_kind_and_no_site_knows_them(private_run: Path) -> None:
    cohorts = {home.name: Cohort.open(SiteConfig.read(home / "site.json").cohort)
               for home in (private_run / "sites").iterdir()}  # fmt: skip
    assert [name for name, cohort in cohorts.items() if "lesion_type" in cohort.attribute_names] == ["evaluator"]
    found = cohorts["evaluator"].attributes["lesion_type"]
    assert ((found == "no cancer") == (cohorts["evaluator"].labels == 0)).all()
    groups = summary(private_run)["metrics"]["held_out"]["subgroups"]  # type: ignore[index]
    assert {"mass", "calcification"} <= {row["level"] for row in groups if row["name"] == "lesion_type"}


def test_the_next_study_goes_on_with_model_split_and_ledgers(place: Path, private_run: Path) -> None:
    run = simulate(place, "next", "name=next", f"weights={private_run}", "privacy.epsilon=14")
    terms = Protocol.read(run / "protocol.json").replacement
    assert terms is not None and terms.passport_sha256 == verify(private_run).signed.sha256
    spent = {row.site: row.epsilon or 0.0 for row in verify(run).signed.passport.privacy.sites}
    before = {row.site: row.epsilon or 0.0 for row in verify(private_run).signed.passport.privacy.sites}
    assert all(before[site] < spent[site] <= 14.0 for site in before), "the ledger counts both studies"
    decision = json.loads((run / "replacement.json").read_text())
    assert decision["replaces"] in (True, False) and "site_01" in decision["drift"]
    assert all(row["index"] == 0.0 for row in decision["drift"]["site_01"]), "the same women"


def test_every_site_spent_what_the_protocol_says_and_not_more(private_run: Path) -> None:
    protocol = Protocol.read(private_run / "protocol.json")
    privacy = summary(private_run)["privacy"]
    assert isinstance(privacy, dict) and set(privacy) == {s.name for s in protocol.federation.sites}
    for entry in privacy.values():
        assert entry["unit"] == "patient" and entry["adjacency"] == "add_or_remove_one"
        assert entry["accountant"] == "prv" and entry["delta"] == protocol.privacy.delta
        assert entry["noise_multiplier"] == pytest.approx(protocol.privacy.noise_multiplier)
        assert entry["steps"] == protocol.rounds * protocol.training.steps_per_round
        assert 0.97 * protocol.privacy.epsilon < entry["epsilon"] <= protocol.privacy.epsilon


def test_a_plan_told_films_patients_epsilon_and_bytes_beforehand(place: Path, private_run: Path) -> None:
    """Exact quantities only: seconds and memory are estimates, and a test asserts none."""
    forecast = plan(["study=smoke", "engine.processes=1", f"cache={place / 'cache'}"], json_path=place / "plan.json")
    document = json.loads((place / "plan.json").read_text())
    assert document["epsilon"] == [list(point) for point in forecast.epsilon]
    assert forecast.films == len(list((place / "cache" / "populations").rglob("*.dcm")))
    protocol = Protocol.read(private_run / "protocol.json")
    assert forecast.sigma == protocol.privacy.noise_multiplier
    for site in protocol.federation.sites:
        assert abs(forecast.train[site.name] - site.patients) <= 5  # rounded to tens in the protocol
    with sqlite3.connect(f"file:{private_run / 'journal.sqlite'}?mode=ro", uri=True) as db:
        told = dict(db.execute("SELECT round, max(epsilon) FROM privacy WHERE release = 'training' GROUP BY round"))
        query = "SELECT DISTINCT bytes_down FROM participation"
        assert db.execute(query).fetchall() == [(forecast.traffic.site_round_down,)]
        for (up,) in db.execute("SELECT bytes_up FROM participation"):
            assert abs(up - forecast.traffic.site_round_up) <= 64  # seconds and epsilon have more or fewer digits
    assert dict(forecast.epsilon) == told
    found = summary(private_run)["bytes"]
    assert isinstance(found, dict)
    assert forecast.traffic.down == pytest.approx(found["down"], rel=0.001)
    assert forecast.traffic.up == pytest.approx(found["up"], rel=0.01)  # reports differ in length
    assert not list((place / "cache").glob(".plan-*"))


@pytest.mark.parametrize("kind", ["private_run", "plain_run"])
def test_the_phases_of_a_site_s_round_fit_into_its_round_trip(kind: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(kind)
    coarse = Protocol.read(run / "protocol.json").coarse_times
    query = ("SELECT round_trip, wait, load, train, mask, send, p.seconds, r.seconds FROM phases JOIN participation p "
             "USING (round, attempt, site) JOIN rounds r USING (round, attempt)")  # fmt: skip
    with sqlite3.connect(f"file:{run / 'journal.sqlite'}?mode=ro", uri=True) as db:
        found = db.execute(query).fetchall()
    assert len(found) == 3 * len(Protocol.read(run / "protocol.json").federation.sites)
    for trip, *parts, seconds, whole in found:
        assert sum(parts) <= trip + 1e-6 and trip <= (1.13 if coarse else 1.0) * whole + 0.01
        assert parts[2] > 0 and parts[3] == 0, "it trained, and there is nothing to mask"
        assert seconds <= sum(parts) * (1.13 if coarse else 1.001) + 0.01, "the training is among the phases"
        assert all(value == told(value, coarse=coarse) for value in (*parts, seconds))


def test_under_privacy_no_loss_leaves_a_site(private_run: Path) -> None:
    with sqlite3.connect(f"file:{private_run / 'journal.sqlite'}?mode=ro", uri=True) as db:
        names = {row[0] for row in db.execute("select distinct name from metrics")}
    assert not {n for n in names if "loss" in n}


def test_no_identity_leaves_the_source_folders(place: Path, private_run: Path) -> None:
    """The women's ids and films' UIDs stand in the hospitals' own files; in cohorts and run directory they must not."""
    identities = {b"SYNTH^", b"SYNTH-"}
    for table in (place / "cache" / "populations").rglob("truth.csv"):
        rows = csv.DictReader(table.read_text().splitlines())
        identities |= {row[column].encode() for row in rows for column in ("sop_uid", "patient_id")}
    assert len(identities) > 100
    for path in [*private_run.rglob("*"), *(place / "cache" / "cohorts").rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert not [i for i in identities if i in content], path


def test_without_privacy_one_seed_gives_the_same_model_to_the_bit(place: Path, plain_run: Path) -> None:
    again = simulate(place, "plain-again", "privacy=none", "engine.processes=1")
    assert digest(again / "model.safetensors") == digest(plain_run / "model.safetensors")


def test_a_stopped_study_resumes_to_the_same_bits(place: Path, plain_run: Path) -> None:
    run = place / "stopped"
    with subprocess.Popen(command(place, "stopped", "privacy=none"), cwd=place, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: (run / "checkpoints" / "round-0001.safetensors").exists(), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=1500) == 130
    assert summary(run)["status"] == "STOPPED"
    resume = [sys.executable, "-m", "mammofed", "simulate", "resume", str(run)]
    result = subprocess.run(resume, cwd=place, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-3000:]
    assert summary(run)["status"] == "COMPLETE"
    assert digest(run / "model.safetensors") == digest(plain_run / "model.safetensors")


def test_a_killed_study_resumes_to_the_same_bits(place: Path, plain_run: Path) -> None:
    run = place / "killed"
    process = subprocess.Popen(
        command(place, "killed", "privacy=none"), cwd=place, stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: (run / "checkpoints" / "round-0001.safetensors").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)  # launcher and trainers together, as a power cut would
    process.wait(timeout=60)
    resume = [sys.executable, "-m", "mammofed", "simulate", "resume", str(run)]
    result = subprocess.run(resume, cwd=place, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-3000:]
    assert digest(run / "model.safetensors") == digest(plain_run / "model.safetensors")


def test_the_chosen_model_is_the_one_that_the_rule_names(plain_run: Path) -> None:
    document = summary(plain_run)
    model = document["model"]
    assert isinstance(model, dict)
    weights = load_file(plain_run / "model.safetensors")
    assert weights_sha256(weights) == model["sha256"]
    with sqlite3.connect(f"file:{plain_run / 'journal.sqlite'}?mode=ro", uri=True) as db:
        query = "select round, value from metrics where scope = 'selection' and name = 'auc_fused'"
        rows = db.execute(query).fetchall()
    best = max(rows, key=lambda row: (row[1], -row[0]))[0]
    assert model["round"] == best


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 1500) -> None:  # type: ignore[no-untyped-def]
    """Poll until the condition holds; fail at once when the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the study ended before it could be disturbed"
        assert time.monotonic() < deadline, "the study did not get there"
        time.sleep(0.05)
