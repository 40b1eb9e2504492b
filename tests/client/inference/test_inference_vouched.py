"""A model is used as its passport says, or not at all; one without a passport is used and said to have none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient

from client.inference.cli import explain, predict
from client.inference.scorer import Scorer
from client.inference.serve import Service, make_app
from client.ingest.site_file import read_site
from shared_model.contract import load_contract
from shared_model.errors import MammoFedError, PassportError, SignatureError
from shared_model.passport import PASSPORT, Passport, SignedPassport
from shared_model.released import PROTOCOL, RELEASE, WEIGHTS, ReleasedModel
from shared_model.signing import SigningKey
from tests.client.inference.conftest import Hospital

LIMIT = "This model is no medical device: it was made up for a test."
NAMED = (WEIGHTS, PROTOCOL, RELEASE)


def signed(folder: Path, key: SigningKey, *, files: tuple[str, ...] = NAMED, **model: Any) -> SignedPassport:
    """Put a passport beside a release. files: that it names; model: fields of ModelPart that say something else."""
    release, protocol = ReleasedModel.read(folder).release, ReleasedModel.read(folder).protocol
    data = {name: (folder / name).read_bytes() for name in files}
    values = {
        "study": release.study, "protocol_sha256": release.protocol_sha256, "status": "COMPLETE",
        "made": "2026-11-26T12:00:00Z", "rounds_planned": 3, "rounds_closed": 3,
        "model": {"size": "tiny", "fusion": "gated", "sha256": release.model_sha256, "parameters": 1,
                  "round": release.round, "rule": "last", "thresholds": release.thresholds,
                  "specificity": release.specificity, "temperature": release.temperature, "origin": "public",
                  "recipe": "", "initial_sha256": release.model_sha256} | model,
        "data": {"kind": "synthetic", "words": "", "contract_version": "1", "n_features": 1, "height": 1, "width": 1,
                 "contract_sha256": protocol.contract.sha256, "pipeline_sha256": protocol.pipeline.sha256,
                 "spacing_mm": 1.0},
        "sites": [], "limits": [LIMIT],
        "privacy": {"mode": "none", "unit": "patient", "adjacency": "x", "accountant": "prv", "delta": 1e-5,
                    "planned_epsilon": 0.0, "clip": 1.0, "noise_multiplier": 0.0, "sites": []},
        "metrics": {"confidence": 0.95, "test": {}, "comparisons": [], "groups": [], "sites": {}},
        "files": [{"name": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "needed": True}
                  for name, content in data.items()],
        "software": {"release": "1", "code_sha256": "0" * 64, "versions": {}, "components": 1},
        "record": {"journal_sha256": None, "head": None},
    }  # fmt: skip
    passport = Passport.model_validate_json(json.dumps(values))
    made = SignedPassport.sign(passport, kind="coordinator", name="hub", key=key)
    (folder / PASSPORT).write_bytes(made.to_json())
    return made


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def model(model_folder: Path, tmp_path: Path, key: SigningKey) -> Path:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    signed(folder, key)
    return folder


def run(command: Any, hospital: Hospital, model: Path, out: Path, *more: str) -> Result:
    patient = hospital.ids[0]
    who = ["--patient", patient] if command is predict else [patient]
    return CliRunner().invoke(command, [str(hospital.site_yaml), *who, "--model", str(model), "--out", str(out), *more])


def texts_of_report(folder: Path) -> list[str]:
    report = next(o for o in map(pydicom.dcmread, folder.iterdir()) if o.Modality == "SR")
    return [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]


def test_limits_of_use_are_said_wherever_a_result_is(
    hospital: Hospital, model: Path, key: SigningKey, tmp_path: Path
) -> None:
    said = run(predict, hospital, model, tmp_path / "out", "--fhir", "--dicom", "--key", key.public.hex)
    assert said.exit_code == 0 and f"Limit       {LIMIT}" in said.output
    assert "of the coordinator hub, with the key that is known here" in said.output
    passport = SignedPassport.read(model / PASSPORT)
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document["passport"]["limits"] == [LIMIT] and document["passport"]["key_known"] is True
    assert document["passport"]["signer"]["key"] == key.public.hex
    assert document["predictions"][0]["passport_sha256"] == document["passport"]["sha256"] == passport.sha256
    resource = json.loads(next((tmp_path / "out" / "fhir").iterdir()).read_text())
    assert f"Limit of use: {LIMIT}" in [note["text"] for note in resource["note"]]
    texts = texts_of_report(tmp_path / "out" / "dicom")
    assert f"limit of use: {LIMIT}" in texts and any(passport.sha256[:16] in text for text in texts)
    said = run(explain, hospital, model, tmp_path / "pages")
    assert said.exit_code == 0 and "by the passport's own word" in said.output
    page = next((tmp_path / "pages").iterdir()).read_text()
    assert LIMIT in page and passport.sha256[:16] in page


def test_without_a_passport_it_is_said_and_never_silent(hospital: Hospital, model_folder: Path, tmp_path: Path) -> None:
    said = run(predict, hospital, model_folder, tmp_path / "out", "--dicom")
    assert said.exit_code == 0 and "! no passport: nobody vouches" in said.output
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document["passport"] is None and document["vouched"].startswith("no passport")
    assert any("no passport: nobody vouches" in text for text in texts_of_report(tmp_path / "out" / "dicom"))


def test_a_site_that_names_its_coordinator_uses_no_other_model(
    hospital: Hospital, model: Path, key: SigningKey, tmp_path: Path
) -> None:
    values = yaml.safe_load(hospital.site_yaml.read_text()) | {"coordinator": key.public.hex}
    shutil.copy(hospital.site_yaml.with_name("importer.key"), tmp_path / "importer.key")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
    site = read_site(tmp_path / "site.yaml")
    assert ReleasedModel.read(model, key=site.signer()).vouched.key_given
    signed(model, SigningKey.generate())
    with pytest.raises(SignatureError, match="another key"):
        ReleasedModel.read(model, key=site.signer())
    (model / PASSPORT).unlink()
    with pytest.raises(PassportError, match="has no passport") as raised:
        ReleasedModel.read(model, key=site.signer())
    assert raised.value.exit_code == 82


@pytest.mark.parametrize("name", [*NAMED, PASSPORT])
def test_any_changed_byte_is_refused_with_a_stable_code(model: Path, name: str) -> None:
    data = (model / name).read_bytes()
    for at in {0, len(data) // 3, len(data) // 2, len(data) - 2}:
        changed = bytearray(data)
        changed[at] ^= 1
        (model / name).write_bytes(changed)
        with pytest.raises((PassportError, SignatureError)) as raised:
            ReleasedModel.read(model)
        assert raised.value.exit_code in (33, 82)
    (model / name).write_bytes(data)
    ReleasedModel.read(model)


def rosier(folder: Path) -> None:
    """A release whose own hashes fit and whose bands look better: what nothing but a signature finds."""
    values = json.loads((folder / RELEASE).read_text())
    values["selection_positives"] += 20
    values["calibration"] = [[0.08, 0.0, 300]]
    (folder / RELEASE).write_text(json.dumps(values))


def lower(folder: Path) -> None:
    values = json.loads((folder / RELEASE).read_text())
    values["thresholds"]["fused"] -= 1.0
    (folder / RELEASE).write_text(json.dumps(values))


@pytest.mark.parametrize("change", [rosier, lower])
def test_a_release_that_somebody_wrote_anew_is_refused(model: Path, change: Callable[[Path], None]) -> None:
    change(model)
    with pytest.raises(PassportError, match=RELEASE):
        ReleasedModel.read(model)


def test_an_older_passport_that_does_not_name_the_release_still_binds_its_thresholds(
    model: Path, key: SigningKey
) -> None:
    signed(model, key, files=(WEIGHTS, PROTOCOL))
    assert "prevalence and bands are unsigned" in ReleasedModel.read(model).vouched.words
    lower(model)
    with pytest.raises(PassportError, match="thresholds"):
        ReleasedModel.read(model)


def test_the_service_names_the_passport_and_its_limits(hospital: Hospital, model: Path) -> None:
    scorer = Scorer(ReleasedModel.read(model), load_contract())
    with TestClient(make_app(Service(hospital.site, scorer, None, workers=1), token=None),
                    base_url="http://127.0.0.1") as client:  # fmt: skip
        said = client.get("/v1/model").json()
    assert said["passport"]["limits"] == [LIMIT] and said["passport_sha256"] == said["passport"]["sha256"]


def test_a_command_ends_with_the_errors_code(hospital: Hospital, model: Path, tmp_path: Path) -> None:
    rosier(model)
    said = run(predict, hospital, model, tmp_path / "out")
    assert isinstance(said.exception, MammoFedError) and said.exception.exit_code == 82
    assert not (tmp_path / "out").exists(), "nothing is written by a model that is not what it says"
