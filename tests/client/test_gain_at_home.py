"""`site gain HOME` at an enrolled site after a study: the released folder, its signature, the approved protocol."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from client.cli import site as command
from client.deploy.home import SiteHome
from client.gain.at_home import study_at_home
from client.gain.study import work_out
from client.trainer.consent import approve
from server.release import write_release
from server.reporting import Signature, write_passport
from shared_model.errors import (
    ConfigError,
    MammoFedError,
    PassportError,
    ProtocolError,
    SignatureError,
)
from shared_model.passport import PASSPORT
from shared_model.protocol import Protocol
from shared_model.released import RELEASE
from shared_model.signing import SigningKey
from tests.client.deploy.test_consent import KEY, NAME, make_scene
from tests.conftest import make_study
from tests.finished import finish

ROUNDS = [{"name": "all", "rounds": 3, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


@dataclass(frozen=True)
class Enrolled:
    """home: of site-01, that approved the study. run: the coordinator's run directory. model: what it handed out."""

    home: SiteHome
    run: Path
    model: Path


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    folder = tmp_path_factory.mktemp("enrolled")
    study = make_study(folder / "study", private=True, patients=40, training__phases=ROUNDS)
    scene = make_scene(folder, study)
    scene.policy(salt="unit")  # its own would leave five test women or fewer in one home of six, at times none ill
    approve(scene.home, scene.signed)
    run = finish(study)
    write_passport(run, Signature(kind="coordinator", name=NAME, key=KEY))
    write_release(run, folder / "model")
    return Enrolled(scene.home, run, folder / "model")


def gain(place: Path, *more: object) -> Result:
    return CliRunner().invoke(command, ["gain", str(place), *map(str, more)])


def test_the_command_that_a_person_types(enrolled: Enrolled, tmp_path: Path) -> None:
    done = gain(enrolled.home.folder, "--model", enrolled.model, "--output", tmp_path / "gain.json")
    assert done.exit_code == 0, done.output
    assert f"of the coordinator {NAME}, with the key that is known here" in done.output
    row = json.loads((tmp_path / "gain.json").read_text())
    assert set(row["models"]) == {"shared", "public", "local"} and row["site"] == "site-01" and row["n"] > 5
    assert row["passport_sha256"] and row["transfer"]["wanted"] == 0.85
    found = study_at_home(enrolled.home.folder, model=enrolled.model, initial=None, summary=None)
    threshold = json.loads((enrolled.model / RELEASE).read_text())["thresholds"]["fused"]
    scored = work_out(found, local=False)
    assert scored["transfer"] == row["transfer"], "the released threshold, as by hand"
    given = {"metrics": {"held_out": {"models": {"fused": {"threshold": threshold}}}}}
    assert found.summary == given


def test_a_folder_in_models_is_found_by_itself(enrolled: Enrolled) -> None:
    models = enrolled.home.folder / "models"
    with_none = gain(enrolled.home.folder, "--no-local")
    assert isinstance(with_none.exception, ConfigError) and with_none.exception.exit_code == 10
    assert "mammofed server release" in str(with_none.exception) and "models" in str(with_none.exception)
    shutil.copytree(enrolled.model, models / "unit")
    try:
        assert gain(enrolled.home.folder, "--no-local").exit_code == 0
        shutil.copytree(enrolled.model, models / "other")
        several = gain(enrolled.home.folder, "--no-local").exception
        assert isinstance(several, ConfigError) and "other, unit" in str(several)
    finally:
        shutil.rmtree(models)


def test_what_the_sites_own_coordinator_did_not_sign_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    def refused(folder: Path) -> BaseException | None:
        return gain(enrolled.home.folder, "--no-local", "--model", folder).exception

    changed = shutil.copytree(enrolled.model, tmp_path / "changed")
    data = bytearray((changed / "model.safetensors").read_bytes())
    data[-40] ^= 1
    (changed / "model.safetensors").write_bytes(data)
    assert isinstance(refused(changed), PassportError)
    (changed / PASSPORT).unlink()
    assert isinstance(refused(changed), PassportError), "a site that knows its coordinator takes no model without one"
    foreign = shutil.copytree(enrolled.run, tmp_path / "foreign")
    (foreign / PASSPORT).unlink()
    write_passport(foreign, Signature(kind="coordinator", name=NAME, key=SigningKey.generate()))
    write_release(foreign, tmp_path / "model")
    assert isinstance(refused(tmp_path / "model"), SignatureError)


def test_a_study_that_the_site_did_not_approve_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    run = finish(make_study(tmp_path / "other", private=True, patients=40, training__phases=ROUNDS, seed=99))
    write_passport(run, Signature(kind="coordinator", name=NAME, key=KEY))
    write_release(run, tmp_path / "model")
    said = gain(enrolled.home.folder, "--no-local", "--model", tmp_path / "model").exception
    assert isinstance(said, ProtocolError) and "did not approve" in str(said)
    assert isinstance(said, MammoFedError) and said.exit_code == 30


def test_weights_alone_are_scored_and_said_to_have_no_passport(enrolled: Enrolled, tmp_path: Path) -> None:
    bare = gain(enrolled.home.folder, "--no-local", "--model", enrolled.run / "model.safetensors").exception
    assert isinstance(bare, ProtocolError), "their metadata name no study"
    sha256 = Protocol.read(enrolled.run / "protocol.json").sha256
    save_file(load_file(enrolled.run / "model.safetensors"), tmp_path / "model.safetensors", {"protocol": sha256})
    done = gain(enrolled.home.folder, "--no-local", "--model", tmp_path / "model.safetensors")
    assert done.exit_code == 0 and "! no passport: nobody vouches" in done.output
